"""A plain script with what MONAI has to be fast: cases cached, a thread that loads ahead, no metadata tracked.

On a GPU as MONAI's fast training tutorial has it: cases are cached there, and what is random is done there.
"""

from __future__ import annotations

from monai.data import CacheDataset, ThreadDataLoader, set_track_meta
from monai.transforms import Compose, EnsureTyped, Randomizable

from .parts import a_step
from .turns import Turns, use_torch


def main() -> None:
    import monai.transforms

    turns = Turns()
    use_torch(turns)
    task, step = turns.task, a_step(turns)
    made = [getattr(monai.transforms, c["name"])(**c["args"]) for c in task["pre_transforms"]]
    if task["device"] == "cuda":
        first = next((i for i, t in enumerate(made) if isinstance(t, Randomizable)), len(made))
        made.insert(first, EnsureTyped(keys=["image", "label"], device=task["device"], track_meta=False))
    cases = [{k: f"{task['data_root']}/{case[k]}" for k in ("image", "label")} for case in task["cases"]]
    cached = CacheDataset(cases, Compose(made), progress=False, num_workers=task["threads"])
    set_track_meta(False)
    loader = ThreadDataLoader(cached, num_workers=0, batch_size=task["batch_size"], shuffle=True)

    def epoch() -> int:
        for batch in loader:
            step(*(batch[k].to(task["device"], non_blocking=True) for k in ("image", "label")))
        return len(cached)

    turns.serve(epoch)


if __name__ == "__main__":
    main()
