"""Freed memory is kept between steps, shared by threads, and returned on request; each test in a new process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="settings of glibc's malloc"
)
BEGIN = """
import resource, threading, torch
from ssfl.engine.compute.malloc import *
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    maps = [torch.ones(1 << 20) for _ in range(16)]  # 64 MB in pieces of 4
    return sum(float(m[0]) for m in maps)
"""


def printed_numbers(code: str) -> list[float]:
    """The numbers that a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=True, timeout=120
    )
    return [float(word) for word in done.stdout.split()]


def test_a_step_reuses_the_memory_of_the_last() -> None:
    """Compared with a malloc that maps every large block (glibc's default depends on earlier allocations)."""
    code = """
import ctypes
{setting}
for _ in range(5):
    step()
before = faults()
step()
print(faults() - before)
"""
    always = 'ctypes.CDLL("libc.so.6").mallopt(-3, 1 << 17)'
    (mapped,), (kept,) = (
        printed_numbers(code.format(setting=always)),
        printed_numbers(code.format(setting="keep_freed_memory()")),
    )
    assert kept < 100 < mapped  # 64 MB are 16,000 pages


def test_what_is_free_is_given_back_once() -> None:
    before, after = printed_numbers(
        "keep_freed_memory(); step(); print(resident()); give_back_freed_memory(); print(resident())"
    )
    assert after < before - 50


def test_large_blocks_are_returned_as_soon_as_they_are_freed() -> None:
    """Blocks of 4 MB, freed in another order than they were made, between small ones that stay."""
    code = """
{setting}
def messages():
    small, large = [], []
    for _ in range(16):
        large.append(torch.ones(1 << 20))
        small.append(torch.ones(1 << 10))
    return small
step()
give_back_freed_memory()
before = resident()
small = messages()
print(resident() - before)
"""
    (kept,), (returned,) = (
        printed_numbers(code.format(setting=setting))
        for setting in ("keep_freed_memory()", "keep_freed_memory(); assert return_large_blocks()")
    )
    assert returned < 30 < 50 < kept


INSIDE_AND_OUTSIDE = """
{setting}
before = resident()
with kept_inside({model_bytes}):
    step()
    inside = resident() - before
print(inside, resident() - before)
"""
"""Prints how many MB more are resident inside the block, after a step, and outside it."""


def test_memory_of_a_large_model_is_kept_inside_and_returned_outside() -> None:
    code = INSIDE_AND_OUTSIDE.format(setting="return_large_blocks()", model_bytes=1 << 30)
    inside, outside = printed_numbers(code)
    assert outside < 30 < 50 < inside


def test_the_setting_of_a_small_model_is_left_as_it_is() -> None:
    """Each setting in a new process: malloc reuses what an earlier step left free in the heap, whatever is set."""
    kept = printed_numbers(INSIDE_AND_OUTSIDE.format(setting="keep_freed_memory()", model_bytes=1000))
    returned = printed_numbers(INSIDE_AND_OUTSIDE.format(setting="return_large_blocks()", model_bytes=1000))
    assert max(returned) < 30 < 50 < min(kept)


ARENAS = """
import ctypes, tempfile
{setting}
together = threading.Barrier(8)
threads = [threading.Thread(target=lambda: (together.wait(), step(), together.wait())) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL("libc.so.6")
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as report:
    file = ctypes.c_void_p(libc.fopen(report.name.encode(), b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
    print(report.read().count(b"<heap nr="))
"""
"""Prints malloc's number of arenas after eight threads that ran at the same time."""


@pytest.mark.parametrize(
    ("threads", "model_bytes", "arenas"),
    [(2, 1 << 30, 1), (8, 1 << 30, 2), (2, 1000, 2), (5, 1000, 5)],
)
def test_threads_share_memory_and_those_of_a_small_model_share_none(
    threads: int, model_bytes: int, arenas: int
) -> None:
    """Four threads per arena for a large model, one for a small model; without the setting there are more arenas."""
    assert printed_numbers(ARENAS.format(setting=f"keep_freed_memory({threads}, {model_bytes})")) == [arenas]


def test_malloc_by_itself_takes_more_arenas() -> None:
    (arenas,) = printed_numbers(ARENAS.format(setting=""))
    assert arenas > 5


def test_settings_are_taken() -> None:
    assert printed_numbers("print(int(keep_freed_memory(4)), int(give_back_freed_memory()))") in (
        [1, 0],
        [1, 1],
    )
