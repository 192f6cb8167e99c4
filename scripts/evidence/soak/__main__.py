"""Run random commands on random models under random faults, for as long as asked, and check every outcome.

    python -m scripts.evidence.soak --minutes 60               a seed is drawn and printed
    python -m scripts.evidence.soak --seed 7 --only 123        one scenario of that seed again

A scenario is a command (extract, apply, verify, publish, pull), real and in a process of its own, and a fault: killed,
interrupted or terminated up to three times at random moments, starved of disk by a limit or by a small tmpfs (where
this user may mount), raced by its like, its input damaged before it starts or while it reads, its unfinished output
damaged after a kill. Then the same command runs undisturbed. At every moment: the output is absent, or whole to the
byte; exit codes are those of the README; no traceback; nothing half-done is left when the command has succeeded.

Beside it another process calls the same operations in a loop, errors among them, and tells after each round how much
memory, how many descriptors and how many threads it has. Results go to
scripts/evidence/results/soak.json and docs/soak.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.evidence.soak.commands import TOKEN, VERBS, Ended, Job, Process, job_of
from scripts.evidence.soak.models import ROOT, Family, make_family, tree
from scripts.evidence.soak.report import write_report
from tests.support.hub import Account, Fault, LoopbackHub
from tests.support.hub.faults import Kind

SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
FAULTS = (*SIGNALS, "limit", "full disk", "race", "damage", "damage while reading", "damage of the unfinished")
REFUSED = {3, 5}
"""What a damaged input may end in: it can't be read, or is not what it says it is."""
TOLD = {0, 6, 8}
"""What the second of two may come to: it finds all done, or is told."""
TOLD_BY_THE_HUB = 8
"""A package that changes while it is sent is told of by what the Hub then holds: it is not tagged."""
FAMILY_SCENARIOS = 20
"""Scenarios on one family of models, before another is made."""


class WrongError(AssertionError):
    """A promise was not kept."""


