"""What is freed goes back to the system, where the C library can be told so."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys

import pytest

from onnxprune.heap import settled

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
GAPS = """
import resource
from onnxprune import heap
heap.MUCH = {much}
def size(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
held = [bytes(100_000) for _ in range(2000)]
last = held[::200]
del held
before = size()
heap.give_back()
print(before - size())
"""
LARGE = """
import resource
from onnxprune import heap
if {told}:
    heap.one_for_all()
def size(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
first = bytes(31 << 20)
del first  # from now on the C library lets blocks of this size lie in the heap
held = [bytearray(b"x" * (8 << 20)) for _ in range(20)]
before = size()
last = held.pop()
held.clear()
print(before - size())
"""
HEAPS = """
import ctypes, threading
from onnxprune import heap
if {one}:
    heap.one_for_all()
found = []
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
both = threading.Barrier(4)
def own():
    both.wait()
    found.append(libc.malloc(1000) >> 26)  # a heap of a thread lies on 64 MiB of its own
    both.wait()
threads = [threading.Thread(target=own) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
print(len(set(found)))
"""


def said(code: str) -> int:
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_gaps_in_the_heap_are_given_back() -> None:
    """190 MB that lie between what is held."""
    assert said(GAPS.format(much=1 << 20)) > 100


def test_little_is_left_where_it_is() -> None:
    assert said(GAPS.format(much=1 << 30)) == 0


def test_large_blocks_go_when_they_are_freed() -> None:
    """150 MB below one that is held."""
    assert said(LARGE.format(told=False)) < 50
    assert said(LARGE.format(told=True)) > 120


def test_threads_have_one_heap() -> None:
    assert said(HEAPS.format(one=False)) > said(HEAPS.format(one=True)) == 1


COLLECTED = """
import gc
from onnxprune import heap
heap.put_off()
print(gc.isenabled())
with heap.settled():
    print(gc.isenabled())
print(gc.isenabled())
"""


def test_cycles_are_looked_for_among_what_a_job_makes() -> None:
    with settled():
        assert gc.get_freeze_count()
        with settled():
            pass
        assert gc.get_freeze_count()  # the outer job goes on
    assert not gc.get_freeze_count()


def test_what_others_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        with settled():
            pass
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


def test_no_cycles_are_looked_for_before_the_first_job() -> None:
    done = subprocess.run([sys.executable, "-c", COLLECTED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]
