"""Files on a disk: ``scripts/test`` may have the others in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder where the system has its temporary files."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made).resolve()
