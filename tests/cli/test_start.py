"""Starting up: a command imports what it needs, and help needs nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable

import pytest

import paramdelta_hub as pd
from paramdelta_hub.cli import main

HEAVY = {"huggingface_hub", "numba", "numpy", "pydantic", "ruamel.yaml", "safetensors", "torch", "tqdm", "zstandard"}


@pytest.mark.parametrize(
    "arguments", [[], *([name] for name in sorted(main.commands))], ids=lambda a: a[0] if a else "all"
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from paramdelta_hub.cli import main
main([*{arguments!r}, "--help"], standalone_mode=False)
print("HEAVY", sorted({HEAVY!r} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout[-200:]
    assert "Usage:" in done.stdout


@pytest.mark.parametrize("operation", [pd.catalog, pd.link, pd.publish, pd.pull, pd.relabel], ids=lambda f: f.__name__)
def test_options_that_are_handed_on_are_the_librarys(operation: Callable[..., object]) -> None:
    command = main.commands[operation.__name__]
    assert command.callback is not None
    own = {"as_json", "quiet", *inspect.signature(command.callback).parameters}
    handed_on = {option.name for option in command.params} - own
    assert handed_on
    assert handed_on <= set(inspect.signature(operation).parameters)


def test_every_public_name_is_there() -> None:
    for name in pd.__all__:
        assert getattr(pd, name) is not None
    assert set(pd._LAZY) <= set(pd.__all__)
    assert dir(pd) == sorted(pd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pd.nothing  # noqa: B018


def test_importing_the_package_is_light() -> None:
    code = f"import sys, paramdelta_hub; print(sorted({HEAVY!r} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
