"""Whose task is whose: what belongs together, and a rank's share of it, the same on every machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["lots", "share"]


def lots(written: Sequence[Collection[str]]) -> list[list[int]]:
    """Group the tasks that write to a common file, ascending; a lot is done on one machine.

    Network file systems promise nothing about two machines that write to one file at a time, not even where the
    ranges do not overlap: a page of the file that both touch is written back whole by each (nfs(5), close-to-open).

    Args:
        written: for every task, the files that it writes to.
    """
    lot_of: dict[str, list[int]] = {}
    found: list[list[int]] = []
    for number, files in enumerate(written):
        joined = [number]
        for other in {id(lot_of[file]): lot_of[file] for file in files if file in lot_of}.values():
            found.remove(other)
            joined += other
        for task in joined:
            lot_of |= dict.fromkeys(written[task], joined)
        found.append(joined)
    return sorted(sorted(lot) for lot in found)


def share(lots: Sequence[Sequence[int]], sizes: Sequence[int], world: int) -> list[list[int]]:
    """Deal lots to ``world`` ranks: the largest first, each to the rank that has the fewest bytes by then.

    The longest rank then has at most 4/3 of what the best division would give it (Graham 1969).

    Args:
        lots: tasks that belong together, as :func:`lots` returns them.
        sizes: bytes of every task.
        world: how many ranks there are.

    Returns:
        For every rank its tasks, ascending; equal arguments give equal shares.
    """
    shares: list[list[int]] = [[] for _ in range(world)]
    filled = [0] * world
    weighed = [(sum(sizes[task] for task in lot), lot) for lot in lots]
    for size, lot in sorted(weighed, key=lambda one: (-one[0], one[1])):
        rank = min(range(world), key=lambda one: (filled[one], one))
        shares[rank] += lot
        filled[rank] += size
    return [sorted(tasks) for tasks in shares]
