"""The four commands that make something, each on inputs of its own, and what they must have made in the end."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import paramdelta_hub as pd
from paramdelta_hub.tasks import plan
from tests.support.models import tuned, write_model

Verb = Literal["extract", "apply", "publish", "pull"]
VERBS: tuple[Verb, ...] = ("extract", "apply", "publish", "pull")
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8}
NESTED = "additional_chat_templates/tools.jinja"
"""A companion that lies two folders deep in a package."""


def tree(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below, hidden ones too; nothing where there is no folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class World:
    """Three models, their delta, the same published, and what lies in each command's output at the end."""

    root: Path
    trees: dict[Verb, dict[str, str]]

    def case(self, verb: Verb, place: Path, *, ready: bool = True) -> Case:
        """Return a command that works below ``place``, which is made, and has its inputs to itself.

        Its output goes below ``place/made``, which is there already if the place is to be ``ready``.
        """
        package, made = place / "package", place / "made"
        if verb in ("apply", "publish"):
            shutil.copytree(self.root / "delta", package)
        (made if ready else place).mkdir(parents=True, exist_ok=True)
        match verb:
            case "extract":
                command = ["extract", f"{self.root}/base", f"{self.root}/post", "-o", f"{made}/out", "--name", "delta"]
                out = made / "out"
            case "apply":
                command = ["apply", f"{self.root}/target", str(package), "-o", f"{made}/out"]
                out = made / "out"
            case "publish":
                command = ["publish", str(package), f"{made}/org/delta"]
                out = made / "org/delta/1.0.0"
            case "pull":
                command = ["pull", f"{self.root}/registry/org/delta@1.0.0", "-o", f"{made}/out"]
                out = made / "out"
        threads = ["--threads", "1"] if verb in ("extract", "apply") else []
        return Case(verb, place, [*command, *threads, "-q"], out, self.trees[verb])


@dataclass(frozen=True)
class Case:
    """A command, the folder it has to itself, where it shows its output, and what must be there."""

    verb: Verb
    place: Path
    command: list[str]
    out: Path
    expected: dict[str, str]

    @property
    def shown(self) -> bool:
        """Whether anybody would take what is there for a result: a pulled folder counts once it has a manifest."""
        return (self.out / "manifest.json" if self.verb == "pull" else self.out).exists()

    @property
    def again(self) -> int:
        """The status of the same command when its output is there already."""
        return pd.DestinationError.exit_code if self.verb in ("extract", "apply") else 0

    def is_whole(self) -> bool:
        """Whether the output is the one of an undisturbed run, to the byte."""
        return tree(self.out) == self.expected

    def beside(self) -> list[str]:
        """Return what lies beside the output and is no folder on the way to it."""
        return sorted(
            path.name for parent in (self.out.parent, self.out.parent.parent) for path in parent.iterdir()
            if not self.out.is_relative_to(path) and path.name != "package"
        )  # fmt: skip


def make_world(root: Path, layers: int) -> World:
    """Write the models, with so many layers, and do everything once, undisturbed."""
    noise = torch.Generator().manual_seed(layers)
    names = ["model.embed_tokens.weight", *(f"model.layers.{number}.weight" for number in range(layers))]
    base = {name: (torch.randn(16, 8, generator=noise) * 0.05).bfloat16() for name in names}
    models = {"base": base, "post": tuned(base, 1), "target": tuned(base, 2, scale=0.01)}
    for role, tensors in models.items():
        folder = write_model(root / role, tensors, min(3, layers + 1), CONFIG)
        (folder / "additional_chat_templates").mkdir()
        (folder / NESTED).write_text("{{ messages }}")
        (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    before, plan.TASK_BYTES_MIN = plan.TASK_BYTES_MIN, 1
    try:
        pd.extract(root / "base", root / "post", root / "delta", name="delta", threads=1)
        pd.apply(root / "target", root / "delta", root / "applied", threads=1)
    finally:
        plan.TASK_BYTES_MIN = before
    pd.publish(root / "delta", f"{root}/registry/org/delta")
    pd.pull(f"{root}/registry/org/delta@1.0.0", root / "pulled")
    places = {"extract": "delta", "apply": "applied", "publish": "registry/org/delta/1.0.0", "pull": "pulled"}
    return World(root, {verb: tree(root / places[verb]) for verb in VERBS})
