"""What the documentation says of keys, commands and rebuilding is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from armarium import clara, layout, recipe, scoring
from armarium.config import schema

from tests import rebuilding, reruns

REPO = Path(__file__).resolve().parents[2]
CONFIG_README = REPO / "config/README.md"
NAMES = {"archives": "NAME", "columns": "COLUMN", "groups": "GROUP", "entities": "ENTITY"}
"""What stands for a name that the user chooses."""


def cells(line: str) -> list[str]:
    return [c.strip() for c in line.strip().strip("|").split("|")]


def documented(first_column: str) -> dict[str, dict[str, str]]:
    """Key and default of every row of the tables that start with ``first_column``, by section."""
    found: dict[str, dict[str, str]] = {}
    section, reading = "", False
    for line in CONFIG_README.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            section = "".join(re.findall(r"`(.+)`", line))
        if not line.startswith("|"):
            reading = False
        elif cells(line)[0] == first_column:
            reading = True
        elif reading and not line.startswith("|-"):
            key, _, default, meaning = cells(line)
            assert meaning, line
            found.setdefault(section, {})[key.strip("`")] = default.strip("`")
    return found


def default_of(key: str, node: dict, parent: dict) -> object:
    """As the documentation shows it: the value, ``required``, or ``none``."""
    return node.get("default", "required" if key in parent.get("required", []) else "none")


def keys_of(node: dict, section: str = "") -> dict[str, dict[str, object]]:
    """Key and default of every object of the configuration's schema, by section."""
    root = schema("config")
    while "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    node = next((n for n in node.get("oneOf", []) if n.get("type") == "object"), node)
    found = {}
    for key, child in node.get("properties", {}).items():
        resolved = root["$defs"][child["$ref"].rpartition("/")[2]] if "$ref" in child else child
        found.setdefault(section, {})[key] = default_of(key, resolved, node)
        found |= keys_of(child, f"{section}.{key}".lstrip("."))
    if isinstance(node.get("additionalProperties"), dict):
        found |= keys_of(node["additionalProperties"], f"{section}.{NAMES[section.rpartition('.')[2]]}")
    return found


def assert_same(shown: dict[str, str], wanted: dict[str, object], where: str) -> None:
    assert shown.keys() == wanted.keys(), where
    for key, default in wanted.items():
        assert yaml.safe_load(shown[key]) == default, f"{where}.{key}"


def test_every_key_of_the_configuration_is_documented_with_its_default():
    shown, wanted = documented("Key"), keys_of(schema("config"))
    assert shown.keys() == wanted.keys()
    for section in wanted:
        assert_same(shown[section], wanted[section], section)


def test_every_recipe_variable_is_documented_with_its_default():
    properties = schema("recipe")["properties"]
    wanted = {key: default_of(key, node, {}) for key, node in properties.items()}
    assert_same(documented("Variable")["config_train.json"], wanted, "recipe")


def test_every_handler_that_the_trainer_plays_is_documented():
    table = (
        CONFIG_README.read_text(encoding="utf-8")
        .partition("| Handler that the trainer plays |")[2]
        .partition("\n\n")[0]
    )
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == recipe.OUR_HANDLERS


def test_metrics_of_which_less_is_better_are_documented():
    sentence = re.search(
        r"The best value is the smallest for (.+?), the largest", CONFIG_README.read_text(encoding="utf-8"), re.S
    )
    assert {*re.findall(r"`(\w+)`", sentence[1]), "loss"} == scoring.SMALLER_IS_BETTER


# ---- what an edit reruns


def test_every_key_of_the_configuration_has_an_edit_in_the_table_of_reruns():
    rows = reruns.table()
    for section, keys in keys_of(schema("config")).items():
        for key in keys:
            name = f"{section}.{key}".lstrip(".")
            assert name in rows or any(row.startswith(f"{name}.") for row in rows), name


def test_every_part_of_a_recipe_has_an_edit_in_the_table_of_reruns():
    wanted = {f"config_train.json.{name}" for name in schema("recipe")["properties"]}
    wanted |= {f"{side}.{part}" for side, parts in recipe.SECTIONS.items() for part in parts if part != "handlers"}
    wanted |= {f"train.{name}" for name in recipe.OUR_HANDLERS}
    assert wanted <= reruns.table().keys()


