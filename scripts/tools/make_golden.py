"""Make ``tests/golden/v1/``: packages that every later version must still read.

Each case is a folder with base, post, target and expected (lone safetensors files of a few KB) and the package of the
delta; ``SHA256SUMS`` lists them all. ``expected`` comes from torch's own arithmetic, not from ours. A case that exists
is never overwritten: a golden package made anew proves nothing. A new case is added to ``CASES`` here and in the test.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden" / "v1"
WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}
Model = dict[str, torch.Tensor]


@dataclass
class Case:
    """Three models, and the rules that the extraction is given."""

    base: Model
    post: Model
    target: Model
    rules: pd.Rules = field(default_factory=pd.Rules)


def plain(dtype: torch.dtype, seed: int) -> Case:
    """Return one weight type: a matrix that is changed all over, one that is changed here and there, a bias."""
    noise = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=noise) * scale

    def moved(model: Model, scale: float) -> Model:
        dense = {name: (t.float() + normal(*t.shape, scale=scale)).to(dtype) for name, t in model.items()}
        kept = torch.rand(16, 16, generator=noise) < 0.9
        return {**dense, "layer.1.weight": torch.where(kept, model["layer.1.weight"], dense["layer.1.weight"])}

    base = {
        "layer.0.weight": normal(24, 24, scale=0.05).to(dtype),
        "layer.1.weight": normal(16, 16, scale=0.05).to(dtype),
        "layer.1.bias": normal(40, scale=0.05).to(dtype),
    }
    return Case(base, moved(base, 0.003), moved(base, 0.005))


def mixed() -> Case:
    """Return what is not plain: zero tensors, integers, truth values, −0, cancellation, a scalar, no elements."""
    case = plain(torch.bfloat16, seed=4)
    rows = torch.arange(48, dtype=torch.float32).reshape(6, 8)
    odd = {
        "half": (rows / 64).half(),
        "single": rows / 7,
        "same": (rows / 16).bfloat16(),
        "same.signs": torch.tensor([-0.0, 0.0, 1.0, -1.0] * 10).bfloat16(),
        "cancelling": torch.full((6, 8), 1e30).bfloat16(),
        "to.minus.zero": (rows + 1).bfloat16(),
        "scalar": torch.tensor(1.5).bfloat16(),
        "empty": torch.empty(0, 8).bfloat16(),
        "steps": torch.arange(9) << 40,
        "kept.steps": torch.arange(5, dtype=torch.int32),
        "bytes": torch.arange(200, dtype=torch.uint8),
        "mask": torch.tensor([[True, False], [False, True]]),
    }
    changes = {
        "half": odd["half"] * 3,
        "single": odd["single"] * 1.01,
        "cancelling": (rows / 1e30).bfloat16(),
        "to.minus.zero": torch.where(rows % 5 == 0, -0.0, rows + 1.25).bfloat16(),
        "scalar": torch.tensor(-2.25).bfloat16(),
        "steps": odd["steps"] + 1,
        "bytes": odd["bytes"].flip(0),
        "mask": ~odd["mask"],
    }
    drift = {
        "half": odd["half"] * 1.5,
        "single": odd["single"] * 1.5,
        "same.signs": odd["same.signs"] * 1.5,
        "to.minus.zero": odd["to.minus.zero"] * 1.5,
        "kept.steps": odd["kept.steps"] + 3,
    }
    return Case({**case.base, **odd}, {**case.post, **odd, **changes}, {**case.target, **odd, **drift})


def renamed() -> Case:
    """Return a post with other names, a tensor that base lacks, and one that is skipped by rule."""
    case = plain(torch.bfloat16, seed=5)
    noise = torch.Generator().manual_seed(6)
    head = torch.randn(4, 8, generator=noise).bfloat16()
    rules = pd.Rules(renames=((r"^language_model\.", ""), (r"^layers\.", "layer.")), skips=(r"^head\.", r"pooler"))
    post = {f"language_model.{name.replace('layer.', 'layers.')}": tensor for name, tensor in case.post.items()}
    return Case(
        {**case.base, "pooler": head},
        {**post, "head.weight": head * 2, "pooler": head[:2] * 2},
        {**case.target, "pooler": -head},
        rules,
    )


def dtypes() -> Case:
    """Return float dtypes that differ between base, post and target, in every combination."""
    noise = torch.Generator().manual_seed(7)
    base, post, target = {}, {}, {}
    for one, other, third in itertools.product(WIDE, repeat=3):
        name = ".".join(str(dtype).removeprefix("torch.") for dtype in (one, other, third))
        values = torch.randn(6, 8, generator=noise)
        base[name] = values.to(one)
        post[name] = (base[name].float() + torch.randn(6, 8, generator=noise) * 0.003).to(other)
        target[name] = (base[name].float() + torch.randn(6, 8, generator=noise) * 0.01).to(third)
    return Case(base, post, target)


CASES = {
    "dtypes": dtypes,
    "bf16": lambda: plain(torch.bfloat16, seed=1),
    "fp16": lambda: plain(torch.float16, seed=2),
    "fp32": lambda: plain(torch.float32, seed=3),
    "mixed": mixed,
    "renamed": renamed,
}


def expected(case: Case) -> Model:
    """Return target ⊕ Δ by torch: the paper's reference; post itself where the target's chunk (here: tensor) is base's.

    Integers that post changed are post's, the others the target's.
    """
    result = {}
    post = {case.rules.rename(name): tensor for name, tensor in case.post.items()}
    for name, target in case.target.items():
        if case.rules.skips_name(name) or name not in post:
            result[name] = target
        elif bits({name: target}) == bits({name: case.base[name]}):
            result[name] = post[name]
        elif target.dtype in WIDE:
            sides = {case.base[name].dtype, post[name].dtype}
            wide = torch.float64 if len(sides) > 1 else WIDE[post[name].dtype]
            delta = post[name].to(wide) - case.base[name].to(wide)
            wide = torch.float64 if torch.float32 in {*sides, target.dtype} or len(sides) > 1 else torch.float32
            result[name] = rounded(delta.to(wide) + target.to(wide), target.dtype)
        else:
            result[name] = target if torch.equal(case.base[name], post[name]) else post[name]
    return result


def rounded(sums: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round once: torch goes from float64 to 16 bits by way of float32, and so misses the nearest number at ties."""
    near = sums.to(dtype)
    if sums.dtype != torch.float64 or dtype == torch.float32:
        return near
    patterns = near.view(torch.int16)
    for step in (-1, 1):
        other = (patterns + step).view(dtype)
        gap, other_gap = (near.double() - sums).abs(), (other.double() - sums).abs()
        even = (other.view(torch.int16) & 1) == 0
        near = torch.where((other_gap < gap) | ((other_gap == gap) & even), other, near)
    return near


