"""The kernels use the widest instruction set of the processor, up to SSFL_MAX_ISA."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ssfl.native import available
from ssfl.native.library import MAX_ISA, IsaError, usable, using, widest
from ssfl.native.library import isa as used

pytestmark = pytest.mark.skipif(
    not available(), reason="the kernels were not built: no C compiler at installation"
)
X86 = ("avx512", "avx2", "sse2")


@pytest.mark.parametrize(
    ("cap", "sets", "wanted"),
    [
        ("avx512", X86, "avx512"),
        ("avx2", X86, "avx2"),
        ("sse2", X86, "sse2"),
        ("avx512", X86[1:], "avx2"),
        ("avx2", X86[2:], "sse2"),
        ("neon", ("neon",), "neon"),
    ],
)
def test_the_widest_up_to_the_cap(cap: str, sets: tuple[str, ...], wanted: str) -> None:
    assert widest(cap, sets) == wanted


@pytest.mark.parametrize(
    ("cap", "sets", "message"),
    [
        ("avx", X86, "SSFL_MAX_ISA='avx': unknown instruction set; allowed: avx512, avx2, sse2, neon"),
        ("neon", X86, "SSFL_MAX_ISA=neon: not of this kind of processor, which has avx512, avx2, sse2"),
        ("avx2", ("neon",), "SSFL_MAX_ISA=avx2: not of this kind of processor, which has neon"),
    ],
)
def test_a_wrong_cap_is_refused(cap: str, sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(IsaError, match=message):
        widest(cap, sets)


def test_one_of_another_processor_is_not_used() -> None:
    with pytest.raises(ValueError, match="this processor has no avx9"), using("avx9"):
        pass


def test_within_a_context(isa: str) -> None:
    for other in usable():
        with using(other):
            assert used() == other
        assert used() == isa


def run(*words: str, cap: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, MAX_ISA: cap}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)


def test_the_environment_caps(isa: str) -> None:
    program = "from ssfl.native.library import isa; print(isa())"
    assert run("-c", program, cap=isa).stdout.strip() == isa


def test_a_wrong_cap_is_one_line_for_the_user(isa: str) -> None:
    if isa != usable()[0]:
        pytest.skip("the same whatever the instruction set")
    ended = run("-m", "ssfl", "run", "preset=digits", cap="mmx")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("ssfl: SSFL_MAX_ISA='mmx': unknown instruction set")
