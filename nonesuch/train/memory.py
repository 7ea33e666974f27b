"""Freed memory stays with the process: on a processor, a fresh page costs several times what is computed in it.

The C library gives large blocks back to the system when they are freed, and the next tensor of that size begins on pages that the
system has to clear and map one by one. A network's intermediate tensors come and go in the same sizes at every step, so this is
paid at every operation: a product of two bf16 tensors of 32 MB took 46 ms here so, and 17 ms on kept pages; a training step of a
GAN at 32 x 32 lost a third of its time to it. Two settings of the GNU C library end that (man 3 mallopt). What a process holds
then is the most that it ever needed at once, as on a GPU.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Sequence

from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # mallopt's numbers for them
_USUAL = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 1 << 25, _TRIM_THRESHOLD: 1 << 26}  # where its own adaptation ends
_HUGEPAGE, _COLLAPSE, _PAGE, _LARGE_PAGE = 14, 25, 4096, 1 << 21  # madvise's numbers for: large pages for the new, for the old


def keep(kept: bool = True) -> bool:
    """Keep freed memory from now on, or (False) give it back as the C library usually does; returns whether it was understood.

    Nothing is changed where there is another C library, or where the user has set its variables (MALLOC_..., GLIBC_TUNABLES).
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    wanted = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1} if kept else _USUAL
    understood = [library.mallopt(name, value) == 1 for name, value in wanted.items()]
    if not kept:
        library.malloc_trim(0)
    return all(understood)


def large_pages(tensors: Sequence[Tensor]) -> None:
    """Ask for pages of 2 MiB, not 4 KiB, under tensors of the processor that are gone over at every step.

    A pass over several long arrays waits for the addresses of their pages: Adam over 36 M parameters is 8 % quicker so.
    """
    if sys.platform != "linux":
        return
    spans: list[list[int]] = []
    for start, end in sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors):
        if spans and start - spans[-1][1] < _LARGE_PAGE:  # a page may hold parts of several
            spans[-1][1] = end
        else:
            spans.append([start // _PAGE * _PAGE, end])
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in spans:
        madvise(start, end - start, _HUGEPAGE)
        madvise(start, end - start, _COLLAPSE)  # refused by old systems, and where no large page is free
