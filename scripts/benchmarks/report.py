"""Tables and charts of what was measured: ``docs/benchmarks.md``, its pictures, and the tables of the README."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.chart import Bar, Panel, chart
from scripts.benchmarks.limits import WORK
from scripts.benchmarks.speed import CP
from scripts.tools.blocks import fill

__all__ = ["PARTS", "write_docs", "write_readme"]

PARTS = ("speed", "sizes", "limits")
OURS = ("extract", "apply")
ALL_OURS = (*OURS, "verify")
MERGEKIT = ("mergekit linear", "mergekit task_arithmetic")
OVERHEAD = ("shard headers", "lineage samples", "manifest", "companions")
CORES = {"one": "one core", "all": "all cores"}
GROUPS = {
    "rebuild": "give post back, on its own base only",
    "difference": "Δ rounded to bfloat16: misses post",
    "alone": "post by itself",
}

_HEAD = """\
# Benchmarks

Made by `python -m scripts.benchmarks`, which measures all of this on your machine; the figures of every round lie in
[scripts/benchmarks/results](../scripts/benchmarks/results). Do not edit.
"""
_SPEED = """\
## Speed

Whole processes, from the command line to the last byte on disk, on generated bfloat16 models of Llama-3.2-1B's shapes
(16 layers are that model), Δ of 3 % of the weights' spread. Every round runs each command once, in turn; ratios to
`cp -r` followed by `sync` are taken round by round; medians are shown, with the range. Inputs lie in the page cache
as far as they fit. What does not wait for the disk by itself is followed by `sync`. Peak memory is the resident set
of the whole process, mapped files included. The last column is the share of elements that differ from `((post.float()
- base.float()) + target.float()).bfloat16()`.

The *naive script* loads three whole models; the *careful script* goes shard by shard and tensor by tensor
([both](../scripts/benchmarks/peers)). mergekit runs with every option that could make it faster, in bfloat16;
`residuals` finds its file of differences ready, as our apply does. torch's allocator is told to use large pages, which
helps it most. The *floors* read the same input and write as much output, in two threads, and compute nothing.

![time beside copying](speed.svg)
"""
_LIMITS = """\
## How far from the limits

What this machine does at most, in GB/s, bytes counted before compression:
"""
_WORK = """
What the commands can't do without, at the rate of all cores, one kind after another. The *floor* is input and output
alone, by a program that does nothing else, in the same rounds as the commands.
"""
_SIZES = """\
## Size

Bits a weight, of 16. Ours is everything in the package, which can be added to any base: the exact differences,
manifest, lineage samples, headers. The bound is the order-0 entropy of every chunk's differences, without the table
that a decoder needs; the codec, which has up to four tables a chunk, can go below it. Of the others, files are counted
whole (arc_v3, BigSmall, reminis, zstd --patch-from, xdelta3, residuals), the rest without names, shapes and tables.
Every round trip was made and compared.

![bits a weight](sizes.svg)

