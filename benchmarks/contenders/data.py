"""Makes what the contenders train on: volumes of the hippocampus' size, and the bare loop's tensors of them."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path


def synthetic(folder: Path, cases: int, shape: list[int]) -> list[dict]:
    """The entries of a datalist, and their files written below ``folder``."""
    from armarium.synthesize import synthesize_dataset

    spec = {"cases": cases, "test_cases": 0, "shape": shape, "spacing": [1.0] * 3, "channels": 1, "classes": 3}
    synthesize_dataset(str(folder), {**spec, "seed": 0})
    return json.loads((folder / "dataset.json").read_text())["training"]


def described(folder: Path, entries: list[dict]) -> list[dict]:
    """Cases as training takes them."""
    found = []
    for number, entry in enumerate(entries):
        names = {"image": str(Path(entry["image"])), "label": str(Path(entry["label"]))}
        hashes = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names.values()]
        who = {"case": f"c{number}", "participant_id": f"sub-{number:03d}", "session_id": "ses-M000", "columns": {}}
        found.append({**who, **names, "sha256": hashes})
    return found


def write_tensors(folder: Path, cases: list[dict], transforms: list[dict], path: Path) -> None:
    """What the transforms give of all cases: images float32, labels uint8, each ``[cases, 1, *grid]``."""
    import monai.transforms
    import torch

    chain = monai.transforms.Compose([getattr(monai.transforms, c["name"])(**c["args"]) for c in transforms])
    made = [chain({k: str(folder / case[k]) for k in ("image", "label")}) for case in cases]
    images = torch.stack([m["image"].as_subclass(torch.Tensor).float() for m in made])
    labels = torch.stack([m["label"].as_subclass(torch.Tensor).to(torch.uint8) for m in made])
    torch.save([images, labels], path)


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(task["data_root"])
    if task["listed"]:
        entries = json.loads((folder / task["listed"]).read_text())["training"][: task["count"]]
        below = Path(task["listed"]).parent
        entries = [{k: str(below / e[k]) for k in ("image", "label")} for e in entries]
    else:
        entries = synthetic(folder, task["count"], task["shape"])
    cases = described(folder, entries)
    write_tensors(folder, cases, task["pre_transforms"], Path(task["tensors"]))
    Path(task["described"]).write_text(json.dumps(cases))


if __name__ == "__main__":
    main()
