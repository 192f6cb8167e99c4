"""The plan of an apply: what is added to each tensor, and which tasks make the result's files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from paramdelta_hub.application.compatibility import Compatibility
from paramdelta_hub.application.output_files import OutputFile
from paramdelta_hub.application.weights import Weights
from paramdelta_hub.checkpoints.dequantized import Dequantized
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.package import Package
from paramdelta_hub.package.tensor_delta import StoredDelta
from paramdelta_hub.tasks.models import ApplyTask, OutputSpan, ResultTensor
from paramdelta_hub.tasks.plan import Plan, cut
from paramdelta_hub.transforms.arranged import ArrangedAddend, SpilledDelta
from paramdelta_hub.transforms.requantize import Quantization
from paramdelta_hub.transforms.sum import Addend, RowPlacement

__all__ = ["addends_by_tensor", "plan_apply", "temporary_bytes"]

Sums: TypeAlias = "Mapping[str, Sequence[Addend | ArrangedAddend]]"
"""For every tensor that changes, what is added to it."""


def addends_by_tensor(
    compatibility: Compatibility, packages: Sequence[Package], weights: Weights
) -> dict[str, list[Addend | ArrangedAddend]]:
    """Return for every tensor that changes what is added to it."""
    sums: dict[str, list[Addend | ArrangedAddend]] = {}
    for number, package in enumerate(packages):
        records, locations = package.records, package.payload_locations()
        for name, delta_name in compatibility.matches[number].pairs.items():
            record, carried = records[delta_name], compatibility.carried.get(name)
            placed, weight = compatibility.placed.get(name), weights.of(number, name)
            if carried and carried.number != number:
                continue
            # What can't be scaled is taken whole with any weight above 0: the delta is wanted, and half an integer or
            # half a classifier is not. A weight of 0 takes the tensor out of the sum, but for rows that it brings.
            if carried:
                weight = 1.0
            if record.effect == "replace" and weight <= 0.0:
                continue
            runs = placed.deltas.get(number, ()) if placed else ()
            if weight == 0.0:
                runs = tuple(run if run.whole else run._replace(source=None) for run in runs)
            if (placed or weight == 0.0) and all(run.source is None for run in runs):
                continue
            addends = sums.setdefault(name, [])
            if record.effect == "replace" and (addends or record.is_zero):
                continue
            placement = None
            if placed:
                in_its_order = compatibility.tensor(name).reorder_rows(placed.inverse[number])
                placement = RowPlacement(runs, math.prod(in_its_order.shape[1:]), in_its_order.source)
            addends.append(Addend(StoredDelta.of(record, locations), weight, placement))
        arranged = compatibility.arranged[number]
        for name, arrangement in arranged.pairs.items():
            # Integers did not change, or they were refused; a tensor without elements has no sources.
            is_sum = any(records[source].effect == "add" for source in arrangement.sources)
            if is_sum and (weight := weights.of(number, name)):
                sums.setdefault(name, []).append(arranged.addend(name, package, weight))
    # Weights that would become fp8 again only to gain nothing are left as they are, codes and scales.
    unchanged = {
        name
        for name, addends in sums.items()
        if compatibility.in_fp8(name) and name not in compatibility.placed and all(addend.is_zero for addend in addends)
    }
    return {name: addends for name, addends in sums.items() if addends and name not in unchanged}


def plan_apply(
    compatibility: Compatibility,
    files: Mapping[str, OutputFile],
    packages: Sequence[Package],
    sums: Sums,
    request: JsonObject,
    *,
    may_be_base: bool,
) -> Plan:
    """Return the plan that makes the result's files out of a target and deltas that fit it.

    Tensors that get blocks of one delta are made by one task, wherever they lie, so that it is decoded once.
    ``may_be_base`` says whether the target's samples are base's, so that all its values may be.
    """
    target, results = compatibility.target.checkpoint, compatibility.results
    spans = {
        name: OutputSpan(name, file.name, start, results[name].nbytes, results[name].dtype)
        for file in files.values()
        for name, start in file.starts.items()
    }
    scales = {
        source.scale_name
        for name in {*sums, *compatibility.placed}
        if compatibility.in_fp8(name) and isinstance(source := compatibility.tensor(name).source, Dequantized)
    }
    tasks, spilled = [], _spilled_deltas(compatibility, packages, sums)
    for names, keys in _sharing(sums):
        tensors = tuple(_result_tensor(name, compatibility, spans, sums[name], may_be_base) for name in names)
        tasks.append(ApplyTask.of(tensors, tuple(spilled[key] for key in keys)))
    done = scales | {tensor.name for task in tasks for tensor in task.tensors}  # scales are written with their weights
    for file in files.values():
        names = [name for name in file.starts if name not in done]
        made = [_result_tensor(name, compatibility, spans, sums.get(name, ()), may_be_base) for name in names]
        tasks += [ApplyTask.of(tuple(group)) for group in cut(made, target.nbytes)]
    return Plan(
        kind="apply",
        inputs=(*(file.identity() for file in target.files), *(package.digest for package in packages)),
        request=request,
        tasks=tuple(tasks),
    )


def _spilled_deltas(compatibility: Compatibility, packages: Sequence[Package], sums: Sums) -> dict[str, SpilledDelta]:
    """Return the deltas of which tensors get blocks, by the keys that their addends have."""
    used = {
        key
        for addends in sums.values()
        for addend in addends
        if isinstance(addend, ArrangedAddend)
        for key in addend.keys
    }
    return {
        spilled.key: spilled
        for package, arranged in zip(packages, compatibility.arranged, strict=True)
        if arranged.pairs
        for spilled in arranged.spilled(package, package.payload_locations(), compatibility.tensor)
        if spilled.key in used
    }


def _sharing(sums: Sums) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the tensors that get blocks of the same deltas, with the keys of these; in the order of the tensors."""
    keys_of = {
        name: [key for addend in addends if isinstance(addend, ArrangedAddend) for key in addend.keys]
        for name, addends in sums.items()
    }
    users: dict[str, list[str]] = {}
    for name, keys in keys_of.items():
        for key in keys:
            users.setdefault(key, []).append(name)
    seen: set[str] = set()
    for name, keys in keys_of.items():
        if not keys or name in seen:
            continue
        seen.add(name)
        names, found = [name], dict.fromkeys(keys)
        for member in names:
            for key in keys_of[member]:
                found[key] = None
                for other in users[key]:
                    if other not in seen:
                        seen.add(other)
                        names.append(other)
        yield names, list(found)


