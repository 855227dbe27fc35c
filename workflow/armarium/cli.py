"""``python -m armarium STEP …``: what rules and people call alike."""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import re
import shlex
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import click

from . import layout
from .faults import in_words, require_address_space

WRITERS = {
    "model": ("maps", "write_model_json"),
    "metrics": ("maps", "write_metrics_json"),
    "callbacks": ("maps", "write_callbacks_json"),
    "optimization": ("maps", "write_optimization_json"),
    "training-data": ("maps", "write_training_data_tsv"),
    "side-data": ("maps", "write_side_data"),
    "group-data": ("maps", "write_group_data"),
    "summary": ("maps", "write_summary_log"),
    "command": ("commands", "write_command"),
    "log-config": ("logs", "write_log_config"),
    "doc": ("model_card", "write_doc"),
    "licence": ("model_card", "write_licence"),
    "eval-metrics": ("mmar", "write_eval_metrics"),
    "eval-dice-tables": ("mmar", "write_eval_dice_tables"),
    "bundle-config": ("bundle", "write_bundle_config"),
}
"""What ``write`` can write: the module and function that do it."""

archive = click.argument("archive", type=click.Path(file_okay=False))


def _split_number(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch("0|[1-9][0-9]*", value):
        raise click.BadParameter(f"{value!r} is no split's number; wanted 0, 1, …")
    return value


split = click.argument("split", callback=_split_number)
device = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", envvar="ARMARIUM_DEVICE", show_default=True
)
cache = click.option(
    "--cache", type=click.Path(), default=".cache/armarium", envvar="ARMARIUM_CACHE", show_default=True
)
trusting = click.option("--trust-torchscript/--no-trust-torchscript", "trusted", envvar="ARMARIUM_TRUST_TORCHSCRIPT")


class Commands(click.Group):
    """Commands that tell what goes wrong: click takes a file's early end for the user's and says no more than "Aborted!"."""

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except EOFError as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error


processes = click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    envvar="ARMARIUM_EVALUATION_PROCESSES",
    show_default=True,
    help="Processes that share the cases, on a GPU each where there are GPUs.",
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--log", type=click.Path(dir_okay=False), help="Write messages to this file too.")
@click.pass_context
def cli(context: click.Context, log: str | None) -> None:
    """Build, inspect and rebuild self-contained model archives."""
    if log:
        sys.stderr = Tee(sys.stderr, log)
        announced = import_module(".running", __package__).Announced("job", shlex.join(["armarium", *sys.argv[3:]]))
        context.call_on_close(announced.close)


class Tee(io.TextIOBase):
    """Standard error that goes to a file as well, as long as that can be written; a bar stays on the terminal alone."""

    def __init__(self, stream, path: str):
        self.stream, self.path, self.file = stream, path, None
        with suppress(OSError):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the process)

    def write(self, text: str) -> int:
        if self.file and "\r" not in text:
            try:
                self.file.write(text.encode())
            except OSError:  # a full disk must not hide what is told
                self.file = None
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()


def steps():
    return import_module(".steps", __package__)


def further_exports():
    """The steps of exports on request, once it is certain that what they compute with can be loaded."""
    require_address_space()
    return import_module(".further_exports", __package__)


def checkpoint_evaluation():
    """The same of the published checkpoint's evaluation, with what it computes with."""
    require_address_space()
    with import_module(".loading", __package__).sparingly():
        return import_module(".checkpoint_evaluation", __package__)


def computing_steps():
    """The steps, once it is certain that what they compute with can be loaded."""
    require_address_space()
    return steps()


@cli.command()
@click.argument("folder", type=click.Path(file_okay=False, exists=True))
@click.option("--any-channel", is_flag=True, help="Also from channels that other machines do not reach.")
def pin_environments(folder: str, any_channel: bool) -> None:
    """Write the pins of conda environments beside their files in FOLDER."""
    for path in import_module(".pins", __package__).pin_environments(folder, any_channel):
        click.echo(path)


