"""Plans: equal requests have equal plans; cutting work depends on the items alone."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paramdelta_hub as pd
from paramdelta_hub.limits import TASK_BYTES_MAX, TASK_BYTES_MIN, TASKS_WANTED
from paramdelta_hub.numerics.float8 import Deviation
from paramdelta_hub.package.chunks import chunk_ranges
from paramdelta_hub.package.manifest import FileRecord
from paramdelta_hub.tasks.models import Applied, Digested, DigestTask, Encoded, NotFinite
from paramdelta_hub.tasks.plan import RECEIPT, Plan, Receipt, cut
from tests.conftest import Family


def plan(**changes: object) -> Plan:
    fields: dict[str, object] = {
        "kind": "extract", "inputs": ({"file": "a", "size": 1},), "request": {"x": 1, "y": [2]},
        "tasks": (DigestTask("a", 5),),
        **changes,
    }  # fmt: skip
    return Plan(**fields)  # type: ignore[arg-type]


def test_equal_plans_have_equal_texts_and_digests() -> None:
    assert plan() == plan()
    assert plan().text == plan().text
    assert plan(inputs=({"size": 1, "file": "a"},)).digest == plan().digest, "the order of keys says nothing"
    assert plan(request={"y": [2], "x": 1}).request_text == plan().request_text
    assert json.loads(plan().text)["kind"] == "extract"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "apply"}, {"inputs": ()}, {"inputs": ({"file": "a", "size": 2},)}, {"tasks": ()},
        {"tasks": (DigestTask("a", 6),)}, {"tasks": (DigestTask("a", 5), DigestTask("a", 5))},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_differs_makes_another_plan(change: dict[str, object]) -> None:
    assert plan(**change).digest != plan().digest


def test_what_shapes_no_task_is_in_the_request_alone() -> None:
    """Whose tokenizer lies beside the weights may be asked for otherwise when a run goes on."""
    other = plan(request={"x": 1, "y": [3]})
    assert other.digest == plan().digest
    assert other.request_text != plan().request_text != plan(kind="apply").request_text


def test_another_version_of_the_tool_makes_another_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    from paramdelta_hub import __about__

    before = plan().digest
    monkeypatch.setattr(__about__, "CREATED_BY", "paramdelta-hub 9.9.9")
    assert plan().digest != before


def test_receipts_come_back() -> None:
    deviation = Deviation(0.1, 1 / 3, 1e-30, 2.0)
    for outcome in (
        Digested("model.safetensors", "0" * 64),
        Encoded(None, (), (NotFinite("w", (1, 2)),)),
        Encoded(FileRecord(path="000001.safetensors", size=9, sha256="0" * 64), ()),
        Applied(("a", "b"), {"w": "1" * 64}, (), (deviation, deviation)),
    ):
        receipt = Receipt("a" * 64, 3, outcome)
        assert RECEIPT.validate_json(RECEIPT.dump_json(receipt)) == receipt


SIZES = st.lists(st.integers(0, 3 * TASK_BYTES_MIN) | st.just(0) | st.integers(0, 2 * TASK_BYTES_MAX), max_size=60)


@dataclass(frozen=True)
class Item:
    """A tensor of chunks of 2 MiB, or some of them."""

    number: int
    nbytes: int
    first: int = 0

    def divide(self, parts: int) -> list[Item]:
        ranges = chunk_ranges(self.nbytes // 2, parts)
        return [Item(self.number, 2 * count, self.first + 2 * first) for first, count in ranges]


def items(sizes: list[int]) -> list[Item]:
    return [Item(number, size // 2 * 2) for number, size in enumerate(sizes)]


@given(SIZES)
def test_cutting_loses_nothing_and_keeps_the_order(sizes: list[int]) -> None:
    groups = cut(items(sizes), sum(sizes))
    joined: dict[int, int] = {}
    for part in (part for group in groups for part in group):
        assert joined.setdefault(part.number, 0) == part.first, "the parts of an item follow each other"
        joined[part.number] += part.nbytes
    assert list(joined.items()) == [(item.number, item.nbytes) for item in items(sizes)]
    assert all(groups)
    assert cut(items(sizes), sum(sizes)) == groups


@given(SIZES)
def test_groups_are_neither_too_large_nor_too_many(sizes: list[int]) -> None:
    total = sum(sizes)
    wanted = min(max(total // TASKS_WANTED, TASK_BYTES_MIN), TASK_BYTES_MAX)
    groups = cut(items(sizes), total)
    for group in groups:
        assert sum(item.nbytes for item in group) <= 2 * wanted
        assert len({item.number for item in group}) == len(group), "no two parts of one item"
    for one, other in itertools.pairwise(groups):
        both = sum(item.nbytes for item in (*one, *other))
        assert both >= wanted, "two neighbors that would fit into one are one"


def test_a_small_model_is_one_task_and_a_large_one_many() -> None:
    assert len(cut(items([1000] * 50), 50_000)) == 1
    for sizes in ([400 << 20] * 400, [160_000 << 20]):
        assert TASKS_WANTED / 2 <= len(cut(items(sizes), sum(sizes))) <= 2 * TASKS_WANTED
    assert cut(items([]), 0) == []


def test_threads_and_memory_are_no_part_of_a_plan(family: Family, tmp_path: Path) -> None:
    """A run that was begun with eight threads may be finished with one."""

    class Stops(pd.Progress):
        calls = 0

        def advance(self, nbytes: int) -> None:
            self.calls += nbytes > 0
            if self.calls == 4:
                raise pd.StorageError("stop")

    with pytest.raises(pd.StorageError):
        pd.apply(family.target, family.delta, tmp_path / "out", threads=4, progress=Stops())
    before = (tmp_path / "out.partial" / "plan.json").read_bytes()
    with pytest.raises(pd.StorageError):
        pd.apply(family.target, family.delta, tmp_path / "out", threads=1, memory=1 << 30, progress=Stops())
    assert (tmp_path / "out.partial" / "plan.json").read_bytes() == before
    pd.apply(family.target, family.delta, tmp_path / "out")
