"""Every engine gives NumPy's bits: on every pattern, odd lengths, hostile values, and through whole commands."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import paramdelta_hub as pd
from paramdelta_hub import engines, limits
from paramdelta_hub.arithmetic import FLOATS, Difference, NotFiniteChunkError
from paramdelta_hub.engines import Engine
from paramdelta_hub.engines.passes import Passes, gaps_of, positions_of
from paramdelta_hub.errors import PackageError
from paramdelta_hub.format.deltas import summand_of
from paramdelta_hub.format.descriptors import Descriptors
from paramdelta_hub.format.package import open_package
from paramdelta_hub.operations.adding import ChunkAdder
from tests.models import TORCH, from_bits, tuned, weights, write_model
from tests.test_arithmetic import finite_bits, pairs, random_bits

LENGTHS = [1, 7, 8, 511, 513, 4095, 4096, 4097, 12_345]
SPECIAL = np.array(
    [0, 0x8000, 1, 0x8001, 0x7F, 0x80, 0x3F80, 0xBF80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF],
    np.uint16,
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Numba's loops."""
    pytest.importorskip("numba", reason="Numba has no release for this Python yet")
    from paramdelta_hub.engines.loops import Loops

    return Loops()


@pytest.fixture(autouse=True)
def _engine_stays() -> Iterator[None]:
    before = engines.current()
    yield
    engines.use(before)


def assert_same_difference(name: str, engine: Engine, base: np.ndarray, post: np.ndarray) -> None:
    kind = FLOATS[name]
    ours, theirs = np.zeros_like(base), np.zeros_like(base)
    expected = Passes().subtract(kind, base, post, theirs)
    found = engine.subtract(kind, base, post, ours)
    assert np.array_equal(found.symbols, expected.symbols)
    for field in ("positions", "rest", "exceptions"):
        assert np.array_equal(getattr(found, field), getattr(expected, field)), field
    a, b = found.statistics, expected.statistics
    assert (a.changed, a.remainders, a.exceptions) == (b.changed, b.remainders, b.exceptions)
    assert a.base_square == pytest.approx(b.base_square, rel=1e-12)
    assert a.delta_square == pytest.approx(b.delta_square, rel=1e-12)


@pytest.mark.parametrize("name", ["BF16", "F16", "F32"])
def test_differences_of_special_random_and_near_pairs(engine: Engine, name: str) -> None:
    assert_same_difference(name, engine, *pairs(name, seed=3, count=20_000))


@pytest.mark.parametrize("length", LENGTHS)
def test_differences_of_odd_lengths(engine: Engine, length: int) -> None:
    base = random_bits("BF16", length, 1)
    assert_same_difference("BF16", engine, base, base ^ (np.arange(length) % 3).astype(np.uint16))


@pytest.mark.parametrize("post", [0x0000, 0x8000, 0x0001, 0x3F80, 0xBF81, 0x7F7F, 0xFF7F])
def test_differences_of_every_base(engine: Engine, post: int) -> None:
    every = finite_bits("BF16")
    assert_same_difference("BF16", engine, every, np.full_like(every, post))


