"""``paramdelta`` in a process of its own that has nothing to import: it is forked from one that has imported it all.

``python -m tests.support.paramdelta`` reads one command a line and answers with its exit status; :func:`paramdelta` is
the other end. It must have no threads when it forks, and must not import ``huggingface_hub``, which reads its
environment when it is imported. Other tests start ``python -m paramdelta_hub`` and the console scripts themselves.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.hub.client import IMPORTED_BY_THE_HUBS_CLIENT
from tests.support.piped import Piped


@functools.cache
def _server() -> Piped:
    """Return this process's own; it ends with it."""
    started = Piped("tests.support.paramdelta")
    atexit.register(started.close)
    return started


def paramdelta(
    arguments: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with all that it prints captured."""
    command = ["paramdelta", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        request = {"command": command, "env": dict(env), "cwd": os.fspath(cwd or Path.cwd())}
        (status,) = _server().send({**request, "printed": [str(path) for path in printed]})
        return subprocess.CompletedProcess(command, status, *(path.read_bytes().decode() for path in printed))


def child(request: dict[str, Any]) -> None:
    """Be the command."""
    status: Any = 1
    try:
        sources = [os.open(os.devnull, os.O_RDONLY)]
        sources += [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for path in request["printed"]]
        for descriptor, source in enumerate(sources):
            os.dup2(source, descriptor)
            os.close(source)
        sys.stdin = open(0)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = request["command"]

        from paramdelta_hub.cli import main

        main(prog_name="paramdelta")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    """Answer requests until there are no more."""
    for name in IMPORTED_BY_THE_HUBS_CLIENT:
        with suppress(ImportError):
            importlib.import_module(name)

    from paramdelta_hub.application import apply  # noqa: F401
    from paramdelta_hub.extraction import extract, relabel  # noqa: F401
    from paramdelta_hub.registry import api, publish  # noqa: F401
    from paramdelta_hub.registry.cards import merge  # noqa: F401
    from paramdelta_hub.registry.hub import links  # noqa: F401
    from paramdelta_hub.reports import inspect  # noqa: F401
    from paramdelta_hub.tasks.warmup import warm_up
    from paramdelta_hub.verification import package  # noqa: F401

    assert "huggingface_hub" not in sys.modules
    assert threading.active_count() == 1
    warm = False
    for line in sys.stdin:
        request = json.loads(line)
        if not warm and request["command"][1:2] in (["extract"], ["apply"], ["verify"]):
            warm_up()  # reads the compiled loops, which takes longer than what they do here
            warm = True
        gc.freeze()  # or collections in children copy the pages that all objects lie on
        pid = os.fork()
        if not pid:
            child(request)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]), flush=True)


if __name__ == "__main__":
    serve()
