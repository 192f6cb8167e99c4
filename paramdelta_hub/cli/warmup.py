"""``paramdelta warmup``."""

from __future__ import annotations

from paramdelta_hub.cli.common import Console, command

_EXAMPLES = """
paramdelta warmup
"""


@command("tasks.warmup.WarmupReport", examples=_EXAMPLES)
def warmup(console: Console) -> None:
    """Compile all loops now, so that no later run has to wait for it.

    It is done once after an installation, for instance in the image of a container. It takes half a minute. The loops
    are kept beside the package, or in your cache folder if that can't be written; $NUMBA_CACHE_DIR names another one.
    """
    from paramdelta_hub.tasks.warmup import warm_up

    report = warm_up()
    done = f"Compiled all loops in {report.seconds:.0f} s." if report.compiled else "All loops were compiled already."
    console.emit(report, done)
