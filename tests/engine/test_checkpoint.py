"""Checkpoints: what they hold, what damage does to them, and that nothing in them can run code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from ssfl.algorithms.base import Clock
from ssfl.algorithms.fedavg import FedAvgState
from ssfl.algorithms.masked import MaskedState
from ssfl.core.payloads import DenseValues, MaskedValues, Payload
from ssfl.engine.checkpoint import CheckpointError, Checkpoints, write_atomically
from ssfl.engine.driver import Progress
from ssfl.engine.ledger import Ledger
from ssfl.engine.records import Packer, RecordError, unpack


def progress(round: int, size: int = 5) -> Progress:
    return Progress(
        FedAvgState(torch.arange(float(size)) + round), Clock(round, 9), None, Ledger(round, 2, 3)
    )


def filled(folder: Path, rounds: int = 3) -> Checkpoints:
    store = Checkpoints(folder)
    for round_ in range(1, rounds + 1):
        store.save(progress(round_), {"line": 10 * round_})
    return store


def newest(folder: Path, suffix: str) -> Path:
    return sorted(folder.glob(f"*.{suffix}"))[-1]


def loaded(store: Checkpoints) -> tuple[int, dict[str, Any]]:
    got = store.latest((FedAvgState,))
    assert got is not None
    round_ = got[0].clock.round
    assert got[0].state.theta.equal(progress(round_).state.theta)
    assert got[0].ledger == progress(round_).ledger
    return round_, got[1]


def test_the_newest_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.safetensors"))) == 2
    assert len(list(tmp_path.iterdir())) == 4
    assert loaded(store) == (3, {"line": 30})
    assert loaded(Checkpoints(tmp_path)) == (3, {"line": 30})


def test_an_empty_folder_holds_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).latest((FedAvgState,)) is None
    assert Checkpoints(tmp_path / "missing").latest((FedAvgState,)) is None


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "json_one_digit": ("json", lambda raw: raw.replace(b'"total": 9', b'"total": 8')),
    "json_extra": ("json", lambda raw: raw.replace(b'"line": 30', b'"line": 31')),
    "json_cut": ("json", lambda raw: raw[: len(raw) // 2]),
    "json_empty": ("json", lambda raw: b""),
    "json_not_text": ("json", lambda raw: b"\xff\xfe\x00" + raw),
    "json_list": ("json", lambda raw: b"[1, 2]"),
    "json_number": ("json", lambda raw: b"3"),
    "json_without_fields": ("json", lambda raw: b"{}"),
    "json_of_a_later_format": ("json", lambda raw: raw.replace(b'"format": 1', b'"format": 2')),
    "json_of_an_unknown_record": ("json", lambda raw: raw.replace(b"FedAvgState", b"FedProxState")),
    "json_of_an_unknown_field": ("json", lambda raw: raw.replace(b'"theta"', b'"phi"')),
    "json_of_a_missing_tensor": ("json", lambda raw: raw.replace(b'"t0"', b'"t9"')),
    "json_that_holds_no_progress": (
        "json",
        lambda raw: raw.replace(b'"record": "Progress"', b'"record": "Clock"'),
    ),
    "json_null_progress": ("json", lambda raw: json.dumps({**json.loads(raw), "progress": None}).encode()),
    "tensors_cut": ("safetensors", lambda raw: raw[:-1]),
    "tensors_empty": ("safetensors", lambda raw: b""),
    "tensors_one_bit": ("safetensors", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_falls_back_to_the_one_before(name: str, tmp_path: Path) -> None:
    store = filled(tmp_path)
    suffix, harm = DAMAGE[name]
    path = newest(tmp_path, suffix)
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    assert path.read_bytes() != whole
    assert loaded(store) == (2, {"line": 20})


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_missing_half_falls_back(suffix: str, tmp_path: Path) -> None:
    store = filled(tmp_path)
    newest(tmp_path, suffix).unlink()
    assert loaded(store)[0] == 2


def test_when_all_are_damaged_the_newest_is_named(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for path in tmp_path.glob("*.json"):
        path.write_bytes(b"{")
    with pytest.raises(CheckpointError, match=newest(tmp_path, "json").name):
        store.latest((FedAvgState,))


def test_a_crash_between_the_two_files_leaves_the_one_before_and_saving_goes_on(tmp_path: Path) -> None:
    filled(tmp_path)
    write_atomically(tmp_path / "00000004.safetensors", b"half")
    (tmp_path / ".00000004.json.99").write_bytes(b"{")
    store = Checkpoints(tmp_path)
    assert loaded(store)[0] == 3
    store.save(progress(4))
    assert loaded(store)[0] == 4
    assert len(list(tmp_path.iterdir())) == 4


def test_when_to_save(tmp_path: Path) -> None:
    every_two = Checkpoints(tmp_path, every_seconds=0, every_rounds=2)
    assert [r for r in range(2, 7) if every_two.due(progress(r))] == [3, 5]
    assert not Checkpoints(tmp_path, every_seconds=0, every_rounds=0).due(progress(3))
    assert Checkpoints(tmp_path, every_seconds=1e-9).due(progress(2))
    assert not Checkpoints(tmp_path, every_seconds=3600).due(progress(2))


def test_files_hold_plain_json_and_safetensors_only(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    json.loads(newest(tmp_path, "json").read_text())
    with safe_open(newest(tmp_path, "safetensors"), "pt") as file:
        assert list(file.keys()) == ["t0"]


def test_shared_tensors_are_stored_once(tmp_path: Path) -> None:
    """A hundred clients that remember one broadcast mask cost one mask."""
    bits = torch.rand(1000) < 0.5
    state = MaskedState(torch.zeros(1000), bits, told=True)
    whole = Progress(state, Clock(1, 9), None, Ledger(), {k: {"mask": bits} for k in range(100)})
    path = Checkpoints(tmp_path).save(whole)
    assert path.with_suffix(".safetensors").stat().st_size < 4000 + 1000 + 500
    got = Checkpoints(tmp_path).latest((MaskedState,))
    assert got is not None
    assert all(s["mask"].equal(bits) for s in got[0].client_states.values())
    assert got[0].client_states[0]["mask"].data_ptr() == got[0].state.bits.data_ptr()


def test_views_of_one_vector_are_kept_apart() -> None:
    base, packer = torch.arange(6.0), Packer()
    values = (base, base[:3], base[3:], base.view(2, 3), base.view(2, 3).T, base.to(torch.float64))
    back = unpack(packer.pack(values), packer.tensors, ())
    assert all(a.equal(b) and a.dtype == b.dtype for a, b in zip(values, back, strict=True))


def test_empty_tensors_are_kept_apart() -> None:
    packer = Packer()
    values = (torch.zeros(0), torch.zeros(0, dtype=torch.bool), torch.zeros(3, 0))
    back = unpack(packer.pack(values), packer.tensors, ())
    assert [(t.shape, t.dtype) for t in back] == [(t.shape, t.dtype) for t in values]


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers(0, 99) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_like)
def test_values_come_back_as_they_were(value: Any) -> None:
    packer = Packer()
    text = json.dumps(packer.pack(value))
    assert unpack(json.loads(text), packer.tensors, ()) == value


def test_not_a_number_comes_back() -> None:
    packer = Packer()
    back = unpack(packer.pack((float("nan"), float("inf"))), packer.tensors, ())
    assert str(back) == "(nan, inf)"


def test_payloads_in_a_state_come_back() -> None:
    packer = Packer()
    payload = Payload({"w": DenseValues(torch.ones(2)), "v": MaskedValues(torch.ones(1), b"12345678")}, 4)
    back = unpack(packer.pack(payload), packer.tensors, (Payload, DenseValues, MaskedValues))
    assert back.sender == 4
    assert list(back.parts) == ["w", "v"]
    assert back.parts["v"].support == b"12345678"


@dataclass(frozen=True)
class Stranger:
    """A record that no reader knows."""

    value: int


def test_what_cannot_be_held_or_read_is_refused() -> None:
    with pytest.raises(RecordError, match="cannot hold a set"):
        Packer().pack({1, 2}.union())
    with pytest.raises(RecordError, match="cannot hold a type"):
        Packer().pack(Stranger)
    with pytest.raises(RecordError, match="holds a Stranger"):
        unpack(Packer().pack(Stranger(1)), {}, ())
    with pytest.raises(RecordError, match="unknown form"):
        unpack({"call": "os.system"}, {}, ())
