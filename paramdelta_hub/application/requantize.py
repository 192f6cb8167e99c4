"""The output dtype of an fp8 target's weights, and the error of quantizing them again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from paramdelta_hub.checkpoints.dequantized import Dequantized, Mxfp4
from paramdelta_hub.checkpoints.logical import LogicalModel
from paramdelta_hub.errors import OptionError
from paramdelta_hub.numerics.float8 import Deviation
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.provenance import Requantized

__all__ = ["FP8", "Dtype", "Requantization", "keeps_fp8", "requantization"]

Dtype = Literal["bfloat16", "float16", "float32", "float8_e4m3fn"]
"""What the float weights of a result can become; 8-bit floats only where the target has them."""
FP8: Literal["float8_e4m3fn"] = "float8_e4m3fn"


class Requantization(Requantized):
    """How far requantized weights are from the bf16 sums that they were made of."""

    def __str__(self) -> str:
        return (
            f"fp8: root-mean-square error {self.rms_error:.2%} of the weights' root mean square "
            f"({self.tensors} tensors requantized)"
        )


def keeps_fp8(target: LogicalModel, dtype: Dtype | None) -> bool:
    """Return whether the result's weights are to be 8-bit floats; otherwise bf16 is made of fp8 weights.

    Raises:
        OptionError: this target's weights can't become 8-bit floats.
    """
    if dtype != FP8:
        return False
    where = str(target.checkpoint.source.path)
    codes = {
        name: "MXFP4" if isinstance(tensor.source, Mxfp4) else tensor.source.code
        for name, tensor in target.tensors.items()
        if isinstance(tensor.source, (Dequantized, Mxfp4))
    }
    if not codes:
        raise OptionError(
            "its weights are not fp8, so it does not say which tensors to quantize, or in what blocks",
            where=where,
            remedy="give an fp8 target, or remove --dtype and quantize the result",
        )
    if other := next((name for name, dtypes in codes.items() if dtypes != "F8_E4M3"), None):
        raise OptionError(
            f"tensor {other!r} is {codes[other]}, but sums can only become F8_E4M3",
            where=where,
            remedy="remove --dtype; the result's weights are then bf16",
        )
    scales = {tensor.source.scale for tensor in target.tensors.values() if isinstance(tensor.source, Dequantized)}
    if any(scale.dtype not in FLOATS for scale in scales):
        raise OptionError(
            "its scales are powers of two (E8M0), and new ones can only be F32, BF16 or F16",
            where=where,
            remedy="remove --dtype; the result's weights are then bf16",
        )
    return True


def requantization(deviations: Iterable[Deviation]) -> Requantization | None:
    """Return what requantized tensors lost together; None if there are none."""
    each = list(deviations)
    if not each:
        return None
    total = sum(each, Deviation())
    return Requantization(
        dtype=FP8,
        tensors=len(each),
        rms_error=total.relative,
        largest_error=total.largest_relative,
    )
