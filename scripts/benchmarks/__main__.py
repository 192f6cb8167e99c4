"""Measure everything that the README and docs/benchmarks.md say about speed, memory and size, and write them anew.

    python -m scripts.benchmarks                          all parts, with peers, 1.24 B parameters, five rounds
    python -m scripts.benchmarks --speed --layers 16 77   also at four times the size
    python -m scripts.benchmarks --sizes --no-peers       only our packages; what the results have of others stays
    python -m scripts.benchmarks --tables                 measure nothing: write tables and charts from the results

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

import numpy as np
import zstandard

import paramdelta_hub
from scripts.benchmarks import limits, peer_commands, sizes, speed
from scripts.benchmarks.process import machine
from scripts.benchmarks.report import PARTS, write_docs, write_readme

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        "python -m scripts.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for part in PARTS:
        parser.add_argument(f"--{part}", dest="parts", action="append_const", const=part, help=f"measure {part}")
    parser.add_argument("--tables", dest="parts", action="append_const", const="tables", help="measure nothing")
    parser.add_argument("--layers", type=int, nargs="+", default=[16], help="sizes, in layers (default: 16)")
    parser.add_argument("--rounds", type=int, nargs="+", default=[5], help="per size, the last for all that follow")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="compare with others")
    parser.add_argument("--peers-to", type=int, metavar="LAYERS", help="at larger sizes, measure ours alone")
    parser.add_argument("--add", action="store_true", help="keep the other sizes that the results have")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "bench", help="where models and outputs lie")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "benchmarks.md", help="document to write")
    parser.add_argument("--readme", action="store_true", help="write the README's tables, too")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    for folder in (work, arguments.results):
        folder.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts or PARTS:
        peers = {"peers": peer_commands.versions()} if arguments.peers and part in ("speed", "sizes") else {}
        if part == "speed":
            there = _sizes_there(arguments.results / "speed.json") if arguments.add else {}
            first = arguments.rounds[: len(arguments.layers)]
            for layers, rounds in itertools.zip_longest(arguments.layers, first, fillvalue=arguments.rounds[-1]):
                with_peers = arguments.peers and layers <= (arguments.peers_to or layers)
                there[layers] = speed.measure(layers, rounds, work, with_peers)
                # after each size: what took an hour is not lost with the next
                _keep(arguments.results / "speed.json", peers | {"sizes": [there[n] for n in sorted(there)]})
        elif part == "sizes":
            pairs = sizes.measure(work, arguments.peers)
            if not arguments.peers:
                peers = _keep_peers(arguments.results / "sizes.json", pairs)
            _keep(arguments.results / "sizes.json", peers | {"pairs": pairs})
        elif part == "limits":
            _keep(arguments.results / "limits.json", {"rates": limits.measure(work)})
    write_docs(arguments.results, arguments.docs)
    if arguments.readme:
        write_readme(arguments.results, ROOT / "README.md")
    print(f"wrote {arguments.docs}", file=sys.stderr)


def _sizes_there(results: Path) -> dict[int, Any]:
    """Return what an earlier run measured, by layers."""
    return {size["layers"]: size for size in json.loads(results.read_text())["sizes"]} if results.is_file() else {}


def _keep_peers(results: Path, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the pairs what an earlier run measured of other formats, if there was one; return their versions and when.

    Their sizes depend on the pairs alone, which are the same.
    """
    if not results.is_file():
        return {}
    earlier = json.loads(results.read_text())
    found = {pair["key"]: pair["peers"] for pair in earlier["pairs"]}
    for pair in pairs:
        pair["peers"] = found.get(pair["key"], [])
    return {"peers": earlier.get("peers", {}), "peers_measured": earlier.get("peers_measured", earlier["measured"])}


def _keep(results: Path, measured: dict[str, Any]) -> None:
    """Write what was measured, with the day, the machine and the versions."""
    report = {
        "measured": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "versions": {
            "paramdelta_hub": paramdelta_hub.__version__,
            "numpy": np.__version__,
            "zstandard": zstandard.__version__,
        },
        **measured,
    }
    results.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
