#!/usr/bin/env python3
"""Measure extract and apply against copying, as whole processes, in one run; write the results as data.

    python scripts/bench.py                      1.24 B parameters, five rounds; needs 15 GB of disk
    python scripts/bench.py --layers 16 77       also at four times the size: does peak memory stay flat?

Every round runs each command once, in turn, so that a slow moment of the machine hits all of them; ratios are taken
round by round and their medians are reported; a first round is not counted. Everything is made durable: ``cp -r`` is
followed by ``sync``, and our commands end when their output is on disk. Each command's inputs are read just before it,
so that all find them in the page cache, if they fit, and memory for the output is touched: virtual machines take idle
pages back within seconds, and lend new ones slowly. Peak memory is the resident set of the process, as the kernel
accounts it. The table in the README is made of the results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from generate import Recipe, generate

import paramdelta_hub
from paramdelta_hub.codecs import codec_named
from paramdelta_hub.format.chunks import Layout
from paramdelta_hub.format.package import open_package
from paramdelta_hub.format.payload import PayloadReader

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "scripts" / "results" / "bench.json"
BEGIN, END = "<!-- bench: made by scripts/bench.py -->\n", "<!-- end of bench -->"


def run(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; return seconds and peak memory in MB. Its output goes nowhere; a failure ends the benchmark."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} ended with {code}")
    return time.perf_counter() - begun, usage.ru_maxrss / 1000


def free_memory() -> int:
    """Return the bytes of memory that nothing uses, not even the page cache."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def warm(folder: Path) -> None:
    """Read every file once."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def touch(nbytes: int) -> None:
    """Write to memory and give it back: virtual machines lend a page on its first use, at a tenth of the speed.

    In a process of its own: a child's peak memory, as the kernel accounts it, begins with its parent's.
    """
    subprocess.run([sys.executable, "-c", f"import numpy; numpy.ones({nbytes // 8})"], check=True)


def entropy_bound(package: Path) -> dict[str, float]:
    """Return bits a weight: as stored, and the bound: order-0 entropy of every chunk's symbols, plus the remainders.

    The entropy is that of each chunk's own 16-bit symbols, the hardest bound that a coder without context can meet;
    the remainders (elements whose delta does not fit 16 bits) are counted as they are stored.
    """
    opened = open_package(package)
    places = opened.payload_places()
    bound = elements = 0.0
    for record in opened.manifest.tensors:
        elements += record.elements
        if record.shard is None:
            continue
        codec = codec_named(record.codec.name)
        layout = Layout(codec, record.dtype, record.elements, record.effect == "add")
        path, start = places[record.name]
        descriptor = os.open(path, os.O_RDONLY)
        reader = PayloadReader(descriptor, start, record.nbytes, layout, record.shard)
        codec_streams = layout.codec.streams(record.itemsize)
        for index in range(layout.chunks):
            place = layout.chunk(index)
            streams = reader.next_chunk()
            symbols = np.empty(place.stop - place.start, layout.symbol)
            layout.codec.decode(streams[:codec_streams], symbols)
            counts = np.bincount(symbols, minlength=1 << 16)
            counts = counts[counts > 0]
            bound += float(-(counts * np.log2(counts / symbols.size)).sum())
            bound += 8 * sum(len(stream) for stream in streams[codec_streams:])
        os.close(descriptor)
    stored = 8.0 * sum(file.size for file in opened.manifest.files)
    return {
        "bits_per_weight": stored / elements,
        "bound_bits_per_weight": bound / elements,
        "over_bound": stored / bound - 1,
    }


def measure(layers: int, rounds: int, work: Path) -> dict[str, Any]:
    """Generate the triple of that size, and run everything ``rounds`` times in turn."""
    models = work / f"layers-{layers}"
    generate(models, Recipe(layers=layers))
    parameters = sum(math.prod(span.shape) for _, span in _tensors(models / "target"))
    model_bytes = sum(path.stat().st_size for path in (models / "target").glob("*.safetensors"))
    delta, out, copy = (work / name for name in ("delta", "out", "copy"))
    commands = {
        "cp + sync": ["sh", "-c", f"cp -r '{models / 'target'}' '{copy}' && sync"],
        "extract": [sys.executable, "-m", "paramdelta_hub", "extract", str(models / "base"), str(models / "post"),
                    "-o", str(delta), "-q"],
        "apply": [sys.executable, "-m", "paramdelta_hub", "apply", str(models / "target"), str(delta), "-o", str(out),
                  "-q"],
    }  # fmt: skip
    outputs = {"cp + sync": copy, "extract": delta, "apply": out}
    inputs = {"cp + sync": ["target"], "extract": ["base", "post"], "apply": ["target", "../delta"]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            if outputs[name].exists():
                shutil.rmtree(outputs[name])
            os.sync()
            for folder in inputs[name]:
                warm(models / folder)
            touch(min(2 * model_bytes, free_memory() // 2))
            elapsed, peak = run(command)
            print(f"  round {number}: {name:<10} {elapsed:6.2f} s  {peak:6.0f} MB", file=sys.stderr)
            if number:  # round 0 touches the memory that the page cache will take: not every machine has it ready
                seconds[name].append(elapsed)
                peaks[name].append(peak)
    ratios = {
        name: [ours / copied for ours, copied in zip(seconds[name], seconds["cp + sync"], strict=True)]
        for name in commands
        if name != "cp + sync"
    }
    result = {
        "layers": layers,
        "parameters": parameters,
        "model_bytes": model_bytes,
        "rounds": rounds,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio_to_cp_and_sync": {name: statistics.median(times) for name, times in ratios.items()},
        "ratio_range": {name: [min(times), max(times)] for name, times in ratios.items()},
        "peak_mb": {name: max(values) for name, values in peaks.items()},
        "package": entropy_bound(delta),
    }
    for path in (delta, out, copy):
        shutil.rmtree(path)
    return result


def _tensors(model: Path) -> list[tuple[str, Any]]:
    from paramdelta_hub.checkpoints.checkpoint import open_checkpoint

    return [(name, span) for name, (_, span) in open_checkpoint(model).tensors.items()]


def table(report: dict[str, Any]) -> str:
    """Return the Markdown table that the README shows."""
    lines = [
        "| parameters | cp + sync | extract | apply | peak memory: extract, apply | bits a weight | over the bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in report["sizes"]:
        ratio, seconds, peak, package = (
            size["ratio_to_cp_and_sync"], size["seconds"], size["peak_mb"], size["package"],
        )  # fmt: skip
        lines.append(
            f"| {size['parameters'] / 1e9:.2f} B | {seconds['cp + sync']:.1f} s "
            f"| {ratio['extract']:.1f} × ({seconds['extract']:.1f} s) "
            f"| {ratio['apply']:.1f} × ({seconds['apply']:.1f} s) "
            f"| {peak['extract']:.0f} MB, {peak['apply']:.0f} MB "
            f"| {package['bits_per_weight']:.2f} of 16 | {package['over_bound']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[16], help="sizes, in layers [default: 16]")
    parser.add_argument("--rounds", type=int, nargs="+", default=[5], help="per size, the last for all that follow")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench"), help="where models and outputs lie")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "paramdelta_hub": paramdelta_hub.__version__,
            "numpy": np.__version__,
        },
        "sizes": [
            measure(layers, rounds, arguments.work)
            for layers, rounds in itertools.zip_longest(
                arguments.layers, arguments.rounds[: len(arguments.layers)], fillvalue=arguments.rounds[-1]
            )
        ],
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))
    if arguments.results == RESULTS:
        readme = ROOT / "README.md"
        before, _, rest = readme.read_text().partition(BEGIN)
        readme.write_text(before + BEGIN + table(report) + "\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
