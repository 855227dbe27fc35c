"""The profiles: their keys are options, and what rules want of a scheduler is asked of each in its own words."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
CLUSTERS = ("htcondor", "lsf", "pbs", "slurm")
ALL = (*CLUSTERS, "kubernetes")
PLUGINS = {
    "cluster-generic": {"submit_cmd", "status_cmd", "cancel_cmd", "cancel_nargs", "sidecar_cmd"},
    "htcondor": {"jobdir", "shared_fs_prefixes", "held_timeout"},
    "lsf": set(),
    "slurm": {
        *("array_jobs", "array_limit", "delete_logfiles_older_than", "disable_memory_fudge", "efficiency_report"),
        *(
            "efficiency_report_path",
            "efficiency_threshold",
            "exclude_failed_nodes",
            "init_seconds_before_status_checks",
        ),
        *("jobname_prefix", "keep_successful_logs", "logdir", "no_account", "no_requeue", "partition_config"),
        *("pass_command_as_script", "qos", "requeue", "reservation", "status_attempts", "status_command"),
    },
}
"""Options of the executor plugins (cluster-generic 1.0.9, htcondor 0.3.0, lsf 0.3.3, slurm 2.8.0), without the plugin's name."""


def profile(name: str) -> dict:
    return yaml.safe_load((REPO / f"profiles/{name}/config.yaml").read_text())


def rules() -> dict[str, SimpleNamespace]:
    """What each rule wants, in one process: MB, minutes and whether a GPU; None where it leaves that to the profile."""
    found = {}
    for path in sorted((REPO / "workflow/rules").glob("*.smk")):
        for block in re.split(r"^(?=(?:rule|checkpoint) \w+:)", path.read_text(), flags=re.M)[1:]:
            resources = re.search(r"^    resources:\n((?:        .*\n)+)", block, re.M)
            text = resources[1] if resources else ""
            numbers = {key: re.search(rf"{key}=(?:lambda wildcards: )?(\d+)", text) for key in ("mem_mb", "runtime")}
            wanted = {key: int(number[1]) if number else None for key, number in numbers.items()}
            found[re.match(r"\w+ (\w+)", block)[1]] = SimpleNamespace(**wanted, gpu=" gpu=" in text)
    return found


def test_rules_that_compute_say_what_they_want():
    wanted = rules()
    assert {"train_split", "test_split", "evaluate_published"} <= {name for name, w in wanted.items() if w.gpu}
    assert (wanted["train_split"].mem_mb, wanted["train_split"].runtime) == (8000, 1440)
    assert wanted["select_tables"].mem_mb is None


@pytest.mark.parametrize("name", ALL)
def test_keys_are_options_of_snakemake_or_of_the_plugin_and_values_parse(name):
    from snakemake.cli import get_argument_parser
    from snakemake.profiles import ProfileConfigFileParser

    with open(REPO / f"profiles/{name}/config.yaml") as file:
        given = ProfileConfigFileParser().parse(file)
    assert given.keys() == profile(name).keys(), "a form that Snakemake passes over"
    executor = given.pop("executor", None)
    known = {f"{executor}-{option}".replace("_", "-") for option in PLUGINS.get(executor, ())}
    own = {key: value for key, value in given.items() if key not in known}
    arguments = [
        argument
        for key, value in own.items()
        for argument in (
            [f"--{key}", *value]
            if isinstance(value, list)
            else [f"--{key}"]
            if value == "True"
            else [f"--{key}", value]
        )
    ]
    parser = get_argument_parser()
    parsed = parser.parse_args(arguments)  # leaves the process where a key or value is wrong
    if executor:
        assert set(parsed.set_resources) <= rules().keys()


@pytest.mark.parametrize("executor", PLUGINS)
def test_options_of_a_plugin_are_those_that_are_installed(executor):
    module = f"snakemake_executor_plugin_{executor.replace('-', '_')}"
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"no {module.replace('_', '-')} is installed")
    try:
        settings = getattr(importlib.import_module(module), "ExecutorSettings", None)
    except ImportError as error:
        pytest.skip(f"{module}: {error}")
    assert {f.name for f in fields(settings)} == PLUGINS[executor] if settings else PLUGINS[executor] == set()


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_job_that_a_cluster_ended_is_submitted_again_and_files_may_come_late(name):
    told = profile(name)
    assert told["retries"] >= 1 and told["latency-wait"] >= 30 and told["jobs"] > 1 and told["keep-going"] is True


