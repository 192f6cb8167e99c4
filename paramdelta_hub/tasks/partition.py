"""Which tasks are done together, and which rank does them: the same on every machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["group_by_output_file", "partition"]


def group_by_output_file(written: Sequence[Collection[str]]) -> list[list[int]]:
    """Group the tasks that write to a common file, in ascending order; a group is done on one machine.

    Network file systems promise nothing about two machines that write to one file at a time, even if the ranges do
    not overlap: each writes back whole pages of the file (nfs(5), close-to-open). ``written`` holds the files that
    each task writes to.
    """
    group_of: dict[str, list[int]] = {}
    groups: list[list[int]] = []
    for number, files in enumerate(written):
        joined = [number]
        for other in {id(group_of[file]): group_of[file] for file in files if file in group_of}.values():
            groups.remove(other)
            joined += other
        for task in joined:
            group_of |= dict.fromkeys(written[task], joined)
        groups.append(joined)
    return sorted(sorted(group) for group in groups)


def partition(groups: Sequence[Sequence[int]], sizes: Sequence[int], world: int) -> list[list[int]]:
    """Divide groups of tasks among ranks: the largest first, each to the rank that has the fewest bytes by then.

    The longest rank then has at most 4/3 of what the best division would give it (Graham 1969). A rank's tasks are in
    ascending order, and equal arguments give equal results. ``sizes`` holds the bytes of each task.
    """
    ranks: list[list[int]] = [[] for _ in range(world)]
    filled = [0] * world
    weighed = [(sum(sizes[task] for task in group), group) for group in groups]
    for size, group in sorted(weighed, key=lambda one: (-one[0], one[1])):
        rank = min(range(world), key=lambda one: (filled[one], one))
        ranks[rank] += group
        filled[rank] += size
    return [sorted(tasks) for tasks in ranks]
