"""What a soak found, as data and as a page."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

__all__ = ["flat", "write_report"]

KEPT_SAMPLES = 120
"""Of the steady process's rounds, evenly chosen: what lies in the repository stays small."""
GROWTH_MB = 8.0
"""By how much the median of the last tenth of rounds may exceed that of the second: the allocator's own breathing."""


def flat(samples: list[dict[str, Any]], what: str, most: float) -> tuple[float, float, bool]:
    """Return the medians of the second and of the last tenth, and whether the growth between them is at most ``most``.

    The first tenth is left out: caches and pools fill.
    """
    tenth = max(1, len(samples) // 10)
    early = statistics.median(sample[what] for sample in samples[tenth : 2 * tenth] or samples)
    late = statistics.median(sample[what] for sample in samples[-tenth:])
    return early, late, late - early <= most


def write_report(report: dict[str, Any], results: Path, page: Path) -> None:
    """Write the JSON and the page that summarises it."""
    samples = report["steady"]
    report["steady_rounds"] = len(samples)
    report["flat"] = {
        what: dict(zip(("early", "late", "flat"), flat(samples, what, most), strict=True))
        for what, most in {"rss_mb": GROWTH_MB, "descriptors": 0, "threads": 0}.items()
    }
    step = max(1, len(samples) // KEPT_SAMPLES)
    report["steady"] = samples[::step]
    for path, text in ((results, json.dumps(report, indent=1) + "\n"), (page, _page(report))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(_page(report))


def _page(report: dict[str, Any]) -> str:
    counts: dict[str, int] = report["counts"]
    pairs = [name.split(" / ") for name in counts if " / " in name]
    verbs = sorted({verb for verb, _ in pairs})
    faults = sorted({fault for _, fault in pairs})
    lines = [
        "# Soak",
        "",
        f"Made by `python -m scripts.evidence.soak --minutes {report['asked_minutes']:g} --seed {report['seed']}`;"
        " the data are in [soak.json](../scripts/evidence/results/soak.json).",
        "",
        f"{report['scenarios']} scenarios in {report['minutes']:.0f} minutes, each a real command under a random fault,"
        " and the same command again without one:"
        f" **{len(report['wrong'])} went wrong**. Wrong is: a half-done output that can be seen, an output that differs"
        " by a byte from an undisturbed run's, an exit code that the README does not list for it, a traceback, what is"
        " left behind after success, damage that was not refused.",
        "",
        "| scenarios | " + " | ".join(faults) + " |",
        "|---|" + "---|" * len(faults),
    ]
    lines += [
        f"| {verb} | " + " | ".join(str(counts.get(f"{verb} / {fault}", 0)) for fault in faults) + " |"
        for verb in verbs
    ]
    lines += ["", "| | signals that came while it ran | exit statuses (negative: the signal) |", "|---|---|---|"]
    for verb in verbs:
        ends = sorted(
            (int(name.rpartition(" ")[2]), count)
            for name, count in counts.items()
            if name.startswith(f"{verb}: ended with ")
        )
        told = ", ".join(f"{status}: {count}" for status, count in ends)
        struck = counts.get(f"{verb}: struck while at work", 0)
        lines.append(f"| {verb} | {struck} | {told} |")
    rows = {"rss_mb": "resident memory, MB", "descriptors": "open descriptors", "threads": "threads"}
    lines += [
        "",
        f"One process beside it did extract, verify, apply, publish and pull, errors among them,"
        f" {report['steady_rounds']} times in a row; medians of the second and of the last tenth of its rounds:",
        "",
        "| | early | late | flat |",
        "|---|---|---|---|",
    ]
    for key, name in rows.items():
        found = report["flat"][key]
        lines.append(f"| {name} | {found['early']:g} | {found['late']:g} | {'yes' if found['flat'] else '**no**'} |")
    for failure in report["wrong"]:
        lines += ["", f"- scenario {failure['scenario']} ({failure['verb']}, {failure['fault']}): {failure['what']}"]
    machine = report["machine"]
    lines += ["", f"{machine['system']}, {machine['cpus']} processors, Python {machine['python']}."]
    return "\n".join(lines) + "\n"
