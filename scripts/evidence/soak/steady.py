"""The soak's steady process: the same operations in one process, round after round.

python -m scripts.evidence.soak.steady WORK SAMPLES      one line of JSON a round, until it is terminated
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
import threading
import time
from pathlib import Path

import paramdelta_hub as pd
from scripts.evidence.soak.models import make_family, tree

PAUSE = 1.0
"""Seconds between the rounds of the steady process: the machine is for the scenarios."""


class _StopsHalfWay(pd.Progress):
    """Ends the work in its middle."""

    def __init__(self) -> None:
        self._calls = 0

    def advance(self, nbytes: int) -> None:
        self._calls += nbytes > 0
        if self._calls == 2:
            raise pd.StorageError("enough")


def steady(work: Path, samples: Path) -> None:
    """Do everything once a round, and some of it in vain; write what this process holds after each."""
    shutil.rmtree(work, ignore_errors=True)
    family = make_family(work / "models", random.Random(1))
    begun, rounds = time.monotonic(), 0
    with samples.open("w") as file:
        while True:
            shutil.rmtree(work / "round", ignore_errors=True)
            delta, out, root = work / "round/delta", work / "round/out", work / "round/registry"
            for progress in (_StopsHalfWay(), pd.Progress()):
                with contextlib.suppress(pd.StorageError):
                    pd.extract(family.base, family.post, delta, name="soak", progress=progress)
            pd.verify(delta, base=family.base, post=family.post)
            for progress in (_StopsHalfWay(), pd.Progress()):
                with contextlib.suppress(pd.StorageError):
                    pd.apply(family.target, delta, out, progress=progress)
            pd.publish(delta, f"{root}/org/delta")
            pd.pull(f"{root}/org/delta", work / "round/copy")
            if tree(out) != family.trees["apply"] or tree(root / "org/delta/1.0.0") != family.trees["publish"]:
                raise SystemExit("the steady process made something else than in its first round")
            shard = next((work / "round/copy").glob("delta-*"))
            shard.write_bytes(shard.read_bytes()[:-1])
            with contextlib.suppress(pd.PackageError):
                pd.verify(work / "round/copy")
            with contextlib.suppress(pd.DestinationError):
                pd.extract(family.base, family.post, delta)
            rounds += 1
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            sample = {
                "minute": round((time.monotonic() - begun) / 60, 2),
                "round": rounds,
                "rss_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 2),
                "descriptors": len(os.listdir("/proc/self/fd")),
                "threads": threading.active_count(),
            }
            file.write(json.dumps(sample) + "\n")
            file.flush()
            time.sleep(PAUSE)


if __name__ == "__main__":
    steady(Path(sys.argv[1]), Path(sys.argv[2]))
