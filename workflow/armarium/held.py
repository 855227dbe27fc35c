"""The last version of every product that is being made again, kept until the next one is in place.

Snakemake deletes a job's outputs before the job runs, and again what a failed job left. A second name, which it
does not know of, keeps the file; it costs no room and no time. (Snakemake's own ``update()`` copies instead: it needs
as much room again, fails with a traceback where there is none, and copies back over the file itself.)
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from . import layout
from .errors import UserError
from .files import replacing
from .parts import same_where_both
from .run import INFO, run_info
from .zips import opened


def hold(archive: str, product: str) -> bool:
    """Give a product its second name; whether there is such a product."""
    if not os.path.isfile(product):
        return False
    held = Path(layout.held_version(archive, product))
    held.parent.mkdir(parents=True, exist_ok=True)
    held.unlink(missing_ok=True)
    try:
        os.link(product, held)
    except OSError:  # a file system without hard links
        with replacing(held) as temporary:
            shutil.copy2(product, temporary)
    return True


def give_back(archive: str, product: str) -> bool:
    """Put the last version back where there is no other, else drop it; whether it was put back.

    A zip that only got or lost a part is as old as its last version: what was cut out of that is not older than it.
    """
    held = layout.held_version(archive, product)
    if not os.path.exists(held):
        return False
    is_lost = not os.path.exists(product)
    if is_lost:
        os.makedirs(os.path.dirname(product), exist_ok=True)
        os.replace(held, product)
    else:
        if product.endswith(".zip") and _has_the_same(held, product):
            os.utime(product, ns=(os.stat(held).st_mtime_ns,) * 2)
        os.remove(held)
    with suppress(OSError):
        os.removedirs(os.path.dirname(held))
    return is_lost


def _has_the_same(last: str, product: str) -> bool:
    """Whether what two versions of a zip both hold is equal, and they say that the same decided it."""
    try:
        with opened(last) as a, opened(product) as b:
            then, now = ({m.filename: (m.file_size, m.CRC) for m in z.infolist() if m.filename != INFO} for z in (a, b))
        return run_info(last)["fingerprint"] == run_info(product)["fingerprint"] and same_where_both(then, now)
    except (OSError, UserError, KeyError, TypeError):
        return False


def held_products(archive: str) -> list[str]:
    """The products of which a last version is held."""
    top = layout.held_version(archive, f"{archive}/")
    found = [os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names]
    return [f"{archive}/{os.path.relpath(path, top)}" for path in sorted(found)]
