"""An MMAR's commands: shell scripts that call ``armarium.apps``. No torch.

NVIDIA Clara Train 4's names, arguments and style (its MMAR page, and the scripts of NVIDIA/clara-train-examples);
what each argument and variable does is in docs/mmar.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from . import layout
from .bundle_metadata import input_shape
from .errors import UserError
from .files import write_text

SET_ENV = """\
#!/usr/bin/env bash
# Read by every command. MMAR_ROOT: this archive. ARMARIUM_HOME: the workflow, which is the one that is given, else the
# checkout that this archive lies in; without either it is that of the installed package.
export MMAR_ROOT="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"

mmar_has_packages() {
    python3 -P -c 'import sys
from importlib.util import find_spec
sys.exit(not all(map(find_spec, sys.argv[1:])))' "$@" 2>/dev/null
}

mmar_find_workflow() {
    local folder="$MMAR_ROOT"
    while [ -z "${ARMARIUM_HOME:-}" ] && [ "$folder" != / ]; do
        folder="$(dirname "$folder")"
        if [ -f "$folder/workflow/armarium/__init__.py" ]; then
            export ARMARIUM_HOME="$folder"
        fi
    done
    if [ -n "${ARMARIUM_HOME:-}" ]; then
        export PYTHONPATH="$ARMARIUM_HOME/workflow${PYTHONPATH:+:$PYTHONPATH}"
        # The environment that make sets up, where none with Snakemake is active.
        if [ -x "$ARMARIUM_HOME/.venv/bin/python3" ] && ! mmar_has_packages snakemake; then
            export PATH="$ARMARIUM_HOME/.venv/bin:$PATH"
        fi
    fi
    if ! mmar_has_packages armarium snakemake; then
        echo "error: found no workflow: set ARMARIUM_HOME to a checkout of Armarium, or install the package armarium;" \\
            "and activate the environment that has Snakemake, whose python3 is to come first on the PATH" >&2
        return 1
    fi
}

mmar_find_workflow
"""

COMMAND = """\
#!/usr/bin/env bash
# {about}
set -euo pipefail
source "$(dirname "$(readlink -f "${{BASH_SOURCE[0]}}")")/set_env.sh"

CONFIG_FILE=config/{config}
ENVIRONMENT_FILE=config/environment.json
additional_options="$*"

python3 -u -P -m armarium.apps.{app} \\
    -m "$MMAR_ROOT" \\
    -c $CONFIG_FILE \\
    -e $ENVIRONMENT_FILE \\
{arguments}    --set \\
{variables}    ${{additional_options}}
"""


@dataclass(frozen=True)
class Command:
    """A script: the program that it calls, with which configuration, arguments and variables."""

    about: str
    app: str
    config: str
    arguments: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()


_STATS = ("--write_train_stats",)
_SCORES = ("do_validation=True", "output_infer_result=False")
_TORCHSCRIPT = ("dont_load_ts_model=False", "dont_load_ckpt_model=True")
_CHECKPOINT = ("dont_load_ts_model=True", "dont_load_ckpt_model=False")
_ONE, _SEVERAL = "multi_gpu=False", "multi_gpu=True"

SCRIPTS = {
    "train.sh": Command(
        "Train every split, select its checkpoints, publish one split's model in models/.",
        "train",
        "config_train.json",
        _STATS,
        (_ONE,),
    ),
    "train_multi_gpu.sh": Command(
        "As train.sh, each split on several GPUs.", "train", "config_train.json", _STATS, (_SEVERAL,)
    ),
    "finetune.sh": Command(
        "Train from the weights that MMAR_CKPT names: transfer learning, or more epochs.",
        "train",
        "config_finetune.json",
        _STATS,
        (_ONE, "dont_load_ckpt_model=False"),
    ),
    "infer.sh": Command(
        "Predict with models/model.ts, into eval/.",
        "evaluate",
        "config_inference.json",
        (),
        (_ONE, *_TORCHSCRIPT, "do_validation=False", "output_infer_result=True"),
    ),
    "validate.sh": Command(
        "Score models/model.ts, into eval/.", "evaluate", "config_validation.json", (), (_ONE, *_TORCHSCRIPT, *_SCORES)
    ),
    "validate_ckpt.sh": Command(
        "Score models/model.pt, into eval/ckpt/.",
        "evaluate",
        "config_validation_ckpt.json",
        (),
        (_ONE, *_CHECKPOINT, *_SCORES),
    ),
    "validate_multi_gpu.sh": Command(
        "As validate.sh, on several GPUs.",
        "evaluate",
        "config_validation.json",
        (),
        (_SEVERAL, *_TORCHSCRIPT, *_SCORES),
    ),
    "validate_multi_gpu_ckpt.sh": Command(
        "As validate_ckpt.sh, on several GPUs.",
        "evaluate",
        "config_validation_ckpt.json",
        (),
        (_SEVERAL, *_CHECKPOINT, *_SCORES),
    ),
    "export.sh": Command(
        "Export models/model.pt as TorchScript, and compare the two on an input of this shape.",
        "export",
        "config_train.json",
        ('--model_path "$MMAR_ROOT/{pt}"', '--output_path "$MMAR_ROOT/{ts}"', '--input_shape "{shape}"'),
    ),
}
"""Every command but ``set_env.sh``, which they read."""


def write_command(archive: str, name: str) -> list[str]:
    """Write one of ``layout.COMMANDS``, executable; return its path.

    Raises
    ------
    UserError
        For a command that does not exist.
    """
    if name not in layout.COMMANDS:
        raise UserError(f"commands/{name}: no such command; wanted one of {', '.join(layout.COMMANDS)}")
    path = layout.command(archive, name)
    write_text(path, SET_ENV if name == "set_env.sh" else _script(archive, SCRIPTS[name]))
    os.chmod(path, 0o755)
    return [path]


def _script(archive: str, command: Command) -> str:
    published, exported = (path("").removeprefix("/") for path in (layout.published_model, layout.published_ts))
    shape = input_shape(archive) if command.app == "export" else ""
    arguments = [a.format(pt=published, ts=exported, shape=shape) for a in command.arguments]
    return COMMAND.format(
        about=command.about,
        app=command.app,
        config=command.config,
        arguments="".join(f"    {argument} \\\n" for argument in arguments),
        variables="".join(f"    {variable} \\\n" for variable in ("print_conf=True", *command.variables)),
    )
