"""One of several processes that do a job together, started by torchrun: ``python -m armarium.ranks FOLDER``.

FOLDER has the job; the first process leaves the outcome there, one that fails its reason.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import signal
import sys
import traceback
from pathlib import Path

from .loading import sparingly
from .torchrun import AGENT, GIVEN, JOB, LOG, MADE, SAYS

PR_SET_PDEATHSIG = 1
"""prctl(2)"""


def end_with(parent: int) -> None:
    """Have the kernel end this process when the one that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _keep_to_itself(folder: Path, rank: int) -> None:
    """What a process says that is not the first would be said twice."""
    kept = os.open(folder / f"{rank}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(kept, 1)
    os.dup2(kept, 2)
    os.close(kept)


def _tell_as_agent() -> None:
    """Write this process's messages where the agent's go."""
    if log := os.environ.get(LOG):
        from .cli import Tee

        sys.stderr = Tee(sys.stderr, log)


def _work(folder: Path) -> None:
    from .faults import require_address_space

    require_address_space()
    with sparingly():
        from .distributed import joined
        from .jobs import JOBS
    from .files import read_json, write_json
    from .logs import configure_logging
    from .provenance import package_versions
    from .zips import opened, write_zip

    asked = read_json(folder / JOB)
    if workspace := asked["given"].get("workspace"):
        configure_logging(workspace["archive"])
    with opened(folder / GIVEN) as given:
        files = {name: given.read(name) for name in given.namelist()}
    with joined(asked["device"]) as team:
        says, made = JOBS[asked["job"]](asked["given"], files, asked["device"], team)
        if team.is_first:
            write_zip(folder / MADE, made)
            write_json(folder / SAYS, {**says, "packages": package_versions()})


def main() -> None:
    end_with(int(os.environ[AGENT]))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as SIGTERM: at once, also while waiting for the others
    atexit.register(gc.freeze)  # as in the CLI
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    if rank == 0:
        _tell_as_agent()
    else:
        _keep_to_itself(folder, rank)
    try:
        _work(folder)
    except BaseException as error:
        from .faults import in_words

        words = in_words(error)
        text = f"process {rank}:\n{traceback.format_exc()}" if words is None else words
        (folder / f"{rank}.{'bug' if words is None else 'said'}").write_text(text, encoding="utf-8")
        sys.stderr.flush()
        os._exit(1)  # at once: a usual end would wait for what is still to come from the others


if __name__ == "__main__":
    main()
