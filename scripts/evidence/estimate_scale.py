"""Estimate how long a model of 1.3 TB takes on 1, 8 and 64 machines, from what its tasks cost here.

    python -m scripts.evidence.estimate_scale             measure; write results/scale.json and docs/scaling.md's tables
    python -m scripts.evidence.estimate_scale --tables    only the tables, from the results there are

Measured are the plans of a model with DeepSeek-V3's layout (91,495 tensors in 163 files, headers only), and tasks like
theirs, on one thread, in processor seconds, so that a busy machine counts no worse than a quiet one. Everything else is
assumed, and stands in the table of assumptions. Nothing is run on a cluster: this is arithmetic.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import paramdelta_hub as pd
from paramdelta_hub.application.apply import Application
from paramdelta_hub.extraction.extract import Extraction
from paramdelta_hub.fileio.digests import chunk_digest
from paramdelta_hub.tasks.partition import group_by_output_file, partition
from paramdelta_hub.tasks.plan import Plan
from paramdelta_hub.tasks.runner import Operation
from paramdelta_hub.tasks.workspace import Workspace
from scripts.benchmarks.process import machine
from scripts.tools.blocks import fill
from scripts.tools.generate import Recipe, generate
from tests.support import deepseek

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "scale.json"
DOCUMENT = ROOT / "docs" / "scaling.md"
GB = 1e9
# Matrices as wide as DeepSeek-V3's experts: 0.35 GB a model, whose tasks cost what those of 1.3 TB cost, byte by byte.
RECIPE = Recipe(layers=2, vocab=2048, hidden=7168, intermediate=2048, heads=16, kv_heads=4, head_dim=128)


@dataclass(frozen=True)
class Assumptions:
    """What is not measured here."""

    cores: int = 16
    node_gb_a_second: float = 2.0
    """What one machine reads and writes of the shared file system, both together."""
    storage_gb_a_second: float = 40.0
    """What the file system gives all machines together."""
    dollars_an_hour: float = 0.81
    """For one machine of 16 virtual cores, on demand."""
    startup_seconds: float = 60.0
    """Until a machine has been given, and has mounted the file system."""


def measure() -> dict[str, Any]:
    """Plan the large model, and time tasks and digests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {"plans": plans(folder), **costs(folder)}


def plans(folder: Path) -> dict[str, Any]:
    """Return for both operations how long the plan takes, and every task's bytes and lot."""
    for model in ("base", "post"):
        deepseek.write_headers(folder / model, deepseek.tensors())
    deepseek.write_package(folder / "delta", deepseek.tensors(), folder)
    base, post, delta = (str(folder / model) for model in ("base", "post", "delta"))
    makers: dict[str, Callable[[], Operation[Any]]] = {
        "extract": lambda: Extraction(pd.ExtractRequest(base, post)),
        "apply": lambda: Application(pd.ApplyRequest(base, ((delta, 1.0),), force=True), folder / "out"),
    }
    found = {}
    for kind, make in makers.items():
        paths = (base, post) if kind == "extract" else (base, delta)
        command = [sys.executable, "-m", "tests.support.deepseek", kind, *paths, str(folder / "out")]
        told = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
        plan = make().plan
        found[kind] = {
            "seconds": told["processor_seconds"],
            "peak_mb": told["peak_mb"],
            "bytes": [task.nbytes for task in plan.tasks],
            "lots": group_by_output_file([task.writes for task in plan.tasks]),
        }
    return found


def costs(folder: Path) -> dict[str, Any]:
    """Return processor seconds a GB of weights read, and the delta's share of the model, on real tasks."""
    models = folder / "models"
    generate(models, RECIPE)
    base, post, target = (str(models / model) for model in ("base", "post", "target"))
    extraction = Extraction(pd.ExtractRequest(base, post))
    found = {"extract": timed(extraction.plan, extraction, folder / "delta")}
    pd.extract(base, post, folder / "package")
    application = Application(pd.ApplyRequest(target, ((str(folder / "package"), 1.0),)), folder / "out")
    found["apply"] = timed(application.plan, application, folder / "out")
    package = sum(file.stat().st_size for file in (folder / "package").rglob("*") if file.is_file())
    model = sum(file.stat().st_size for file in (models / "target").glob("*.safetensors"))
    content = np.zeros(1 << 28, np.uint8)
    begun = time.process_time()
    chunk_digest(content)
    return {
        "seconds_a_gb": found,
        "delta_share": round(package / model, 3),
        "digest_seconds_a_gb": round((time.process_time() - begun) / len(content) * GB, 3),
        "measured_gb": round(model / GB, 2),
    }


def timed(plan: Plan, operation: Operation[Any], out: Path) -> float:
    """Return processor seconds a GB of the plan's bytes, all tasks one after another; the best of three runs."""
    best = float("inf")
    for attempt in range(3):
        with Workspace(out.with_name(f"{out.name}-{attempt}")) as workspace:
            workspace.resume(plan, lambda at=workspace: operation.prepare(at, 1))  # type: ignore[misc]
            begun = time.process_time()
            for task in plan.tasks:
                task.run(workspace.work_dir, lambda _: None)
            best = min(best, time.process_time() - begun)
    return round(best / plan.nbytes * GB, 3)


def makespan(seconds: Sequence[float], cores: int) -> float:
    """Return when the last of so many cores is done, each taking the largest task that is left."""
    ends = [0.0] * cores
    for each in sorted(seconds, reverse=True):
        ends[ends.index(min(ends))] += each
    return max(ends)


