"""Short runs end with the recorded bits (minutes: `pytest -m slow tests/golden`)."""

from __future__ import annotations

import pytest

from tests.golden.runs import compare, machine_class, recorded


@pytest.mark.slow
def test_runs_end_in_the_recorded_bits() -> None:
    if machine_class() not in recorded():
        pytest.skip(
            f"no digests are recorded for {machine_class()}; python -m tests.golden.runs --record writes them"
        )
    assert compare() == []