Dashed: the bound. Pale: what rounds Δ, and misses post.
"""
Result = dict[str, Any]


class Speed:
    """What was measured at one size."""

    def __init__(self, size: Result) -> None:
        self.size = size
        self.rounds: dict[str, list[Result]] = {}
        self.ratios: dict[str, list[float]] = {}
        self.unlike: dict[str, float] = {}
        self.package: Result = {}
        for phase in size["phases"]:  # the ratios of a phase are to the copying of that phase
            copies = phase["commands"][CP]
            for name, rounds in phase["commands"].items():
                self.rounds.setdefault(name, rounds)
                self.ratios.setdefault(
                    name, [one["seconds"] / copy["seconds"] for one, copy in zip(rounds, copies, strict=True)]
                )
            self.unlike |= phase["unlike_the_formula"]
            self.package = phase.get("package", self.package)

    @property
    def title(self) -> str:
        """Parameters and bytes of a model, for people."""
        return f"{self.size['parameters'] / 1e9:.2f} B parameters, {self.size['model_bytes'] / 1e9:.2f} GB a model"

    def ratio(self, name: str) -> float:
        """Median of the ratios to copying."""
        return statistics.median(self.ratios[name])

    def median(self, name: str, what: str = "seconds") -> float:
        """Median over the rounds."""
        return statistics.median(float(one[what]) for one in self.rounds[name])

    def peak(self, name: str) -> float:
        """Largest peak memory, in MB."""
        peak: float = max(one["peak_mb"] for one in self.rounds[name])
        return peak

    @property
    def others(self) -> list[str]:
        """What others use to make the same model."""
        return [name for name in self.unlike if name not in OURS]

    def times(self, slow: Iterable[str], quick: str = "apply") -> float | None:
        """How many times as long the quickest of ``slow`` takes, round by round where both are of one phase."""
        found = []
        for name in slow:
            pairs = zip(self.ratios.get(name, []), self.ratios[quick], strict=False)
            if ratios := [one / other for one, other in pairs]:
                found.append(statistics.median(ratios))
        return min(found, default=None)


def write_docs(results: Path, docs: Path) -> None:
    """Write the document and its pictures from the parts that there are results of."""
    found = {part: json.loads(path.read_text()) for part in PARTS if (path := results / f"{part}.json").is_file()}
    docs.parent.mkdir(parents=True, exist_ok=True)
    lines = [_HEAD]
    speeds = [Speed(size) for size in found.get("speed", {}).get("sizes", [])]
    if speeds:
        picture = chart([_speed_panel(speed) for speed in speeds], "Time beside copying", columns=1)
        (docs.parent / "speed.svg").write_text(picture)
        lines += _speed_text(found["speed"], speeds)
    if speeds and "limits" in found:
        lines += _limits_text(found["limits"], speeds)
    if "sizes" in found:
        pairs = found["sizes"]["pairs"]
        picture = chart([_size_panel(pair) for pair in pairs], "Bits a weight")
        (docs.parent / "sizes.svg").write_text(picture)
        lines += _sizes_text(found["sizes"])
    docs.write_text("\n".join(lines))


def write_readme(results: Path, readme: Path) -> None:
    """Replace the tables between the README's markers by those of the parts that were measured."""
    tables: list[str] = []
    if (speed := results / "speed.json").exists():
        speeds = [Speed(size) for size in json.loads(speed.read_text())["sizes"]]
        tables += _readme_speed(speeds)
        tables += [line for one in speeds[:1] if one.others for line in ("", *_readme_others(one))]
    if (sizes := results / "sizes.json").exists():
        tables += ["", *_readme_sizes(json.loads(sizes.read_text())["pairs"])]
    readme.write_text(fill(readme.read_text(), {"bench": "\n".join(tables) + "\n"}))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _where(part: Result) -> str:
    machine, versions = part["machine"], part["versions"] | part.get("peers", {})
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return (
        f"{machine['processor']}, {machine['cpus']} cores, {machine['memory_gb']} GB; {machine['system']}; Python "
        f"{machine['python']}; {listed}."
        + (f" The others were measured on {part['peers_measured']}." if "peers_measured" in part else "")
    )


def _speed_text(part: Result, speeds: list[Speed]) -> list[str]:
    lines = [_SPEED]
    for speed in speeds:
        rounds = len(speed.rounds[CP])
        lines += [f"### {speed.title}, {rounds} round{'s' if rounds > 1 else ''}", ""]
        if not speed.size["inputs_fit_in_memory"]:
            lines += ["The three models together do not fit into memory here.", ""]
        rows = []
        for name in sorted(speed.rounds, key=speed.ratio):
            ratios, quick = speed.ratios[name], speed.times([name])
            rows.append(
                [
                    f"**{name}**" if name in ALL_OURS else name,
                    f"{speed.median(name):.1f} s",
                    f"{speed.ratio(name):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
                    f"{quick:.1f}" if quick and name not in (CP, *ALL_OURS) and "floor" not in name else "",
                    f"{speed.median(name, 'user') + speed.median(name, 'system'):.1f} s",
                    f"{speed.peak(name):,.0f} MB",
                    f"{speed.unlike[name]:.2%}" if name in speed.unlike else "",
                ]
            )
        head = ["", "time", "× cp + sync", "× our apply", "processor time", "peak memory", "unlike the formula"]
        lines += _table(head, rows)
        lines += [f"\nNot run: {name}, which {why}." for name, why in speed.size["skipped"].items()]
        if len(speed.size["phases"]) > 1:
            lines += ["", "The disk did not hold all models at once: they were made and deleted one after another."]
        lines.append("")
    return [*lines, _where(part), ""]