@cli.command()
@click.argument("listed")
@click.argument("spec")
def synthesize(listed: str, spec: str) -> None:
    """Make a small dataset whose list is the file LISTED, as the JSON text SPEC says."""
    module = import_module(".synthesize", __package__)
    module.synthesize_dataset(str(Path(listed).parent), module.parse_spec(spec))


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
    computing_steps().check_recipe(archive)


@cli.command()
@archive
@split
@device
@cache
def train(archive: str, split: str, device: str, cache: str) -> None:
    """Train a split, resuming where it stopped."""
    computing_steps().train(archive, split, device, cache)


@cli.command()
@archive
@split
@click.argument("kind")
@click.option("--weights/--tables", required=True)
@cache
def select(archive: str, split: str, kind: str, weights: bool, cache: str) -> None:
    """Copy a checkpoint's weights or tables out of run.zip."""
    steps().select(archive, split, kind.rpartition("/")[2], weights, cache)


@cli.command()
@archive
@split
@click.argument("targets", nargs=-1)
@cache
def copy_logs(archive: str, split: str, targets: tuple[str, ...], cache: str) -> None:
    """Copy logs and tables of a split out of run.zip."""
    steps().copy_logs(archive, split, list(targets), cache)


@cli.command()
@archive
@click.argument("group")
@split
@device
@cache
@processes
def test(archive: str, group: str, split: str, device: str, cache: str, processes: int) -> None:
    """Score the checkpoints of a split on a test group."""
    computing_steps().test_split(archive, group, split, device, cache, processes)


@cli.command()
@archive
@click.argument("group")
@split
@click.argument("checkpoint")
@cache
def write_results(archive: str, group: str, split: str, checkpoint: str, cache: str) -> None:
    """Write the tables of one checkpoint on one test group."""
    steps().write_results(archive, group, split, checkpoint, cache)


@cli.command()
@archive
@device
@cache
@processes
@trusting
def evaluate_published(archive: str, device: str, cache: str, processes: int, trusted: bool) -> None:
    """Score the published model and keep its predictions."""
    computing_steps().evaluate_published(archive, device, cache, trusted, processes)


@cli.command()
@archive
@device
@cache
def evaluate_checkpoint(archive: str, device: str, cache: str) -> None:
    """Score the published checkpoint and keep its predictions."""
    checkpoint_evaluation().evaluate_checkpoint(archive, device, cache)


@cli.command()
@archive
@click.argument("shape")
@cache
@click.option("--trust-torchscript/--no-trust-torchscript", "trusted", envvar="ARMARIUM_TRUST_TORCHSCRIPT")
def compare_shape(archive: str, shape: str, cache: str, trusted: bool) -> None:
    """Compare the published TorchScript with its checkpoint on an input of SHAPE."""
    checkpoint_evaluation().compare_shape(archive, shape, cache, trusted)


@cli.command()
@archive
@split
@click.argument("checkpoints", nargs=-1, required=True)
@cache
def export(archive: str, split: str, checkpoints: tuple[str, ...], cache: str) -> None:
    """Export checkpoints of a split as TorchScript."""
    computing_steps().export_split(archive, split, list(checkpoints), cache)


format = click.argument("format", type=click.Choice(list(layout.FORMATS)))


@cli.command()
@archive
@format
def export_format(archive: str, format: str) -> None:
    """Export the published model to another format than TorchScript, or find out why that cannot be."""
    further_exports().export_format(archive, format)


@cli.command()
@archive
@format
def publish_format(archive: str, format: str) -> None:
    """Write the published model in another format."""
    import_module(".further_exports", __package__).publish_format(archive, format)


@cli.command()
@archive
@cache
def export_ensemble(archive: str, cache: str) -> None:
    """Export the mean of the splits' models as TorchScript."""
    further_exports().export_ensemble(archive, cache)


@cli.command()
@archive
@device
@cache
@trusting
def evaluate_ensemble(archive: str, device: str, cache: str, trusted: bool) -> None:
    """Score the ensemble and keep its predictions."""
    further_exports().evaluate_ensemble(archive, device, cache, trusted)


@cli.command()
@archive
@click.argument("which", type=click.Choice(["best", "final"]))
@cache
def publish(archive: str, which: str, cache: str) -> None:
    """Write the published weights."""
    steps().publish_weights(archive, which, cache)


