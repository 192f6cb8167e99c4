"""Measure how much disk ``pd-apply --stream`` takes, against a Hub on loopback; write the result as data.

    python -m scripts.benchmarks.stream     1.24 B parameters in 20 files; needs 12 GB of disk and 6 GB of memory

The target is served by the test suite's Hub, in memory, to the real client in a process of its own. What lies in
OUT.partial and in the client's cache is added up, by allocated blocks, every 20 milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scripts.tools.generate import Recipe, generate
from tests.support.hub import LoopbackHub

RESULTS = Path(__file__).parent / "results" / "stream.json"


def allocated(*folders: Path) -> int:
    """Return the bytes on disk of all files below; files come and go meanwhile."""
    total = 0
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total


def main() -> None:
    """Generate, extract, serve, apply, watch, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--work", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    models = arguments.work / f"layers-{arguments.layers}-shards-{arguments.shards}"
    generate(models, Recipe(layers=arguments.layers, shards=arguments.shards))
    delta, out, home = (arguments.work / name for name in ("delta", "streamed", "hf"))
    for path in (delta, out, home):
        shutil.rmtree(path, ignore_errors=True)
    command = [sys.executable, "-m", "paramdelta_hub"]
    subprocess.run([*command, "extract", models / "base", models / "post", "-o", delta, "-q"], check=True)
    hub, most = LoopbackHub(), 0
    hub.add("org/target", models / "target")
    with hub.running():
        begun = time.perf_counter()
        process = subprocess.Popen(
            [*command, "apply", "org/target", str(delta), "-o", str(out), "--stream", "-q"], env=hub.environment(home)
        )
        partial = out.with_name(f"{out.name}.partial")
        while process.poll() is None:
            most = max(most, allocated(partial, home))
            time.sleep(0.02)
    if process.returncode:
        sys.exit(f"apply ended with {process.returncode}")
    result = allocated(out)
    report = {
        "model_bytes": sum(path.stat().st_size for path in (models / "target").glob("*.safetensors")),
        "files": arguments.shards,
        "result_bytes": result,
        "most_bytes": most,
        "beyond_the_result": most - result,
        "seconds": time.perf_counter() - begun,
    }
    for path in (delta, out, home):
        shutil.rmtree(path)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(report, indent=2) + "\n")
    share = report["beyond_the_result"] / report["model_bytes"]
    print(f"OUT {result / 1e9:.2f} GB, at most {most / 1e9:.2f} GB on disk: {share:.0%} of the target beyond OUT")


if __name__ == "__main__":
    main()