@dataclass(frozen=True)
class Estimate:
    """Seconds of the stages on so many machines."""

    machines: int
    plan: float
    tasks: float
    commit: float
    bound: str
    """What the tasks wait for."""
    assumed: Assumptions

    @property
    def seconds(self) -> float:
        """From the first machine's start to the committed result."""
        return self.assumed.startup_seconds + 2 * self.plan + self.tasks + self.commit

    @property
    def dollars(self) -> float:
        """All machines for the ranks' time, and one for the commit's."""
        ranks = self.machines * (self.assumed.startup_seconds + self.plan + self.tasks)
        return (ranks + self.plan + self.commit) / 3600 * self.assumed.dollars_an_hour


def estimate(found: dict[str, Any], kind: str, machines: int, assumed: Assumptions) -> Estimate:
    """Return what an operation takes on so many machines, each doing the share that a rank does."""
    plan, cost, part = found["plans"][kind], found["seconds_a_gb"][kind], found["delta_share"]
    sizes = plan["bytes"]
    model = sum(sizes) / (2 if kind == "extract" else 1) / GB
    made = part * model if kind == "extract" else model
    moved = (2 * model if kind == "extract" else (1 + part) * model) + made  # read, and written
    shares = partition(plan["lots"], sizes, machines)
    computing = max(makespan([sizes[task] / GB * cost for task in mine], assumed.cores) for mine in shares)
    largest = max(sum(sizes[task] for task in mine) for mine in shares) / sum(sizes)
    waiting = {
        f"{assumed.cores} cores": computing,
        "one machine's line": moved * largest / assumed.node_gb_a_second,
        "storage": moved / assumed.storage_gb_a_second,
    }
    bound = max(waiting, key=lambda what: waiting[what])
    checking = max(made / assumed.node_gb_a_second, made * found["digest_seconds_a_gb"] / assumed.cores)
    return Estimate(machines, plan["seconds"], waiting[bound], checking, bound, assumed)


def tables(found: dict[str, Any], assumed: Assumptions | None = None) -> str:
    """Return the assumptions, the measurements and the estimates, in Markdown."""
    assumed = assumed or Assumptions()
    one, machine = found["plans"], found["machine"]
    model = sum(one["apply"]["bytes"]) / GB
    made = model * found["delta_share"]
    cost = found["seconds_a_gb"]
    lines = [
        f"Measured ({found['measured']}; {machine['processor']}, {machine['system']}, Python {machine['python']}), "
        "in processor seconds on one core:",
        "",
        "| what | extract | apply |",
        "|---|---|---|",
        f"| the plan, from headers: {len(one['extract']['bytes'])} and {len(one['apply']['bytes'])} tasks "
        f"| {one['extract']['seconds']:.1f} s, {one['extract']['peak_mb']} MB "
        f"| {one['apply']['seconds']:.1f} s, {one['apply']['peak_mb']} MB |",
        f"| a task, for each GB that it reads of models (measured on {found['measured_gb']} GB a model) "
        f"| {cost['extract']:.2f} s | {cost['apply']:.2f} s |",
        f"| all tasks | {sum(one['extract']['bytes']) / GB * cost['extract'] / 3600:.1f} h "
        f"| {model * cost['apply'] / 3600:.1f} h |",
        f"| checking a result's digests, a GB | {found['digest_seconds_a_gb']:.2f} s "
        f"| {found['digest_seconds_a_gb']:.2f} s |",
        "",
        "Assumed:",
        "",
        "| what | value |",
        "|---|---|",
        f"| a model, and its delta ({found['delta_share']:.0%} of it, as measured on Gaussian deltas of 3 %) "
        f"| {model / 1e3:.2f} TB, {made / 1e3:.2f} TB |",
        f"| a machine | {assumed.cores} virtual cores like the one measured, memory for {assumed.cores} tasks (1 GiB), "
        f"${assumed.dollars_an_hour:.2f} an hour |",
        f"| its line to the shared file system | {assumed.node_gb_a_second:g} GB/s, read and written together |",
        f"| the file system, for all machines together | {assumed.storage_gb_a_second:g} GB/s |",
        f"| until a machine has started | {assumed.startup_seconds:.0f} s |",
        "| cores add up, and computing hides reading and writing | as threads do on the machines that were measured |",
        "",
        "Estimated, from the start to the committed result:",
        "",
        "| | machines | tasks | bound by | commit | in all | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in ("extract", "apply"):
        for machines in (1, 8, 64):
            its = estimate(found, kind, machines, assumed)
            lines.append(
                f"| {kind} | {machines} | {duration(its.tasks)} | {its.bound} | {duration(its.commit)} "
                f"| {duration(its.seconds)} | ${its.dollars:.2f} |"
            )
    faster = replace(assumed, node_gb_a_second=2 * assumed.node_gb_a_second)
    eight = [estimate(found, "apply", 8, its).seconds for its in (assumed, faster)]
    lines += [
        "",
        f"With lines twice as fast, eight machines apply in {duration(eight[1])} instead of {duration(eight[0])}.",
        "",
    ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    if not parser.parse_args().tables:
        today = time.strftime("%Y-%m-%d", time.gmtime())
        RESULTS.write_text(json.dumps({"measured": today, "machine": machine(), **measure()}) + "\n")
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), {"estimate": tables(json.loads(RESULTS.read_text()))}))


if __name__ == "__main__":
    main()
