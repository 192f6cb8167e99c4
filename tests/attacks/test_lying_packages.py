"""Packages whose digests are all right and whose content lies: tables, streams, counts, shapes, digests, versions."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.codecs import frames
from paramdelta_hub.codecs.by_name import REPLACING, TANS
from paramdelta_hub.errors import (
    MismatchError,
    PackageError,
    ParamdeltaError,
    VerificationError,
)
from paramdelta_hub.package.chunks import Layout
from tests.attacks.outcomes import (
    apply_is_safe,
    change_manifest,
    joined,
    refused_everywhere,
    replace_payload,
    reseal,
    split,
)
from tests.attacks.threats import shows
from tests.conftest import Family
from tests.support.models import read_weights, write_model

NAME = "model.layers.0.mlp.weight"


@pytest.fixture
def layout(family: Family) -> Layout:
    return layout_of_its_tensor(family)


def layout_of_its_tensor(family: Family) -> Layout:
    record = record_of(family)
    [part] = record.parts
    return Layout(part.codec, record.dtype, part.chunks, added=True)


def record_of(family: Family) -> Any:
    return next(record for record in pd.inspect(family.delta).manifest.tensors if record.name == NAME)


LIES = 60


@shows("lying packages", f"{LIES} chunk tables that lie: refused")
def test_the_table_lies(family: Family, tmp_path: Path, layout: Layout) -> None:
    """Lengths moved from one stream to another, beyond the payload, or so that they wrap around 2**32."""
    source = random.Random(0)
    original = {path.name: path.read_bytes() for path in family.delta.iterdir()}
    for number in range(LIES):
        for name, content in original.items():
            (family.delta / name).write_bytes(content)

        def lie(payload: bytes, number: int = number) -> bytes:
            _, table = split(payload, layout)
            lengths = table.astype(np.int64)
            one, other = source.sample(range(lengths.size), 2)
            if number % 4 == 0:
                lengths[one] += 1
            elif number % 4 == 1:
                lengths[one], lengths[other] = 2**32 - 5, lengths[other]
            elif number % 4 == 2:
                shift = int(min(lengths[other], source.randint(1, 9)))
                lengths[one] += shift
                lengths[other] -= shift
            else:
                lengths[[one, other]] = lengths[[other, one]]
            if (lengths == table).all():
                lengths[one] += 4
            return payload[: -layout.table_bytes] + lengths.astype("<u4").tobytes() + payload[-32:]

        replace_payload(family.delta, NAME, lie)
        try:
            pd.verify(family.delta, base=family.base)
        except ParamdeltaError:
            continue
        pytest.fail(f"lie {number} was believed")
    refusal = apply_is_safe(family.base, family.delta, tmp_path / "out", read_weights(family.post))
    assert isinstance(refusal, PackageError)


@pytest.mark.parametrize("size", [0, 1, 4, 39, 40, 71, 72])
def test_a_payload_smaller_than_its_table(family: Family, tmp_path: Path, size: int) -> None:
    def cut(payload: bytes) -> bytes:
        return payload[-max(size, 1) :]

    replace_payload(family.delta, NAME, cut)
    refused_everywhere(family, tmp_path, PackageError)


@pytest.fixture
def every_stream(tmp_path: Path) -> Family:
    """A delta with something in every stream of its chunk: few changes, and an exception with two bytes to it."""
    base = torch.linspace(-1, 1, 4001).bfloat16()
    post = base.clone()
    post[::20] = (base[::20].float() * 1.3).bfloat16()
    post[400] = 1.37e-30  # no sum reaches it from −0.8
    models = {"base": base, "post": post, "target": (base.float() * 1.01).bfloat16()}
    for name, values in models.items():
        write_model(tmp_path / "few" / name, {NAME: values})
    root = tmp_path / "few"
    pd.extract(root / "base", root / "post", root / "delta", threads=1)
    return Family(root / "base", root / "post", root / "target", root / "delta")


BAD_STREAMS = {
    "a bomb": lambda stream: frames.compress(bytes(50 << 20)),
    "no frame": lambda stream: b"\0" * len(stream),
    "raw": lambda stream: b"x" * 640,
    "cut": lambda stream: stream[:-1],
    "doubled": lambda stream: stream + stream,
    "empty": lambda stream: b"",
    "zeros": lambda stream: frames.compress(bytes(640)),
    "one short": lambda stream: frames.compress(bytes(639)),
    "all escapes": lambda stream: frames.compress(b"\xff" * 640),
}


@shows("lying packages", f"{len(BAD_STREAMS)} bad streams in every place of a chunk, with the table and all digests "
       "made to fit: refused by verify with base, or the same weights")  # fmt: skip
@pytest.mark.parametrize("few", [False, True], ids=["all elements coded", "few elements coded"])
@pytest.mark.parametrize("case", sorted(BAD_STREAMS))
def test_streams_that_lie(family: Family, every_stream: Family, tmp_path: Path, case: str, few: bool) -> None:
    lying = every_stream if few else family
    layout = layout_of_its_tensor(lying)
    original = {path.name: path.read_bytes() for path in lying.delta.iterdir()}
    tried = 0
    for column in range(layout.columns):
        for name, content in original.items():
            (lying.delta / name).write_bytes(content)
        unchanged: list[bool] = []

        def lie(payload: bytes, column: int = column, unchanged: list[bool] = unchanged) -> bytes:
            streams, _ = split(payload, layout)
            bad = BAD_STREAMS[case](streams[column])
            unchanged.append(bad == streams[column])
            streams[column] = bad
            return joined(streams)

        replace_payload(lying.delta, NAME, lie)
        if unchanged[0]:
            continue
        tried += 1
        if (case, column, few) == ("zeros", 0, False):  # gaps of 0 before all the elements that are coded anyway
            assert apply_is_safe(lying.base, lying.delta, tmp_path / "out", read_weights(lying.post)) is None
            continue
        with pytest.raises((PackageError, VerificationError)):
            pd.verify(lying.delta, base=lying.base)
    assert tried == layout.columns if few else tried >= 1


def test_a_wrong_delta_with_right_digests_is_found_by_verify_with_base(
    family: Family, tmp_path: Path, layout: Layout
) -> None:
    """Nothing in the package contradicts itself; only base ⊕ Δ does."""

    def lie(payload: bytes) -> bytes:
        streams, _ = split(payload, layout)
        elements = record_of(family).elements
        delta = TANS.open(streams[: TANS.streams], elements, layout.float.wide)
        values = delta.values(np.empty(elements, layout.float.wide))
        values[7] *= 2
        return joined([*TANS.encode(values), *streams[TANS.streams :]])

    replace_payload(family.delta, NAME, lie)
    pd.verify(family.delta)
    with pytest.raises(VerificationError, match=NAME):
        pd.verify(family.delta, base=family.base)
    report = pd.apply(family.base, family.delta, tmp_path / "out")
    assert not report.is_post, "apply does not call it post"


@pytest.mark.parametrize("field", ["exceptions", "changed"])
def test_counts_that_lie(family: Family, tmp_path: Path, field: str) -> None:
    def lie(manifest: dict[str, Any]) -> None:
        record = next(tensor for tensor in manifest["tensors"] if tensor["name"] == NAME)
        step = 1 if record[field] < 600 else -1
        record[field] += step
        manifest["exactness"][field] += step

    change_manifest(family.delta, lie)
    # Figures for people: no weight depends on them. The changed can be counted only where both models are.
    assert apply_is_safe(family.base, family.delta, tmp_path / "out", read_weights(family.post)) is None
    if field == "changed":
        pd.verify(family.delta)
    else:
        with pytest.raises(PackageError, match="exceptions"):
            pd.verify(family.delta)


@pytest.mark.parametrize("side", ["base_blake3", "post_blake3"])
def test_digests_of_other_models(family: Family, tmp_path: Path, side: str) -> None:
    def lie(manifest: dict[str, Any]) -> None:
        next(tensor for tensor in manifest["tensors"] if tensor["name"] == NAME)[side] = "0" * 64

    change_manifest(family.delta, lie)
    pd.verify(family.delta)
    with pytest.raises((MismatchError, VerificationError)):
        pd.verify(family.delta, base=family.base)
    if side == "post_blake3":
        assert not pd.apply(family.base, family.delta, tmp_path / "out").is_post


@pytest.mark.parametrize("shape", [[16, 40], [640], [1, 40, 16], [41, 16], [39, 16], [40, 16, 0], [], [2**20, 2**20]])
def test_another_shape(family: Family, tmp_path: Path, shape: list[int]) -> None:
    """Shapes of as many elements decode, but fit no target; others don't even decode."""

    def lie(manifest: dict[str, Any]) -> None:
        record = next(tensor for tensor in manifest["tensors"] if tensor["name"] == NAME)
        manifest["exactness"]["elements"] += int(np.prod(shape, dtype=object)) - 640
        record["shape"] = shape

    change_manifest(family.delta, lie)
    assert apply_is_safe(family.base, family.delta, tmp_path / "out", {}) is not None


