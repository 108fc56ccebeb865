"""Checkpoints: their content, damaged files, and that reading one never executes code."""

from __future__ import annotations

import hashlib
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
from ssfl.engine.accounting.ledger import Ledger
from ssfl.engine.client.memory import ClientMemory
from ssfl.engine.state.checkpoint import CheckpointError, Checkpoints
from ssfl.engine.state.progress import Progress
from ssfl.engine.state.serialization import Packer, RecordError, unpack
from ssfl.output import write_atomically
from tests.support.rigs import states_of


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
    "json_of_a_later_format": ("json", lambda raw: raw.replace(b'"format": 2', b'"format": 3')),
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
    """A mask that is shared by a hundred client states is stored once."""
    bits = torch.rand(1000) < 0.5
    state = MaskedState(torch.zeros(1000), bits, broadcast=True, holders=tuple(range(100)))
    whole = Progress(
        state, Clock(1, 9), None, Ledger(), {k: ClientMemory({"mask": bits}) for k in range(100)}
    )
    path = Checkpoints(tmp_path).save(whole)
    assert path.with_suffix(".safetensors").stat().st_size < 4000 + 1000 + 500
    got = Checkpoints(tmp_path).latest((MaskedState,))
    assert got is not None
    assert got[0].state.holders == tuple(range(100))
    states = states_of(got[0].client_memories)
    assert len(states) == 100
    assert all(s["mask"].equal(bits) for s in states.values())
    assert states[0]["mask"].data_ptr() == got[0].state.bits.data_ptr()


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
    """A record type that is not allowed in checkpoints."""

    value: int


def test_what_cannot_be_held_or_read_is_refused() -> None:
    with pytest.raises(RecordError, match="cannot hold a set"):
        Packer().pack({1, 2}.union())
    with pytest.raises(RecordError, match="cannot hold a type"):
        Packer().pack(Stranger)
    with pytest.raises(RecordError, match="contains a Stranger"):
        unpack(Packer().pack(Stranger(1)), {}, ())
    with pytest.raises(RecordError, match="unknown form"):
        unpack({"call": "os.system"}, {}, ())


# ── wrong contents with a valid digest ───────────────────────────────────────────────────────────────────────────────
def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Replace the content of the newest checkpoint, with a matching digest."""
    path = newest(folder, "json")
    head = json.loads(path.read_text())
    change(head)
    content = {"progress": head["progress"], "extra": head["extra"]}
    raw = newest(folder, "safetensors").read_bytes()
    head["digest"] = hashlib.blake2b(json.dumps(content).encode() + raw, digest_size=16).hexdigest()
    path.write_text(json.dumps(head))
    return path


def fields_of(head: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = head["progress"]["fields"]
    return found


def deep(depth: int = 100_000) -> str:
    return '{"map": [["a", ' * depth + "1" + "]]}" * depth


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a round that is a word": lambda h: fields_of(h)["clock"]["fields"].update(round="three"),
    "a round that is a truth": lambda h: fields_of(h)["clock"]["fields"].update(round=True),
    "a round before the first": lambda h: fields_of(h)["clock"]["fields"].update(round=0),
    "a round beyond the last": lambda h: fields_of(h)["clock"]["fields"].update(round=11),
    "a clock that is a number": lambda h: fields_of(h).update(clock=5),
    "a clock that is a ledger": lambda h: fields_of(h).update(clock=fields_of(h)["ledger"]),
    "bytes that are words": lambda h: fields_of(h)["ledger"]["fields"].update(uplink_bytes="many"),
    "a model that is a number": lambda h: fields_of(h)["state"]["fields"].update(theta=1.5),
    "a flag that is a list": lambda h: fields_of(h)["state"]["fields"].update(tuned={"tuple": [1]}),
    "memories that are a list": lambda h: fields_of(h).update(client_memories={"tuple": []}),
    "memories of words": lambda h: fields_of(h).update(client_memories={"map": [["a", 1]]}),
    "a memory that is a number": lambda h: fields_of(h).update(client_memories={"map": [[0, 1]]}),
    "an unhashable key": lambda h: fields_of(h).update(client_memories={"map": [[{"map": []}, 1]]}),
    "a scoreboard that is a clock": lambda h: fields_of(h).update(scoreboard=fields_of(h)["clock"]),
    "no form at all": lambda h: fields_of(h).update(state={"what": 1}),
    "extra that is a list": lambda h: h.update(extra=[]),
    "a position that is a word": lambda h: h["extra"].update(metrics_bytes="x"),
    "a position before the file": lambda h: h["extra"].update(metrics_bytes=-1),
    "seconds that never end": lambda h: h["extra"].update(wall_seconds=float("inf")),
}


@pytest.mark.parametrize("name", FORGED)
def test_well_digested_nonsense_falls_back_and_is_named(name: str, tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = forge(tmp_path, FORGED[name])
    assert loaded(store)[0] == 2
    (fault,) = store.passed_over
    assert str(path) in str(fault)
    assert "\n" not in str(fault)


def test_nesting_without_end_falls_back(tmp_path: Path) -> None:
    store = filled(tmp_path)
    newest(tmp_path, "json").write_text(deep())
    assert loaded(store)[0] == 2
    assert store.newest_facts() is not None


def test_a_state_that_the_run_cannot_go_on_from_falls_back(tmp_path: Path) -> None:
    """For example of another network, which only the run's check can detect."""
    store = filled(tmp_path, 2)
    store.save(progress(3, size=7))

    def check(found: Progress) -> None:
        if len(found.state.theta) != 5:
            raise IndexError("7 is not 5")

    got = store.latest((FedAvgState,), check)
    assert got is not None
    assert got[0].clock.round == 2
    assert "7 is not 5" in str(store.passed_over[0])


def test_what_is_not_ours_is_neither_read_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("mine")
    (tmp_path / "88888888.json").mkdir()
    (tmp_path / "00000002 (copy).json").write_text("{")
    (tmp_path / "folder").mkdir()
    (tmp_path / ".hidden").write_text("mine")
    others = set(tmp_path.iterdir())
    store = Checkpoints(tmp_path)
    assert store.newest_facts() is None
    for round_ in (1, 2, 3):
        store.save(progress(round_))
    assert others < set(tmp_path.iterdir())
    got = store.latest((FedAvgState,))
    assert got is not None
    assert got[0].clock.round == 3


def test_a_number_beyond_all_numbers_does_not_end_the_counting(tmp_path: Path) -> None:
    (tmp_path / "99999999.json").write_text("{")
    store = filled(tmp_path)
    assert loaded(Checkpoints(tmp_path))[0] == 3
    assert loaded(store)[0] == 3
    assert len(list(tmp_path.iterdir())) == 4


def test_no_room_leaves_the_checkpoints_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write = Path.write_bytes

    def full(path: Path, raw: bytes) -> int:
        if path.suffix == ".json":
            write(path, raw[:10])
            raise OSError(28, "No space left on device")
        return write(path, raw)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        store.save(progress(4))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_phases_make_no_checkpoint_by_rounds(tmp_path: Path) -> None:
    """No checkpoint by rounds before the first round, and none for a phase after a round."""
    store = Checkpoints(tmp_path, every_seconds=0, every_rounds=1)
    clocks = [1, 1, 1, 2, 2, 3, 3, 3]  # three phases, then a round with one after it, then one with two
    assert [store.due(progress(r)) for r in clocks] == [False] * 3 + [True, False, True, False, False]
