"""Memory while training: kept from step to step; how running out of it shows, and a batch in smaller parts instead."""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

FINAL = "could not create a primitive"
"""oneDNN, where there was no room to compile: it fails for ever in this thread then, however small the next try."""
SIGNS = ("can't allocate memory", "not enough memory", "bad_alloc", "bad allocation", FINAL)
"""What torch's allocator for CPUs and oneDNN say; neither has an error of its own."""


def can_be_smaller(error: BaseException) -> bool:
    """Whether an error means that memory did not suffice, and a smaller try may do."""
    return out_of_memory(error) and FINAL not in str(error)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def parts(count: int, size: int) -> Iterator[slice]:
    """``count`` crops in parts of nearly the same number, at most ``size``.

    A part is one larger rather than leave a crop alone, which would give batch normalisation nothing to compare.
    """
    number = -(-count // size)
    if size > 1:
        number = max(1, min(number, count // 2))
    edges = [count * i // number for i in range(number + 1)]
    yield from (slice(a, b) for a, b in pairwise(edges))


def statistics(network: nn.Module) -> list[Tensor]:
    """A copy of the running statistics, which a step that failed half-way has moved already."""
    return [buffer.detach().clone() for buffer in network.buffers()]


def restore_statistics(network: nn.Module, kept: list[Tensor]) -> None:
    """Put :func:`statistics` back."""
    with torch.no_grad():
        for buffer, old in zip(network.buffers(), kept, strict=True):
            buffer.copy_(old)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of mallopt(3)."""
USUAL_THRESHOLD = 128 * 1024
"""Both thresholds as glibc begins with them."""
KEPT = 2**30
"""Tensors up to this size are taken from memory that the process keeps."""

RESERVE = 2**28
"""Address space (no memory) set aside while training: where a limit counts it, a smaller try after a failure has room."""
_reserve: list[mmap.mmap] = []


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let the process keep the memory of freed tensors until the end, where its C library is glibc.

    Else each large tensor is a mapping of its own, which the kernel clears anew at every step: a third of a step's CPU time.
    """
    _set_thresholds(mapped_from=KEPT, trimmed_from=2**31 - 1)
    _reserve.append(mmap.mmap(-1, RESERVE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    try:
        yield
    finally:
        give_back()


def give_back() -> None:
    """Return what is kept but not used to the system, and keep nothing from now on."""
    gc.collect()  # an error's traceback may hold the tensors of its step in a circle
    _set_thresholds(mapped_from=USUAL_THRESHOLD, trimmed_from=USUAL_THRESHOLD)
    while _reserve:
        _reserve.pop().close()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _set_thresholds(*, mapped_from: int, trimmed_from: int) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_THRESHOLD, mapped_from)
        libc.mallopt(M_TRIM_THRESHOLD, trimmed_from)
        libc.malloc_trim(0)
