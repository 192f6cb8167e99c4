"""Every kernel gives NumPy's bits: on every pattern, odd lengths, hostile values, and through whole commands."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paramdelta_hub.numerics.kernels import Kernel, LoadingKernel, kernel_for
from paramdelta_hub.numerics.kernels.numpy import NumpyKernel, gaps_of, positions_of

import paramdelta_hub as pd
from paramdelta_hub import limits
from paramdelta_hub.errors import PackageError
from paramdelta_hub.extraction.extract import Extraction
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.numerics import floats, kernels
from paramdelta_hub.numerics.floats import FLOATS, Difference, Float, NotFiniteChunkError
from paramdelta_hub.package.package import open_package
from paramdelta_hub.package.tensor_delta import StoredDelta
from paramdelta_hub.tasks.runner import perform
from paramdelta_hub.tasks.workspace import Workspace
from paramdelta_hub.transforms.sum import Addend, TensorSum
from tests.numerics.test_floats import finite_bits, pairs, random_bits
from tests.support.models import TORCH, from_bits, to_bits, write_model

LENGTHS = [1, 7, 8, 511, 513, 4095, 4096, 4097, 12_345]
SPECIAL = np.array(
    [0, 0x8000, 1, 0x8001, 0x7F, 0x80, 0x3F80, 0xBF80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF],
    np.uint16,
)


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    """Numba's loops."""
    pytest.importorskip("numba", reason="Numba has no release for this Python yet")
    from paramdelta_hub.numerics.kernels.numba import NumbaKernel

    return NumbaKernel()


def assert_same_difference(name: str, kernel: Kernel, base: np.ndarray, post: np.ndarray) -> None:
    kind = FLOATS[name]
    ours, theirs = np.zeros_like(base), np.zeros_like(base)
    expected = NumpyKernel().subtract(kind, base, post, theirs)
    found = kernel.subtract(kind, base, post, ours)
    assert np.array_equal(found.symbols, expected.symbols)
    for field in ("positions", "rest", "exceptions"):
        assert np.array_equal(getattr(found, field), getattr(expected, field)), field
    a, b = found.statistics, expected.statistics
    assert (a.changed, a.remainders, a.exceptions) == (b.changed, b.remainders, b.exceptions)
    assert a.base_square == pytest.approx(b.base_square, rel=1e-12)
    assert a.delta_square == pytest.approx(b.delta_square, rel=1e-12)


@pytest.mark.parametrize("name", ["BF16", "F16", "F32"])
def test_differences_of_special_random_and_near_pairs(kernel: Kernel, name: str) -> None:
    assert_same_difference(name, kernel, *pairs(name, seed=3, count=20_000))


@pytest.mark.parametrize("length", LENGTHS)
def test_differences_of_odd_lengths(kernel: Kernel, length: int) -> None:
    base = random_bits("BF16", length, 1)
    assert_same_difference("BF16", kernel, base, base ^ (np.arange(length) % 3).astype(np.uint16))


@pytest.mark.parametrize("post", [0x0000, 0x8000, 0x0001, 0x3F80, 0xBF81, 0x7F7F, 0xFF7F])
def test_differences_of_every_base(kernel: Kernel, post: int) -> None:
    every = finite_bits("BF16")
    assert_same_difference("BF16", kernel, every, np.full_like(every, post))


