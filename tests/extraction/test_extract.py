"""Extract: promise 1, base ⊕ Δ == post to the bit, for whatever finite weights there are."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from blake3 import blake3

import paramdelta_hub as pd
from paramdelta_hub.codecs.by_name import TANS
from paramdelta_hub.errors import (
    CheckpointError,
    MismatchError,
    NotFiniteError,
    OptionError,
    PackageError,
    SourceError,
)
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.compiled import SLICE
from paramdelta_hub.numerics.differences import NotFiniteChunkError, subtract
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.chunks import Layout, decode_added, encode_added
from paramdelta_hub.package.shard import ShardWriter, check_shard_header
from paramdelta_hub.package.tensor_delta import StoredDelta, StoredPart
from paramdelta_hub.transforms.sum import Addend, TensorSum
from tests.numerics.test_floats import finite_bits, pairs, random_bits, special_bits
from tests.support.chunks import set_chunk_elements
from tests.support.digests import tensor_digest
from tests.support.kinds import NOT_FINITE, kind, remedied
from tests.support.models import (
    TORCH,
    WIDE,
    apply_in,
    assert_same,
    extract_in,
    from_bits,
    raw,
    read_weights,
    reference,
    to_bits,
    tuned,
    weights,
    write_model,
    write_models,
)


def roundtrip(
    root: Path, base: dict[str, torch.Tensor], post: dict[str, torch.Tensor], shards: int = 1
) -> pd.ExtractReport:
    """Extract, verify against both sides, and apply to base: the result must be post."""
    write_model(root / "base", base, shards)
    write_model(root / "post", post, shards)
    report = extract_in(root)
    pd.verify(root / "delta", base=root / "base", post=root / "post")
    applied = apply_in(root, "base")
    assert applied.is_post
    assert_same(read_weights(root / "out"), post)
    return report


def test_tiny_models(tmp_path: Path, dtype_name: str) -> None:
    base = weights(1, TORCH[dtype_name])
    report = roundtrip(tmp_path, base, tuned(base, 2), shards=3)
    assert report.manifest.exactness.exact
    assert report.manifest.exactness.elements == sum(tensor.numel() for tensor in base.values())


def test_adversarial_values(tmp_path: Path, dtype_name: str) -> None:
    """Specials with specials, every exponent with every other, and neighbours."""
    base, post = pairs(dtype_name, seed=3, count=150_000)
    dtype = TORCH[dtype_name]
    report = roundtrip(tmp_path, {"w": from_bits(base, dtype)}, {"w": from_bits(post, dtype)})
    record = report.manifest.tensors[0]
    assert record.exceptions > 1000
    assert record.changed == int((base != post).sum())
    wide = {
        name: tensor.to(WIDE[dtype])
        for name, tensor in (("base", from_bits(base, dtype)), ("post", from_bits(post, dtype)))
    }
    delta = wide["post"] - wide["base"]
    assert int((delta.to(dtype).to(WIDE[dtype]) != delta).sum()) > 1000, "differences that need more bits than a weight"
    assert_same(dict(pd.tensors(tmp_path / "delta")), {"w": delta})


@pytest.mark.parametrize("elements", [1, 2, 255, 257, SLICE - 1, SLICE, SLICE + 1, 64 * SLICE + 1])
def test_sizes_around_slices(tmp_path: Path, elements: int) -> None:
    base, post = (from_bits(random_bits("BF16", 4 * elements + 64, seed)[:elements], torch.bfloat16) for seed in (1, 2))
    roundtrip(tmp_path, {"w": base}, {"w": post})


@pytest.mark.slow
@pytest.mark.parametrize(
    "elements", [CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 1, 3 * CHUNK_ELEMENTS + SLICE + 1]
)
def test_sizes_around_chunks(tmp_path: Path, dtype_name: str, elements: int) -> None:
    dtype = TORCH[dtype_name]
    noise = torch.Generator().manual_seed(elements)
    base = torch.randn(elements, generator=noise).to(dtype)
    post = (base.double() + 0.02 * torch.randn(elements, generator=noise).double()).to(dtype)
    post[::50_001] = -0.0
    post[-1] = base[-1] * 1000
    roundtrip(tmp_path, {"w": base}, {"w": post})


def test_chunks_without_change_before_and_after_a_changed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unchanged chunks are held back until one changes; with small chunks, all cases fit in a small tensor."""
    set_chunk_elements(monkeypatch, 64)
    base = torch.randn(64 * 6 + 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    models: dict[str, torch.Tensor] = {}
    for number, changed in enumerate([(), (0,), (2,), (6,), (1, 4), (0, 6), range(7)]):
        post = base.clone()
        for chunk in changed:
            post[chunk * 64 : chunk * 64 + 3] += 1.5
        models[f"w{number}"] = post
    report = roundtrip(tmp_path, {name: base.clone() for name in models}, models)
    codecs = {tensor.name: tensor.codec for tensor in report.manifest.tensors}
    assert [codecs[f"w{number}"] == "zero" for number in range(7)] == [True] + [False] * 6


def test_minus_zero_in_an_unchanged_tensor(tmp_path: Path, dtype_name: str) -> None:
    """−0 + (+0) is +0: such a tensor is not ``zero``, though base and post are equal."""
    tensor = torch.tensor([0.0, -0.0, 1.0, -0.0]).to(TORCH[dtype_name])
    same = {"w": tensor, "v": torch.ones(3)}
    report = roundtrip(tmp_path, {**same, "x": torch.ones(3)}, {**same, "x": torch.zeros(3)})
    by_name = {record.name: record for record in report.manifest.tensors}
    assert by_name["w"].exceptions == 2
    assert by_name["w"].changed == 0
    assert by_name["v"].codec == "zero"


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    base = {
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 7),
        "count": torch.tensor(3),
        "no ints": torch.empty(0, dtype=torch.int32),
    }
    post = {
        **{name: tensor.clone() for name, tensor in base.items()},
        "scalar": torch.tensor(2.75),
        "count": torch.tensor(4),
    }
    roundtrip(tmp_path, base, post)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.uint16,
        torch.int32,
        torch.uint32,
        torch.int64,
        torch.uint64,
        torch.bool,
    ],
)
def test_integers_and_truth_values_are_carried(tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = torch.arange(600).reshape(20, 30)
    base = {"w": torch.ones(4), "moved": (numbers % 100).to(dtype), "same": (numbers % 2).to(dtype)}
    post = {"w": torch.ones(4) * 2, "moved": (numbers % 77).to(dtype), "same": (numbers % 2).to(dtype)}
    report = roundtrip(tmp_path, base, post)
    effects = {record.name: (record.effect, record.codec) for record in report.manifest.tensors}
    assert effects["moved"][0] == effects["same"][0] == "replace"
    assert effects["same"][1] == "zero"
    assert effects["moved"][1] != "zero"


def test_the_manifest_says_what_is_true(tmp_path: Path) -> None:
    base = weights(5)
    post = tuned(base, 6)
    report = roundtrip(tmp_path, base, post, shards=2)
    for record in report.manifest.tensors:
        ours, theirs = base[record.name], post[record.name]
        assert record.base_blake3 == tensor_digest(raw(ours), ours.element_size())
        assert record.post_blake3 == tensor_digest(raw(theirs), theirs.element_size())
        assert record.changed == int((ours != theirs).sum())
        if record.effect == "add":
            assert math.isclose(record.base_norm, float(ours.double().norm()), rel_tol=1e-5)
            assert math.isclose(
                record.delta_norm, float((theirs.double() - ours.double()).norm()), rel_tol=1e-4, abs_tol=1e-12
            )
    for source, folder in ((report.manifest.base, "base"), (report.manifest.post, "post")):
        for file in source.files:
            content = (tmp_path / folder / file.path).read_bytes()
            assert file.size == len(content)
            assert file.sha256 in (None, hashlib.sha256(content).hexdigest())
    assert report.id == hashlib.sha256((tmp_path / "delta" / "manifest.json").read_bytes()).hexdigest()


def test_norms_of_values_whose_squares_overflow_float32(tmp_path: Path) -> None:
    base, post = torch.full((100,), 2.0e30).bfloat16(), torch.full((100,), -3.0e30).bfloat16()
    record = roundtrip(tmp_path, {"w": base}, {"w": post}).manifest.tensors[0]
    assert math.isclose(record.base_norm, float(base.double().norm()), rel_tol=1e-5)
    assert math.isclose(record.delta_norm, float((post.double() - base.double()).norm()), rel_tol=1e-2)


def test_equal_inputs_give_equal_packages_whatever_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paramdelta_hub.tasks import plan

    monkeypatch.setattr(plan, "TASK_BYTES_MIN", 1)
    base = weights(8)
    write_model(tmp_path / "base", base, 2)
    write_model(tmp_path / "post", tuned(base, 9), 2)
    contents = []
    for number, threads in enumerate((1, 2, 8)):
        out = tmp_path / f"delta{number}"
        pd.extract(tmp_path / "base", tmp_path / "post", out, name="x", threads=threads)
        contents.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert contents[0] == contents[1] == contents[2]
    assert len(contents[0]) > 4, "several shards"


def test_layouts_do_not_matter(tmp_path: Path) -> None:
    """The same weights in one file and in five: the tensors' records are the same but for where they lie."""
    base = weights(10)
    post = tuned(base, 11)
    for shards in (1, 5):
        write_model(tmp_path / f"base{shards}", base, shards)
        write_model(tmp_path / f"post{shards}", post, shards)
    found = []
    for ours, theirs in ((1, 1), (5, 1), (1, 5)):
        out = tmp_path / f"delta{ours}{theirs}"
        manifest = pd.extract(tmp_path / f"base{ours}", tmp_path / f"post{theirs}", out).manifest
        found.append({record.name: [part.blake3 for part in record.parts] for record in manifest.tensors})
        assert pd.apply(tmp_path / "base5", out, tmp_path / f"out{ours}{theirs}").is_post
    assert found[0] == found[1] == found[2]


def not_finite(dtype_name: str, count: int, seed: int) -> torch.Tensor:
    """Return NaN with all kinds of payloads, quiet and signalling, and infinities of both signs."""
    kind = FLOATS[dtype_name]
    bits = np.random.default_rng(seed).integers(0, 1 << (8 * kind.itemsize), count, dtype=np.uint64).astype(kind.bits)
    bits |= kind.bits.type(kind.infinity)
    bits[:3] = kind.infinity, kind.infinity + 1, (1 << (8 * kind.itemsize - 1)) | kind.infinity
    return from_bits(bits, TORCH[dtype_name])


@kind(
    NOT_FINITE,
    "NaN and infinity with equal bits in base and post: padding, masks",
    works="no change; base ⊕ Δ has every bit of them",
)
def test_values_that_are_not_finite_and_did_not_change_come_back_bit_for_bit(tmp_path: Path, dtype_name: str) -> None:
    """Padding rows of NaN, masks of −∞, tensors of nothing else; exceptions beside them in one chunk."""
    base = weights(12, TORCH[dtype_name])
    base["mask"] = torch.tensor(-math.inf).to(TORCH[dtype_name])
    base["all.of.it"] = not_finite(dtype_name, 500, 1)
    post = tuned(base, 13)
    embedding = "model.embed_tokens.weight"
    rows, width = base[embedding].shape
    padding = not_finite(dtype_name, 3 * width, 2).reshape(3, width)
    for side in (base, post):
        side[embedding] = torch.cat([side[embedding][: rows - 3], padding])
        side["mask"], side["all.of.it"] = base["mask"], base["all.of.it"]
    post[embedding][0, :5] = -0.0
    report = roundtrip(tmp_path, base, post)
    records = {record.name: record for record in report.manifest.tensors}
    assert records["mask"].codec == records["all.of.it"].codec == "zero"
    assert records["all.of.it"].base_norm == 0.0
    assert records[embedding].exceptions == 5
    finite = post[embedding][: rows - 3].double() - base[embedding][: rows - 3].double()
    assert records[embedding].delta_norm == pytest.approx(float(finite.norm()), rel=1e-5)


def test_all_changes_to_and_from_values_that_are_not_finite_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every chunk, and without those that are equal on both sides."""
    set_chunk_elements(monkeypatch, 64)
    base, post = torch.ones(300), torch.ones(300)
    base[::50], post[::30] = math.inf, math.nan  # both at 0 and 150, and unlike
    base[1:300:64] = post[1:300:64] = math.nan
    write_models(tmp_path, base={"w": base}, post={"w": post})
    with pytest.raises(NotFiniteError, match="changes to or from NaN or infinity") as caught:
        extract_in(tmp_path)
    [mismatch] = caught.value.mismatches
    assert mismatch.message.endswith("6 in base, 10 in post")


@kind(
    NOT_FINITE,
    "NaN or infinity in one of base and post",
    refused="there is no difference",
    remedy="equal values, or `--skip REGEX`",
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["base", "post"])
def test_what_is_not_finite_is_refused_by_name_and_count(
    tmp_path: Path, dtype_name: str, side: str, value: float
) -> None:
    base = weights(12, TORCH[dtype_name])
    models = {"base": base, "post": tuned(base, 13)}
    models[side]["model.layers.0.mlp.weight"][3, :2] = value
    models[side]["model.norm.weight"][-1] = value
    for name, tensors in models.items():
        write_model(tmp_path / name, tensors)
    with pytest.raises(NotFiniteError) as caught:
        extract_in(tmp_path)
    counts = (2, 0) if side == "base" else (0, 2)
    messages = {mismatch.location: mismatch.message for mismatch in caught.value.mismatches}
    assert set(messages) == {"model.layers.0.mlp.weight", "model.norm.weight"}
    assert f"{counts[0]} in base, {counts[1]} in post" in messages["model.layers.0.mlp.weight"]
    assert not (tmp_path / "delta").exists()
    with remedied(caught.value, "leave these tensors out with --skip REGEX"):
        skip = pd.Rules(skips=(r"layers\.0", "norm"))
        extract_in(tmp_path, rules=skip)
        apply_in(tmp_path, "base")
        kept = {name: models["base"][name] for name in messages}
        assert_same(read_weights(tmp_path / "out"), {**models["post"], **kept})


def test_every_misfit_is_listed_and_nothing_is_written(tmp_path: Path) -> None:
    base = weights(14)
    post = tuned(base, 15)
    post["model.layers.0.mlp.weight"] = torch.zeros(40, 17, dtype=torch.bfloat16)
    post["model.layers.1.bias"] = post["model.layers.1.bias"].long()
    del post["model.norm.weight"]
    post["model.extra"] = torch.ones(3)
    write_models(tmp_path, base=base, post=post)
    with pytest.raises(MismatchError) as caught:
        extract_in(tmp_path)
    found = {(mismatch.location, mismatch.kind) for mismatch in caught.value.mismatches}
    assert found == {
        ("model.layers.0.mlp.weight", "shape"), ("model.layers.1.bias", "dtype"),
        ("model.norm.weight", "missing"), ("model.extra", "missing"),
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "post"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_types_no_delta_is_taken_of(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"w": torch.ones(4), "x": torch.ones(8).to(dtype)}
    for name in ("base", "post"):
        write_model(tmp_path / name, tensors)
    with pytest.raises(MismatchError, match="can't have a delta"):
        extract_in(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"version": "1"}, {"version": "1.0.0\n"}, {"version": "v1.0.0"}, {"version": ""}, {"name": "x" * 2000},
        {"license": ""}, {"license": "x" * 2000}, {"threads": 0}, {"threads": -1}, {"memory": 0}, {"memory": 1000},
    ],
    ids=str,
)  # fmt: skip
def test_senseless_options_are_refused_before_anything_is_written(tmp_path: Path, options: dict[str, object]) -> None:
    write_model(tmp_path / "base", weights(1))
    with pytest.raises(OptionError):
        extract_in(tmp_path, "base", "base", **options)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "x" * 2000}, {"model_type": 7}, {"architectures": ["A"] * 100},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": ["x" * 2000]}, {"architectures": [None]}, {"nested": [[[[[[1]]]]]]}, {"big": 2**63},
    ],
    ids=lambda config: next(iter(config)),
)  # fmt: skip
def test_odd_configs_do_no_harm(tmp_path: Path, config: dict[str, object]) -> None:
    """Whatever a config says, either a package comes of it or a word that a user understands."""
    base = weights(1)
    write_model(tmp_path / "base", base, config={})
    write_model(tmp_path / "post", tuned(base, 2), config=config)
    for pair in (("base", "post"), ("post", "base")):
        try:
            pd.extract(tmp_path / pair[0], tmp_path / pair[1], tmp_path / "".join(pair))
        except CheckpointError:
            continue
        pd.verify(tmp_path / "".join(pair))


@pytest.mark.parametrize("levels", [30, 31, 32])
def test_a_config_as_deep_as_may_be_read(tmp_path: Path, levels: int) -> None:
    """It goes into the manifest one level deeper than it was."""
    base = weights(1)
    write_model(tmp_path / "base", base, config={})
    write_model(tmp_path / "post", tuned(base, 2))
    (tmp_path / "post" / "config.json").write_text('{"a":' + "[" * (levels - 1) + "]" * (levels - 1) + "}")
    try:
        extract_in(tmp_path)
    except SourceError:
        assert not (tmp_path / "delta").exists()
        return
    pd.verify(tmp_path / "delta")


def test_the_config_patches_lead_there_and_back(tmp_path: Path) -> None:
    base = weights(1)
    old = {"a": 1, "b": {"c": 2, "d": [1]}, "gone": True, "same": "x"}
    new = {"a": 1, "b": {"c": 3, "d": [1, 2]}, "same": "x", "eos_token_id": [1, 2]}
    write_model(tmp_path / "base", base, config=old)
    write_model(tmp_path / "post", tuned(base, 2), config=new)
    manifest = extract_in(tmp_path).manifest
    change = manifest.configs["config.json"]
    assert change.patch == {"b": {"c": 3, "d": [1, 2]}, "gone": None, "eos_token_id": [1, 2]}
    assert change.reverse == {"b": {"c": 2, "d": [1]}, "gone": True, "eos_token_id": None}
    assert set(manifest.configs) == {"config.json"}


def test_omissions_are_recorded(tmp_path: Path) -> None:
    base = weights(1)
    post = tuned(base, 2)
    base["model.rotary.inv_freq"] = torch.ones(4)
    base["only.base"], post["only.post"] = torch.ones(2), torch.ones(2)
    write_models(tmp_path, base=base, post=post)
    manifest = extract_in(tmp_path, rules=pd.Rules(skips=("^only", "norm"))).manifest
    found = {(omission.name, omission.side) for omission in manifest.omissions}
    assert found == {
        ("model.rotary.inv_freq", "base"),
        ("only.base", "base"),
        ("only.post", "post"),
        ("model.norm.weight", "both"),
    }
    assert not {record.name for record in manifest.tensors} & {name for name, _ in found}


def chunked_payload(path: Path, name: str, base: list[np.ndarray], post: list[np.ndarray]) -> StoredDelta:
    """Write one tensor's payload by the parts an extraction is made of; return where it is."""
    kind, elements = FLOATS[name], sum(part.size for part in base)
    layout = Layout(TANS.name, name, len(base), added=True)
    shard = ShardWriter(path, ["w"])
    payload = shard.payload("w")
    for ours, theirs in zip(base, post, strict=True):
        chunk = subtract(kind, ours, theirs, np.empty(ours.size, kind.wide))
        streams = encode_added(chunk, ours, theirs)
        decoded = decode_added(layout, streams, ours.size)
        values = decoded.delta.values(np.empty(ours.size, kind.wide))
        assert np.array_equal(values.view(kind.wide_bits), chunk.delta.view(kind.wide_bits))
        assert np.array_equal(decoded.exceptions, chunk.exceptions)
        assert chunk.statistics.exceptions == chunk.exceptions.size
        payload.append(streams)
    nbytes, digest = payload.finish()
    shard.close()
    part = StoredPart(len(base), TANS.name, str(path), path.stat().st_size - nbytes, nbytes, digest)
    return StoredDelta(name="w", dtype=name, elements=elements, effect="add", parts=(part,), base_digest="")


def added(delta: StoredDelta, name: str, targets: list[np.ndarray]) -> list[np.ndarray]:
    """Run a payload through a ``TensorSum`` as an apply does."""
    kind = FLOATS[name]
    with OpenFiles(PackageError) as shards, TensorSum(name, [Addend(delta, 1.0)], shards) as total:
        return [total.add(part.view(np.uint8).copy()).view(kind.bits).copy() for part in targets]


def test_chunks_by_hand(tmp_path: Path, dtype_name: str) -> None:
    """difference → encode → decode → TensorSum, on base and on another target."""
    base, post = pairs(dtype_name, seed=50, count=30_000)
    delta = chunked_payload(tmp_path / "x.safetensors", dtype_name, [base], [post])
    assert np.array_equal(added(delta, dtype_name, [base])[0], post)
    target = np.roll(base, 1)
    expected = to_bits(reference(*(from_bits(bits, TORCH[dtype_name]) for bits in (base, post, target))))
    result = added(delta, dtype_name, [target])[0]
    finite = torch.isfinite(from_bits(expected, TORCH[dtype_name])).numpy()
    assert np.array_equal(result[finite], expected[finite])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_every_base_with_512_posts(tmp_path: Path, name: str) -> None:
    """All finite patterns × 512 posts, 33 million pairs in real chunks: exact on base, faithful elsewhere."""
    every = finite_bits(name)
    drawn = np.random.default_rng(7).choice(every, 512 - special_bits(name).size, replace=False)
    posts = np.concatenate([special_bits(name), drawn])
    total = every.size * posts.size
    base, post, target = [], [], []
    for start in range(0, total, CHUNK_ELEMENTS):
        index = np.arange(start, min(start + CHUNK_ELEMENTS, total))
        base.append(every[index % every.size])
        post.append(posts[index // every.size])
        target.append(every[(index * 48_271) % every.size])
    delta = chunked_payload(tmp_path / "x.safetensors", name, base, post)
    assert all(np.array_equal(*both) for both in zip(added(delta, name, base), post, strict=True))
    results = added(delta, name, target)
    for ours, theirs, other, result in zip(base, post, target, results, strict=True):
        expected = reference(*(from_bits(bits, TORCH[name]) for bits in (ours, theirs, other)))
        finite = torch.isfinite(expected).numpy()
        assert np.array_equal(result[finite], to_bits(expected)[finite])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_every_base_with_many_posts_through_real_packages(tmp_path: Path, name: str) -> None:
    every = finite_bits(name)
    posts = np.concatenate([special_bits(name), np.random.default_rng(8).choice(every, 32, replace=False)])
    dtype = TORCH[name]
    base = {f"p{post:04x}": from_bits(every, dtype) for post in np.unique(posts)}
    post = {f"p{post:04x}": from_bits(np.full(every.size, post, np.uint16), dtype) for post in np.unique(posts)}
    roundtrip(tmp_path, base, post, shards=2)


def test_not_finite_chunks_are_counted() -> None:
    kind = FLOATS["BF16"]
    base = np.array([0x7F80, 0x3F80, 0xFF80], np.uint16)
    post = np.array([0x3F80, 0x7FC0, 0x3F80], np.uint16)
    with pytest.raises(NotFiniteChunkError) as caught:
        subtract(kind, base, post, np.empty(3, kind.wide))
    assert (caught.value.base, caught.value.post) == (2, 1)


def test_the_shards_header_is_a_plain_safetensors_header(tmp_path: Path) -> None:
    base = weights(3)
    report = roundtrip(tmp_path, base, tuned(base, 4))
    records = [record for record in report.manifest.tensors if not record.is_zero]
    sizes = {record.name: record.nbytes for record in records}
    starts = check_shard_header(tmp_path / "delta" / report.manifest.shards[0].path, sizes)
    stored = read_weights(tmp_path / "delta" / report.manifest.shards[0].path)
    for record in records:
        payload = stored[record.name]
        assert payload.dtype == torch.uint8
        assert payload.numel() == record.nbytes
        [part] = record.parts
        row = 4 * Layout(part.codec, record.dtype, 1, record.effect == "add").columns
        assert blake3(raw(payload)[-row - 32 :]).hexdigest() == part.blake3
        assert blake3(raw(payload)[: -row - 32]).digest() == raw(payload)[-32:]
    assert starts.keys() == stored.keys()


def test_report_is_json(tmp_path: Path) -> None:
    base = weights(3)
    report = roundtrip(tmp_path, base, tuned(base, 4))
    assert json.loads(json.dumps(report.to_json()))["tensors"] == len(base)
