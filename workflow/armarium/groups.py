"""Mends how Snakemake 9.27.1 groups jobs where a checkpoint changes what there is to do.

It keeps each group that it makes by the jobs it was made of, and merges groups that touch. When jobs are grouped again after a
checkpoint, a group that was merged meanwhile comes back with jobs that are no more, and without the ones that took their place:
``KeyError: write_manifest``, seen where an edit draws the splits of a built archive anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from snakemake.jobs import GroupJob, GroupJobFactory


def group_anew() -> None:
    """Have Snakemake take a group from before only if it is still of the same jobs."""
    GroupJobFactory.new = _of_these_jobs


def _of_these_jobs(self: GroupJobFactory, name: str, jobs: Iterable[Any], resources: Any) -> GroupJob:
    jobs = frozenset(jobs)
    known = self.cache.get((name, jobs))
    if known is None or known.jobs != jobs:
        known = self.cache[name, jobs] = GroupJob(name, jobs, resources)
    return known
