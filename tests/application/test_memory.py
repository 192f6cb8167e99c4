"""What a task's thread holds: under the bytes that ``--memory`` counts for it, however many deltas are summed."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.application.apply import Application
from paramdelta_hub.extraction.extract import Extraction
from paramdelta_hub.limits import CHUNK_ELEMENTS, WORKER_BYTES
from paramdelta_hub.numerics import scratch
from paramdelta_hub.tasks.workspace import Workspace
from tests.support.models import write_model

DELTAS = 12
ELEMENTS = CHUNK_ELEMENTS + CHUNK_ELEMENTS // 2


def held(operation: Extraction | Application, out: Path) -> tuple[int, int]:
    """Do all tasks on a thread of their own: its buffers' bytes at the end, and the peak of all memory taken."""
    found: list[int] = []

    def work() -> None:
        with Workspace(out) as workspace:
            workspace.resume(operation.plan, lambda: operation.prepare(workspace, 1))
            tracemalloc.start()
            for task in operation.plan.tasks:
                task.run(workspace.work_dir, lambda _: None)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        found.extend([sum(buffer.nbytes for buffer in scratch._threads.buffers.values()), peak])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    taken, peak = found
    return taken, peak


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_a_thread_holds_no_more_for_many_deltas(dtype: torch.dtype, tmp_path: Path) -> None:
    """Deltas of random bits, half of them far apart: what no alphabet has is much, and so are exceptions."""
    noise = torch.Generator().manual_seed(0)
    base = torch.randn(ELEMENTS, generator=noise)
    far = torch.exp(8 * torch.randn(ELEMENTS, generator=noise))
    for model, scale in (("base", 0.0), ("post", 1.0), ("target", 0.01)):
        values = base + scale * far * torch.randn(ELEMENTS, generator=noise)
        if model == "post":
            values[::50] = 0.9e-30 * base[::50]
        write_model(tmp_path / model, {"w": values.to(dtype)})
    models = [str(tmp_path / model) for model in ("base", "post", "target")]
    taken, peak = held(Extraction(pd.ExtractRequest(models[0], models[1])), tmp_path / "extracted")
    assert max(taken, peak) < WORKER_BYTES
    pd.extract(models[0], models[1], tmp_path / "delta")
    [record] = pd.inspect(tmp_path / "delta").manifest.tensors
    assert record.exceptions > ELEMENTS // 100
    assert record.nbytes > 0.9 * record.elements * record.itemsize
    delta = str(tmp_path / "delta")
    summed = {}
    for count in (1, 2, DELTAS):
        request = pd.ApplyRequest(models[2], tuple((delta, 1.0 / (1 + n)) for n in range(count)), force=True)
        summed[count], peak = held(Application(request, tmp_path / f"{count}"), tmp_path / f"{count}")
        assert max(summed[count], peak) < WORKER_BYTES
    assert summed[DELTAS] == summed[2]
    assert summed[1] <= summed[2] <= summed[1] + CHUNK_ELEMENTS * np.dtype(np.float64).itemsize
