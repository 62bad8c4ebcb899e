"""Facts about the machine and the versions of what computes, for ``run.json``."""

from __future__ import annotations

import os
import platform
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from longthought.core.version import __version__
from longthought.models.kernels import library


def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of the libraries that a result may depend on."""
    found = {
        "python": platform.python_version(),
        "longthought": __version__,
        "torch": str(torch.__version__),
    }
    for name in ("numpy", "tokenizers", "safetensors", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def facts() -> dict[str, str | int]:
    """Model of the CPU, cores that this process may use and cores in all, memory in bytes, platform and host.

    ``native`` is the instruction set of the native core, or ``none``.
    """
    core = library.available()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "cpu": _cpu(),
        "native": core.name if core else "none",
        "cores": allowed,
        "cores_in_all": os.cpu_count() or 1,
        "memory": _memory(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "unknown"


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
