"""Threads share the main thread's heap once they are told to."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

PROGRAM = """
import ctypes, threading
from flows.lifecycle import share_one_heap
{call}
thread = threading.Thread(target=lambda: [bytes(100_000) for _ in range(9)])
thread.start()
thread.join()
ctypes.CDLL(None).malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="expected glibc, whose heaps these are")
@pytest.mark.parametrize(("call", "heaps"), [("", 2), ("assert share_one_heap()", 1)])
def test_a_thread_has_a_heap_of_its_own_unless_it_is_told_otherwise(call: str, heaps: int) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(call=call)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.count("Arena ") == heaps
