# What fetching and pushing have in common. They are for themselves, beside the workflow, whose steps work in an archive's
# folder: docs/storage.md.

import re
import sys
from pathlib import Path

HOME = Path(workflow.basedir).parent
sys.path.insert(0, str(HOME))

from armarium import layout


def refuse(message):
    """One message, and the end; of an exception Snakemake would show a traceback."""
    print(f"armarium: {message}", file=sys.stderr)
    raise SystemExit(1)


def require(*needed, optional=("provider",)):
    """Refuse a configuration that lacks a key, or has one that means nothing here."""
    known = [*needed, *optional]
    for key in config:
        if key not in known:
            refuse(f"--config {key}: no such key; wanted {', '.join(known)}")
    for key in needed:
        if key not in config:
            refuse(f"--config: no {key}; wanted {', '.join(needed)}")


def stored(path):
    """What lies in the store; which plugin that is of, its form tells or the key ``provider``."""
    provider = config.get("provider")
    return getattr(storage, provider)(path) if provider else storage(path)


def names_stored(pattern):
    """What ``{name}`` stands for in the store; the fs plugin lists folders too."""
    found = set(glob_wildcards(stored(pattern)).name)
    folders = {str(parent) for name in found for parent in Path(name).parents}
    return sorted(found - folders)


def named_archives(otherwise):
    """The archives that are asked for by name, else those that there are."""
    names = config.get("archives")
    return names.split(",") if names else otherwise()


ARCHIVES_DIR = config.get("archives_dir", "archives")

shell.prefix(
    f"set -euo pipefail; export PATH='{Path(sys.executable).parent}':\"$PATH\" PYTHONPATH='{HOME}' PYTHONSAFEPATH=1; "
)
