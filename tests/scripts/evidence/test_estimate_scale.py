"""docs/scaling.md: its tables are what the script makes of the measurements, and its arithmetic is arithmetic."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub import cli
from scripts.evidence import estimate_scale
from scripts.evidence.estimate_scale import Assumptions, estimate, makespan, tables
from scripts.tools.blocks import fill

FOUND = json.loads(estimate_scale.RESULTS.read_text())
DOCUMENT = estimate_scale.DOCUMENT.read_text()


def test_the_tables_are_of_these_results() -> None:
    assert fill(DOCUMENT, {"estimate": tables(FOUND)}) == DOCUMENT


@pytest.mark.parametrize("kind", ["extract", "apply"])
def test_more_machines_are_not_slower_and_cost_no_less(kind: str) -> None:
    assumed = Assumptions()
    on = [estimate(FOUND, kind, machines, assumed) for machines in (1, 2, 8, 64)]
    assert all(more.tasks <= fewer.tasks for fewer, more in itertools.pairwise(on))
    assert all(more.dollars >= fewer.dollars * 0.99 for fewer, more in itertools.pairwise(on))
    sizes, cost = FOUND["plans"][kind]["bytes"], FOUND["seconds_a_gb"][kind]
    least = sum(sizes) / 1e9 * cost / assumed.cores
    assert on[0].tasks >= least, "one machine does all of it"
    slow = estimate(FOUND, kind, 1, Assumptions(cores=1, node_gb_a_second=1e9, storage_gb_a_second=1e9))
    assert slow.tasks == pytest.approx(least * assumed.cores)
    assert slow.bound == "1 cores"


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.integers(1, 20))
def test_makespan(seconds: list[float], cores: int) -> None:
    end = makespan(seconds, cores)
    assert end >= max(max(seconds), sum(seconds) / cores) * (1 - 1e-9)
    assert end <= sum(seconds) / cores + max(seconds) * (1 + 1e-9)


def test_the_options_it_shows_are_there() -> None:
    shown = set(re.findall(r"(--[a-z-]+)(?= |=|`)", re.sub(r"(sbatch|#SBATCH|ray start).*", "", DOCUMENT)))
    known = {option for command in ("apply", "commit") for option in _options(command)}
    assert {"--rank", "--world", "--executor", "--threads", "--memory", "--stream"} <= shown <= known


def _options(command: str) -> list[str]:
    return re.findall(r"--[a-z-]+", CliRunner().invoke(cli.main, [command, "--help"]).output)