@pytest.mark.parametrize("side", ["base", "post"])
@pytest.mark.parametrize("bad", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_values_that_are_not_finite_are_counted(kernel: Kernel, side: str, bad: int) -> None:
    values = {side: random_bits("BF16", 5000, seed) for seed, side in enumerate(("base", "post"))}
    values[side][[3, 4097, 4999]] = bad
    with pytest.raises(NotFiniteChunkError) as caught:
        kernel.subtract(FLOATS["BF16"], values["base"], values["post"], np.empty(5000, np.uint16))
    assert (caught.value.base, caught.value.post) == ((3, 0) if side == "base" else (0, 3))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_sums(kernel: Kernel, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["BF16", "F16", "F32"]))
    kind = FLOATS[name]
    length = data.draw(st.sampled_from(LENGTHS))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    target = random.integers(0, 1 << 8 * kind.itemsize, length, dtype=np.uint64).astype(kind.bits)
    if name == "BF16":
        target[random.integers(0, length, length // 4)] = random.choice(SPECIAL, length // 4)
    deltas: list[tuple[np.ndarray | None, float]] = []
    for _ in range(data.draw(st.integers(1, 3))):
        weight = data.draw(st.sampled_from([1.0, 0.5, -1.0, 0.3, 0.0, -0.0]))
        wide = random.integers(0, 1 << 8 * kind.wide.itemsize, length, dtype=np.uint64).astype(kind.wide_bits)
        wide[random.random(length) < 0.3] &= kind.wide_bits.type(1 << 8 * kind.wide.itemsize - 1)  # ±0
        deltas.append((wide.view(kind.wide) if data.draw(st.booleans()) else None, weight))
    with np.errstate(all="ignore"):
        expected, kept = reference(kind, target, deltas), keeps(kind, target, deltas)
        for way in (NumpyKernel(), kernel):
            assert_sum(kind, expected, kept, *added(way, kind, target, deltas))
            if len(deltas) == 1:
                [(delta, weight)], out = deltas, np.zeros_like(target)
                bad = way.add(kind, target, None if delta is None else delta.copy(), weight, out)
                assert_sum(kind, expected, kept, out, bad)


def keeps(kind: Float, target: np.ndarray, deltas: list[tuple[np.ndarray | None, float]]) -> np.ndarray:
    """Where the target is NaN or infinite and gets nothing but zeros."""
    wide = torch.float32 if kind.wide.itemsize == 4 else torch.float64
    kept = ~from_bits(target, TORCH[kind.name]).isfinite()
    for delta, weight in deltas:
        if delta is not None:
            kept &= torch.tensor(weight, dtype=wide) * torch.from_numpy(delta.copy()) == 0
    return kept.numpy()


def reference(kind: Float, target: np.ndarray, deltas: list[tuple[np.ndarray | None, float]]) -> np.ndarray:
    """The sum in PyTorch's own arithmetic, as bits; where the target is kept, its own."""
    wide = torch.float32 if kind.wide.itemsize == 4 else torch.float64
    total = from_bits(target, TORCH[kind.name]).to(wide)
    for delta, weight in deltas:
        zeros = torch.zeros(target.size, dtype=wide)
        total = total + torch.tensor(weight, dtype=wide) * (zeros if delta is None else torch.from_numpy(delta.copy()))
    return np.where(keeps(kind, target, deltas), target, to_bits(total.to(TORCH[kind.name])))


def added(
    kernel: Kernel, kind: Float, target: np.ndarray, deltas: list[tuple[np.ndarray | None, float]]
) -> tuple[np.ndarray, int]:
    """The sum by a kernel, every delta in one and the same buffer."""
    out, buffer = np.zeros_like(target), np.empty(target.size, kind.wide)

    def one_by_one() -> Iterator[tuple[np.ndarray | None, float]]:
        for delta, weight in deltas:
            if delta is not None:
                np.copyto(buffer.view(kind.wide_bits), delta.view(kind.wide_bits))
            yield (None if delta is None else buffer), weight

    return out, kernel.add_all(kind, target, one_by_one(), out)


def assert_sum(kind: Float, expected: np.ndarray, kept: np.ndarray, found: np.ndarray, not_finite: int) -> None:
    """``expected`` holds the target's bits where they are kept."""
    # What a NaN is rounded to means nothing, and may even be a number: it is counted, and the result is refused.
    finite = np.isfinite(from_bits(expected, TORCH[kind.name]).double().numpy())
    assert np.array_equal(found[finite | kept], expected[finite | kept])
    assert np.count_nonzero(~finite & ~kept) == not_finite


@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_every_value_that_did_not_change(kernel: Kernel, name: str) -> None:
    """All 65,536 patterns, equal on both sides: Δ is +0, and every NaN and infinity comes back bit for bit."""
    kind, every = FLOATS[name], np.arange(1 << 16, dtype=np.uint16)
    not_finite = ~from_bits(every, TORCH[name]).isfinite().numpy()
    symbols, out = np.empty_like(every), np.empty_like(every)
    for way in (NumpyKernel(), kernel):
        found = way.subtract(kind, every, every, symbols)
        assert not found.symbols.any()
        assert not found.positions.size
        assert found.exceptions.tolist() == [0x8000], "−0 + 0 is +0"
        assert (found.statistics.changed, found.statistics.delta_square) == (0, 0.0)
        values = from_bits(every[~not_finite], TORCH[name]).double()
        assert found.statistics.base_square == pytest.approx(float((values * values).sum()), rel=1e-12)
        for weight in (1.0, -0.5, 7.0):
            for delta in (None, np.zeros(every.size, kind.wide), np.full(every.size, -0.0, kind.wide)):
                assert way.add(kind, every, None if delta is None else delta.copy(), weight, out) == 0
                assert np.array_equal(out[not_finite], every[not_finite])
                both = [(delta, weight), (None, 1.0)]
                result, bad = added(way, kind, every, both)
                assert bad == 0
                assert np.array_equal(result[not_finite], every[not_finite])
            some = np.full(every.size, 1e-3, kind.wide)
            assert way.add(kind, every, some.copy(), weight, out) == np.count_nonzero(not_finite)
            assert added(way, kind, every, [(None, 1.0), (some, weight)])[1] == np.count_nonzero(not_finite)


@pytest.mark.parametrize("name", ["BF16", "F16"])
@pytest.mark.parametrize("other", [0x0000, 0x3C00, 0x7C00, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_every_value_that_changed(kernel: Kernel, name: str, other: int) -> None:
    """Each of the 65,536 patterns beside one other: refused if they differ and one is not finite."""
    kind, every = FLOATS[name], np.arange(1 << 16, dtype=np.uint16)
    base, post = every, np.full_like(every, other)
    not_finite = [~from_bits(side, TORCH[name]).isfinite().numpy() for side in (base, post)]
    counts = tuple(int(np.count_nonzero(side & (base != post))) for side in not_finite)
    for way in (NumpyKernel(), kernel):
        with pytest.raises(NotFiniteChunkError) as caught:
            way.subtract(kind, base, post, np.empty_like(every))
        assert (caught.value.base, caught.value.post) == counts


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_mixtures_with_values_that_did_not_change(kernel: Kernel, data: st.DataObject) -> None:
    """Both kernels take the same difference, and base ⊕ Δ, with the exceptions, is post to the bit."""
    name = data.draw(st.sampled_from(["BF16", "F16", "F32"]))
    kind, length = FLOATS[name], data.draw(st.sampled_from(LENGTHS))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    base, post = random_bits(name, 3 * length + 64, int(random.integers(1 << 30)))[: 2 * length].reshape(2, -1).copy()
    drawn = random.integers(0, 1 << 8 * kind.itemsize, length, dtype=np.uint64).astype(kind.bits)
    same = random.random(length) < data.draw(st.sampled_from([0.001, 0.3, 1.0]))
    base[same] = post[same] = drawn[same] | kind.bits.type(kind.infinity)
    assert_same_difference(name, kernel, base, post)
    for way in (NumpyKernel(), kernel):
        found = way.subtract(kind, base, post, np.empty_like(base))
        assert not same[found.exceptions].any()
        delta = floats.join(kind, kind.widen(found.symbols, np.empty(length, kind.wide)), found.positions, found.rest)
        out = np.empty_like(base)
        with np.errstate(all="ignore"):
            way.add(kind, base, delta, 1.0, out)
        out[found.exceptions] = post[found.exceptions]
        assert np.array_equal(out, post)


@pytest.mark.parametrize("name", ["BF16", "F16", "F32"])
def test_signs_of_zero_in_sums(kernel: Kernel, name: str) -> None:
    """−0 stays −0 only where −0 is added: what a weight of 0, or a delta without a payload, adds has a sign, too."""
    kind = FLOATS[name]
    target = np.array([0, 1 << 8 * kind.itemsize - 1, 1, 5], kind.bits)
    some = np.array([0.0, -0.0, 1.0, -1.0], kind.wide)
    for deltas in itertools.product(itertools.product((None, some), (1.0, 0.0, -0.0, -1.0)), repeat=2):
        expected = reference(kind, target, list(deltas))
        for way in (NumpyKernel(), kernel):
            found, bad = added(way, kind, target, list(deltas))
            assert (found.tolist(), bad) == (expected.tolist(), 0)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_ranks_and_look_up(kernel: Kernel, length: int, share: float, dtype: type) -> None:
    random = np.random.default_rng(length)
    common = random.permutation(1 << 16)[:255].astype(np.uint16)
    symbols = random.choice(common, length)
    odd = random.random(length) < share
    symbols[odd] = random.integers(0, 1 << 16, int(odd.sum()))
    rank_of = np.full(1 << 16, 255, np.uint8)
    rank_of[common] = np.arange(255)
    expected = [part.copy() for part in NumpyKernel().rank(symbols, rank_of)]
    found = kernel.rank(symbols, rank_of)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, theirs)
    ranks, low, high = expected
    palette, escaped = np.append(common, 0).astype(dtype), (high.astype(np.uint16) << 8 | low).astype(dtype)
    out = np.full(length, 7, dtype)
    kernel.look_up(palette, ranks, escaped, out)
    assert np.array_equal(out, symbols.astype(dtype))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("share", [0.0, 0.002, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_gather_and_spread(kernel: Kernel, length: int, share: float, dtype: type) -> None:
    random = np.random.default_rng(length)
    symbols = np.where(random.random(length) < share, random.integers(1, 1 << 16, length), 0).astype(np.uint16)
    gaps, values = (part.copy() for part in kernel.gather(symbols))
    assert np.array_equal(values, symbols[symbols != 0])
    assert np.array_equal(positions_of(gaps), np.flatnonzero(symbols))
    assert np.array_equal(gaps, gaps_of(np.flatnonzero(symbols)))
    out = np.full(length, 7, dtype)
    kernel.spread(gaps, values.astype(dtype), out)
    assert out.tobytes() == symbols.astype(dtype).tobytes(), "and zeros are +0"


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 509, 510, 511, 4095, 4096, 70_000])
def test_long_gaps(kernel: Kernel, gap: int) -> None:
    symbols = np.zeros(3 * (gap + 1) + 5, np.uint16)
    symbols[gap :: gap + 1] = 9
    gaps, values = (part.copy() for part in kernel.gather(symbols))
    assert np.array_equal(gaps, gaps_of(np.flatnonzero(symbols)))
    out = np.ones_like(symbols)
    kernel.spread(gaps, values, out)
    assert np.array_equal(out, symbols)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of the compiled loops has been called."""
    pytest.importorskip("numba", reason="Numba has no release for this Python yet")
    from paramdelta_hub.numerics.kernels.numba import NumbaKernel

    calls: Counter[str] = Counter()
    for name in ("subtract", "add", "look_up", "gather", "spread", "rank"):
        method = getattr(NumbaKernel, name)

        def counted(*arguments: Any, method: Any = method, name: str = name) -> Any:
            calls[name] += 1
            return method(*arguments)

        monkeypatch.setattr(NumbaKernel, name, counted)
    return calls


def long_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every run be one that compiled loops are for, and every apply begin with them."""
    monkeypatch.setattr(kernels, "NUMBA_FROM_BYTES", 0)
    monkeypatch.setattr(kernels, "LoadingKernel", lambda: kernel_for(1))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models large enough for palettes, of which one changed little."""
    root, noise = tmp_path_factory.mktemp("kernels"), torch.Generator().manual_seed(0)
    base = {name: torch.randn(200, 200, generator=noise).bfloat16() for name in ("layers.0.a", "layers.1.b")}
    for name, scale in (("base", 0.0), ("post", 0.01), ("other", 0.02), ("target", 0.03)):
        moved = {key: (w + scale * torch.randn(w.shape, generator=noise)).bfloat16() for key, w in base.items()}
        moved["layers.1.b"] = torch.where(
            torch.rand(200, 200, generator=noise) < 0.1, moved["layers.1.b"], base["layers.1.b"]
        )
        write_model(root / name, moved)
    for post in ("post", "other"):
        pd.extract(root / "base", root / post, root / f"{post} delta")
    return root


def test_extract_and_apply_give_the_same_by_both(
    models: Path, tmp_path: Path, used: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, outs = set(), set()
    for name in ("numpy", "numba"):
        if name == "numba":
            assert not used
            long_runs(monkeypatch)
        package, out, both = (tmp_path / f"{name} {what}" for what in ("package", "out", "sum"))
        ids.add(pd.extract(models / "base", models / "post", package, name="x").id)
        pd.apply(models / "target", package, out)
        pd.apply(models / "target", [package, models / "other delta"], both)
        outs.add(tuple((at / "model.safetensors").read_bytes() for at in (out, both)))
    assert len(ids) == len(outs) == 1
    assert used.keys() == {"subtract", "add", "look_up", "gather", "spread", "rank"}


def test_verify_compare_tensors_and_inspect_use_compiled_loops_in_long_runs(
    models: Path, used: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    delta, other = models / "post delta", models / "other delta"
    runs: dict[str, Callable[[], Any]] = {
        "verify": lambda: pd.verify(delta).to_json(),
        "verify with base": lambda: pd.verify(delta, base=models / "base", post=models / "post").to_json(),
        "compare": lambda: pd.compare([delta, other]).to_json(),
        "tensors": lambda: {name: tensor.numpy().tobytes() for name, tensor in pd.tensors(delta)},
        "inspect": lambda: pd.inspect(delta, samples=2).to_json(),
    }
    by_numpy = {name: run() for name, run in runs.items()}
    assert not used
    long_runs(monkeypatch)
    for name, run in runs.items():
        used.clear()
        assert run() == by_numpy[name], name
        assert used["look_up"], name
        assert used["spread"], name


def test_a_worker_of_another_process_uses_them_too(
    models: Path, tmp_path: Path, used: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told nothing but the plan, which says how long the run is."""
    long_runs(monkeypatch)
    operation = Extraction(pd.ExtractRequest(str(models / "base"), str(models / "post")))
    with Workspace(tmp_path / "out") as destination:
        destination.resume(operation.plan, lambda: operation.prepare(destination, 1))
        perform(str(destination.work_dir), operation.plan.digest, 0)
    assert used["subtract"]


def test_loops_are_for_long_runs() -> None:
    assert kernel_for(limits.NUMBA_FROM_BYTES - 1).name == "numpy"
    pytest.importorskip("numba", reason="Numba has no release for this Python yet")
    assert kernel_for(limits.NUMBA_FROM_BYTES).name == "numba"


def test_an_apply_begins_before_the_loops_are_loaded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And when they take over, they have been loaded for the very types that a decoder hands them."""
    pytest.importorskip("numba", reason="Numba has no release for this Python yet")
    from paramdelta_hub.numerics.kernels import numba

    loading = threading.Event()

    def numba_kernel() -> Kernel:
        loading.wait(60)
        return kernel_for(limits.NUMBA_FROM_BYTES)

    monkeypatch.setattr(kernels, "_numba_kernel", numba_kernel)
    kernel = kernel_for(limits.NUMBA_FROM_BYTES, wait=False)
    assert isinstance(kernel, LoadingKernel)
    assert kernel.name == "numpy"
    before = summed(models / "post delta", kernel)
    monkeypatch.undo()
    loading.set()
    kernel.wait()
    assert kernel.name == "numba"
    loaded = [len(loop.signatures) for loop in (numba._look_up, numba._add)]
    assert summed(models / "post delta", kernel) == before
    assert [len(loop.signatures) for loop in (numba._look_up, numba._add)] == loaded


def summed(delta: Path, kernel: Kernel) -> bytes:
    """Zeros and the delta of a tensor of many changes."""
    package = open_package(delta)
    record = package.records["layers.0.a"]
    assert record.codec.name == "palette"
    with OpenFiles(PackageError) as shards:
        addend = Addend(StoredDelta.of(record, package.payload_locations()), 1.0)
        with TensorSum("BF16", [addend], shards, kernel) as total:
            return total.add(np.zeros(2 * record.elements, np.uint8)).tobytes()


def test_without_numba_numpy_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paramdelta_hub.numerics.kernels.numba", None)
    assert kernel_for(limits.NUMBA_FROM_BYTES).name == "numpy"
    kernel = kernel_for(limits.NUMBA_FROM_BYTES, wait=False)
    assert isinstance(kernel, LoadingKernel)
    kernel.wait()
    assert kernel.name == "numpy"


def test_a_difference_without_change_is_zero_unless_it_holds_minus_zero(kernel: Kernel) -> None:
    kind = FLOATS["BF16"]

    def taken(bits: int) -> Difference:
        values = np.full(10, bits, np.uint16)
        return kernel.subtract(kind, values, values, np.empty(10, np.uint16))

    assert taken(0x3F80).is_zero
    assert not taken(0x8000).is_zero