class Soak:
    """Everything the scenarios share: the folder, the Hub, the counts."""

    def __init__(self, work: Path, seed: int, hub: LoopbackHub) -> None:
        self.work, self.seed, self.hub = work, seed, hub
        self.counts: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self._family: tuple[int, Family] | None = None
        self._disk = work / "disk"
        self._disk.mkdir()
        self.can_mount = self._mount("size=1m")

    def _mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self._disk)]
        return os.geteuid() == 0 and not subprocess.run(command, capture_output=True, check=False).returncode

    def close(self) -> None:
        """Give the disk back."""
        if self.can_mount:
            subprocess.run(["umount", str(self._disk)], check=True)

    def family(self, number: int) -> Family:
        """Return the models of a scenario."""
        wanted = number // FAMILY_SCENARIOS
        if self._family is None or self._family[0] != wanted:
            shutil.rmtree(self.work / "models", ignore_errors=True)
            chance = random.Random(f"{self.seed}/models/{wanted}")
            self._family = wanted, make_family(self.work / "models", chance)
        return self._family[1]

    def scenario(self, number: int) -> None:
        """Run one; note what became of it."""
        chance = random.Random(f"{self.seed}/{number}")
        verb, fault = chance.choice(VERBS), chance.choice(FAULTS)
        if fault == "full disk" and not self.can_mount:
            fault = "limit"
        place = self.work / "scenario"
        for name in ("scenario", "home"):
            shutil.rmtree(self.work / name, ignore_errors=True)
        place.mkdir()
        self.counts[f"{verb} / {fault}"] += 1
        try:
            self._run(chance, verb, fault, self.family(number), place)
        except WrongError as wrong:
            kept = self.work / f"failed-{number}"
            shutil.copytree(place, kept, symlinks=True)
            told = {"scenario": number, "verb": verb, "fault": fault, "what": str(wrong), "kept": str(kept)}
            self.failures.append(told)
            print(f"WRONG: {json.dumps(told)}", flush=True)
        finally:
            for name in [name for name in self.hub.repositories if name.startswith("org/delta")]:
                del self.hub.repositories[name]

    def _start(self, job: Job, family: Family, limit: int | None = None) -> Process:
        return Process(job.arguments, family.task_bytes, self.hub, self.work / "home", limit)

    def _run(self, chance: random.Random, verb: str, fault: str, family: Family, place: Path) -> None:
        root = self._disk if fault == "full disk" else place
        with self._small_disk(chance, family) if fault == "full disk" else contextlib.nullcontext():
            job = job_of(verb, family, self.hub, place, root)
            if fault in SIGNALS or fault == "damage of the unfinished":
                for _ in range(chance.randint(1, 3)):
                    self._strike(chance, verb, SIGNALS.get(fault, signal.SIGKILL), job, family)
                if fault == "damage of the unfinished" and job.working and job.working.name.endswith(".partial"):
                    self._damage(chance, [path for path in job.working.rglob("*") if path.suffix == ".safetensors"])
            elif fault in ("limit", "full disk"):
                largest = max(path.stat().st_size for path in family.target.rglob("*"))
                ended = self._start(job, family, chance.randrange(largest) if fault == "limit" else None).end()
                self._judge(verb, job, ended, {0, 7, 8} if "Hub" in verb else {0, 7})
            elif fault == "race":
                self._race(verb, job, family)
            else:
                self._read_damaged(chance, verb, fault, job, family)
        if fault == "full disk":
            subprocess.run(["mount", "-o", "remount,size=2g", str(self._disk)], check=True)
        self._finish(verb, job, family)
        for path in self._disk.iterdir() if fault == "full disk" else ():
            shutil.rmtree(path)

    @contextlib.contextmanager
    def _small_disk(self, chance: random.Random, family: Family) -> Iterator[None]:
        size = sum(path.stat().st_size for path in family.target.rglob("*")) >> 10
        subprocess.run(["mount", "-o", f"remount,size={chance.randrange(4, size + 8)}k", str(self._disk)], check=True)
        yield

    def _strike(self, chance: random.Random, verb: str, number: signal.Signals, job: Job, family: Family) -> None:
        """Start the command, and send it a signal: most often when it is known to work."""
        begun, usual = time.monotonic(), family.seconds.get(verb, 0.5)
        process = self._start(job, family)
        if chance.random() < 0.8 and job.working is not None:
            while process.running and not job.working.exists():
                time.sleep(0.001)
            time.sleep(chance.uniform(0, usual / 3))
        else:
            time.sleep(chance.uniform(0, 1.2 * usual))
        ended = process.end(process.strike(number))
        if not ended.struck:
            family.seconds[verb] = time.monotonic() - begun
        allowed, quiet = {0, 6, -number}, True
        if number == signal.SIGINT:
            # Until Python has read our code, Ctrl-C is its own affair: a traceback, and death by the signal, or 1. And
            # when it comes within a destructor, Python says so and goes on.
            early = "KeyboardInterrupt" in ended.errors and "click/core.py" not in ended.errors
            allowed = {0, 6, 130, *((1, -number) if early else ())}
            quiet = not early
        self._judge(verb, job, ended, allowed, quiet=quiet)
        self.counts[f"{verb}: struck while at work"] += ended.struck

    def _race(self, verb: str, job: Job, family: Family) -> None:
        both = [self._start(job, family), self._start(job, family)]
        statuses = []
        for process in both:
            ended = process.end()
            self._judge(verb, job, ended, TOLD)
            statuses.append(ended.status)
        if 0 not in statuses or (verb in ("extract", "apply") and statuses.count(0) != 1):
            raise WrongError(f"two at once ended with {statuses}")

    def _read_damaged(self, chance: random.Random, verb: str, fault: str, job: Job, family: Family) -> None:
        """Damage the input: what comes is refused, or right because the damage came too late or not at all."""
        if verb == "pull from the Hub":
            kinds: list[Kind] = ["flip", "cut"]
            self.hub.faults = [
                Fault(chance.choice(kinds), "GET", chance.randrange(4000), chance.randint(1, 3)) for _ in range(3)
            ]
            self._judge(verb, job, self._start(job, family).end(), {0, 3, 8})
            self.hub.faults = []
            return
        before = {path: path.read_bytes() for path in job.reads}
        if fault == "damage":
            self._damage(chance, job.reads)
            process = self._start(job, family)
        else:
            process = self._start(job, family)
            time.sleep(chance.uniform(0, 1.2 * family.seconds.get(verb, 0.5)))
            self._damage(chance, job.reads)
        ended = process.end()
        harmless = fault == "damage while reading" or not job.reads
        checked_there = {TOLD_BY_THE_HUB} if verb == "publish to the Hub" else set()
        self._judge(verb, job, ended, {*REFUSED, *checked_there, *([0] if harmless else [])})
        for path, content in before.items():
            path.write_bytes(content)

    def _damage(self, chance: random.Random, files: list[Path]) -> None:
        """Flip a bit, cut the end off, or add a byte, in place."""
        files = [path for path in files if path.stat().st_size]
        if not files:
            return
        path = chance.choice(files)
        size = path.stat().st_size
        with path.open("r+b") as file:
            match chance.choice(["flip", "cut", "add"]):
                case "flip":
                    at = chance.randrange(size)
                    file.seek(at)
                    (byte,) = file.read(1)
                    file.seek(at)
                    file.write(bytes([byte ^ 1 << chance.randrange(8)]))
                case "cut":
                    file.truncate(chance.randrange(size))
                case "add":
                    file.seek(0, os.SEEK_END)
                    file.write(b"\0")

    def _judge(self, verb: str, job: Job, ended: Ended, allowed: set[int], *, quiet: bool = True) -> None:
        self.counts[f"{verb}: ended with {ended.status}"] += 1
        if ended.status not in allowed:
            raise WrongError(f"ended with {ended.status}: {ended.errors[-2000:]}")
        if quiet and "Traceback" in ended.errors:
            raise WrongError(f"a traceback: {ended.errors[-2000:]}")
        if quiet and ended.status not in (0, 130) and ended.status > 0 and "error: " not in ended.errors:
            raise WrongError(f"no clear error: {ended.errors[-2000:]}")
        if ended.status == 7 and "→" not in ended.errors:
            raise WrongError(f"an error of the disk that does not say what helps: {ended.errors[-2000:]}")
        shown = job.out is not None and (job.out / "manifest.json" if verb.startswith("pull") else job.out).exists()
        if shown and self._seen(job) != job.expected:
            raise WrongError(f"half-done, and visible, after {ended.status}")
        if job.out is not None and ended.status == 0 and not shown:
            raise WrongError("no output after success")

    def _seen(self, job: Job) -> dict[str, str]:
        """Return what is visible; a pulled copy also has its lock, and the Hub's client keeps notes in it."""
        assert job.out is not None
        beside = ("paramdelta.lock", ".cache/")
        return {name: digest for name, digest in tree(job.out).items() if not name.startswith(beside)}

    def _finish(self, verb: str, job: Job, family: Family) -> None:
        """Run undisturbed; nothing but the whole output may be there then."""
        was_there = job.out is not None and job.out.exists()
        ended = self._start(job, family).end()
        self._judge(verb, job, ended, {6} if was_there and verb in ("extract", "apply") else {0})
        if verb == "publish to the Hub":
            repository = self.hub.repositories["org/delta"]
            if list(repository.tags) != ["1.0.0"] or len(repository.tags) != 1:
                raise WrongError(f"the Hub has the tags {list(repository.tags)}")
        if job.out is None or was_there:  # a death after all was visible may leave what nobody needs any more
            return
        beside = [path.name for path in job.out.parent.iterdir() if path.name.endswith((".partial", ".tmp"))]
        if beside or any(name.endswith((".tmp", ".incomplete")) for name in tree(job.out)):
            raise WrongError(f"left behind: {beside}, {sorted(tree(job.out))}")


