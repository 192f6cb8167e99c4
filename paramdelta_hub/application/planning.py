"""The plan of an apply: which tasks make the result's files, tensor by tensor, in the target's order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from paramdelta_hub.application.compatibility import Fit
from paramdelta_hub.application.output_files import OutputFile
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.package import Package
from paramdelta_hub.tasks.plan import Plan, cut

__all__ = ["passing_bytes", "plan_apply"]

Sums: TypeAlias = "Mapping[str, list[dict[str, Any]]]"


def plan_apply(
    fit: Fit, files: Mapping[str, OutputFile], packages: Sequence[Package], sums: Sums, request: dict[str, Any]
) -> Plan:
    """Return the plan that makes the result's files out of a target and deltas that fit it.

    Args:
        fit: the tensors, paired and placed.
        files: the result's, as laid out.
        packages: the deltas.
        sums: for every tensor that changes what is added to it.
        request: what was asked for.
    """
    target, results = fit.target.checkpoint, fit.results
    places = {
        name: {"name": name, "file": file.name, "start": start, "nbytes": results[name].nbytes}
        for file in files.values()
        for name, start in file.starts.items()
    }
    scales = {fit.tensor(name).view["scale"]["name"] for name in {*sums, *fit.placed} if fit.in_fp8(name)}
    tasks = []
    for file in files.values():
        names = [name for name in file.starts if name not in scales]  # those are written with their weights
        for group in cut(names, lambda name: results[name].nbytes, target.nbytes):
            tensors = [_task_tensor(name, fit, places, sums.get(name, [])) for name in group]
            tasks.append({"bytes": sum(tensor["nbytes"] for tensor in tensors), "tensors": tensors})
    return Plan(
        kind="apply",
        inputs=(*(file.identity() for file in target.files), *(package.digest for package in packages)),
        request=request,
        tasks=tuple(tasks),
    )


def _task_tensor(
    name: str, fit: Fit, places: Mapping[str, dict[str, Any]], deltas: list[dict[str, Any]]
) -> dict[str, Any]:
    tensor, placed = fit.source(name, summed=bool(deltas)), fit.placed.get(name)
    arranged = tensor.arrange(placed.start if placed else None)
    task: dict[str, Any] = {
        "name": name,
        "dtype": tensor.dtype,
        "elements": arranged.elements,
        "nbytes": arranged.nbytes,
        "view": arranged.view,
        "out": [places[name]],
        "deltas": deltas,
    }
    if placed and deltas:
        task["rows"] = math.prod(tensor.shape[1:])
    if fit.in_fp8(name) and (deltas or placed):
        scale = tensor.view["scale"]
        task["out"] = [places[name], places[scale["name"]]]
        task["quantized"] = {"grid": tensor.view["grid"], "scale": scale["dtype"]}
    return task


def passing_bytes(plan: Plan, threads: int) -> int:
    """Return the most that temporary files take, with so many tasks at a time (:mod:`.rows`, :mod:`.requantize`)."""
    each = [max(map(_passing, task["tensors"]), default=0) for task in plan.tasks]
    return sum(sorted(each)[-threads:])


def _passing(tensor: Mapping[str, Any]) -> int:
    needed = 0
    if "rows" in tensor:
        wide = FLOATS[tensor["dtype"]].wide.itemsize
        needed += sum(wide * int(delta["elements"]) for delta in tensor["deltas"] if delta["shard"])
    if "quantized" in tensor:
        needed += FLOATS[tensor["dtype"]].itemsize * int(tensor["elements"])
    return needed