def test_rules_of_the_table_of_reruns_are_the_workflows():
    text = "\n".join(path.read_text() for path in (REPO / "workflow/rules").glob("*.smk"))
    rules = {*re.findall(r"^(?:rule|checkpoint) (\w+):", text, re.M), "write_model", "write_metrics"}
    rules |= {"write_callbacks", "write_optimization", "synthesize_micro"}
    shown = {rule for row in reruns.table().values() for rule in row.rules or ()}
    assert shown <= rules
    elsewhere = {"extract_probabilities", "extract_predictions"}
    elsewhere |= {"evaluate_checkpoint", "compare_shape"}  # where they were asked for
    elsewhere |= {"record_conda_environment", "copy_lock_file", "copy_starting_weights"}
    assert rules - shown <= elsewhere, "a rule that no edit reruns"


def test_the_parts_of_the_configuration_that_rules_read_are_named_with_the_table_of_reruns():
    sentence = re.search(r"`config/effective/`, which the rules read: (.+?), each", reruns.DOCUMENT.read_text(), re.S)
    assert set(re.findall(r"`(\w+)`", sentence[1])) == {*layout.EFFECTIVE, "files"}


def code_of(text: str) -> list[str]:
    """Indented lines and inline code of a Markdown text."""
    return [*re.findall(r"^    +(.+)$", text, re.M), *re.findall(r"`([^`\n]+)`", text)]


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CHANGELOG.md",
        "config/README.md",
        "docs/reruns.md",
        "docs/rebuilding.md",
        "docs/reading.md",
        "docs/mmar.md",
        "docs/finetuning.md",
        "docs/exports.md",
        "docs/conda.md",
    ],
)
def test_every_make_command_names_a_target(name):
    lines = re.findall(r"^([\w -]+):(?!=)", (REPO / "Makefile").read_text(), re.M)
    targets = {target for line in lines for target in line.split()}
    code = code_of((REPO / name).read_text(encoding="utf-8"))
    named = {m[1] for m in (re.match(r"make ([a-z][\w-]*)", c) for c in code) if m}
    assert named <= targets
    assert name != "README.md" or {"demo", "test"} <= named


def test_files_that_the_readme_points_to_exist():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    named = {*re.findall(r"\]\(([\w./-]+)\)", text), *re.findall(r"--configfile (\S+\.yaml)", text)}
    assert named
    for name in named:
        assert (REPO / name).is_file(), name


def test_the_short_table_of_lost_files_is_part_of_the_whole_one():
    table = (REPO / "README.md").read_text(encoding="utf-8").partition("| Lost this |")[2].partition("\n\n")[0]
    rows = [[cell.strip("`") for cell in cells(line)] for line in table.splitlines()[2:]]
    assert rows and rows == [[name, rebuilding.row_of(name)[0]] for name, _ in rows]


def test_the_table_of_lost_files_has_every_rule_but_those_that_make_datasets():
    text = "\n".join(path.read_text() for path in (REPO / "workflow/rules").glob("*.smk"))
    rules = {*re.findall(r"^(?:rule|checkpoint) (\w+):", text, re.M)}
    rules |= {"write_model", "write_metrics", "write_callbacks", "write_optimization"}
    rules |= {f"record_{of}_environment" for of in layout.OTHER_ENVIRONMENTS}
    assert {row.rule for row in rebuilding.table()} == rules
    assert rebuilding.cut_from_a_run() < rules


def test_every_translation_refusal_and_handler_of_clara_is_documented():
    text = (REPO / "docs/clara.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.]+)`", text))
    told = {name for of_kind in clara.RENAMED.values() for name, (new, *_) in of_kind.items() for name in (name, new)}
    told |= {
        arg
        for of_kind in clara.RENAMED_ARGS.values()
        for args in of_kind.values()
        for pair in args.items()
        for arg in pair
    }
    told |= {arg for of_kind in clara.DROPPED_ARGS.values() for args in of_kind.values() for arg in args}
    told |= {name for of_kind in clara.REMOVED.values() for name in of_kind} | clara.REMOVED_ARGS.keys()
    told |= {arg for args in clara.REMOVED_ARGS.values() for arg in args} | recipe.ONLY_SHOW | recipe.ONLY_WATCH
    assert told - named == set()
