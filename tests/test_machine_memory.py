"""The memory of this machine, or of the container."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssfl import machine_memory
from ssfl.machine_memory import memory_bytes


def test_this_machine_has_memory() -> None:
    total = next(
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    )
    assert 1e8 < memory_bytes() <= 1024 * int(total.split()[1])


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(("900000000\n", None), 900_000_000), ((None, "800000000\n"), 800_000_000), (("max\n", None), None)],
    ids=["version 2", "version 1", "no limit"],
)
def test_a_containers_limit_counts(
    texts: tuple[str | None, ...], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tuple(tmp_path / str(number) for number in range(len(texts)))
    monkeypatch.setattr(machine_memory, "CONTAINER_LIMITS", ())
    machine = memory_bytes()
    monkeypatch.setattr(machine_memory, "CONTAINER_LIMITS", paths)
    for path, text in zip(paths, texts, strict=True):
        if text is not None:
            path.write_text(text)
    assert memory_bytes() == min(machine, expected or machine)


def test_a_huge_number_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = memory_bytes()
    unlimited = tmp_path / "limit"
    unlimited.write_text("9223372036854771712\n")  # as version 1 writes it
    monkeypatch.setattr(machine_memory, "CONTAINER_LIMITS", (unlimited,))
    assert memory_bytes() >= machine
