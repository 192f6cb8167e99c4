"""The Hub's client, created on demand."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from paramdelta_hub.__about__ import __version__
from paramdelta_hub.hub.endpoint import check_endpoint

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["connect", "is_offline"]

_is_prepared = False


def connect() -> HfApi:
    """Return the Hub's client. It honors HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE.

    Every request that the client makes has a time limit; see :mod:`.patience`. So call this before any function of
    ``huggingface_hub``.

    The import takes a third of a second, and most commands don't need it. So it is done here.
    """
    check_endpoint()
    from huggingface_hub import HfApi

    global _is_prepared
    if not _is_prepared:
        _prepare()
        _is_prepared = True
    return HfApi(library_name="paramdelta-hub", library_version=__version__)


def _prepare() -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from paramdelta_hub.hub.patience import install

    install()

    if not sys.stderr.isatty():
        disable_progress_bars()
    # A package's files may only be links to the blobs of its own repository (see fileio.paths), not to blobs that
    # all repositories share. The client reads this setting during a download. Older releases ignore it.
    constants.HF_HUB_DISABLE_SHARED_BLOBS = True


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set, so that only the cache is used."""
    check_endpoint()
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
