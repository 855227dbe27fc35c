"""Iterative stratification: whole groups of cases divided so that each side has its share of every class.

Where a case has several classes, most combinations of them are rare, so the classes are balanced one by one, the rarest first
(Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-Label Data, 2011).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from .draws import reachable

Group = tuple[int, Counter]
"""Cases that stay together: how many, and of each trait (a class, a value of a column) how many have it."""
Room = Callable[[int, list[float]], list[int]]
"""The sides that may take a group, given its number and the cases that each side still lacks."""


def folds(groups: Sequence[Group], count: int, seed: str) -> list[int]:
    """The fold of each group; ``count`` folds of cases as equal as the groups allow."""

    def room(i: int, due: list[float]) -> list[int]:
        most = max(due)
        return [k for k, cases in enumerate(due) if cases >= groups[i][0]] or [due.index(most)]

    order = list(_rarest_first(groups, seed))
    return _divide(groups, order, [1 / count] * count, room)


def drawn(groups: Sequence[Group], count: int, seed: str) -> list[bool]:
    """Of each group whether it is drawn: ``count`` cases exactly, which whole groups must be able to make."""
    order = list(_rarest_first(groups, seed))
    left, total = Counter(size for size, _ in groups), sum(size for size, _ in groups)

    def room(i: int, due: list[float]) -> list[int]:
        size, lacking = groups[i][0], round(due[0])
        left[size] -= 1
        sums = _sums(left)
        return [side for side, rest in enumerate((lacking - size, lacking)) if rest >= 0 and sums >> rest & 1]

    sides = _divide(groups, order, [count / total, 1 - count / total], room)
    return [side == 0 for side in sides]


def _sums(left: Counter) -> int:
    """The sums that groups of these sizes can make: bit s of the result is sum s."""
    sizes = {size: n for size, n in left.items() if n}
    if set(sizes) <= {1}:
        return (1 << (sizes.get(1, 0) + 1)) - 1
    return reachable({("", size): range(n) for size, n in sizes.items()})[-1]


def _divide(groups: Sequence[Group], order: list[int], shares: list[float], room: Room) -> list[int]:
    """Give each group, in order, to the side, of those that have room, that comes nearest to its share of cases and traits.

    Nearest by the squares of what each trait lacks, relative to the side's share of it: a group has many traits, so the
    rarest does not decide alone, as it does of Sechidis's single cases.
    """
    total, having = sum(size for size, _ in groups), Counter()
    for _, traits in groups:
        having.update(traits)
    due = [share * total for share in shares]
    wanted = [{trait: share * n for trait, n in having.items()} for share in shares]

    def gain(side: int) -> tuple[float, float, int]:
        share = shares[side]
        nearer = sum(n * (2 * wanted[side][t] - n) / (share * having[t]) for t, n in traits.items())
        return nearer + size * (2 * due[side] - size) / (share * total), due[side] / share, -side

    sides = [0] * len(groups)
    for i in order:
        size, traits = groups[i]
        sides[i] = side = max(room(i, due), key=gain)
        due[side] -= size
        for trait, n in traits.items():
            wanted[side][trait] -= n
    return sides


def _rarest_first(groups: Sequence[Group], seed: str) -> Iterator[int]:
    """Each group once: those with the trait that fewest of the groups left have; large groups of a trait first."""
    shuffled = list(range(len(groups)))
    random.Random(seed).shuffle(shuffled)
    shuffled.sort(key=lambda i: -groups[i][0])
    having = defaultdict(list)
    for i in shuffled:
        for trait in groups[i][1]:
            having[trait].append(i)
    counts, done = {trait: len(members) for trait, members in having.items()}, set()
    while counts:
        trait = min(counts, key=lambda t: (counts[t], str(t)))
        for i in (i for i in having[trait] if i not in done):
            done.add(i)
            for other in groups[i][1]:
                counts[other] -= 1
            yield i
        counts = {t: n for t, n in counts.items() if n}
    yield from (i for i in shuffled if i not in done)