def _speed_panel(speed: Speed) -> Panel:
    bars = [
        Bar(
            name, speed.ratio(name), f"{speed.ratio(name):.1f} ×",
            "ours" if name in ALL_OURS else "floor" if "floor" in name or name == CP else "other",
            min(speed.ratios[name]), max(speed.ratios[name]),
        )
        for name in sorted(speed.rounds, key=speed.ratio)
    ]  # fmt: skip
    return Panel(f"{speed.title}: × cp + sync", bars, mark=1.0)


def _limits_text(part: Result, speeds: list[Speed]) -> list[str]:
    rates = part["rates"]
    head = ["", *rates]
    lines = [_LIMITS]
    lines += _table(
        head, [[label, *(f"{rate[key] / 1e9:.2f}" for rate in rates.values())] for key, label in CORES.items()]
    )
    lines.append(_WORK)
    rows = []
    for speed in speeds:
        package = sum(speed.package["bytes"].values())
        for name, work in WORK.items():
            seconds = {kind: count(speed.size["model_bytes"], package) / 1e9 for kind, count in work.items()}
            least = 0.0
            parts = []
            for kind, gigabytes in seconds.items():
                rate = next(rate for known, rate in rates.items() if kind.startswith(known))["all"] / 1e9
                least += gigabytes / rate
                parts.append(f"{kind}: {gigabytes:.2f} GB, {gigabytes / rate:.1f} s")
            floor, took = speed.median(f"floor of {name}"), speed.median(name)
            rows.append(
                [
                    f"{name}, {speed.size['parameters'] / 1e9:.2f} B", "; ".join(parts), f"{least:.1f} s",
                    f"{floor:.1f} s", f"{took:.1f} s", f"{took / least:.1f} × the work, {took / floor:.1f} × the floor",
                ]
            )  # fmt: skip
    return [*lines, *_table(["", "work", "sum", "floor", "measured", "distance"], rows), ""]


def _bits(nbytes: float, pair: Result) -> float:
    return 8 * nbytes / float(pair["elements"])


def _total(pair: Result, without: Sequence[str] = ()) -> int:
    return sum(nbytes for name, nbytes in pair["bytes"].items() if name not in without)


def _sizes_text(part: Result) -> list[str]:
    pairs = part["pairs"]
    rows = [
        ["**this package**", *(f"**{_bits(_total(pair), pair):.3f}**" for pair in pairs)],
        ["its weights alone", *(f"{_bits(_total(pair, OVERHEAD), pair):.3f}" for pair in pairs)],
        ["bound", *(f"{_bits(pair['bound_bytes'], pair):.3f}" for pair in pairs)],
        ["weights over the bound", *(f"{_total(pair, OVERHEAD) / pair['bound_bytes'] - 1:.1%}" for pair in pairs)],
    ]
    names = {peer["name"]: peer["group"] for pair in pairs for peer in pair["peers"]}
    for group, meaning in GROUPS.items():
        rows.append([f"*{meaning}*", *[""] * len(pairs)])
        rows += [[name, *(_cell(pair, name) for pair in pairs)] for name, its in names.items() if its == group]
    rows.append(["*millions of elements*", *(f"{pair['elements'] / 1e6:.1f}" for pair in pairs)])
    head = ["", *(pair["title"] for pair in pairs)]
    lines = [_SIZES, *_table(head, rows), ""]
    if any("‡" in cell for row in rows for cell in row):
        lines += ["‡ smaller than this package.", ""]
    streams = sorted({name for pair in pairs for name in pair["bytes"]}, key=lambda name: -_share(name, pairs))
    rows = [[name, *(f"{_bits(pair['bytes'].get(name, 0), pair):.3f}" for pair in pairs)] for name in streams]
    rows.append(["*entropy of the differences*", *(f"{_bits(pair['entropy_bytes'], pair):.3f}" for pair in pairs)])
    return [*lines, "### Where the bits are", "", *_table(head, rows), "", _where(part), ""]


