"""Hostile messages are refused by one error type, in one line, and take no memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssfl.core.payloads import DenseValues
from tests.support.paths import ROOT
from tests.support.refusals import refusal
from tests.wire.attacks import FOLDER, GOOD, HELD, P, attacks, open_message, uniform, values

FILES = sorted(FOLDER.glob("*.bin"))
CHECK = """
import resource, sys
from pathlib import Path
from ssfl.core.reading import WireError
from tests.wire.attacks import FOLDER, GOOD, open_message

open_message(GOOD)  # whatever is loaded at the first call is loaded now
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit = int(status["VmSize"].split()[0]) * 1024 + (24 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(FOLDER.glob("*.bin")):
    try:
        open_message(path.read_bytes())
    except WireError:
        continue
    sys.exit(f"{path.name} was read")
"""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_attacks_are_refused_in_one_line(path: Path) -> None:
    refusal(lambda: open_message(path.read_bytes()))


def test_files_are_the_attacks() -> None:
    table = dict(attacks())
    assert {path.stem for path in FILES} == set(table)
    assert len(table) > 100
    for path in FILES:
        content = path.read_bytes()
        # Frames may come out differently from another version of zstd; what was kept stays hostile.
        assert content == table[path.stem] or content[:20] == table[path.stem][:20]


def test_what_the_attacks_were_made_from_is_good() -> None:
    part = open_message(GOOD).parts["w"]
    assert isinstance(part, DenseValues)
    assert part.values.equal(torch.zeros(P))
    referred = open_message(values(4, uniform(), reference=HELD.version)).parts["w"]
    assert isinstance(referred, DenseValues)
    assert referred.values.equal(torch.arange(float(P)))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_no_attack_makes_the_reader_take_memory() -> None:
    """All of them under a limit of 24 MiB above what the program takes before; the bombs hold 64 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
