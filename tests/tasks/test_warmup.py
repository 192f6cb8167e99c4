"""Loops are compiled once: by a command, or by the first run that needs them, which says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Family


@pytest.mark.slow
def test_the_first_run_says_that_it_compiles_and_the_next_does_not(family: Family, tmp_path: Path) -> None:
    def extract(out: str) -> str:
        arguments = ["extract", str(family.base), str(family.post), "-o", str(tmp_path / out)]
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "paramdelta_hub", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stderr

    assert "Compiling loops, once after installation; `paramdelta warmup`" in extract("first")
    assert "Compiling" not in extract("second")


def test_after_warmup_nothing_is_left_to_compile() -> None:
    command = [sys.executable, "-m", "paramdelta_hub", "warmup"]
    subprocess.run(command, check=True)
    assert subprocess.check_output(command, text=True) == "All loops were compiled already.\n"