def main() -> None:
    """Parse, soak, write."""
    parser = argparse.ArgumentParser(
        "python -m scripts.evidence.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", type=int, help="the number of one scenario, to run it again")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "soak", help="where models and outputs lie")
    parser.add_argument("--results", type=Path, default=ROOT / "scripts/evidence/results/soak.json")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "soak.md")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    hub = LoopbackHub()
    hub.accounts = {TOKEN: Account("soaker", ("org",))}
    samples = arguments.work / "steady.jsonl"
    steady = None
    if arguments.only is None:
        steady = subprocess.Popen(
            [sys.executable, "-m", "scripts.evidence.soak.steady", arguments.work / "steady", samples]
        )
    begun, number = time.monotonic(), arguments.only or 0
    soak = Soak(arguments.work, arguments.seed, hub)
    try:
        with hub.running():
            while True:
                soak.scenario(number)
                number += 1
                if number % 100 == 0:
                    print(f"{number} scenarios, {len(soak.failures)} wrong", flush=True)
                if arguments.only is not None or time.monotonic() - begun > 60 * arguments.minutes:
                    break
    finally:
        soak.close()
        if steady:
            steady.terminate()
            steady.wait()
    if arguments.only is None:
        report = {
            "seed": arguments.seed,
            "asked_minutes": arguments.minutes,
            "minutes": round((time.monotonic() - begun) / 60, 1),
            "scenarios": number,
            "wrong": soak.failures,
            "tmpfs": soak.can_mount,
            "counts": dict(sorted(soak.counts.items())),
            "steady": [json.loads(line) for line in samples.read_text().splitlines()],
            "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()},
        }
        write_report(report, arguments.results, arguments.report)
    sys.exit(1 if soak.failures else 0)


if __name__ == "__main__":
    main()