@pytest.mark.parametrize("codec", [*REPLACING, "zero", "palette"])
def test_another_codec(family: Family, tmp_path: Path, codec: str) -> None:
    assert record_of(family).parts[0].codec == TANS.name

    def lie(manifest: dict[str, Any]) -> None:
        next(tensor for tensor in manifest["tensors"] if tensor["name"] == NAME)["parts"][0]["codec"] = codec

    change_manifest(family.delta, lie)
    refused_everywhere(family, tmp_path, PackageError)


def test_samples_of_other_tensors(family: Family, tmp_path: Path) -> None:
    """A lineage file that is whole but of other tensors, or of none: no target can be kin to it."""
    from paramdelta_hub.checkpoints.kinship.lineage import pack_samples, unpack_samples

    path = family.delta / "lineage.safetensors"
    samples = unpack_samples(path.read_bytes(), "it")
    for lying in ({}, dict(list(samples.items())[1:]), {f"x{name}": sample for name, sample in samples.items()}):
        path.write_bytes(pack_samples(lying))
        reseal(family.delta)
        with pytest.raises(PackageError, match="lineage"):
            pd.verify(family.delta)
        if len(lying) == 0:
            assert apply_is_safe(family.base, family.delta, tmp_path / "out", {}) is not None


def test_a_manifest_that_lists_a_shard_without_tensors(family: Family, tmp_path: Path) -> None:
    extra = b"\x02\0\0\0\0\0\0\0{}"
    (family.delta / "delta-00002-of-00002.safetensors").write_bytes(extra)
    digest = hashlib.sha256(extra).hexdigest()
    file = {"path": "delta-00002-of-00002.safetensors", "size": len(extra), "sha256": digest}
    change_manifest(family.delta, lambda manifest: manifest["shards"].append(file))
    refused_everywhere(family, tmp_path, PackageError)
