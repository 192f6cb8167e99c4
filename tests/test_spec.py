"""SPEC-v1.md says what the product does: a reader written from it alone agrees to the bit, on what extract writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.codecs import ZERO
from paramdelta_hub.codecs.by_name import REPLACING, TANS
from paramdelta_hub.tasks import plan
from tests.support.models import TORCH, from_bits, raw, read_weights, tuned, weights, write_model
from tests.support.spec_reader import (
    CHUNK,
    RefusedError,
    SpecPackage,
    add,
    fingerprint,
    lineage_places,
    logical_base,
    logical_rows,
    tensor_digest,
)

Model = dict[str, torch.Tensor]
ROOT = Path(__file__).parent.parent
EXPONENT = {"BF16": (7, 0xFF), "F16": (10, 0x1F), "F32": (23, 0xFF)}


@dataclass
class Trio:
    """Base, post and a target of one ancestry."""

    base: Model
    post: Model
    target: Model
    rules: pd.Rules = field(default_factory=pd.Rules)

    def extract(self, root: Path) -> SpecPackage:
        for name, model in (("base", self.base), ("post", self.post), ("target", self.target)):
            write_model(root / name, model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plan, "TASK_BYTES_MIN", 2 << 20)  # the large tensors have two parts
            pd.extract(root / "base", root / "post", root / "delta", rules=self.rules, threads=1)
        return SpecPackage(root / "delta")


def finite_bits(dtype: str, count: int, seed: int) -> torch.Tensor:
    """Return uniformly drawn bit patterns of finite numbers: every exponent, subnormals, both zeros."""
    width = TORCH[dtype].itemsize
    drawn = np.random.default_rng(seed).integers(0, 2 ** (8 * width), count, dtype=f"u{width}")
    mantissa, largest = EXPONENT[dtype]
    drawn[(drawn >> mantissa) & largest == largest] &= (1 << mantissa) - 1
    drawn[:4] = [0, 1 << (8 * width - 1), 1, (1 << (8 * width - 1)) + 1]
    return from_bits(drawn, TORCH[dtype])


def small(dtype: str) -> Trio:
    base = weights(1, TORCH[dtype])
    return Trio(base, tuned(base, 2), tuned(base, 3, scale=0.01))


def wild(dtype: str) -> Trio:
    """Return unrelated bit patterns, so that exceptions abound; the target is near enough to be kin."""
    base, post = finite_bits(dtype, 3000, 4), finite_bits(dtype, 3000, 5)
    limit = torch.finfo(TORCH[dtype]).max
    # Targets on which no sum overflows: elements whose Δ is infinite or nearly so can be applied to base alone.
    wide = {"BF16": torch.float32, "F16": torch.float32, "F32": torch.float64}[dtype]
    tame = ((post.to(wide) - base.to(wide)).abs() < limit / 4) & (base.to(wide).abs() < limit / 4)
    related = weights(6, TORCH[dtype])["model.embed_tokens.weight"]
    return Trio(
        {"wild": base, "tame": base[tame], "kin": related},
        {"wild": post, "tame": post[tame], "kin": related},
        {"wild": base, "tame": base[tame] * 0.75, "kin": related * 1.01},
    )


def long() -> Trio:
    """Return tensors of several chunks: unchanged at first, then changed, with exceptions in one chunk of three."""
    noise = torch.Generator().manual_seed(7)
    base = (torch.randn(2 * CHUNK + 77, generator=noise) * 0.05).bfloat16()
    moved = (base.float() + 0.003 * torch.randn(base.shape, generator=noise)).bfloat16()
    post = torch.cat([base[:CHUNK], moved[CHUNK:]])
    post[CHUNK + 5 : 2 * CHUNK : 9999] = -0.0
    target = (base.float() + 0.01 * torch.randn(base.shape, generator=noise)).bfloat16()
    target[CHUNK : 2 * CHUNK] = base[CHUNK : 2 * CHUNK]  # the middle chunk is base's own
    single = torch.randn(CHUNK + 1, generator=noise)
    steps = torch.arange(CHUNK + 3)
    return Trio(
        {"long": base, "exact": base[:CHUNK].clone(), "single": single, "steps": steps},
        {"long": post, "exact": moved[:CHUNK].clone(), "single": single * 1.001, "steps": steps * steps},
        {"long": target, "exact": target[:CHUNK].clone(), "single": single * 1.1, "steps": steps + 1},
    )


def odd() -> Trio:
    """Return what has no elements, one, only zeros of either sign, no change, and other types than weights."""
    related = weights(8)["model.embed_tokens.weight"]
    base = {
        "kin": related,
        "empty": torch.empty(0, 4).bfloat16(),
        "scalar": torch.tensor(1.5).half(),
        "zeros": torch.zeros(300).bfloat16(),
        "signed.zeros": torch.tensor([-0.0, 0.0] * 150).bfloat16(),
        "const": torch.ones(5, 5, 2, 2),
        "bytes": torch.arange(200, dtype=torch.uint8),
        "int8": torch.arange(-5, 5, dtype=torch.int8),
        "int16": torch.arange(1000, dtype=torch.int16),
        "int32": torch.zeros(70000, dtype=torch.int32),
        "mask": torch.tensor([True, False, True]),
        "same": torch.arange(9),
    }
    changes = {
        "scalar": torch.tensor(-0.0).half(),
        "bytes": base["bytes"].flip(0),
        "int8": -base["int8"],
        "int16": base["int16"] * 2,
        "int32": base["int32"] + 3,
        "mask": ~base["mask"],
    }
    drift = {
        "kin": related * 1.1,
        "zeros": torch.full((300,), -0.0).bfloat16(),
        "const": base["const"] * 2,
        "same": base["same"] + 1,
    }
    return Trio(base, {**base, **changes}, {**base, **drift})


def masked() -> Trio:
    """Return NaN of every kind, and infinities, with equal bits on both sides; the target has its own there."""
    base, post, target = {}, {}, {}
    for number, (name, dtype) in enumerate(TORCH.items()):
        mantissa, largest = EXPONENT[name]
        model = weights(number, dtype)["model.embed_tokens.weight"]
        base[name], post[name] = model, (model.double() * 1.01).to(dtype)
        target[name] = (model.double() * 0.99).to(dtype)
        width = 8 * dtype.itemsize
        payloads = np.random.default_rng(number).integers(0, 1 << mantissa, model.shape[1], dtype=f"u{width // 8}")
        payloads[:2] = 0, 1  # infinity, and a signalling NaN
        payloads |= np.asarray(largest << mantissa, payloads.dtype)
        payloads[::3] |= np.asarray(1 << (width - 1), payloads.dtype)
        for side in (base, post):
            side[name] = side[name].clone()
            side[name][-3:] = from_bits(payloads, dtype)
        target[name][-2:] = from_bits(payloads[::-1].copy(), dtype)
    mask = torch.tensor(-torch.inf, dtype=torch.float16)
    base["mask"] = post["mask"] = target["mask"] = mask
    return Trio(base, post, target)


def renamed() -> Trio:
    trio = small("BF16")
    post = {name.replace("model.", "language_model.model."): tensor for name, tensor in trio.post.items()}
    post["vision.weight"] = torch.ones(3)
    rules = pd.Rules(renames=((r"^language_model\.", ""),), skips=(r"^vision\.", "bias"))
    return Trio(trio.base, post, trio.target, rules)


TRIOS: dict[str, Callable[[], Trio]] = {
    **{f"small-{dtype}": lambda dtype=dtype: small(dtype) for dtype in TORCH},  # type: ignore[misc]
    **{f"wild-{dtype}": lambda dtype=dtype: wild(dtype) for dtype in TORCH},  # type: ignore[misc]
    "long": long,
    "odd": odd,
    "masked": masked,
    "renamed": renamed,
}


@dataclass(frozen=True)
class Extracted:
    """What the tests share, and must not change."""

    trio: Trio
    root: Path
    package: SpecPackage


@pytest.fixture(scope="module", params=TRIOS)
def extracted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    trio, root = TRIOS[request.param](), tmp_path_factory.mktemp(request.param)
    return Extracted(trio, root, trio.extract(root))


def assert_equal(result: Mapping[str, bytes], expected: Model) -> None:
    for name, values in result.items():
        assert values == raw(expected[name]), name


def test_on_base_the_result_is_post(extracted: Extracted) -> None:
    package, trio = extracted.package, extracted.trio
    post = {trio.rules.rename(name): tensor for name, tensor in trio.post.items()}
    assert package.records
    for name, record in package.records.items():
        assert tensor_digest(raw(trio.base[name]), record["dtype"]) == record["base_blake3"]
        assert tensor_digest(raw(post[name]), record["dtype"]) == record["post_blake3"]
        assert (record["shape"], record["changed"]) == (list(post[name].shape), changed(trio.base[name], post[name]))
        assert add(raw(trio.base[name]), [(package, name, 1.0)]) == raw(post[name]), name


def changed(base: torch.Tensor, post: torch.Tensor) -> int:
    width = base.element_size()
    ours, theirs = (np.frombuffer(raw(tensor), f"u{width}") for tensor in (base, post))
    return int((ours != theirs).sum())


@pytest.mark.parametrize("weight", [1.0, 0.5, -0.3, 1e-60, 0.0])
def test_on_a_target_the_result_is_applys(extracted: Extracted, tmp_path: Path, weight: float) -> None:
    package, trio = extracted.package, extracted.trio
    if "wild" in trio.base and weight != 0:
        # Δ overflows there, which is refused everywhere but on base.
        skips, left = ("wild",), package.records.keys() - {"wild"}
    else:
        skips, left = (), set(package.records)
    pd.apply(
        extracted.root / "target", pd.WeightedDelta(extracted.root / "delta", weight), tmp_path / "out",
        rules=pd.Rules(skips=skips), threads=1,
    )  # fmt: skip
    result = read_weights(tmp_path / "out")
    assert_equal({name: add(raw(trio.target[name]), [(package, name, weight)]) for name in left}, result)
    assert_equal({name: raw(trio.target[name]) for name in trio.target.keys() - left}, result)


def test_on_other_targets_the_sum_is_torchs(extracted: Extracted) -> None:
    package, trio = extracted.package, extracted.trio
    post = {trio.rules.rename(name): tensor for name, tensor in trio.post.items()}
    for name, record in package.records.items():
        if record["effect"] == "replace" or name in ("wild", "long") or raw(trio.target[name]) == raw(trio.base[name]):
            continue
        wide = torch.float64 if record["dtype"] == "F32" else torch.float32
        delta = post[name].to(wide) - trio.base[name].to(wide)
        expected = (delta + trio.target[name].to(wide)).to(trio.target[name].dtype)
        unchanged = ~trio.target[name].isfinite()
        expected[unchanged] = trio.target[name][unchanged]  # copies bits
        finite_base = trio.base[name].isfinite()
        expected[~finite_base] = trio.target[name][~finite_base]
        assert add(raw(trio.target[name]), [(package, name, 1.0)]) == raw(expected), name


def test_the_delta_is_that_of_section_6(extracted: Extracted) -> None:
    package, trio = extracted.package, extracted.trio
    post = {trio.rules.rename(name): tensor for name, tensor in trio.post.items()}
    for name, record in package.records.items():
        if record["effect"] == "add" and record["shape"] != [0, 4]:
            wide = torch.float64 if record["dtype"] == "F32" else torch.float32
            delta = np.concatenate([chunk.delta for chunk in package.added(name)])
            expected = post[name].to(wide) - trio.base[name].to(wide)
            expected[~trio.base[name].isfinite()] = 0.0
            assert delta.tobytes() == raw(expected), name


def test_every_codec_list_and_effect_occurs(tmp_path: Path) -> None:
    """Else the tests above would prove less than they seem to."""
    records = [
        (part["codec"], record["effect"], record["exceptions"] > 0)
        for index, trio in enumerate((small("BF16"), small("F32"), wild("BF16"), odd()))
        for record in trio.extract(tmp_path / str(index)).records.values()
        for part in record["parts"]
    ]
    occur = {(codec, effect) for codec, effect, _ in records}
    added = {(codec, "add") for codec in (TANS.name, ZERO)}
    assert occur == added | {(codec, "replace") for codec in (*REPLACING, ZERO)}
    assert any(exceptions for _, _, exceptions in records)


def test_large_tensors_have_several_parts(tmp_path: Path) -> None:
    records = long().extract(tmp_path).records
    assert [(part["chunks"], part["codec"]) for part in records["long"]["parts"]] == [(1, "zero"), (2, "tans")]
    assert len(records["single"]["parts"]) == 2


def test_lineage_and_fingerprint(extracted: Extracted) -> None:
    package, trio = extracted.package, extracted.trio
    records = package.records.values()
    sampled = {record["name"] for record in records if record["effect"] == "add" and 0 not in record["shape"]}
    assert package.lineage.keys() == sampled
    for name, (dtype, shape, values) in package.lineage.items():
        places = lineage_places(name, trio.base[name].numel())
        assert (dtype, shape) == (package.records[name]["dtype"], [places.size])
        assert values == raw(trio.base[name].reshape(-1)[torch.from_numpy(places)])
    shapes = {name: list(tensor.shape) for name, tensor in trio.base.items()}
    assert package.manifest["architecture"]["fingerprint"] == fingerprint(shapes)


def test_several_deltas_are_summed_in_order(tmp_path: Path) -> None:
    one = small("BF16")
    two = Trio(one.base, tuned(one.base, 9, scale=0.02), one.target)
    packages = [one.extract(tmp_path / "one"), two.extract(tmp_path / "two")]
    summands = [pd.WeightedDelta(tmp_path / "one" / "delta", 0.7), pd.WeightedDelta(tmp_path / "two" / "delta", -0.2)]
    pd.apply(tmp_path / "one" / "target", summands, tmp_path / "out", threads=1)
    weighted = list(zip(packages, (0.7, -0.2), strict=True))
    result = {
        name: add(raw(target), [(package, name, weight) for package, weight in weighted])
        for name, target in one.target.items()
    }
    assert_equal(result, read_weights(tmp_path / "out"))


# The reader refuses what the specification says must be refused; it would be a poor witness otherwise.


def edit(mutate: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        mutate(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return rewrite


def flip(name: str, offset: int) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[offset] ^= 1
        (folder / name).write_bytes(content)

    return rewrite


SHARD = "delta-00001-of-00001.safetensors"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "later version": (edit(lambda m: m.update(format_version=2)), "§10"),
    "version true": (edit(lambda m: m.update(format_version=True)), "§10"),
    "unknown field": (edit(lambda m: m.update(more=1)), "§3.1"),
    "missing field": (edit(lambda m: m.pop("license")), "§3.1"),
    "shard twice": (edit(lambda m: m["shards"].append(m["shards"][0])), "§2"),
    "unsafe path": (edit(lambda m: m["lineage"].update(path="../lineage.safetensors")), "§2"),
    "device name": (edit(lambda m: m["companions"].append({**m["lineage"], "path": "companions/aux.json"})), "§2"),
    "a script among the companions": (
        edit(lambda m: m["companions"].append({**m["lineage"], "path": "companions/x.py"})), "§2"
    ),
    "a config that names code": (
        edit(lambda m: m["configs"].update({"config.json": {"patch": {"a": {"auto_map": 1}}, "reverse": {"a": 1}}})),
        "§11",
    ),
    "a config one way": (
        edit(lambda m: m["configs"].update({"config.json": {"patch": {"a": 1}, "reverse": {}}})), "§11"
    ),
    "false totals": (edit(lambda m: m["exactness"].update(changed=0)), "§3.2"),
    "unknown codec": (edit(lambda m: m["tensors"][0]["parts"][0].update(codec="xor")), "§5"),
    "damaged shard": (flip(SHARD, -1), "§9"),
    "damaged lineage": (flip("lineage.safetensors", -1), "§9"),
    "key twice": (
        lambda folder: (folder / "manifest.json").write_text('{"format": "paramdelta", "format": "paramdelta"}'), "§3.1"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "rule"), BAD.values(), ids=BAD.keys())
def test_the_reader_refuses(tmp_path: Path, damage: Callable[[Path], object], rule: str) -> None:
    small("BF16").extract(tmp_path)
    damage(tmp_path / "delta")
    with pytest.raises(RefusedError, match=f"^{re.escape(rule)} "):
        SpecPackage(tmp_path / "delta")


def test_the_reader_is_independent() -> None:
    source = (ROOT / "tests" / "support" / "spec_reader.py").read_text()
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert not imported & {"paramdelta_hub", "blake3", "torch", "safetensors", "pydantic"}
    assert re.findall(r"tests.*", source) == ["tests.support.blake3_numpy import blake3"]


def test_the_specification_names_every_field() -> None:
    text = (ROOT / "schemas" / "SPEC-v1.md").read_text()
    schema = json.loads((ROOT / "schemas" / "manifest-v1.schema.json").read_bytes())
    for record in (schema, *schema["$defs"].values()):
        for name in record.get("properties", ()):
            assert re.search(rf"\b{name}\b", text), name


def with_tokenizer(folder: Path, tokens: list[str], tensors: Model) -> Path:
    write_model(folder, tensors, config={"model_type": "llama", "tie_word_embeddings": "lm_head.weight" not in tensors})
    table = {token: row for row, token in enumerate(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": table}}))
    return folder


def test_rows_ties_and_carried_tensors(tmp_path: Path) -> None:
    """§12: base's rows go to other places, some of post's come from nowhere; a head that base ties, one that is new."""
    noise = torch.Generator().manual_seed(0)
    embed = torch.randn(40, 8, generator=noise).bfloat16()
    words = [f"w{row}" for row in range(40)]
    order = [*reversed(words), "new", "newer"]
    kept = torch.cat([embed.flip(0), torch.zeros(2, 8).bfloat16()])
    moved = (kept.float() + 0.02 * torch.randn(42, 8, generator=noise)).bfloat16()
    moved[41, 3] = -0.0
    head = (kept.float() + 0.03 * torch.randn(42, 8, generator=noise)).bfloat16()
    score = torch.randn(3, 8, generator=noise).bfloat16()
    base = with_tokenizer(tmp_path / "base", words, {"model.embed_tokens.weight": embed})
    tensors = {"model.embed_tokens.weight": moved, "lm_head.weight": head, "score.weight": score}
    post = with_tokenizer(tmp_path / "post", order, tensors)
    pd.extract(base, post, tmp_path / "delta", rules=pd.Rules(carries=("score",)), threads=1)
    package = SpecPackage(tmp_path / "delta")
    assert package.manifest["given_up"] == {}
    assert package.records["lm_head.weight"]["base_name"] == "model.embed_tokens.weight"
    for name, expected in tensors.items():
        record = package.records[name]
        stored = torch.zeros(0, 8).bfloat16() if record["rows"]["base"] == 0 else embed
        logical = logical_base(record, np.frombuffer(raw(stored), "<u2").reshape(-1, 8))
        assert tensor_digest(logical.tobytes(), record["dtype"]) == record["base_blake3"]
        assert add(logical.tobytes(), [(package, name, 1.0)]) == raw(expected)
    for runs in ([[0, 0, 41]], [[0, 0, 20], [20, 20, 22]], [[0, None, 2], [2, 0, 41]], [[0, 0, 40], [41, None, 1]]):
        with pytest.raises(RefusedError, match="§12"):
            logical_rows({"shape": [42, 8], "rows": {"base": 40, "runs": runs}})