def bits(model: Model) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    """Return what two models must have in common to be equal: −0 is not 0."""
    return {
        name: (t.dtype, t.shape, t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in model.items()
    }


def make(folder: Path, case: Case) -> None:
    """Write one case, prove it, and give it its name only then."""
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True)
    models = {"base": case.base, "post": case.post, "target": case.target, "expected": expected(case)}
    for name, model in models.items():
        save_file(model, partial / f"{name}.safetensors", metadata={"format": "pt"})
    pd.extract(
        partial / "base.safetensors", partial / "post.safetensors", partial / "package",
        name=f"golden-{folder.name}", license="apache-2.0", rules=case.rules, threads=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        pd.apply(partial / "target.safetensors", partial / "package", Path(scratch, "result"), threads=1)
        result = load_file(Path(scratch, "result", "target.safetensors"))
    if bits(result) != bits(models["expected"]):
        raise SystemExit(f"{folder.name}: the result is not what torch expects; left in {partial.name}")
    partial.rename(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}; all of them by default")
    cases = parser.parse_args().cases or list(CASES)
    if unknown := [name for name in cases if name not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}")
    if existing := [name for name in cases if (GOLDEN / name).exists()]:
        print(f"refusing to overwrite {', '.join(existing)}: a golden package is for ever", file=sys.stderr)
        return 1
    for name in cases:
        make(GOLDEN / name, CASES[name]())
    files = sorted(path for path in GOLDEN.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    digests = {path.relative_to(GOLDEN).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (GOLDEN / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
