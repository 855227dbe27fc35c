"""Armarium's own training of a split, as the rule runs it: every loss and rate noted, the state saved after each epoch."""

from __future__ import annotations

import tempfile

from .turns import Turns, use_torch


def main() -> None:
    turns = Turns()
    torch = use_torch(turns)
    from armarium.network import make_deterministic
    from armarium.run import Workspace
    from armarium.training import SplitTraining

    class InTurns(SplitTraining):
        """Waits before each epoch, and tells when it is over and its state on disk."""

        def _start_epoch(self, engine) -> None:
            turns.wait()
            super()._start_epoch(engine)

        def _end_epoch(self, engine) -> None:
            super()._end_epoch(engine)
            turns.done(len(self.cases))

    task = turns.task
    make_deterministic(task["settings"])
    cases = [{**case, "image": [case["image"]]} for case in task["cases"]]
    classes = {0: "background", 1: "anterior", 2: "posterior"}
    with tempfile.TemporaryDirectory() as archive:
        InTurns(
            settings=task["settings"],
            split="0",
            train=cases,
            validation=cases[:1],
            class_names=classes,
            data_root=task["data_root"],
            cache_dir=task["cache"],
            device=torch.device(task["device"]),
            workspace=Workspace(archive, "0", "benchmark"),
        ).run()


if __name__ == "__main__":
    main()
