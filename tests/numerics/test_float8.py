"""8-bit floats against torch's, code for code, and scaled weights against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paramdelta_hub.limits import BLOCK_ELEMENTS
from paramdelta_hub.numerics.float8 import (
    DECODED,
    LARGEST,
    Deviation,
    Grid,
    decode,
    dequantize,
    deviation,
    encode,
    fresh_scales,
    quantize,
    raise_peaks,
)
from tests.support.models import to_bits

TORCH = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
E4M3 = DECODED["F8_E4M3"]
EVERY = np.arange(256, dtype=np.uint8)
SHAPES = [(1, 1, 1), (1, 5, 7), (1, 128, 128), (1, 129, 257), (1, 300, 130), (3, 5, 9), (2, 130, 140), (1, 2, 300_000)]
BLOCKS = [(128, 128), (1, 1 << 20), (1 << 20, 1 << 20), (1 << 20, 1), (2, 3), (1, 128)]


def encoded(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return encode(values, np.empty(values.size, np.uint8))


def torchs(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Torch's codes; before it saturated, it made NaN of everything above 464, so the test does the saturating."""
    held = torch.from_numpy(values).clamp(-LARGEST, LARGEST)
    codes: NDArray[np.uint8] = held.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return codes


def weight(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Codes of every kind but NaN and infinity."""
    codes = np.random.default_rng(seed).integers(0, 0x7C, shape, dtype=np.uint8)
    return codes | np.random.default_rng(seed + 1).integers(0, 2, shape, dtype=np.uint8) << 7


def scales_for(grid: Grid, seed: int = 0) -> NDArray[np.float32]:
    spread = np.random.default_rng(seed).uniform(-30, 5, grid.scale_shape)
    return np.exp2(spread).astype(np.float32)


def by_definition(codes: NDArray[np.uint8], dtype: str, block: tuple[int, int], scales: NDArray[np.float32]) -> object:
    matrices, rows, columns = codes.shape
    spread = torch.from_numpy(scales).reshape(matrices, -1, scales.shape[1])
    for axis, length, size in ((1, min(block[0], rows), rows), (2, min(block[1], columns), columns)):
        spread = spread.repeat_interleave(length, dim=axis).narrow(axis, 0, size)
    return to_bits((torch.from_numpy(codes).view(TORCH[dtype]).float() * spread).bfloat16())


@pytest.mark.parametrize("dtype", sorted(TORCH))
def test_every_code_is_torchs(dtype: str) -> None:
    expected = torch.from_numpy(EVERY).view(TORCH[dtype]).float().numpy()
    ours = decode(EVERY, DECODED[dtype], np.empty(256, np.float32))
    assert np.array_equal(ours, expected, equal_nan=True)
    assert np.array_equal(np.signbit(ours), EVERY >= 128), "also of zero"


def test_encoding_undoes_decoding() -> None:
    values = decode(EVERY, E4M3, np.empty(256, np.float32))
    assert np.array_equal(encoded(values) & 0x7F, EVERY & 0x7F)
    assert np.array_equal(encoded(values)[~np.isnan(values)], EVERY[~np.isnan(values)])


def test_encoding_is_torchs_around_every_tie() -> None:
    values = E4M3[:127].astype(np.float64)
    halves = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    assert np.array_equal(halves.astype(np.float64) * 2, values[1:] + values[:-1]), "ties are exact in float32"
    near = [halves, E4M3[:127]]
    for _ in range(3):
        near += [np.nextafter(near[-2], np.float32(np.inf)), np.nextafter(near[-1], np.float32(np.inf))]
    near += [np.nextafter(halves, np.float32(0)), np.nextafter(E4M3[:127], np.float32(0))]
    swept = np.concatenate(near)
    swept = np.concatenate([swept, -swept])
    assert np.array_equal(encoded(swept), torchs(swept))


def test_encoding_is_torchs_over_all_magnitudes() -> None:
    """Every upper half, with lower halves that decide ties: nothing, one bit, half, and all."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper | np.uint32(lower)).view(np.float32)
        values = values[np.isfinite(values)]
        assert np.array_equal(encoded(values), torchs(values)), lower


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_encoding_any_value_is_torchs(drawn: list[float]) -> None:
    values = np.array(drawn, np.float32)
    assert np.array_equal(encoded(values), torchs(values))


def test_encoding_holds_what_is_too_large_and_keeps_nan() -> None:
    values = np.array([448, 463.9, 465, 1e30, np.inf, np.nan, -465, -np.inf, -np.nan], np.float32)
    assert (encoded(values)[:-1] & 0x7F).tolist() == [0x7E] * 5 + [0x7F] + [0x7E] * 2
    assert encoded(values)[-1] & 0x7F == 0x7F
    assert (encoded(values)[6:8] >= 0x80).all()
    signalling = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    assert (encoded(signalling) & 0x7F).tolist() == [0x7F, 0x7F]


@pytest.mark.parametrize("dtype", sorted(TORCH))
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dequantizing_is_code_times_scale(shape: tuple[int, int, int], block: tuple[int, int], dtype: str) -> None:
    matrices, rows, columns = shape
    grid = Grid(rows, columns, (min(block[0], rows), min(block[1], columns)), matrices)
    codes, scales = weight(shape), scales_for(grid)
    ours = dequantize(codes.reshape(-1), DECODED[dtype], grid, scales, 0, np.empty(codes.size, np.uint16))
    assert np.array_equal(ours, by_definition(codes, dtype, grid.block, scales))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_part_of_a_tensor_is_a_part_of_its_values(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)))
    matrices, rows, columns = shape
    block = data.draw(st.tuples(st.integers(1, rows), st.integers(1, columns)))
    grid = Grid(rows, columns, block, matrices)
    codes, scales = weight(shape, data.draw(st.integers(0, 9))).reshape(-1), scales_for(grid)
    start = data.draw(st.integers(0, codes.size))
    part = slice(start, data.draw(st.integers(start, codes.size)))
    whole = dequantize(codes, E4M3, grid, scales, 0, np.empty(codes.size, np.uint16))
    assert np.array_equal(whole, by_definition(codes.reshape(shape), "F8_E4M3", block, scales))
    ours = dequantize(codes[part], E4M3, grid, scales, start, np.empty(part.stop - start, np.uint16))
    assert np.array_equal(ours, whole[part])


