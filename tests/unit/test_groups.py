"""Groups of jobs after a checkpoint: Snakemake's own factory gives a merged one back, with jobs that are no more."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from armarium.groups import group_anew
from snakemake.jobs import GroupJobFactory


def job(name: str) -> SimpleNamespace:
    """As much of a job as a group asks of it."""
    settings = SimpleNamespace(attempt=1)

    class Job(SimpleNamespace):
        __hash__ = object.__hash__

    return Job(rule=name, dag=SimpleNamespace(workflow=SimpleNamespace(execution_settings=settings)))


@pytest.fixture
def factory(monkeypatch) -> GroupJobFactory:
    monkeypatch.setattr(GroupJobFactory, "new", GroupJobFactory.new)  # put back afterwards
    group_anew()
    return GroupJobFactory()


def test_a_group_that_was_merged_is_not_taken_for_what_it_was_made_of(factory):
    summary, manifest = job("write_summary"), job("write_manifest")
    factory.new("finished", [summary], None).merge(factory.new("finished", [summary, manifest], None))
    assert factory.new("finished", [summary], None).jobs == {summary}


def test_a_group_of_the_same_jobs_stays_the_same(factory):
    jobs = [job("write_summary"), job("write_manifest")]
    assert factory.new("finished", jobs, None) is factory.new("finished", jobs[::-1], None)