@cli.command()
@archive
@click.argument("source")
@click.argument("member")
@click.argument("target")
@click.option("--rule", required=True)
@cache
def extract(archive: str, source: str, member: str, target: str, rule: str, cache: str) -> None:
    """Copy MEMBER of the zip SOURCE to TARGET."""
    steps().extract(archive, source, member, target, rule, cache)


@cli.command()
@archive
@click.argument("client", type=click.Choice(layout.PACKS))
@cache
@trusting
def pack(archive: str, client: str, cache: str, trusted: bool) -> None:
    """Pack the published model for another client."""
    if client == layout.TRITON:
        require_address_space()
        import_module(".packing", __package__).pack_triton(archive, cache, trusted)
    else:
        import_module(".packing", __package__).pack_bundle(archive, client)


@cli.command()
@archive
@click.argument("files", nargs=-1, required=True)
@click.option("--rule", required=True)
def record_environment(archive: str, files: tuple[str, ...], rule: str) -> None:
    """Write FILES of env/."""
    steps().record_environment(archive, list(files), rule)


@cli.command()
@archive
def copy_workflow(archive: str) -> None:
    """Keep the workflow that made the archive."""
    steps().copy_workflow(archive)


@cli.command()
@click.argument("what", type=click.Choice(list(WRITERS)))
@archive
@click.argument("names", nargs=-1)
@click.option("--inputs", default="", help="Files that it is made from, one a line.")
def write(what: str, archive: str, names: tuple[str, ...], inputs: str) -> None:
    """Write a file that says something of the archive."""
    module, function = WRITERS[what]
    writer = getattr(import_module(f".{module}", __package__), function)
    steps().write(archive, what, writer, names, inputs.splitlines())


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


@cli.command()
@archive
@click.option(
    "--data-root", type=click.Path(file_okay=False), help="Where the dataset is, if not where the archive says."
)
@click.option("--no-data", is_flag=True, help="Leave the dataset out.")
@click.option("--json", "as_json", is_flag=True, help="Tell everything as JSON.")
@click.option("--paths", metavar="KIND", help="Tell only the files to delete of a kind, each ended by a zero byte.")
def verify(archive: str, data_root: str | None, no_data: bool, as_json: bool, paths: str | None) -> None:
    """Read everything in an archive anew; tell what is changed, missing, foreign or out of date, and how to mend it.

    Ends with status 1 if something is wrong.
    """
    report = import_module(".verify", __package__).verify(archive, data_root, not no_data)
    if paths is not None:
        sys.stdout.buffer.write(b"".join(os.fsencode(path) + b"\0" for path in report.to_delete(paths)))
        return
    click.echo(json.dumps(report.as_json(), indent=4) if as_json else report)
    sys.exit(1 if report.wrong else 0)


passed_on = {"ignore_unknown_options": True, "help_option_names": []}


@cli.command(context_settings=passed_on)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def build(arguments: tuple[str, ...]) -> None:
    """Build targets as `snakemake ARGUMENTS` does; where another one makes the same files, wait for it."""
    sys.exit(import_module(".calling", __package__).build(arguments))


