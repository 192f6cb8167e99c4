"""The Hub's client, made on demand."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from paramdelta_hub.__about__ import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["connect", "is_offline"]


def connect() -> HfApi:
    """Return the Hub's client; HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are honored.

    Imported here and not above: it takes a third of a second, and most commands have no use for it.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    # A package's files may be links into its own repository's blobs only (see format.links), and not into a store that
    # all repositories share. The client reads this as it downloads; older ones don't know it.
    constants.HF_HUB_DISABLE_SHARED_BLOBS = True
    return HfApi(library_name="paramdelta-hub", library_version=__version__)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set: then only the cache is asked."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
