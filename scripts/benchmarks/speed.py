"""How long the commands take, beside copying, beside reading and writing alone, and beside what others use.

Every round runs each command once, in turn, so that a slow moment of the machine hits all of them; ratios are taken
round by round. A first round is not counted: it touches what the others find. Everything is made durable: ``cp -r`` and
tools that do not care are followed by ``sync``; ours end when their output is on disk. Each command's inputs are read
just before it, so that all find them in the page cache, if they fit, and memory for the output is touched.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks import peer_commands
from scripts.benchmarks.models import unlike_the_formula
from scripts.benchmarks.package import anatomy
from scripts.benchmarks.process import Command, durable, free_memory, run, touch, warm
from scripts.tools.generate import ROLES, Recipe, generate

__all__ = ["CP", "measure"]

CP = "cp + sync"
DELTA_SHARE = 0.5
"""A package is smaller than this share of a model: what to expect of the disk."""
SPARE = 2 << 30
FLOOR = Path(__file__).parent / "peers" / "floor.py"


@dataclass(frozen=True)
class Size:
    """One size to measure: its models, and how much they take."""

    models: Path
    recipe: Recipe
    work: Path

    @property
    def parameters(self) -> int:
        """Elements of a model."""
        return sum(int(np.prod(shape)) for _, shape in self.recipe.tensors())

    @property
    def model_bytes(self) -> int:
        """Bytes of a model's weights."""
        return 2 * self.parameters

    @property
    def delta(self) -> Path:
        """Where the package is made."""
        return self.work / "delta"

    def keep_only(self, roles: Sequence[str]) -> None:
        """Delete the other models, then make these, where they are missing."""
        for role in set(ROLES) - set(roles):
            shutil.rmtree(self.models / role, ignore_errors=True)
        generate(self.models, self.recipe, roles=roles)

    def phases(self, commands: Sequence[Command]) -> list[tuple[list[str], list[Command]]]:
        """Return which models to have and what to run while they are there: all at once if the disk takes it.

        Otherwise extract comes first, base and post are deleted, target is made, apply follows; then, package deleted
        and models made again, whatever reads all three. Copying is measured in each phase.
        """
        present = sum(path.stat().st_size for path in self.models.rglob("*.safetensors"))
        free = shutil.disk_usage(self.work).free + present - SPARE
        if (len(ROLES) + 1 + DELTA_SHARE) * self.model_bytes <= free:
            return [(list(ROLES), list(commands))]
        groups: dict[tuple[str, ...], list[Command]] = {}
        for command in commands:
            roles = tuple(role for role in ROLES if str(self.models / role) in (*command.argv, *command.prepare))
            groups.setdefault(roles, []).append(command)
        alone = groups.pop(("target",)) + groups.pop((), [])  # copying, apply, and verify, which reads the package
        phases = [(["base", "post"], [_copy(self, "post"), *groups.pop(("base", "post"))]), (["target"], alone)]
        return phases + [(list(roles), [_copy(self, "target"), *others]) for roles, others in groups.items()]


def measure(layers: int, rounds: int, work: Path, peers: bool) -> dict[str, Any]:
    """Generate the triple of that size, and run everything ``rounds`` times in turn."""
    work.mkdir(parents=True, exist_ok=True)
    size = Size(work / f"layers-{layers}", Recipe(layers=layers), work)
    commands = _ours(size)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    skipped = {}
    if peers:
        for command in peer_commands.add_up(size.models, work, size.model_bytes):
            if command.memory > memory:
                skipped[command.name] = f"needs about {command.memory / 1e9:.0f} GB of memory"
            else:
                commands.append(command)
    phases = [_phase(size, roles, part, rounds) for roles, part in size.phases(commands)]
    for path in {path for command in commands for path in (command.output, command.prepared) if path}:
        shutil.rmtree(path, ignore_errors=True)
    return {
        "layers": layers,
        "parameters": size.parameters,
        "model_bytes": size.model_bytes,
        "inputs_fit_in_memory": len(ROLES) * size.model_bytes < memory,
        "phases": phases,
        "skipped": skipped,
    }


def _ours(size: Size) -> list[Command]:
    """Return copying, extract and apply, and the floors beneath them."""
    base, post, target = (size.models / role for role in ROLES)
    paramdelta, delta = [sys.executable, "-m", "paramdelta_hub"], size.delta
    out, written = size.work / "out", size.work / "floor"
    floor = [sys.executable, str(FLOOR), str(written)]
    return [
        _copy(size, "target"),
        Command("extract", [*paramdelta, "extract", str(base), str(post), "-o", str(delta), "-q"], [base, post], delta),
        Command("floor of extract", [*floor, *map(str, (delta, base, post))], [base, post], written),
        Command("floor of apply", [*floor, *map(str, (target, target, delta))], [target, delta], written),
        Command(
            "apply", [*paramdelta, "apply", *map(str, (target, delta)), "-o", str(out), "-q"], [target, delta], out,
            makes_model=True,
        ),
        Command("verify", [*paramdelta, "verify", str(delta)], [delta], None),
    ]  # fmt: skip


def _copy(size: Size, role: str) -> Command:
    source, copy = size.models / role, size.work / "copy"
    return Command(CP, durable(["cp", "-r", str(source), str(copy)]), [source], copy)


def _phase(size: Size, roles: list[str], commands: list[Command], rounds: int) -> dict[str, Any]:
    """Run these commands in turn, with these models there."""
    if all(str(size.delta) not in command.argv for command in commands):
        shutil.rmtree(size.delta, ignore_errors=True)  # the disk may need the place
    size.keep_only(roles)
    for command in commands:
        if command.prepared:
            shutil.rmtree(command.prepared, ignore_errors=True)
            run(command.prepare, command.env)
    took: dict[str, list[dict[str, Any]]] = {command.name: [] for command in commands}
    unlike: dict[str, float] = {}
    for number in range(rounds + 1):
        for command in commands:
            if command.output:
                shutil.rmtree(command.output, ignore_errors=True)
            os.sync()
            for folder in command.reads:
                warm(folder)
            touch(min(2 * size.model_bytes, free_memory() // 2))
            this = run(command.argv, command.env)
            print(f"  round {number}: {command.name:<24} {this.seconds:7.2f} s {this.peak_mb:7.0f} MB", file=sys.stderr)
            if number:
                took[command.name].append(asdict(this))
            elif command.makes_model and command.output and roles == list(ROLES):
                unlike[command.name] = unlike_the_formula(command.output, size.models)
            if command.output and command.output != size.delta:
                shutil.rmtree(command.output)
    made = {"package": anatomy(size.delta)} if any(command.output == size.delta for command in commands) else {}
    return {"models": roles, "commands": took, "unlike_the_formula": unlike, **made}
