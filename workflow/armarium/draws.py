"""Drawing whole groups of cases so that their number is exact and every stratum gets its share.

Groups of one stratum and one size are exchangeable: a *type*; to be found is how many of each.
"""

from __future__ import annotations

from collections import Counter

from .errors import UserError

Types = dict[tuple[str, int], list[list[str]]]
"""Groups (names of cases) by stratum and size."""


def reachable(types: Types) -> list[int]:
    """After each type (sorted), the sums that whole groups can make: bit s of an integer is sum s."""
    sums = [1]
    for _, size in (keys := sorted(types)):
        bits, left, step = sums[-1], len(types[keys[len(sums) - 1]]), 1
        while left:
            take = min(step, left)  # binary splitting: any number of groups from 0 to all
            bits |= bits << (size * take)
            left, step = left - take, step * 2
        sums.append(bits)
    return sums


def possible_count(reachable_sums: int, count: int, total: int, nearest: bool, what: str) -> int:
    """``count`` if whole groups can make it and leave somebody; else the nearest, if that is allowed."""
    options = [s for s in range(1, total) if reachable_sums >> s & 1]
    if count in options:
        return count
    below = max((s for s in options if s < count), default=None)
    above = min((s for s in options if s > count), default=None)
    near = [s for s in (below, above) if s is not None]
    if nearest and near:
        return min(near, key=lambda s: abs(s - count))
    raise UserError(
        f"{what}: found {count} of {total} cases, which groups that stay together cannot make; wanted "
        f"{' or '.join(map(str, near)) or 'more cases: they form one group'}"
    )


def counts_by_type(types: Types, count: int) -> dict[tuple[str, int], int]:
    """How many groups of each type make ``count`` cases, each stratum as near to its share as possible.

    Walks back through the reachable sums. Within a stratum large groups are placed first and small ones make
    up for the rounding; what a stratum cannot make up is passed on to the next, so that errors do not add up.
    """
    keys, sums = sorted(types), reachable(types)
    mass = Counter()
    for stratum, size in keys:
        mass[stratum] += size * len(types[stratum, size])
    total, share = sum(mass.values()), count
    left, chosen, current, due, rest = count, {}, None, 0.0, 0
    for at in reversed(range(len(keys))):
        stratum, size = keys[at]
        if stratum != current:
            # ``due``: cases wanted up to and with this stratum, less those chosen before.
            current, rest = stratum, mass[stratum]
            due += share * mass[stratum] / total
        m = len(types[keys[at]])
        ideal = due * m / rest
        options = sorted(range(min(m, left // size) + 1), key=lambda c: (abs(c - ideal), c))
        c = next(c for c in options if sums[at] >> (left - c * size) & 1)
        chosen[keys[at]] = c
        left, due, rest = left - c * size, due - c * size, rest - m * size
    return chosen
