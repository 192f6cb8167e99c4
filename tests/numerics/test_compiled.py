"""Compiled loops: kept on disk where that can be, and made all the same where not."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from paramdelta_hub.numerics.compiled import compiled


def doubled(values: Any) -> Any:
    return values * 2


def test_a_loop_is_compiled_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    njit = numba.njit

    def without_cache(**options: Any) -> Any:
        tried.append(options.pop("cache", False))
        if tried[-1]:
            raise RuntimeError("cannot cache function: no locator available")
        assert "fastmath" not in options
        assert options["nogil"]
        return njit(**options)

    monkeypatch.setattr(numba, "njit", without_cache)
    assert compiled(doubled)(np.ones(3)).tolist() == [2.0] * 3
    assert tried == [True, False]