def _cell(pair: Result, name: str) -> str:
    """Return what a format takes of a pair, and what must be said of it."""
    for peer in pair["peers"]:
        if peer["name"] == name:
            smaller = " ‡" if peer["bytes"] < _total(pair) else ""
            return f"{_bits(peer['bytes'], pair):.3f}{smaller}{'' if peer['exact'] else ' (not exact)'}"
    return "–"


def _share(name: str, pairs: list[Result]) -> float:
    return sum(_bits(pair["bytes"].get(name, 0), pair) for pair in pairs)


def _size_panel(pair: Result) -> Panel:
    ours = Bar("this package", _bits(_total(pair), pair), f"{_bits(_total(pair), pair):.2f}", "ours")
    others = [
        Bar(
            peer["name"],
            _bits(peer["bytes"], pair),
            f"{_bits(peer['bytes'], pair):.2f}",
            "pale" if peer["group"] == "difference" else "other",
        )
        for peer in pair["peers"]
    ]
    bars = sorted([ours, *others], key=lambda bar: bar.value)
    return Panel(pair["title"], bars, mark=_bits(pair["bound_bytes"], pair))


def _readme_speed(speeds: list[Speed]) -> list[str]:
    rows = []
    for speed in speeds:
        careful, mergekit = speed.times(["careful script"]), speed.times(MERGEKIT)
        rows.append(
            [
                f"{speed.size['parameters'] / 1e9:.2f} B",
                f"{speed.median(CP):.1f} s",
                *(f"{speed.ratio(name):.1f} × ({speed.median(name):.1f} s)" for name in OURS),
                ", ".join(f"{speed.peak(name):.0f} MB" for name in OURS),
                *("–" if times is None else f"{times:.1f} × as long" for times in (careful, mergekit)),
                f"{_bits(_total(speed.package), speed.package):.2f} of 16",
                f"{_total(speed.package, OVERHEAD) / speed.package['bound_bytes'] - 1:.1%}",
            ]
        )
    head = [
        "parameters", "cp + sync", "extract", "apply", "peak memory: extract, apply", "careful script", "mergekit",
        "bits a weight", "over the bound",
    ]  # fmt: skip
    return _table(head, rows)


def _readme_others(speed: Speed) -> list[str]:
    rows = [
        [
            f"**{name}**" if name in OURS else name,
            f"{speed.ratio(name):.1f} ×",
            f"{speed.peak(name):,.0f} MB",
            f"{speed.unlike[name]:.2%}" if name in speed.unlike else "",
        ]
        for name in sorted([CP, "apply", *speed.others], key=speed.ratio)
    ]
    return _table([f"target + Δ, {speed.title}", "× cp + sync", "peak memory", "elements unlike the formula"], rows)


def _readme_sizes(pairs: list[Result]) -> list[str]:
    rows = []
    for pair in pairs:
        cells = [pair["title"], f"{_bits(_total(pair), pair):.2f}", f"{_bits(pair['bound_bytes'], pair):.2f}"]
        for group in ("rebuild", "difference"):
            peers = sorted((peer["bytes"], peer["name"]) for peer in pair["peers"] if peer["group"] == group)
            cells += [f"{_bits(nbytes, pair):.2f} ({name})" for nbytes, name in peers[:1]] or ["–"]
        rows.append(cells)
    head = ["bits a weight, of 16", "this package", "bound", "best that only rebuilds post", "best of Δ, rounded"]
    return _table(head, rows)
