"""Extract and apply on a Ray cluster of two machines' worth of processes here, some of which die in the middle.

    python -m tests.work.on_ray FOLDER

A process of its own, for Ray leaves threads, warnings and signal handlers behind. FOLDER holds ``base``, ``post``,
``target`` and ``delta``; results are written to it. Prints one JSON object: what was killed, and when it was done.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

import paramdelta_hub as pd
from paramdelta_hub.work import plan

ROOT = Path(__file__).parents[2]


def workers() -> Iterator[int]:
    """Give the processes below ours that do our tasks at this moment: Ray renames a worker while it does one."""
    parents = {}
    titles = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, OSError, IndexError):
            pid = int(entry.name)
            parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            titles[pid] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip()
    for pid, title in titles.items():
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid() and title == b"ray::_run":
            yield pid


def while_it_runs(run: Callable[[], object], disturb: Callable[[], bool]) -> bool:
    """Run, and call ``disturb`` again and again until it has done something; return whether it has, before the end."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    done = False
    while thread.is_alive() and not (done := disturb()):
        time.sleep(0.005)
    in_time = done and thread.is_alive()
    thread.join()
    if failures:
        raise failures[0]
    return in_time


def main() -> None:
    folder = Path(sys.argv[1])
    base, post, target, delta = (folder / name for name in ("base", "post", "target", "delta"))
    plan.TASK_BYTES_MIN = 1
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    report: dict[str, object] = {"machines": sum(node["Alive"] for node in ray.nodes())}
    try:
        pd.extract(base, post, folder / "extracted", executor="ray")
        report["initialized"] = ray.is_initialized()  # a caller's own cluster is left alone

        def kill_one() -> bool:
            for pid in workers():
                os.kill(pid, signal.SIGKILL)
                return True
            return False

        report["killed"] = while_it_runs(
            lambda: pd.extract(base, post, folder / "extracted, one killed", executor="ray"), kill_one
        )
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        command = [sys.executable, "-m", "paramdelta_hub", "apply", str(target), str(delta)]
        command += ["-o", str(folder / "applied"), "--executor", "ray", "--json"]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        report["command"] = done.returncode or done.stderr

        def remove_one() -> bool:
            if next(workers(), None) is None:
                return False
            cluster.remove_node(other, allow_graceful=False)
            return True

        report["removed"] = while_it_runs(
            lambda: pd.apply(target, delta, folder / "applied, one removed", executor="ray"), remove_one
        )
        try:
            pd.apply(target, delta, target / "config.json" / "out", executor="ray")
        except pd.StorageError as error:
            report["refused"] = error.exit_code
        payload = sorted(delta.glob("delta-*.safetensors"))[0]
        content = bytearray(payload.read_bytes())
        content[len(content) * 2 // 3] ^= 1
        payload.write_bytes(content)
        try:
            pd.apply(target, delta, folder / "damaged", executor="ray")
        except pd.PackageError as error:
            report["damaged"] = error.exit_code
    finally:
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
