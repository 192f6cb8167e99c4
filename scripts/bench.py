#!/usr/bin/env python3
"""Measure everything that the README and docs/benchmarks.md say about speed, memory and size, and write them anew.

    python scripts/bench.py                          all parts, with peers, 1.24 B parameters, five rounds
    python scripts/bench.py --speed --layers 16 77   also at four times the size
    python scripts/bench.py --sizes --no-peers       only our packages, on the real and the generated pairs
    python scripts/bench.py --tables                 nothing is measured: tables and charts from the results there are

Parts: --speed (copying, extract, apply, scripts, mergekit, residuals), --sizes (a package's bytes, stream by stream,
beside other formats), --limits (what the machine does at most). The peers are installed into .venv-peers (2 GB).

Disk: a triple of 16 layers takes 7.4 GB, of 77 layers 29.7 GB, and as much as 1.5 models more while commands run. Where
that is not free, models are made when needed and deleted after: first base and post for extract, then target for
apply, then all three for the others. What needs more memory than there is, is left out, and named.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import bench_limits
import bench_peers
import bench_report
import bench_sizes
import bench_speed
import numpy as np
import zstandard
from bench_process import machine

import paramdelta_hub

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in bench_report.PARTS:
        parser.add_argument(f"--{part}", dest="parts", action="append_const", const=part, help=f"measure {part}")
    parser.add_argument("--tables", dest="parts", action="append_const", const="tables", help="measure nothing")
    parser.add_argument("--layers", type=int, nargs="+", default=[16], help="sizes, in layers (default: 16)")
    parser.add_argument("--rounds", type=int, nargs="+", default=[5], help="per size, the last for all that follow")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="compare with others")
    parser.add_argument("--peers-to", type=int, metavar="LAYERS", help="at larger sizes, measure ours alone")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "bench", help="where models and outputs lie")
    parser.add_argument("--results", type=Path, default=ROOT / "scripts" / "results", help="folder of the results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "benchmarks.md", help="document to write")
    parser.add_argument("--readme", action="store_true", help="write the README's tables, too")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    for folder in (work, arguments.results):
        folder.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts or bench_report.PARTS:
        if part == "speed":
            first = arguments.rounds[: len(arguments.layers)]
            pairs = itertools.zip_longest(arguments.layers, first, fillvalue=arguments.rounds[-1])
            measured: dict[str, Any] = {
                "sizes": [
                    bench_speed.measure(
                        layers, rounds, work, arguments.peers and layers <= (arguments.peers_to or layers)
                    )
                    for layers, rounds in pairs
                ]
            }
        elif part == "sizes":
            measured = {"pairs": bench_sizes.measure(work, arguments.peers)}
        elif part == "limits":
            measured = {"rates": bench_limits.measure(work)}
        else:
            continue
        report = {
            "measured": datetime.now(timezone.utc).date().isoformat(),
            "machine": machine(),
            "versions": {
                "paramdelta_hub": paramdelta_hub.__version__,
                "numpy": np.__version__,
                "zstandard": zstandard.__version__,
            },
            **({"peers": bench_peers.versions()} if arguments.peers and part != "limits" else {}),
            **measured,
        }
        (arguments.results / f"{part}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    bench_report.write_docs(arguments.results, arguments.docs)
    if arguments.readme:
        bench_report.write_readme(arguments.results, ROOT / "README.md")
    print(f"wrote {arguments.docs}", file=sys.stderr)


if __name__ == "__main__":
    main()