def bundles(file: str) -> set[str]:
    return set(re.findall(r'^[A-Z]+ = bundled\("(\w+)"', (REPO / file).read_text(), re.M))


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_light_rules_of_every_stage_are_one_job(name):
    told = profile(name)
    assert {entry.partition("=")[0] for entry in told["group-components"]} == bundles("workflow/rules/common.smk")
    assert told["default-resources"]["light"] == 1 and told["set-resource-scopes"] == ["light=local"]


def test_lsf_asks_for_a_gpu_where_a_rule_wants_one():
    told = profile("lsf")
    asks = {name for name, of_rule in told["set-resources"].items() if "-gpu num=1" in of_rule["lsf_extra"]}
    assert asks == {name for name, wanted in rules().items() if wanted.gpu}
    assert {"lsf_queue", "mem_mb", "runtime"} <= told["default-resources"].keys()


def test_htcondor_asks_for_what_each_rule_wants_in_its_own_units():
    told, wanted = profile("htcondor"), rules()
    for name, want in wanted.items():
        asked = told["default-resources"] | told["set-resources"].get(name, {})
        assert asked["htcondor_request_mem_mb"] == (want.mem_mb or 1000), name
        assert asked["allowed_execute_duration"] == 60 * (want.runtime or 5), name
        assert asked.get("request_gpus", 0) == int(want.gpu), name


def test_pbs_asks_for_what_each_rule_wants(tmp_path):
    told = profile("pbs")
    command = told["cluster-generic-submit-cmd"]
    (tmp_path / "qsub").write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    (tmp_path / "qsub").chmod(0o755)
    queues = {name: resources["queue"] for name, resources in told["set-resources"].items()}
    for name, want in rules().items():
        resources = told["default-resources"] | told["set-resources"].get(name, {})
        resources |= {k: v for k, v in vars(want).items() if k != "gpu" and v is not None} | {"gpu": int(want.gpu)}
        asked = command.format(threads=2, resources=SimpleNamespace(**resources))
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(
            f'{asked} "a script.sh"', shell=True, capture_output=True, text=True, cwd=tmp_path, env=env
        )
        words = done.stdout.splitlines()
        assert words[-1] == "a script.sh" and f"walltime={60 * (want.runtime or 5)}" in words, name
        assert f"select=1:ncpus=2:mem={want.mem_mb or 1000}mb:ngpus={int(want.gpu)}" in words, name
        assert words[words.index("-q") + 1] == ("gpuq" if want.gpu else "workq") == queues.get(name, "workq"), name


@pytest.mark.parametrize(
    ("said", "status", "means"),
    [
        ("Job Id: 7.pbs\n    job_state = R\n", 0, "running"),
        ("Job Id: 7.pbs\n    job_state = Q\n    exit_status = 271\n", 0, "running"),
        ("Job Id: 7.pbs\n    job_state = F\n    Exit_status = 0\n", 0, "success"),
        ("Job Id: 7.pbs\n    job_state = F\n    Exit_status = 271\n", 0, "failed"),
        ("Job Id: 7.pbs\n    job_state = F\n    Exit_status = -29\n", 0, "failed"),
        ("Job Id: 7.pbs\n    job_state = F\n", 0, "failed"),
        ("Job Id: 7\n    job_state = C\n    exit_status = 0\n", 0, "success"),
        ("qstat: Unknown Job Id 7.pbs\n", 153, "failed"),
        ("Connection refused\nqstat: cannot connect to server pbs\n", 111, "running"),
    ],
)
def test_what_qstat_says_of_a_job(tmp_path, said, status, means):
    (tmp_path / "qstat").write_text(f"#!/bin/sh\nprintf %s {shlex.quote(said)}\nexit {status}\n")
    (tmp_path / "qstat").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([REPO / "profiles/pbs/status.sh", "7.pbs"], capture_output=True, text=True, env=env)
    assert done.stdout == f"{means}\n"


def test_the_pod_of_kubernetes_runs_snakemake_with_its_gpus_on_a_volume_that_stays():
    job = yaml.safe_load((REPO / "profiles/kubernetes/job.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["snakemake", "--profile", "profiles/kubernetes"]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) > 1, "extended resources are limits, not requests"
    kept = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
    places = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in kept}
    assert places == {container["workingDir"]} and {v["name"] for v in container["volumeMounts"]} == {
        v["name"] for v in pod["volumes"]
    }