@cli.command(context_settings=passed_on)
@archive
@click.option("--data-root", type=click.Path(file_okay=False), help="Where the dataset is.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def rebuild(archive: str, data_root: str | None, options: tuple[str, ...]) -> None:
    """Make all that an archive lacks, be it all but its config/, from the same data; OPTIONS are Snakemake's."""
    sys.exit(import_module(".calling", __package__).rebuild(archive, data_root, options))


changes = click.option(
    "--set", "changes", multiple=True, metavar="NAME=VALUE", help="A variable of the configuration; may be repeated."
)
target = click.argument("target", type=click.Path(file_okay=False))


def _by_name(pairs: tuple[str, ...]) -> dict[str, str]:
    if wrong := [pair for pair in pairs if not pair.partition("=")[1]]:
        raise click.BadParameter(f"found {wrong[0]!r}, wanted NAME=VALUE", param_hint="--set")
    return dict(pair.split("=", 1) for pair in pairs)


@cli.command()
@archive
@target
@changes
def clone(archive: str, target: str, changes: tuple[str, ...]) -> None:
    """Copy ARCHIVE to TARGET, with other values where --set says so; TARGET names ARCHIVE as its origin."""
    import_module(".clone", __package__).clone(archive, target, _by_name(changes))
    click.echo(f"{target}: cloned from {archive}; what is now to be made: armarium status {shlex.quote(target)}")


@cli.command()
@archive
@target
@changes
@click.option(
    "--from",
    "start",
    metavar="FILE",
    help="Another archive's models/model.pt or models/final_model.pt, or any file of weights.",
)
@click.option(
    "--continue", "further", is_flag=True, help="Go on with the optimizer's state, instead of transferring weights."
)
@click.option("--cores", default="all", show_default=True, help="CPU cores for Snakemake.")
def finetune(archive: str, target: str, changes: tuple[str, ...], start: str | None, further: bool, cores: str) -> None:
    """Clone ARCHIVE to TARGET and train that on from ARCHIVE's weights, or from those of FILE."""
    module = import_module(".finetune", __package__)
    module.prepare_clone(archive, target, _by_name(changes), module.start_file(start, further))
    sys.exit(import_module(".calling", __package__).build_archive(target, ["--cores", cores]))


@cli.command(context_settings=passed_on)
@archive
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def status(archive: str, options: tuple[str, ...]) -> None:
    """Show what is there, what is missing, and what a build would run; OPTIONS are Snakemake's."""
    click.echo(import_module(".status", __package__).status(archive, options))


@cli.command(name="zip")
@archive
@click.argument("file", type=click.Path(dir_okay=False))
def zip_command(archive: str, file: str) -> None:
    """Write a complete ARCHIVE into the zip FILE, as it is stored or sent."""
    import_module(".archive_zip", __package__).zip_archive(archive, file)


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@archive
def unzip(file: str, archive: str) -> None:
    """Put the archive that is in the zip FILE into the new folder ARCHIVE, once all of it is as its manifest says."""
    import_module(".archive_zip", __package__).unzip_archive(file, archive)


@cli.command(name="cache")
@cache
@click.option("--archives", default="archives", show_default=True, help="Folder of the archives that may use it.")
@click.option("--clean", is_flag=True, help="Remove prepared cases, but those of running jobs.")
@click.option("--unused-for", "days", type=click.FloatRange(0), metavar="DAYS", help="Only what nobody used for DAYS.")
def cache_command(cache: str, archives: str, clean: bool, days: float | None) -> None:
    """Show what the cache folder holds and who uses it, or clean it; what is removed is made again when it is needed."""
    if days is not None and not clean:
        raise click.UsageError("--unused-for goes with --clean")
    module = import_module(".cache_folder", __package__)
    if clean:
        click.echo(module.clean(cache, days))
    else:
        click.echo(module.told(cache, module.archives_below(archives)))


@cli.command()
@archive
@click.option("--hard-links", is_flag=True, help="Where the disk cannot clone a file, make equal files names of one.")
def compact(archive: str, hard_links: bool) -> None:
    """Let ARCHIVE's equal weights and exports share their place on the disk; tell what it takes, beside its checkpoints."""
    click.echo(import_module(".compact", __package__).compact(archive, hard_links))


@cli.command()
@click.option("--wait", is_flag=True, help="Wait for what is still at work.")
def unlock(wait: bool) -> None:
    """Remove Snakemake's locks here, once sure that no Snakemake and no job is alive."""
    removed = import_module(".running", __package__).unlock(wait)
    click.echo("unlocked" if removed else "nothing was locked")


def main() -> None:
    """Run a command; a user's mistake ends it with one message and status 1."""
    # Snakemake stops jobs with SIGTERM; as an exception it runs the clean-ups of open writes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    atexit.register(gc.freeze)  # else the interpreter's last collection of torch and monai takes a second or two
    try:
        cli(prog_name="armarium")
    except Exception as error:
        words = in_words(error)
        if words is None:
            raise
        print(f"armarium: {words}", file=sys.stderr)
        sys.unraisablehook = lambda _: None  # what falls over in its wake, such as a loader's half-made workers
        sys.exit(1)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()
