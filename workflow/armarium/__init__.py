"""Armarium: a Snakemake workflow that builds complete, self-contained model archives."""

import os
import resource
import sys

__version__ = "0.1.0"

# A write that is cut short leaves CPython (3.11 and others) half of a module's bytecode, which it then trusts for good.
_disk = os.statvfs(os.path.dirname(__file__))
if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY or _disk.f_bavail * _disk.f_frsize < 64 << 20:
    sys.dont_write_bytecode = True
