"""Whether the dataset is the one that an archive was made from: the first link of the chain."""

from __future__ import annotations

from . import layout
from .chain import NOT_UNDERSTOOD, Evidence
from .changes import TESTED, content_of, list_digests
from .checks import read_cases_table
from .dataset import Case, read_dataset, source_of, with_test_lists
from .errors import UserError
from .findings import Finding
from .manifest import leaves_archive
from .provenance import DATA
from .scan import read_all, sizes_below


def verify_data(evidence: Evidence, data_root: str | None) -> tuple[str, list[Finding]]:
    """What can be said of the dataset in words, and files of it that are not those that were checked."""
    archive = evidence.archive
    try:
        root = str(data_root or evidence.json(layout.environment_json(archive))["DATA_ROOT"])
        checked, findings = _checked_data(evidence)
    except NOT_UNDERSTOOD as error:
        return f"data not verified: {error if isinstance(error, UserError) else repr(error)}", []
    outside = [path for path in checked if leaves_archive(path)]
    findings += [Finding("data", path, "leaves the data root; not looked at") for path in outside]
    wanted = {path: digest for path, digest in checked.items() if path not in outside}
    sizes = sizes_below(root, wanted)
    if not sizes:
        return f"data not verified: none of its {len(wanted)} files is in {root}; --data-root DIR says where", findings
    contents, unread = read_all(root, sizes)
    for path, digest in sorted(wanted.items()):
        if path not in sizes or path in unread:
            findings.append(Finding("data", path, unread.get(path, "missing")))
        elif contents[path].sha256 != digest:
            findings.append(Finding("data", path, "changed"))
    findings += _changed_lists(evidence, root)
    return f"data: {len(contents)} files in {root} compared", findings


def _checked_data(evidence: Evidence) -> tuple[dict[str, str], list[Finding]]:
    """SHA-256 of every file of the dataset as it was checked, and where table and record of the check differ."""
    recorded = _recorded_data(evidence)
    table_path, splits_path = layout.cases_tsv(evidence.archive), layout.splits_json(evidence.archive)
    if not (evidence.sound(table_path) and evidence.sound(splits_path)):
        if recorded:
            return recorded, []
        raise UserError(f"{table_path} or {splits_path} is missing or damaged")
    rows = read_cases_table(table_path)
    cases = [
        Case(name, "", "", tuple(case["image"]), case["label"], {}, "")
        for name, case in evidence.json(splits_path)["cases"].items()
        if name in rows
    ]
    table = content_of(cases, rows)
    differing = [path for path, digest in recorded.items() if table.get(path, digest) != digest]
    return recorded | table, [Finding("data record", evidence.inside(table_path), path) for path in differing]


def _recorded_data(evidence: Evidence) -> dict[str, str]:
    """SHA-256 of the files of the dataset that current steps read."""
    current = (step for step in evidence.steps if evidence.current(step))
    read = (entry for step in current for entry in step["inputs"].items())
    return {path.removeprefix(DATA): facts["sha256"] for path, facts in read if path.startswith(DATA)}


def _changed_lists(evidence: Evidence, root: str) -> list[Finding]:
    """Lists of cases that say something else than when they were checked."""
    facts, *parts = (
        layout.dataset_json(evidence.archive),
        *(layout.effective(evidence.archive, part) for part in ("data", "test")),
    )
    if not all(map(evidence.sound, (facts, *parts))):
        return []
    try:
        known, spec = dict(evidence.json(facts)["digests"]), evidence.json(parts[0])["dataset"]
        groups = {name: dict(group) for name, group in evidence.json(parts[1])["groups"].items()}
    except NOT_UNDERSTOOD:
        return []  # of another version, or told as configuration that cannot be understood
    main = "the dataset"
    try:
        main = str(source_of(spec))
        now = list_digests(with_test_lists(read_dataset(spec, root), {"groups": groups}, root))
    except (*NOT_UNDERSTOOD, OSError) as error:
        return [Finding("data", main, f"the list of cases cannot be read: {error}")]
    others = {group["list"] for group in groups.values() if "list" in group}
    changed = [name.removeprefix(TESTED) for name in known | now if known.get(name) != now.get(name)]
    paths = dict.fromkeys(name if name in others else main for name in changed)
    return [Finding("data", path, "the list of cases changed") for path in paths]
