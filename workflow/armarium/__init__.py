"""Armarium: a Snakemake workflow that builds complete, self-contained model archives."""

from __future__ import annotations

import os
import resource
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import UserError
    from .reader import Archive, compare

__version__ = "0.1.0"
__all__ = ["Archive", "UserError", "compare"]

# A write that is cut short leaves CPython (3.11 and others) half of a module's bytecode, which it then trusts for good.
_disk = os.statvfs(os.path.dirname(__file__))
if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY or _disk.f_bavail * _disk.f_frsize < 64 << 20:
    sys.dont_write_bytecode = True


def __getattr__(name: str) -> Any:
    """What of the reader is asked for: this package is imported by many who never read an archive."""
    homes = {"Archive": "reader", "compare": "reader", "UserError": "errors"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{homes[name]}", __name__), name)
