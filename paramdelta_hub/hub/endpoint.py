"""The address of the Hub: that of huggingface.co, or HF_ENDPOINT."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from paramdelta_hub.errors import OptionError
from paramdelta_hub.fileio.names import without_secrets

__all__ = ["DEFAULT_ENDPOINT", "check_endpoint", "endpoint"]

DEFAULT_ENDPOINT = "https://huggingface.co"


def endpoint() -> str:
    """Return the Hub's address (see HF_ENDPOINT), without a user name and password."""
    check_endpoint()
    from huggingface_hub import constants

    return re.sub(r"//[^/]*@", "//", constants.ENDPOINT)


def check_endpoint() -> None:
    """Check that HF_ENDPOINT is an address. The Hub's client reads it when it is imported, and may not survive another.

    Raises:
        OptionError: it is not.
    """
    text = os.environ.get("HF_ENDPOINT")
    if text is None:
        return
    try:
        url = urlsplit(text)
        is_valid = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        is_valid = False
    if not is_valid:
        raise OptionError(
            f"HF_ENDPOINT is {without_secrets(text)[:200]!r}, which is no address of a server",
            remedy=f"set it to an address such as {DEFAULT_ENDPOINT}, or unset it",
        )