def _result_tensor(
    name: str,
    compatibility: Compatibility,
    spans: Mapping[str, OutputSpan],
    addends: Sequence[Addend | ArrangedAddend],
    may_be_base: bool,
) -> ResultTensor:
    tensor, placed = compatibility.source(name, summed=bool(addends)), compatibility.placed.get(name)
    arranged = tensor.reorder_rows(placed.start if placed else None)
    outputs: tuple[OutputSpan, ...] = (spans[name],)
    quantization = None
    if compatibility.in_fp8(name) and (addends or placed) and isinstance(tensor.source, Dequantized):
        outputs = (spans[name], spans[tensor.source.scale_name])
        quantization = Quantization(tensor.source.grid, tensor.source.scale.dtype)
    return ResultTensor(
        name=name,
        dtype=tensor.dtype,
        elements=arranged.elements,
        source=arranged.source,
        outputs=outputs,
        addends=tuple(addends),
        quantization=quantization,
        result_dtype=tensor.dtype if quantization else compatibility.result_dtype(tensor),
        may_be_base=may_be_base,
    )


def temporary_bytes(plan: Plan, threads: int) -> int:
    """Return the most that temporary files take, with so many tasks at a time."""
    each = [
        max(map(_temporary_bytes, task.tensors), default=0)
        + sum(spilled.elements * FLOATS[spilled.delta.dtype].wide.itemsize for spilled in task.spilled)
        for task in plan.tasks
        if isinstance(task, ApplyTask)
    ]
    return sum(sorted(each)[-threads:])


def _temporary_bytes(tensor: ResultTensor) -> int:
    """Return what waits in files while a tensor is made: deltas in another row order, sums to be made 8-bit floats."""
    needed = FLOATS[tensor.dtype].itemsize * tensor.elements if tensor.quantization else 0
    for addend in tensor.addends:
        if isinstance(addend, Addend) and (spilled := addend.spilled_elements):
            needed += FLOATS[addend.dtype].wide.itemsize * spilled
    return needed
