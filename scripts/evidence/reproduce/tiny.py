"""The statistical case: models of 0.5 M parameters, trained from nothing, many times over.

Of one seed: *base* reads the Bible, the Jargon File and solved exercises in a plain form. For each of two skills *post*
is base, fine-tuned to answer chat questions in brackets, and Δ = post − base. *Targets* are base, pre-trained on:
Python's documentation for more and more steps, at a higher rate, or mixed with what base had read. A *reference* is a
target fine-tuned with the very batches that made post. All sums and differences are made by Paramdelta Hub, in bf16.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

import paramdelta_hub as pd
from scripts.evidence.reproduce.geometry import difference, relation
from scripts.evidence.reproduce.ledger import Ledger
from scripts.evidence.reproduce.models import (
    Batch,
    Model,
    ask,
    ask_plainly,
    chat_batches,
    load,
    loss_on,
    new_model,
    save,
    train,
)
from scripts.evidence.reproduce.tasks import SKILLS, plain_text
from scripts.evidence.reproduce.texts import fetch_texts, windows

__all__ = ["SUMS", "TARGETS", "WEIGHTS", "Tiny"]

ROWS, LENGTH = 32, 96


@dataclass(frozen=True)
class Target:
    """A continued pre-training: steps at a rate, on the documentation alone or mixed with base's own diet."""

    steps: int
    rate: float
    mixed: bool = False


TARGETS = {
    "mixed-softer-240": Target(240, 1e-4, mixed=True),
    "soft-60": Target(60, 1e-4),
    "soft-240": Target(240, 1e-4),
    "mixed-soft-240": Target(240, 3e-4, mixed=True),
    "mixed-240": Target(240, 1e-3, mixed=True),
    "docs-60": Target(60, 1e-3),
    "docs-240": Target(240, 1e-3),
    "docs-600": Target(600, 1e-3),
    "docs-240-hot": Target(240, 3e-3),
}
"""Those of one rate and one diet are stops of one training."""
GENTLE = 5
"""So many targets, the first, are scored at all weights: from the others nothing comes back at weight 1."""
WEIGHTS = ((0.5, 1.0, 1.5), (0.75, 1.25, 0.25))
SUMS = (0.5, 1.0)
"""The weight of each of the two deltas, where both are added."""