@pytest.mark.parametrize("side", ["base", "post"])
@pytest.mark.parametrize("bad", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_values_that_are_not_finite_are_counted(engine: Engine, side: str, bad: int) -> None:
    values = {side: random_bits("BF16", 5000, seed) for seed, side in enumerate(("base", "post"))}
    values[side][[3, 4097, 4999]] = bad
    with pytest.raises(NotFiniteChunkError) as caught:
        engine.subtract(FLOATS["BF16"], values["base"], values["post"], np.empty(5000, np.uint16))
    assert (caught.value.base, caught.value.post) == ((3, 0) if side == "base" else (0, 3))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_sums(engine: Engine, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["BF16", "F16", "F32"]))
    kind = FLOATS[name]
    length = data.draw(st.sampled_from(LENGTHS))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    target = random.integers(0, 1 << 8 * kind.itemsize, length, dtype=np.uint64).astype(kind.bits)
    if name == "BF16":
        target[random.integers(0, length, length // 4)] = random.choice(SPECIAL, length // 4)
    deltas = []
    for _ in range(data.draw(st.integers(1, 3))):
        weight = data.draw(st.sampled_from([1.0, 0.5, -1.0, 0.3, 0.0]))
        wide = random.integers(0, 1 << 8 * kind.wide.itemsize, length, dtype=np.uint64).astype(kind.wide_bits)
        deltas.append((wide.view(kind.wide) if data.draw(st.booleans()) else None, weight))
    expected, found = np.zeros_like(target), np.zeros_like(target)
    with np.errstate(all="ignore"):
        bad = Passes().add(kind, target, [(d if d is None else d.copy(), w) for d, w in deltas], expected)
        assert engine.add(kind, target, [(d if d is None else d.copy(), w) for d, w in deltas], found) == bad
    # What a NaN is rounded to means nothing, and may even be a number: it is counted, and the result is refused.
    finite = np.isfinite([from_bits(bits, TORCH[name]).double().numpy() for bits in (expected, found)]).all(axis=0)
    assert np.array_equal(found[finite], expected[finite])
    assert np.count_nonzero(~finite) <= bad


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_ranks_and_look_up(engine: Engine, length: int, share: float, dtype: type) -> None:
    random = np.random.default_rng(length)
    common = random.permutation(1 << 16)[:255].astype(np.uint16)
    symbols = random.choice(common, length)
    odd = random.random(length) < share
    symbols[odd] = random.integers(0, 1 << 16, int(odd.sum()))
    rank_of = np.full(1 << 16, 255, np.uint8)
    rank_of[common] = np.arange(255)
    expected = [part.copy() for part in Passes().rank(symbols, rank_of)]
    found = engine.rank(symbols, rank_of)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, theirs)
    ranks, low, high = expected
    palette, escaped = np.append(common, 0).astype(dtype), (high.astype(np.uint16) << 8 | low).astype(dtype)
    out = np.full(length, 7, dtype)
    engine.look_up(palette, ranks, escaped, out)
    assert np.array_equal(out, symbols.astype(dtype))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("share", [0.0, 0.002, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_gather_and_spread(engine: Engine, length: int, share: float, dtype: type) -> None:
    random = np.random.default_rng(length)
    symbols = np.where(random.random(length) < share, random.integers(1, 1 << 16, length), 0).astype(np.uint16)
    gaps, values = (part.copy() for part in engine.gather(symbols))
    assert np.array_equal(values, symbols[symbols != 0])
    assert np.array_equal(positions_of(gaps), np.flatnonzero(symbols))
    assert np.array_equal(gaps, gaps_of(np.flatnonzero(symbols)))
    out = np.full(length, 7, dtype)
    engine.spread(gaps, values.astype(dtype), out)
    assert out.tobytes() == symbols.astype(dtype).tobytes(), "and zeros are +0"


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 509, 510, 511, 4095, 4096, 70_000])
def test_long_gaps(engine: Engine, gap: int) -> None:
    symbols = np.zeros(3 * (gap + 1) + 5, np.uint16)
    symbols[gap :: gap + 1] = 9
    gaps, values = (part.copy() for part in engine.gather(symbols))
    assert np.array_equal(gaps, gaps_of(np.flatnonzero(symbols)))
    out = np.ones_like(symbols)
    engine.spread(gaps, values, out)
    assert np.array_equal(out, symbols)


def test_whole_commands_give_the_same_package_and_the_same_model(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = weights(5)
    for name, tensors in (("base", base), ("post", tuned(base, 6)), ("target", tuned(base, 7))):
        write_model(tmp_path / name, tensors, shards=2)
    ids, outs = set(), set()
    for number, used in enumerate((Passes(), engine)):
        monkeypatch.setattr(engines, "choose", lambda *_, used=used, **__: engines.use(used))
        package, out = tmp_path / f"delta-{number}", tmp_path / f"out-{number}"
        ids.add(pd.extract(tmp_path / "base", tmp_path / "post", package).id)
        pd.verify(package, base=tmp_path / "base", post=tmp_path / "post")
        pd.apply(tmp_path / "target", package, out)
        outs.add(tuple(sorted((p.name, p.read_bytes()) for p in out.glob("*.safetensors"))))
    assert len(ids) == len(outs) == 1


def test_loops_are_for_long_runs() -> None:
    assert engines.choose(limits.LOOPS_FROM_BYTES - 1).name == "numpy"
    pytest.importorskip("numba", reason="Numba has no release for this Python yet")
    assert engines.choose(limits.LOOPS_FROM_BYTES).name == "numba"


def test_an_apply_begins_before_the_loops_are_loaded(tmp_path: Path) -> None:
    """And when they take over, they have been loaded for the very types that a decoder hands them."""
    pytest.importorskip("numba", reason="Numba has no release for this Python yet")
    assert engines.choose(limits.LOOPS_FROM_BYTES, wait=False).name == "numpy"
    wait_for_loops()
    assert engines.current().name == "numba"
    from paramdelta_hub.engines import loops

    loaded = [len(loop.signatures) for loop in (loops._look_up, loops._add)]
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1000, 100, generator=generator).bfloat16()
    write_model(tmp_path / "base", {"w": base})
    write_model(tmp_path / "post", {"w": base + (0.01 * torch.randn(1000, 100, generator=generator)).bfloat16()})
    pd.extract(tmp_path / "base", tmp_path / "post", tmp_path / "delta")
    engines.choose(limits.LOOPS_FROM_BYTES, wait=False)
    wait_for_loops()
    package = open_package(tmp_path / "delta")
    assert [record.codec.name for record in package.manifest.tensors] == ["palette"]
    with Descriptors(PackageError) as shards:
        summand = summand_of(package.manifest.tensors[0], 1.0, package.payload_places())
        task = {"dtype": "BF16", "elements": base.numel(), "deltas": [summand]}
        ChunkAdder(task, shards).add(np.zeros(2 * base.numel(), np.uint8))
    assert [len(loop.signatures) for loop in (loops._look_up, loops._add)] == loaded


def wait_for_loops() -> None:
    for thread in threading.enumerate():
        if thread.name == "loading of the loops":
            thread.join()


def test_an_engine_chosen_meanwhile_stays() -> None:
    pytest.importorskip("numba", reason="Numba has no release for this Python yet")
    engines.choose(limits.LOOPS_FROM_BYTES, wait=False)
    chosen = engines.choose(0)
    wait_for_loops()
    assert engines.current() is chosen


def test_without_numba_numpy_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "paramdelta_hub.engines.loops", None)
    assert engines.choose(limits.LOOPS_FROM_BYTES).name == "numpy"
    engines.choose(limits.LOOPS_FROM_BYTES, wait=False)
    wait_for_loops()
    assert engines.current().name == "numpy"


def test_a_difference_without_change_is_zero_unless_it_holds_minus_zero(engine: Engine) -> None:
    kind = FLOATS["BF16"]

    def taken(bits: int) -> Difference:
        values = np.full(10, bits, np.uint16)
        return engine.subtract(kind, values, values, np.empty(10, np.uint16))

    assert taken(0x3F80).is_zero
    assert not taken(0x8000).is_zero
