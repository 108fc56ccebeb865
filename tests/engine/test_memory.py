"""Freed memory: kept between steps, shared by threads, given back when asked. In a process of its own each."""

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
from ssfl.engine.memory import give_back_freed_memory, keep_freed_memory
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    maps = [torch.ones(1 << 20) for _ in range(16)]  # 64 MB in pieces of 4
    return sum(float(m[0]) for m in maps)
"""


def told(code: str) -> list[float]:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=True, timeout=120
    )
    return [float(word) for word in done.stdout.split()]


def test_a_step_reuses_the_memory_of_the_last() -> None:
    """Against a malloc that maps every large block, which glibc's does more or less often by rules of its own."""
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
    (mapped,), (kept,) = told(code.format(setting=always)), told(code.format(setting="keep_freed_memory()"))
    assert kept < 100 < mapped  # 64 MB are 16,000 pages


def test_what_is_free_is_given_back_once() -> None:
    before, after = told(
        "keep_freed_memory(); step(); print(resident()); give_back_freed_memory(); print(resident())"
    )
    assert after < before - 50


def test_threads_reuse_each_others_memory() -> None:
    code = """
keep_freed_memory({threads})
for _ in range(4):
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
print(resident())
"""
    shared, apart = told(code.format(threads=2)), told(code.format(threads=64))
    assert shared[0] <= apart[0] + 5


def test_threads_of_a_small_model_keep_memory_of_their_own() -> None:
    """malloc's own account of its arenas, after two threads that lived at once."""
    code = """
import ctypes, tempfile
keep_freed_memory(2, {model_bytes})
together = threading.Barrier(2)
threads = [threading.Thread(target=lambda: (together.wait(), step(), together.wait())) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL("libc.so.6")
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as told:
    file = ctypes.c_void_p(libc.fopen(told.name.encode(), b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
    print(told.read().count(b"<heap nr="))
"""
    assert told(code.format(model_bytes=1000)) == [2]
    assert told(code.format(model_bytes=1 << 30)) == [1]


def test_settings_are_taken() -> None:
    assert told("print(int(keep_freed_memory(4)), int(give_back_freed_memory()))") in ([1, 0], [1, 1])
