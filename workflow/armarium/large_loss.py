"""The loss on a volume so large that MONAI's own computation would take many times its memory: sums over blocks.

Only Dice and cross entropy, alone or together, on a softmax; another loss is computed as its class has it, whatever it takes.
Smaller volumes always are. The sums are taken in double precision, so the result differs from MONAI's in its last digits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from monai.losses import DiceCELoss, DiceLoss

LARGEST = 1 << 27
"""Values of a network's output, 512 MiB, up to which a loss is computed by its class."""
BLOCK = 1 << 22
"""Values worked on at once."""


def loss_on(loss: torch.nn.Module, output: torch.Tensor, target: torch.Tensor) -> float:
    """What ``loss`` gives.

    Parameters
    ----------
    output:
        ``[1, classes, *grid]``.
    target:
        What the loss takes beside it.
    """
    if output.numel() <= LARGEST or not _is_sum_of_blocks(loss, output, target):
        return float(loss(output, target))
    return _in_blocks(loss, output, target)


def _is_sum_of_blocks(loss: torch.nn.Module, output: torch.Tensor, target: torch.Tensor) -> bool:
    numbered = output.ndim > 2 and output.shape[1] > 1 and tuple(target.shape) == (1, 1, *output.shape[2:])
    dice = loss.dice if type(loss) is DiceCELoss else loss
    if not numbered or type(dice) is not DiceLoss or not dice.softmax or not dice.to_onehot_y:
        return False
    unusual = (dice.sigmoid, dice.other_act, dice.soft_label, dice.ignore_index is not None, dice.reduction != "mean")
    smoothed = type(loss) is DiceCELoss and loss.cross_entropy.label_smoothing
    return not any(unusual) and not smoothed


def _in_blocks(loss: torch.nn.Module, output: torch.Tensor, target: torch.Tensor) -> float:
    with_entropy = type(loss) is DiceCELoss
    dice = loss.dice if with_entropy else loss
    weights = loss.cross_entropy.weight if with_entropy else None
    classes = output.shape[1]
    both, predicted, true, entropy = (torch.zeros(classes, dtype=torch.float64) for _ in range(4))
    for values, numbers in _blocks(output[0], target[0, 0]):
        logs = values.log_softmax(0).flatten(1)
        of_class = numbers.flatten() == torch.arange(classes, device=numbers.device)[:, None]
        chosen = logs.gather(0, numbers.flatten()[None]).double()
        entropy -= (chosen * of_class).sum(1).cpu()
        both += (chosen.exp() * of_class).sum(1).cpu()
        true += of_class.sum(1).cpu()
        logs = logs.exp_().square_() if dice.squared_pred else logs.exp_()
        predicted += logs.sum(1, dtype=torch.float64).cpu()
    total = _dice(dice, both, predicted, true)
    if with_entropy:
        weight = torch.ones(classes, dtype=torch.float64) if weights is None else weights.double().cpu()
        mean = float((entropy * weight).sum() / (true * weight).sum())
        total = loss.lambda_dice * total + loss.lambda_ce * mean
    return total


def _blocks(output: torch.Tensor, target: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Parts of ``[classes, *grid]`` in single precision, with the class numbers of their voxels."""
    step = max(1, BLOCK * output.shape[1] // output.numel())
    for start in range(0, output.shape[1], step):
        part = slice(start, start + step)
        yield output[:, part].float(), target[part].long()


def _dice(loss: DiceLoss, both: torch.Tensor, predicted: torch.Tensor, true: torch.Tensor) -> float:
    """As :class:`~monai.losses.DiceLoss` has it, of each class's sums of products, of predictions, of labels."""
    first = int(not loss.include_background)
    both, predicted, true = both[first:], predicted[first:], true[first:]
    apart = predicted + true - 2 * both
    apart = apart if loss.jaccard else apart / 2
    of_class = 1 - (2 * both + loss.smooth_nr) / (2 * (both + apart) + loss.smooth_dr)
    weights = loss.class_weight
    return float((of_class if weights is None else of_class * weights.double().cpu()).mean())
