"""Torch and MONAI loaded with what is used of them alone: the same components, in a fraction of the time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import monai  # noqa: F401 (as ever: what is loaded sparingly is compared with it)
import pytest
from armarium import components, loading

WORKFLOW = Path(loading.__file__).parents[1]
NAMES = """
def names():
    import importlib, inspect
    from armarium.components import MODULES, component_class
    found = {}
    for kind, modules in MODULES.items():
        offered = {n for m in modules for n, v in vars(importlib.import_module(m)).items() if inspect.isclass(v)}
        found[kind] = {}
        for name in sorted(offered):
            try:
                cls = component_class(kind, {"name": name}, (), "")
                found[kind][name] = f"{cls.__module__}.{cls.__qualname__}"
            except Exception as error:
                found[kind][name] = type(error).__name__
    return found
"""
SPARINGLY = """
import json, sys
from armarium.loading import LATER, sparingly
with sparingly():
    from armarium import jobs, inspection, export
    every = names()
loaded = [name for name in (*LATER, "scipy.stats", "sympy", "torch._dynamo", "torch.distributed.optim") if name in sys.modules]
import ignite.handlers.checkpoint, monai.data.utils
print(json.dumps({
    "names": every, "loaded": loaded, "later": monai.data.utils.pd.__version__, "apps": monai.auto3dseg.__name__,
    "zero": isinstance(1, ignite.handlers.checkpoint.ZeroRedundancyOptimizer),
}))
"""


@pytest.fixture(scope="module")
def said() -> dict:
    environment = {**os.environ, "PYTHONPATH": str(WORKFLOW)}
    environment.pop(loading.ALLOWED, None)
    script = [sys.executable, "-W", "ignore", "-c", NAMES + SPARINGLY]
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_name_of_a_recipe_means_the_same_class(said):
    assert "monai.fl" in sys.modules, "MONAI was loaded as ever here"
    namespace: dict = {}
    exec(NAMES, namespace)
    expected = namespace["names"]()
    assert said["names"] == expected
    assert expected.keys() == components.MODULES.keys() and all(len(names) > 5 for names in expected.values())
    assert expected["model"]["UNet"] == "monai.networks.nets.unet.UNet"


def test_what_no_step_uses_is_not_loaded_but_is_there_when_it_is_asked_for(said):
    assert said["loaded"] == []
    assert said["later"] and said["apps"] == "monai.auto3dseg"
    assert said["zero"] is False


def test_code_from_outside_finds_monai_as_ever(monkeypatch):
    monkeypatch.delitem(sys.modules, "monai")
    hooks = list(sys.meta_path)
    with loading.sparingly():
        assert len(sys.meta_path) == len(hooks) + 1
    monkeypatch.setenv(loading.ALLOWED, '["my.code"]')
    with loading.sparingly():
        assert sys.meta_path == hooks
    assert sys.meta_path == hooks


def test_ignite_knows_a_distributed_optimizer_once_somebody_has_one(monkeypatch):
    stand_in = loading._DistributedOptimizers("stand-in").ZeroRedundancyOptimizer
    name = f"{loading.DISTRIBUTED_OPTIMIZERS}.zero_redundancy_optimizer"
    monkeypatch.setitem(sys.modules, name, type("Module", (), {"ZeroRedundancyOptimizer": int}))
    assert isinstance(1, stand_in) and not isinstance("1", stand_in)
