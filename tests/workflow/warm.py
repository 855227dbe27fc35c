"""Snakemake calls that pay for Snakemake's import once.

A server process, started in the project's folder with the project's bare environment, imports Snakemake and what
it imports lazily, and forks for every call. The child runs Snakemake's own ``main`` with the call's arguments, so it
is what ``python -m snakemake`` would be at that point; of the project itself nothing is loaded before the fork.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import traceback

LAZY = ("jsonschema", "pandas", "smart_open", "snakemake.report.html_reporter", "sqlite3", "yaml", "yte")
"""Libraries that every call of Snakemake or planning of the workflow imports sooner or later."""


def serve() -> None:
    """Answer each line ``{"arguments", "stdout", "stderr"}`` with the exit status of that call."""
    from importlib import import_module

    sys.path[0] = os.getcwd()  # as ``python -m`` has it
    import snakemake.cli

    for name in LAZY:
        import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _become_a_call(asked)
            sys.argv = [snakemake.cli.__file__.replace("cli.py", "__main__.py"), *asked["arguments"]]
            _end(_status(snakemake.cli.main, asked["arguments"]))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, file=answers, flush=True)


def _become_a_call(asked: dict) -> None:
    """Give this process the standard streams of a command; the server's own stay with the server."""
    names = (os.devnull, asked["stdout"], asked["stderr"])
    modes = (os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_APPEND)
    for number, (name, mode) in enumerate(zip(names, modes, strict=True)):
        opened = os.open(name, mode)
        os.dup2(opened, number)
        os.close(opened)


def _status(main, arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(status: int) -> None:
    """End as a process does, but without waiting for the timer that wakes a scheduler: most of a second a call."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Server:
    """A running server; one call at a time."""

    def __init__(self, folder, environment: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip

    def call(self, *arguments: str) -> subprocess.CompletedProcess:
        """As ``subprocess.run`` of ``python -m snakemake ARGUMENTS``."""
        with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
            asked = {"arguments": arguments, "stdout": stdout.name, "stderr": stderr.name}
            print(json.dumps(asked), file=self.process.stdin, flush=True)
            status = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(["snakemake", *arguments], status, stdout.read(), stderr.read())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


if __name__ == "__main__":
    serve()
