"""What a plan tells before the work begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paramdelta_hub.application import apply as operation
from paramdelta_hub.application.planning import temporary_bytes
from paramdelta_hub.tasks.plan import Plan
from tests.support.models import apply_in, extract_in, write_model


def test_temporary_files_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in another order wait in wide numbers on disk, and the check of free space knows it."""
    table = '{"model": {"type": "WordLevel", "vocab": {%s}}}'
    words = [f"w{row}" for row in range(64)]
    noise = torch.Generator().manual_seed(0)
    base = torch.randn(64, 16, generator=noise).bfloat16()
    more = torch.cat([base, torch.randn(2, 16, generator=noise).bfloat16()]) * 1.01
    for name, tensor, tokens in (("base", base, words), ("post", more, [*words, "a", "b"])):
        write_model(tmp_path / name, {"model.embed_tokens.weight": tensor}, config={"model_type": "llama"})
        text = table % ", ".join(f'"{token}": {row}' for row, token in enumerate(tokens))
        (tmp_path / name / "tokenizer.json").write_text(text)
    extract_in(tmp_path)
    asked: list[int] = []
    plans: list[Plan] = []

    def keep(plan: Plan, threads: int) -> int:
        plans.append(plan)
        asked.append(temporary_bytes(plan, threads))
        return asked[-1]

    monkeypatch.setattr(operation, "temporary_bytes", keep)
    apply_in(tmp_path, "base", threads=1)
    assert asked == [4 * 66 * 16]
    assert temporary_bytes(plans[0], 7) == asked[0], "no more tasks at a time than there are"
    apply_in(tmp_path, "base", "delta", "kept", companions="target", threads=1)
    assert asked[1] == asked[0]
