"""The machine a command runs on: device, threads, memory."""

import ctypes
import os
import sys
from pathlib import Path

import torch

from specauf_cli.config.schema import Config
from specauf_cli.errors import InputError, first_line
from specauf_cli.runtime import ranks


def use_machine(config: Config) -> str:
    """Sets thread count and allocator and returns the device. Errors: InputError for a device that does not
    exist."""
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.device == "auto":
        return ranks.join("cuda" if torch.cuda.is_available() else "cpu")
    try:
        reason = "" if torch.device(config.device).type in ("cpu", "cuda") else "it is neither"
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
    if reason:
        raise InputError(f"device={config.device!r} cannot be used here: {reason}; valid: auto, cpu, cuda, cuda:N")
    return ranks.join(config.device)


def free_memory(device: str) -> int:
    """Bytes of free memory on the device; total memory where the system does not report free memory."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    for line in info.read_text("utf-8").splitlines() if info.is_file() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks instead of returning them: a step frees and allocates the same large tensors
    again.

    Without mallopt (musl, macOS) nothing is changed. Sets one arena, no mmap (large blocks come from the heap, where
    they are kept) and no trimming: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((-8, 1), (-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):
            mallopt(option, value)
