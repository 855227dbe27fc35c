"""The bare loop: tensors lie in memory (on a GPU, in its own), nothing is augmented, recorded or saved."""

from __future__ import annotations

from .parts import a_step
from .turns import Turns, use_torch


def main() -> None:
    turns = Turns()
    torch = use_torch(turns)
    step, size = a_step(turns), turns.task["batch_size"]
    images, labels = (t.to(turns.task["device"]) for t in torch.load(turns.task["tensors"], weights_only=True))

    def epoch() -> int:
        order = torch.randperm(len(images)).to(images.device)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            step(images[chosen], labels[chosen])
        return len(order)

    turns.serve(epoch)


if __name__ == "__main__":
    main()
