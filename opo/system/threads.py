"""Threads and memory allocation of this process."""

import ctypes
import sys

import torch

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # mallopt(3)


def use_machine(threads: int) -> None:
    """Set the number of threads, and keep freed memory for the next tensors.

    glibc returns large blocks to the kernel at once, and the next tensor pays for fresh pages: 5 to 10 % of a training
    step.
    """
    torch.set_num_threads(threads)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        # older versions refuse more than 32 MB; the second setting without the first would return every block at once
        if libc.mallopt(MMAP_THRESHOLD, 2**30) or libc.mallopt(MMAP_THRESHOLD, 2**25):
            libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
