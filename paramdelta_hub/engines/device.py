"""The engine that computes on a PyTorch device: the same sums in the same order and types, so the same bits.

Every product and sum is an operation of its own, rounded on its own; PyTorch neither fuses them nor flushes subnormals
(both CUDA and CPU follow IEEE 754 in float32 and float64), and tensors of bits are compared as integers. Chunks travel
to the device and back, and payloads are decoded and hashed on the processor all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from paramdelta_hub.arithmetic import Bits, Difference, Float, NotFiniteChunkError, Statistics, Wide
from paramdelta_hub.engines.passes import gaps_of, positions_of
from paramdelta_hub.errors import OptionError

__all__ = ["Device"]

_ESCAPE = 255
_FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}  # PyTorch has no arithmetic on unsigned integers
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_WIDE = {4: torch.float32, 8: torch.float64}


class Device:
    """See :class:`paramdelta_hub.engines.Engine`.

    Args:
        device: a PyTorch device, such as ``cuda``, ``cuda:1`` or ``cpu``.

    Raises:
        OptionError: PyTorch has no such device here.
    """

    name: ClassVar[str] = "torch"

    def __init__(self, device: str) -> None:
        try:
            self._device = torch.device(device)
            torch.zeros(1, device=self._device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise OptionError(
                f"PyTorch can't use the device {device!r}: {reason}",
                remedy="leave --device out to compute on the processor, or install a PyTorch that has the device",
            ) from None

    def subtract(self, kind: Float, base: Bits, post: Bits, symbols: Bits) -> Difference:
        """Δ = post − base of one chunk, split and proven."""
        wide_type, integer = _WIDE[kind.wide.itemsize], _INTEGERS[kind.wide.itemsize]
        old, new = (self._put(bits).view(_FLOATS[kind.name]) for bits in (base, post))
        wide_old, wide_new = old.to(wide_type), new.to(wide_type)
        bad_old, bad_new = (int((~torch.isfinite(wide)).sum()) for wide in (wide_old, wide_new))
        if bad_old or bad_new:
            raise NotFiniteChunkError(bad_old, bad_new)
        delta = wide_new - wide_old
        bits = delta.view(integer)
        if kind.narrow is None:
            rest = bits & 0xFFFF
            coded = (bits >> 16).to(torch.int16)
        else:
            # As in arithmetic.split: masked, the conversion is exact; what exceeds the narrow range stays at its edge.
            largest = float(np.finfo(kind.narrow).max)
            towards_zero = (bits & -(1 << kind.dropped)).view(wide_type).clamp(-largest, largest)
            coded = towards_zero.to(_FLOATS[kind.name]).view(_INTEGERS[kind.itemsize])
            rest = bits - towards_zero.view(integer)
        reached = (wide_old + delta).to(_FLOATS[kind.name]).view(_INTEGERS[kind.itemsize])
        new_bits = new.view(_INTEGERS[kind.itemsize])
        self._take(coded, symbols)
        positions = torch.nonzero(rest).flatten()
        exceptions = torch.nonzero(reached != new_bits).flatten()
        limit = torch.finfo(wide_type).max
        counted = Statistics(
            changed=int((old.view(_INTEGERS[kind.itemsize]) != new_bits).sum()),
            remainders=positions.numel(),
            exceptions=exceptions.numel(),
            base_square=float(wide_old.double().square().sum()),
            delta_square=float(delta.clamp(-limit, limit).double().square().sum()),
        )
        rests = rest[positions].cpu().numpy().view(kind.wide_bits)
        return Difference(symbols, positions.cpu().numpy(), rests, exceptions.cpu().numpy(), counted)

    def add(self, kind: Float, target: Bits, deltas: Sequence[tuple[Wide | None, float]], out: Bits) -> int:
        """Target + Σ wᵢΔᵢ of one chunk, rounded once; how many are not finite."""
        wide_type = _WIDE[kind.wide.itemsize]
        total = self._put(target).view(_FLOATS[kind.name]).to(wide_type)
        for delta, weight in deltas:
            factor = torch.tensor(weight, dtype=wide_type, device=self._device)
            if delta is None:
                total += factor * 0.0
                continue
            change = self._put(delta)
            if weight != 1.0:
                change = change * factor
            total += change
        rounded = total.to(_FLOATS[kind.name])
        self._take(rounded.view(_INTEGERS[kind.itemsize]), out)
        return int((~torch.isfinite(rounded)).sum())

    def look_up(self, palette: Bits | Wide, ranks: Bits, escaped: Bits | Wide, out: Bits | Wide) -> None:
        """``out = palette[ranks]``, the escaped ones from ``escaped``."""
        where = self._put(ranks).to(torch.int64) & 0xFF
        found = self._put(palette)[where]
        if escaped.size:
            found[where == _ESCAPE] = self._put(escaped)
        self._take(found, out)

    def gather(self, symbols: Bits) -> tuple[Bits, Bits]:
        """Gaps between the symbols other than 0, and those symbols."""
        given = self._put(symbols)
        positions = torch.nonzero(given).reshape(-1)
        return gaps_of(positions.cpu().numpy()), given[positions].cpu().numpy().view(symbols.dtype)

    def spread(self, gaps: Bits, values: Bits | Wide, out: Bits | Wide) -> None:
        """``out[positions] = values``, and +0 elsewhere."""
        given = self._put(values)
        found = torch.zeros(out.size, dtype=given.dtype, device=self._device)
        found[self._put(positions_of(gaps))] = given
        self._take(found, out)

    def rank(self, symbols: Bits, rank_of: Bits) -> tuple[Bits, Bits, Bits]:
        """Every symbol's rank, and the low and high bytes of those that escape."""
        values = self._put(symbols).to(torch.int64) & 0xFFFF
        ranks = self._put(rank_of)[values]
        escaped = values[(ranks.to(torch.int64) & 0xFF) == _ESCAPE].cpu().numpy()
        return ranks.cpu().numpy().view(np.uint8), (escaped & 0xFF).astype(np.uint8), (escaped >> 8).astype(np.uint8)

    def _put(self, values: Any) -> torch.Tensor:
        """Copy to the device; unsigned integers as signed ones of their size."""
        if values.dtype.kind == "u":
            values = values.view(_SIGNED[values.itemsize])
        return torch.tensor(values, device=self._device)

    def _take(self, tensor: torch.Tensor, out: Any) -> None:
        """Copy back into an array of the same item size."""
        np.copyto(out, tensor.cpu().numpy().view(out.dtype))
