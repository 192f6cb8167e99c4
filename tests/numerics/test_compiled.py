"""Compiled loops: kept on disk where that can be, and made all the same where not."""

from __future__ import annotations

import importlib.util
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest
from numba import types

from paramdelta_hub.numerics import compiled as compiled_loops
from paramdelta_hub.numerics.compiled import by_type, compiled, when_compiling

PACKAGE = Path(compiled_loops.__file__).parent.parent


def doubled(values: Any) -> Any:
    return values * 2


def test_a_loop_is_compiled_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # in the way: rights would not stop root
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert compiled_loops._cache_folder() is None
    monkeypatch.setattr(compiled_loops, "_FOLDER", None)
    assert compiled(doubled)(np.ones(3)).tolist() == [2.0] * 3


def loaded(path: Path) -> ModuleType:
    """Import a file, as another process would."""
    spec = importlib.util.spec_from_file_location("loops_for_a_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def loops(tmp_path: Path) -> Path:
    """A module with a loop that was never compiled."""
    path = tmp_path / "loops_for_a_test.py"
    path.write_text(
        "from paramdelta_hub.numerics.compiled import compiled\n@compiled\ndef twice(values):\n    return values * 2\n"
    )
    return path


def test_the_first_loop_that_is_compiled_is_told_of_once(loops: Path) -> None:
    told = []
    module = loaded(loops)
    with when_compiling(lambda: told.append("compiling")):
        assert told == []
        assert module.twice(3) == 6
        assert told == ["compiling"]
        assert module.twice(3.5) == 7.0
    assert module.twice(np.ones(2)).tolist() == [2.0, 2.0], "compiled once more, outside of the block"
    assert told == ["compiling"]


def test_a_loop_that_is_there_or_on_disk_is_not_told_of(loops: Path) -> None:
    told = []
    module = loaded(loops)
    assert module.twice(3) == 6
    with when_compiling(lambda: told.append("compiling")):
        assert module.twice(4) == 8
        again = loaded(loops)
        assert again.twice is not module.twice
        assert again.twice(5) == 10
    assert again.twice.stats.cache_hits
    assert told == []


def test_other_threads_are_told_of(loops: Path) -> None:
    told = []
    thread = threading.Thread(target=loaded(loops).twice, args=(3,))
    with when_compiling(lambda: told.append(threading.current_thread())):
        thread.start()
        thread.join()
    assert told == [thread]


def shared_out(value: Any, parts: Any) -> Any:
    """Return what the type of the value says."""
    raise NotImplementedError


@by_type(shared_out)
def _shares(value: Any, parts: Any) -> Callable[[Any, Any], Any]:
    return {types.int64: _of_whole, types.float64: _of_any}[value]


def _of_whole(value: Any, parts: Any) -> Any:
    return value // parts


def _of_any(value: Any, parts: Any) -> Any:
    return value / parts


@numba.njit(error_model="numpy")
def share(value: Any, parts: Any) -> Any:
    return shared_out(value, parts)


def test_a_loop_is_chosen_by_the_type_of_its_argument() -> None:
    assert share(7, 2) == 3
    assert share(7.0, 2) == 3.5
    assert share(7.0, 0) == np.inf, "arithmetic is IEEE 754's there, too"
    with pytest.raises(KeyError):  # none is right for it
        share(7j, 2)
    with pytest.raises(NotImplementedError):
        shared_out(7, 2)


def test_the_users_cache_serves_where_the_package_can_not_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(PACKAGE, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "copy" / "__pycache__").touch()
    monkeypatch.setattr(compiled_loops, "__file__", str(tmp_path / "copy" / "numerics" / "compiled.py"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = compiled_loops._cache_folder()
    assert folder is not None
    assert folder.parent == tmp_path / "cache" / "paramdelta-hub"
    monkeypatch.setattr(compiled_loops, "_FOLDER", folder)
    before = numba.config.CACHE_DIR
    assert compiled(doubled)(np.ones(3)).tolist() == [2.0] * 3
    assert list(folder.rglob("*.nbi"))
    assert before == numba.config.CACHE_DIR, "what others compile is kept where they want it"


def test_loops_of_other_sources_are_kept_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    shutil.copytree(PACKAGE, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compiled_loops, "__file__", str(tmp_path / "copy" / "numerics" / "compiled.py"))
    first = compiled_loops._cache_folder()
    with (tmp_path / "copy" / "codecs" / "tans" / "coder.py").open("a") as file:
        file.write("# another version\n")
    second = compiled_loops._cache_folder()
    assert first is not None
    assert second is not None
    assert first.parent == second.parent == tmp_path
    assert first != second
