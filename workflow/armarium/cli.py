"""``python -m armarium STEP …``: what rules and people call alike."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import sys
from importlib import import_module
from pathlib import Path

import click

from .errors import UserError

WRITERS = {
    "model": ("maps", "write_model_json"),
    "metrics": ("maps", "write_metrics_json"),
    "callbacks": ("maps", "write_callbacks_json"),
    "optimization": ("maps", "write_optimization_json"),
    "training-data": ("maps", "write_training_data_tsv"),
    "side-data": ("maps", "write_side_data"),
    "group-data": ("maps", "write_group_data"),
    "summary": ("maps", "write_summary_log"),
    "command": ("mmar", "write_command"),
    "log-config": ("mmar", "write_log_config"),
    "doc": ("model_card", "write_doc"),
    "licence": ("model_card", "write_licence"),
    "eval-metrics": ("mmar", "write_eval_metrics"),
    "eval-dice-tables": ("mmar", "write_eval_dice_tables"),
    "bundle-config": ("bundle", "write_bundle_config"),
}
"""What ``write`` can write: the module and function that do it."""

archive = click.argument("archive", type=click.Path(file_okay=False))
split = click.argument("split")
device = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", envvar="ARMARIUM_DEVICE", show_default=True
)
cache = click.option(
    "--cache", type=click.Path(), default=".cache/armarium", envvar="ARMARIUM_CACHE", show_default=True
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--log", type=click.Path(dir_okay=False), help="Write messages to this file too.")
def cli(log: str | None) -> None:
    """Build, inspect and rebuild self-contained model archives."""
    if log:
        sys.stderr = Tee(sys.stderr, log)


class Tee(io.TextIOBase):
    """Standard error that goes to a file as well; a bar stays on the terminal alone."""

    def __init__(self, stream, path: str):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.stream, self.file = stream, open(path, "a", buffering=1)  # noqa: SIM115 (open as long as the process)

    def write(self, text: str) -> int:
        if "\r" not in text:
            self.file.write(text)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()


def steps():
    return import_module(".steps", __package__)


@cli.command()
@click.argument("listed")
@click.argument("spec")
def synthesize(listed: str, spec: str) -> None:
    """Make a small dataset whose list is the file LISTED, as the JSON text SPEC says."""
    import_module(".synthesize", __package__).synthesize_dataset(str(Path(listed).parent), json.loads(spec))


@cli.command()
@archive
@click.option("--workers", type=int, default=2, show_default=True)
@cache
def check_data(archive: str, workers: int, cache: str) -> None:
    """Check every case of the dataset."""
    steps().check_data(archive, workers, cache)


@cli.command()
@archive
def split_data(archive: str) -> None:
    """Divide the cases into splits and test groups."""
    steps().split_data(archive)


@cli.command()
@archive
@split
def write_datalist(archive: str, split: str) -> None:
    """Write the datalist of a split."""
    steps().write_datalist(archive, split)


@cli.command()
@archive
def check_recipe(archive: str) -> None:
    """Build every component of the recipe once."""
    steps().check_recipe(archive)


@cli.command()
@archive
@split
@device
@cache
def train(archive: str, split: str, device: str, cache: str) -> None:
    """Train a split, resuming where it stopped."""
    steps().train(archive, split, device, cache)


@cli.command()
@archive
@split
@click.argument("kind")
@click.option("--weights/--tables", required=True)
def select(archive: str, split: str, kind: str, weights: bool) -> None:
    """Copy a checkpoint's weights or tables out of run.zip."""
    steps().select(archive, split, kind.rpartition("/")[2], weights)


@cli.command()
@archive
@split
@click.argument("targets", nargs=-1)
def copy_logs(archive: str, split: str, targets: tuple[str, ...]) -> None:
    """Copy logs and tables of a split out of run.zip."""
    steps().copy_logs(archive, split, list(targets))


@cli.command()
@archive
@click.argument("group")
@split
@device
@cache
def test(archive: str, group: str, split: str, device: str, cache: str) -> None:
    """Score the checkpoints of a split on a test group."""
    steps().test_split(archive, group, split, device, cache)


@cli.command()
@archive
@click.argument("group")
@split
@click.argument("checkpoint")
def write_results(archive: str, group: str, split: str, checkpoint: str) -> None:
    """Write the tables of one checkpoint on one test group."""
    steps().write_results(archive, group, split, checkpoint)


@cli.command()
@archive
@device
@cache
def evaluate_published(archive: str, device: str, cache: str) -> None:
    """Score the published model and keep its predictions."""
    steps().evaluate_published(archive, device, cache)


@cli.command()
@archive
@split
@click.argument("checkpoints", nargs=-1, required=True)
def export(archive: str, split: str, checkpoints: tuple[str, ...]) -> None:
    """Export checkpoints of a split as TorchScript."""
    steps().export_split(archive, split, list(checkpoints))


@cli.command()
@archive
@click.argument("which", type=click.Choice(["best", "final"]))
def publish(archive: str, which: str) -> None:
    """Write the published weights."""
    steps().publish_weights(archive, which)


@cli.command()
@archive
@click.argument("source")
@click.argument("member")
@click.argument("target")
@click.option("--rule", required=True)
def extract(archive: str, source: str, member: str, target: str, rule: str) -> None:
    """Copy MEMBER of the zip SOURCE to TARGET."""
    steps().extract(archive, source, member, target, rule)


@cli.command()
@archive
def record_environment(archive: str) -> None:
    """Write env/."""
    steps().record_environment(archive)


@cli.command()
@archive
def copy_workflow(archive: str) -> None:
    """Keep the workflow that made the archive."""
    steps().copy_workflow(archive)


@cli.command()
@click.argument("what", type=click.Choice(list(WRITERS)))
@archive
@click.argument("names", nargs=-1)
@click.option("--inputs", default="", help="Files that it is made from, quoted as for a shell.")
def write(what: str, archive: str, names: tuple[str, ...], inputs: str) -> None:
    """Write a file that says something of the archive."""
    module, function = WRITERS[what]
    writer = getattr(import_module(f".{module}", __package__), function)
    steps().write(archive, what, writer, names, shlex.split(inputs))


@cli.command()
@archive
@cache
def write_manifest(archive: str, cache: str) -> None:
    """Write the manifest over everything in the archive."""
    steps().write_manifest(archive, cache)


@cli.command()
@archive
def summary(archive: str) -> None:
    """Show an archive's results and what to do with it."""
    click.echo(import_module(".summary", __package__).summary(archive))


def main() -> None:
    """Run a command; a user's mistake ends it with one message and status 1."""
    # Snakemake stops jobs with SIGTERM; as an exception it runs the clean-ups of open writes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        cli(prog_name="armarium")
    except UserError as error:
        print(f"armarium: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(
            f"armarium: {error.filename or Path.cwd()}: {error.strerror or error}; nothing was half-written, mend this and run again",
            file=sys.stderr,
        )
        sys.exit(1)
    except MemoryError:
        print("armarium: out of memory; lower batch_size or give the job more memory (mem_mb)", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()
