"""One command on the Ray cluster at RAY_ADDRESS, which this process has connected to itself.

    python -m tests.tasks.ray_driver extract BASE POST OUT
    python -m tests.tasks.ray_driver apply TARGET DELTA OUT
    python -m tests.tasks.ray_driver faults TARGET DELTA OUT

Tasks are as small as can be. Prints one JSON object. ``faults`` tells what is refused, and how, of a DELTA that is
damaged.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import ray

import paramdelta_hub as pd
from paramdelta_hub.tasks import plan
from paramdelta_hub.tasks.executors.ray import Cluster
from paramdelta_hub.tasks.executors.threads import Stop
from tests.tasks.raising import every, known, raise_one


def faults(target: Path, delta: Path, out: Path) -> dict[str, object]:
    """Return exit codes, and which errors of a worker have not come back whole."""
    found: dict[str, object] = {}
    try:
        pd.apply(target, delta, target / "config.json" / "out", executor="ray")
    except pd.StorageError as error:
        found["refused"] = error.exit_code
    try:
        pd.apply(target, delta, out, executor="ray")
    except pd.PackageError as error:
        found["damaged"] = error.exit_code
    lost: list[object] = []
    for number, expected in enumerate(every()):
        with Cluster(raise_one, str(out.parent), "") as cluster:  # one for each: after a failure, no task begins
            try:
                lost.append(repr(cluster.run([number], Stop())))
            except pd.ParamdeltaError as error:
                if known(error) != known(expected):
                    lost.append(known(error))
    return found | {"lost": lost}


def main() -> None:
    operation, one, two, out = sys.argv[1], *map(Path, sys.argv[2:])
    plan.TASK_BYTES_MIN = 1
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    told: dict[str, object] = {"machines": sum(node["Alive"] for node in ray.nodes()), "resumed_tasks": 0}
    if operation == "faults":
        told["faults"] = faults(one, two, out)
    else:
        run = pd.extract if operation == "extract" else pd.apply
        told["resumed_tasks"] = run(one, two, out, executor="ray").resumed_tasks
    told["initialized"] = ray.is_initialized()  # a caller's own cluster is left alone
    print(json.dumps(told))


if __name__ == "__main__":
    main()
