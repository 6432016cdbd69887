"""Memory of weights that are pages of a checkpoint's files.

A model is loaded by mapping its files, and a page that was looked at stays with the process for as long as any tensor
of that file lives: also where the one that it belongs to was let go.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor

_PAGEOUT = 21
"""MADV_PAGEOUT of Linux: pages go, and come again with the same content when they are looked at."""


def let_pages_go(tensor: Tensor) -> None:
    """Have the system take back the memory of a tensor on the CPU that is mapped from a file; what it holds stays.

    Elsewhere than on Linux, and where the system does not take it, nothing happens.
    """
    if sys.platform != "linux" or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(_PAGEOUT))
