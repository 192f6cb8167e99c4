"""Extract and apply on a Ray cluster of two machines' worth of processes here, some of which die in the middle.

    python -m tests.tasks.on_ray FOLDER

A process of its own, for Ray leaves threads, warnings and signal handlers behind. It owns the cluster, and starts every
command as another process: when a machine dies, Ray itself may abort the command ("Tried to complete task that was not
pending"), and what we promise is that the same command goes on. FOLDER holds ``base``,
``post``, ``target`` and ``delta``; results are written to it. Prints one JSON object: what was done to whom, and what
came of it.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray._private import services, utils
from ray._raylet import (
    DASHBOARD_AGENT_LISTEN_PORT_NAME,
    METRICS_AGENT_PORT_NAME,
    METRICS_EXPORT_PORT_NAME,
    persist_port,
)
from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[2]
OF_RAY = ("Tried to complete task that was not pending", "can't connect to a Ray cluster")
"""What ends a command through no fault of ours; besides SIGABRT, which Ray's own checks raise."""
ATTEMPTS = 5
PATIENCE = {"RAY_agent_register_timeout_ms": "300000", "RAY_worker_register_timeout_seconds": "300"}
"""For Ray on a busy machine, whose processes are slow to start."""


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


@dataclass
class Ended:
    """How a command ended, after as many attempts as Ray left it."""

    status: int
    told: Any
    """What it printed, JSON; where it failed, its errors."""
    in_time: bool
    """Whether it was disturbed before its end."""
    aborts: int
    """How often it was aborted, by Ray or by us, and run again."""


def carry_out(
    address: str, command: list[str], out: Path, disturb: Callable[[int], bool] | None = None, *, kills: bool = False
) -> Ended:
    """Run a command until it ends by itself, and again if it is aborted: then it must keep what was done.

    Args:
        address: the cluster's.
        command: Python's arguments.
        out: the result's folder.
        disturb: called with the command's process id again and again, until it has done something.
        kills: whether that is to abort the command.
    """
    in_time, aborts = False, 0
    environment = {**os.environ, "RAY_ADDRESS": address}
    while True:
        receipts = len(list((out.with_name(f"{out.name}.partial") / "receipts").glob("*.json")))
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, *command], env=environment, cwd=ROOT, stdout=output, stderr=errors
            )
            while process.poll() is None:
                if disturb is not None and disturb(process.pid):
                    disturb, in_time = None, kills or process.poll() is None
                time.sleep(0.005)
            output.seek(0)
            errors.seek(0)
            printed, said = output.read(), errors.read()
        if process.returncode == 0:
            begin = f"\n{printed}".index("\n{")  # Ray may say something before, and after
            told, _ = json.JSONDecoder().raw_decode(printed, begin)
            assert told["resumed_tasks"] == receipts, (command, told, receipts)
            return Ended(0, told, in_time, aborts)
        if process.returncode != -signal.SIGABRT and not any(text in said for text in OF_RAY):
            return Ended(process.returncode, said, in_time, aborts)
        aborts += 1
        print(f"{command}: aborted with {receipts} receipts before it: {said[-2000:]}", file=sys.stderr)
        if aborts == ATTEMPTS:
            raise RuntimeError(f"aborted {ATTEMPTS} times: {command}")


def without_dashboard(start_raylet: Callable[..., Any]) -> Callable[..., Any]:
    """Have a machine not wait for the agent of a dashboard that nobody looks at.

    It gives that agent 15 seconds to write its ports to files (ray-project/ray#65983), and dies after them: too few on
    a busy machine. An agent without the dashboard's libraries writes that it has none, and so do we, before it starts.
    """

    def start(*arguments: Any, **more: Any) -> Any:
        given = inspect.signature(start_raylet).bind(*arguments, **more).arguments
        for name in (METRICS_AGENT_PORT_NAME, METRICS_EXPORT_PORT_NAME, DASHBOARD_AGENT_LISTEN_PORT_NAME):
            persist_port(given["session_dir"], given["node_id"], name, -1)
        return start_raylet(*arguments, **more)

    return start


def machine() -> dict[str, Any]:
    """Return the options of a machine: its other agent is given a port, and is not waited for either."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"num_cpus": 1, "include_dashboard": False, "runtime_env_agent_port": free.getsockname()[1]}


def start() -> Cluster:
    """Start a machine; Ray gives up after half a minute, and is asked again."""
    utils.get_dashboard_dependency_error = lambda: ImportError("the dashboard is not wanted")
    services.start_raylet = without_dashboard(services.start_raylet)
    os.environ.update(PATIENCE)
    for _ in range(ATTEMPTS - 1):
        try:
            return Cluster(initialize_head=True, head_node_args=machine())
        except Exception as error:  # Ray raises what comes to hand
            print(f"Ray did not start: {error}", file=sys.stderr)
    return Cluster(initialize_head=True, head_node_args=machine())


def main() -> None:
    folder = Path(sys.argv[1])
    base, post, target, delta = (str(folder / name) for name in ("base", "post", "target", "delta"))
    cluster = start()
    other = cluster.add_node(**machine())

    def run(operation: str, one: str, two: str, out: str, **how: Any) -> Ended:
        command = ["-m", "tests.tasks.ray_driver", operation, one, two, str(folder / out)]
        ended = carry_out(cluster.address, command, folder / out, **how)
        assert ended.status == 0, ended.told
        return ended

    def kill_one(_: int) -> bool:
        for pid in workers():
            os.kill(pid, signal.SIGKILL)
            return True
        return False

    def abort(driver: int) -> bool:
        if not list((folder / "extracted, aborted.partial" / "receipts").glob("*.json")):
            return False
        os.kill(driver, signal.SIGABRT)
        return True

    def remove_one(_: int) -> bool:
        if next(workers(), None) is None:
            return False
        cluster.remove_node(other, allow_graceful=False)
        return True

    report: dict[str, object] = {}
    try:
        first = run("extract", base, post, "extracted")
        report |= {key: first.told[key] for key in ("machines", "initialized")}
        killed = run("extract", base, post, "extracted, one killed", disturb=kill_one)
        aborted = run("extract", base, post, "extracted, aborted", disturb=abort, kills=True)
        report |= {"killed": killed.in_time, "aborted": aborted.aborts > 0, "kept": aborted.told["resumed_tasks"] > 0}
        applied = str(folder / "applied")
        command = ["-m", "paramdelta_hub", "apply", target, delta, "-o", applied, "--executor", "ray", "--json"]
        by_command = carry_out(cluster.address, command, Path(applied))
        report["command"] = by_command.status or ""
        removed = run("apply", target, delta, "applied, one removed", disturb=remove_one)
        report["removed"] = removed.in_time
        payload = sorted(Path(delta).glob("delta-*.safetensors"))[0]
        content = bytearray(payload.read_bytes())
        content[len(content) * 2 // 3] ^= 1
        payload.write_bytes(content)
        faults = run("faults", target, delta, "damaged")
        report["faults"] = {**faults.told["faults"], "aborts": faults.aborts}  # no machine dies there
    finally:
        cluster.shutdown()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
