"""Shares: every task is one rank's, what writes to one file stays together, and all ranks agree."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.tasks.partition import group_by_output_file, partition

FILES = st.lists(st.frozensets(st.sampled_from("abcdefgh"), max_size=3), max_size=24)


@given(FILES)
def test_lots_are_what_common_files_join(written: list[frozenset[str]]) -> None:
    found = group_by_output_file(written)
    assert sorted(task for lot in found for task in lot) == list(range(len(written)))
    assert found == sorted(sorted(lot) for lot in found)
    for lot in found:
        for other in found:
            if lot is not other:
                files, others = ({file for task in its for file in written[task]} for its in (lot, other))
                assert not files & others, "two lots write to one file"
        reached, before = {lot[0]}, set[int]()
        while reached != before:
            before = set(reached)
            reached |= {task for task in lot for other in before if written[task] & written[other]}
        assert reached == set(lot), "a lot holds what nothing joins"


def test_the_usual_cases() -> None:
    assert group_by_output_file([]) == []
    assert group_by_output_file([{"1"}, {"2"}, {"3"}]) == [[0], [1], [2]], "extract: a piece a task"
    assert group_by_output_file([{"a"}, {"a"}, {"b"}]) == [[0, 1], [2]], "apply: two tasks fill one file"
    assert group_by_output_file([{"a"}, {"b"}, {"c"}, {"a", "c"}]) == [[0, 2, 3], [1]], (
        "fp8: scales lie in another file"
    )
    assert group_by_output_file([set(), set()]) == [[0], [1]], "to digest a file writes nothing"


@given(st.lists(st.integers(0, 1 << 40), max_size=40), st.integers(1, 12))
def test_every_task_is_somebodys_and_nobody_has_much_more(sizes: list[int], world: int) -> None:
    alone = [[number] for number in range(len(sizes))]
    shares = partition(alone, sizes, world)
    assert len(shares) == world
    assert Counter(task for mine in shares for task in mine) == Counter(range(len(sizes)))
    assert shares == partition(alone, list(sizes), world)
    loads = [sum(sizes[task] for task in mine) for mine in shares]
    assert max(loads) <= sum(sizes) / world + max(sizes, default=0), "Graham's bound, in its simplest form"


def test_lots_are_never_cut() -> None:
    shares = partition([[0, 3], [1], [2, 4, 5]], [1, 10, 1, 1, 1, 1], 2)
    assert shares == [[1], [0, 2, 3, 4, 5]]
    assert partition([[0, 1]], [1, 1], 3) == [[0, 1], [], []]
