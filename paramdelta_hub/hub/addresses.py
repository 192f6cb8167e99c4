"""Addresses of repositories on the Hub, as people paste them: from a browser, or in the form of ``hf://``."""

from __future__ import annotations

import contextlib
import os
import re
from urllib.parse import unquote, urlsplit

from paramdelta_hub.errors import OptionError

__all__ = ["parse_address"]

_URL = re.compile(r"(hf|https?)://(.*)", re.DOTALL | re.IGNORECASE)
_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
_OTHERS = {"datasets", "spaces", "buckets", "kernels", "collections", "papers"}
_PAGES = {"tree", "blob", "resolve", "raw", "commit"}
"""Pages of a repository whose address goes on with a revision."""
_FORM = "write org/name, or org/name@REVISION"


def parse_address(text: str) -> tuple[str, str | None] | None:
    """Return the repository and the revision of an address on the Hub; None if it is none.

    ``https://huggingface.co/org/name[/tree/REVISION]``, the same at HF_ENDPOINT, and ``hf://[models/]org/name[@REVISION]``
    are understood.

    Raises:
        OptionError: an address on the Hub, but of something else than a model repository.
    """
    if not (found := _URL.fullmatch(text)):
        return None
    if found[1].lower() == "hf":
        path, at, revision = found[2].partition("@")
        parts = [part for part in path.removeprefix("models/").split("/") if part]
        _check(parts, text)
        if len(parts) != 2 or (at and not revision):
            raise OptionError(
                "not a repository on the Hub", where=text, remedy="write hf://org/name or hf://org/name@1.2.0"
            )
        return "/".join(parts), revision or None
    url, own = urlsplit(text), ""
    with contextlib.suppress(ValueError):  # it is told when the Hub is asked
        own = urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname or ""
    if (url.hostname or "") not in {*_HOSTS, own}:
        return None
    parts = [unquote(part) for part in url.path.split("/") if part]
    _check(parts, text)
    if len(parts) == 2:
        return f"{parts[0]}/{parts[1]}", None
    if len(parts) > 3 and parts[2] in _PAGES:
        return f"{parts[0]}/{parts[1]}", parts[3]
    raise OptionError("not the address of a repository on the Hub", where=text, remedy=_FORM)


def _check(parts: list[str], text: str) -> None:
    if parts and parts[0] in _OTHERS:
        raise OptionError(
            f"an address of {parts[0]} on the Hub; models and deltas are model repositories", where=text, remedy=_FORM
        )