@pytest.mark.parametrize("dtype", sorted(TORCH))
def test_what_is_not_finite_stays_so(dtype: str) -> None:
    """For an addition to find and to name: NaN, infinite codes, and products that overflow; without a warning."""
    grid = Grid(2, 256, (1, 256))
    scales = np.array([[1.0], [3e38]], np.float32)
    codes = np.concatenate([EVERY, EVERY])
    ours = dequantize(codes, DECODED[dtype], grid, scales, 0, np.empty(512, np.uint16))
    values = torch.from_numpy(ours.view(np.int16)).view(torch.bfloat16).float()
    expected = torch.from_numpy(codes).view(TORCH[dtype]).float() * torch.tensor([1.0, 3e38]).repeat_interleave(256)
    assert torch.equal(values.isnan(), expected.isnan())
    assert torch.equal(values.nan_to_num(0), expected.bfloat16().float().nan_to_num(0))
    assert values.isinf().sum() > 100


def noise(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02
    return drawn.astype(np.float32)


def quantized(
    values: NDArray[np.float32], grid: Grid, dtype: str = "F32", cuts: tuple[int, ...] = ()
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes and scales of a whole tensor, handed over in parts."""
    flat = values.reshape(-1)
    parts = [slice(*ends) for ends in zip((0, *cuts), (*cuts, flat.size), strict=True)]
    peaks = np.zeros(grid.scale_shape, np.float32)
    for part in reversed(parts):
        raise_peaks(flat[part], grid, part.start, peaks)
    scales, _ = fresh_scales(peaks, dtype)
    codes = np.empty(flat.size, np.uint8)
    for part in parts:
        quantize(flat[part], grid, scales, part.start, codes[part])
    return codes.reshape(values.shape), scales


def off_by(values: NDArray[np.float32], codes: NDArray[np.uint8], grid: Grid, scales: NDArray[np.float32]) -> Deviation:
    return deviation(values.reshape(-1), codes.reshape(-1), grid, scales, 0)


@pytest.mark.parametrize("block", [(128, 128), (1, 300), (300, 300), (7, 5)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (200, 300), (129, 257), (5, 90_000)], ids=str)
def test_quantizing_is_torchs_with_fresh_scales(shape: tuple[int, int], block: tuple[int, int]) -> None:
    values = noise(*shape)
    codes, scales = quantized(values, Grid(*shape, block))
    for top in range(0, shape[0], block[0]):
        for left in range(0, shape[1], max(block[1], shape[1] // 50 // block[1] * block[1])):
            place = slice(top, top + block[0]), slice(left, left + block[1])
            part = torch.from_numpy(values[place])
            scale = part.abs().max() / 448
            assert scales[top // block[0], left // block[1]] == scale.item()
            expected = (part / scale).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
            assert np.array_equal(codes[place], expected)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_tensor_quantized_in_parts_is_the_tensor_quantized(data: st.DataObject) -> None:
    """Stacked or not, in blocks of any shape, cut anywhere: within rows, bands and matrices."""
    matrices, rows, columns = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)))
    block = data.draw(st.tuples(st.integers(1, rows + 1), st.integers(1, columns + 1)))
    grid = Grid(rows, columns, block, matrices)
    values = noise(matrices * rows, columns, data.draw(st.integers(0, 9)))
    cuts = tuple(sorted(data.draw(st.lists(st.integers(0, values.size), max_size=4))))
    codes, scales = quantized(values, grid, cuts=cuts)
    for number in range(matrices):
        matrix = values[number * rows : (number + 1) * rows]
        its_codes, its_scales = quantized(matrix, Grid(rows, columns, block))
        assert np.array_equal(its_codes, codes[number * rows : (number + 1) * rows])
        assert np.array_equal(its_scales, scales[number * grid.scale_rows : (number + 1) * grid.scale_rows])
        for top in range(0, rows, block[0]):
            for left in range(0, columns, block[1]):
                peak = np.abs(matrix[top : top + block[0], left : left + block[1]]).max()
                assert its_scales[top // block[0], left // block[1]] == peak / np.float32(448)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_scales_are_rounded_to_what_is_stored(dtype: str) -> None:
    kind = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[dtype]
    peaks = np.abs(noise(40, 30))
    peaks[3, 4] = 0
    scales, bits = fresh_scales(peaks, dtype)
    exact = torch.where(torch.from_numpy(peaks) == 0, 1, torch.from_numpy(peaks) / 448)
    expected = exact.clamp(min=2.0**-14 if dtype == "F16" else 0).to(kind)
    assert np.array_equal(bits, to_bits(expected))
    assert np.array_equal(scales, expected.float().numpy())
    assert scales[3, 4] == 1


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_scales_are_never_subnormal_or_infinite(dtype: str) -> None:
    scales, _ = fresh_scales(np.array([2.0**-149, np.finfo(np.float32).max], np.float32), dtype)
    least = 2.0**-14 if dtype == "F16" else 2.0**-126
    assert scales[0] == least
    assert np.isfinite(scales[1])
    assert dtype != "F16" or scales[1] == 65504


def test_quantizing_values_that_came_from_codes_gives_the_codes_back() -> None:
    codes = weight((1, 256, 256)).reshape(256, 256)
    codes[::128, ::128] = 0x7E  # each block reaches 448, so that its fresh scale is the old one
    grid = Grid(256, 256, (128, 128))
    scales = np.exp2(np.array([[-9, 3], [0, -20]])).astype(np.float32)
    bits = dequantize(codes.reshape(-1), E4M3, grid, scales, 0, np.empty(codes.size, np.uint16))
    values = (bits.astype(np.uint32) << 16).view(np.float32).reshape(256, 256)
    again, fresh = quantized(values, grid)
    assert np.array_equal(fresh, scales)
    assert np.array_equal(again, codes)


def test_zeros_and_the_smallest_numbers() -> None:
    values = np.zeros((3, 4), np.float32)
    values[1] = 2.0**-133  # the least bf16: a 448th of it has no precise float32
    values[2] = [0, -0.0, 2.0**-149, -(2.0**-140)]
    codes, scales = quantized(values, Grid(3, 4, (1, 4)))
    assert scales[0] == 1
    assert (scales[1:] == np.finfo(np.float32).tiny).all()
    assert not codes[0].any()
    back = E4M3[codes] * scales
    assert np.isfinite(back).all()
    assert (np.abs(back - values) <= 2.0**-136).all()
    assert np.array_equal(np.signbit(back), np.signbit(values))


def test_the_largest_numbers_do_not_overflow() -> None:
    values = np.full((2, 2), np.finfo(np.float32).max, np.float32)
    grid = Grid(2, 2, (2, 2))
    codes, scales = quantized(values, grid)
    assert np.array_equal(codes, np.full((2, 2), 0x7E))
    assert np.isfinite(E4M3[codes] * scales).all()
    assert off_by(values, codes, grid, scales).relative < 1e-6


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_nothing_is_quantized_to_nothing(shape: tuple[int, int]) -> None:
    values, grid = np.empty(shape, np.float32), Grid(*shape, (128, 128))
    codes, scales = quantized(values, grid)
    assert codes.shape == shape
    assert scales.shape == (-(-shape[0] // 128), -(-shape[1] // 128))
    assert off_by(values, codes, grid, scales) == Deviation()
    assert (Deviation().relative, Deviation().largest_relative) == (0.0, 0.0)


def test_the_deviation_is_what_it_says() -> None:
    values = noise(300, 1500)
    values[140, 900] = -0.13  # the largest magnitude is a negative number's
    assert values.size > BLOCK_ELEMENTS
    grid = Grid(300, 1500, (128, 128))
    codes, scales = quantized(values, grid)
    told = off_by(values, codes, grid, scales)
    spread = np.repeat(np.repeat(scales, 128, 0), 128, 1)[:300, :1500]
    errors = (E4M3[codes] * spread).astype(np.float64) - values
    assert told.relative == pytest.approx(np.sqrt((errors**2).sum() / (values.astype(np.float64) ** 2).sum()), rel=1e-4)
    assert told.largest_relative == pytest.approx(np.abs(errors).max() / np.abs(values).max(), rel=1e-4)
    assert 0.02 < told.relative < 0.03
    assert told.largest_relative < 1 / 27.9
    flat, flat_codes = values.reshape(-1), codes.reshape(-1)
    parts = [slice(0, 1000), slice(1000, 200_003), slice(200_003, values.size)]
    sums = [deviation(flat[part], flat_codes[part], grid, scales, part.start) for part in parts]
    total = sum(sums, Deviation())
    assert total.relative == pytest.approx(told.relative)
    assert total.largest_relative == told.largest_relative
