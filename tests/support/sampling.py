"""Tests that try many points of one kind: some of them in every run, all of them in an exhaustive one."""

from __future__ import annotations

import pytest

__all__ = ["sampled"]


def sampled(name: str, some: int, every: int) -> pytest.MarkDecorator:
    """Run a test with ``name=some``; exhaustive runs (``-m exhaustive``) run it with ``name=every``."""
    thorough = pytest.param(every, marks=[pytest.mark.slow, pytest.mark.exhaustive])
    return pytest.mark.parametrize(name, [some, thorough])