class Tiny:
    """All runs of one seed; what is there already is not made again."""

    def __init__(self, work: Path, results: Path, seed: int, *, base_steps: int, chat_steps: int, asked: int) -> None:
        self.seed, self.asked = seed, asked
        self.base_steps, self.chat_steps = base_steps, chat_steps
        texts = fetch_texts(work / "texts")
        old = [torch.cat(parts) for parts in zip(texts["bible"], texts["jargon"], strict=True)]
        self.texts = {"old": (old[0], old[1]), "docs": texts["docs"]}
        self.models = work / "ckpt" / f"seed{seed}"
        self.models.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(
            results / f"reproduce-tiny-{seed}.json",
            seed=seed,
            tool=f"paramdelta-hub {pd.__version__}",
            torch=torch.__version__,
            asked=asked,
            base_steps=base_steps,
            chat_steps=chat_steps,
            targets={name: asdict(target) for name, target in TARGETS.items()},
        )

    def run(self) -> None:
        """Train, extract, apply and score everything; the quick answers come first."""
        self.train_base()
        self.score("base", "base")
        for skill in SKILLS:
            self.tune("base", skill)
            self.score(f"post-{skill}", "post", skill=skill)
            self.extract(skill)
        self.relate_skills()
        self.train_targets()
        for target in TARGETS:
            self.score(target, "target", target=target)
            for skill in SKILLS:
                self.add(target, {skill: 1.0})
        gentle, rough = list(TARGETS)[:GENTLE], list(TARGETS)[GENTLE:]
        for target in TARGETS:
            for skill in SKILLS:
                self.relate(target, skill)
        first, *others = WEIGHTS
        self.vary(["base", *gentle], first)
        for targets in (gentle, rough):
            for target in targets:
                for skill in SKILLS:
                    self.tune(target, skill)
                    self.score(f"{target}-{skill}", "reference", target=target, skill=skill)
                    self.relate_own(target, skill)
        for weights in others:
            self.vary(["base", *gentle], weights)

    def vary(self, targets: Sequence[str], weights: Sequence[float]) -> None:
        """Add each Δ, and both, at other weights."""
        for weight in weights:
            for target in targets:
                for skill in SKILLS:
                    self.add(target, {skill: weight})
                if weight in SUMS:
                    self.add(target, dict.fromkeys(SKILLS, weight))

    def add_to_stranger(self, other: Path) -> None:
        """Add the deltas to a base of another seed, which shares nothing with this one: what refusing it spares."""
        for skill in SKILLS:
            self.add(f"stranger-{other.parent.name}", {skill: 1.0}, folder=other, force=True)

    @cached_property
    def exercises(self) -> torch.Tensor:
        """Solved exercises in the plain form, as text."""
        return torch.frombuffer(bytearray(plain_text(SKILLS, 4_000_000, self.seed).encode()), dtype=torch.uint8)

    def train_base(self) -> None:
        """Train from nothing on the old texts and exercises, half and half."""
        self._train("base", lambda: new_model(self.seed), self._old(self.seed), self.base_steps, 4e-3, warmup=50)

    def train_targets(self) -> None:
        """Continue base's pre-training; one run of constant rate gives all plain ``docs-`` targets of that rate."""
        groups: dict[tuple[float, bool], list[str]] = {}
        for name, target in TARGETS.items():
            groups.setdefault((target.rate, target.mixed), []).append(name)
        for (rate, mixed), names in groups.items():
            longest = max(names, key=lambda name: TARGETS[name].steps)
            stops = {TARGETS[name].steps: name for name in names if name != longest}
            batches = self._mixed() if mixed else self._docs(self.seed + 100)
            self._train(longest, lambda: load(self.models / "base"), batches, TARGETS[longest].steps, rate, stops=stops)

    def tune(self, start: str, skill: str) -> None:
        """Fine-tune on a skill: post from base, a reference from a target; all see the same batches."""
        name = f"post-{skill}" if start == "base" else f"{start}-{skill}"
        batches = chat_batches(skill, self.texts["old"][0], self.seed + 200)
        self._train(name, lambda: load(self.models / start), batches, self.chat_steps, 1e-3, chat=True)

    def extract(self, skill: str) -> None:
        """Make Δ, by the product's own command."""
        out = self.models / f"delta-{skill}"
        if not out.exists():
            pd.extract(self.models / "base", self.models / f"post-{skill}", out, name=skill, threads=1)

    def add(self, target: str, weights: dict[str, float], *, folder: Path | None = None, force: bool = False) -> None:
        """Score target ⊕ Σ wΔ, made by the product's own command."""
        name = " + ".join([target, *(f"{weight:g} {skill}" for skill, weight in weights.items())])

        def make() -> dict[str, Any]:
            out = self.models / "sum"
            shutil.rmtree(out, ignore_errors=True)
            summands = [pd.WeightedDelta(self.models / f"delta-{skill}", weight) for skill, weight in weights.items()]
            report = pd.apply(folder or self.models / target, summands, out, force=force, threads=1)
            kinship = report.deltas[0].kinship
            return {
                "kind": "sum",
                "target": target,
                "weights": weights,
                "lineage_correlation": kinship.correlation if kinship else None,
                **self._scores(out),
            }

        self.ledger.once("scores", name, make)

    def score(self, name: str, kind: str, **about: str) -> None:
        """Score a trained model; one that no chat has touched is also asked in the plain form."""

        def make() -> dict[str, Any]:
            scores = self._scores(self.models / name)
            if kind in ("base", "target"):
                model = load(self.models / name)
                for skill in SKILLS:
                    scores["skills"][skill]["plain"] = ask_plainly(model, skill, self.asked)
            return {"kind": kind, **about, **scores}

        self.ledger.once("scores", name, make)

    def relate_skills(self) -> None:
        """How the two deltas of one base lie to each other."""

        def make() -> dict[str, Any]:
            base = self.models / "base"
            first, second = (difference(self.models / f"post-{skill}", base) for skill in SKILLS)
            return relation(first, second)

        self.ledger.once("delta_to_delta", " and ".join(SKILLS), make)

    def relate(self, target: str, skill: str) -> None:
        """How Δ lies to the target's way from base."""

        def make() -> dict[str, Any]:
            base = self.models / "base"
            return relation(difference(self.models / f"post-{skill}", base), difference(self.models / target, base))

        self.ledger.once("delta_to_drift", f"{target} {skill}", make)

    def relate_own(self, target: str, skill: str) -> None:
        """How Δ lies to what fine-tuning the target itself changed."""

        def make() -> dict[str, Any]:
            own = difference(self.models / f"{target}-{skill}", self.models / target)
            return relation(difference(self.models / f"post-{skill}", self.models / "base"), own)

        self.ledger.once("delta_to_own_delta", f"{target} {skill}", make)

    def _train(
        self,
        name: str,
        start: Callable[[], Model],
        batches: Iterator[Batch],
        steps: int,
        rate: float,
        *,
        warmup: int = 20,
        chat: bool = False,
        stops: dict[int, str] | None = None,
    ) -> None:
        """Train and save; ``stops`` also saves on the way, at a rate that stays constant."""
        folder = self.models / name
        if folder.exists():
            return
        print(f"  training {name}: {steps} steps", flush=True)
        model, begun = start(), time.time()
        for stop in (stops or {}).values():
            shutil.rmtree(self.models / stop, ignore_errors=True)
        saves = {step: partial(save, model, self.models / stop) for step, stop in (stops or {}).items()}
        continued = not chat and name != "base"
        trained = train(model, batches, steps, rate, warmup=warmup, decay=not continued, stops=saves)
        record = {"rate": rate, **asdict(trained), "wall_seconds": time.time() - begun}
        self.ledger.once("training", name, lambda: record)
        save(model, folder, chat)

    def _old(self, seed: int) -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(seed)
        while True:
            half = ROWS // 2
            ids = torch.cat([windows(text, half, LENGTH, draw) for text in (self.texts["old"][0], self.exercises)])
            yield ids, ids

    def _docs(self, seed: int) -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(seed)
        while True:
            ids = windows(self.texts["docs"][0], ROWS, LENGTH, draw)
            yield ids, ids

    def _mixed(self) -> Iterator[Batch]:
        old, docs = self._old(self.seed + 300), self._docs(self.seed + 400)
        while True:
            ids = torch.cat([next(docs)[0][: ROWS // 2], next(old)[0][ROWS // 4 : 3 * ROWS // 4]])
            yield ids, ids

    def _scores(self, folder: Path) -> dict[str, Any]:
        model, draw = load(folder), torch.Generator().manual_seed(5)
        losses = {name: loss_on(model, windows(text[1], 96, LENGTH, draw)) for name, text in self.texts.items()}
        return {"skills": {skill: ask(model, skill, self.asked) for skill in SKILLS}, "loss": losses}
