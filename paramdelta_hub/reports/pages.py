"""HTML pages, rendered from the templates of this package. Every value is escaped.

No other templates are ever rendered. Chat templates come from strangers: they are copied, never run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING, Any

from paramdelta_hub.__about__ import __version__
from paramdelta_hub.fileio.digests import is_sealed, seal
from paramdelta_hub.fileio.names import human_bytes
from paramdelta_hub.package.manifest import Source
from paramdelta_hub.registry.cards.changes import percent
from paramdelta_hub.registry.cards.markdown import hub_address, hub_id

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["LISTED", "environment", "figure", "is_page", "render", "share"]

LISTED = 40
"""The maximum number of rows in a table of tensors or parts. The manifest has all of them."""

_BEGIN = b"<!doctype html>\n"
_NAME_LENGTH = 120
"""The number of characters shown of a name. The longest names in use have about as many."""
_ON_THE_HUB = re.compile(r"[A-Za-z0-9._/@+-]+")
_ON_THE_SITE = re.compile(r"(?:\.\./)*[A-Za-z0-9][A-Za-z0-9._/+-]*|#[a-z0-9-]+")


def render(template: str, title: str, *, script: str | None = None, **values: Any) -> bytes:
    """Return a self-contained page with a seal. Its content security policy forbids every request.

    The policy allows only the style and the script in the page, by their sha256. ``script`` is a file of this package.
    """
    style, code = _read("style.css"), _read(script) if script else ""
    policy = [
        "default-src 'none'",
        f"style-src '{_hash(style)}'",
        f"script-src '{_hash(code)}'" if code else "script-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    frame = {"title": title, "style": style, "script": code, "policy": "; ".join(policy)}
    return seal(environment().get_template(template).render(**frame, **values).encode())


def is_page(content: bytes) -> bool:
    """Whether a file is a page from :func:`render` that was not edited."""
    return content.startswith(_BEGIN) and is_sealed(content)


@functools.cache
def environment() -> Environment:
    """Return the Jinja environment of our templates. It escapes every value; an unknown name is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # only pages need it

    made = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"address": _address, "bytes": human_bytes, "figure": figure, "percent": percent, "short": _short}
    made.globals |= {"hub_address": _hub_address, "listed": LISTED, "share": share, "package_version": __version__}
    return made


def _address(address: str) -> str:
    """Return the address if it is on the Hub or within the site. Another one would be a bug of ours."""
    hub = hub_address("")
    pattern = _ON_THE_HUB if address.startswith(hub) else _ON_THE_SITE
    if not pattern.fullmatch(address.removeprefix(hub)):
        raise ValueError(f"not an allowed address: {address!r}")
    return address


def _hub_address(source: Source) -> str | None:
    """Return the address of a model's commit, or None if the model is not on the Hub."""
    if hub_id(source.name, source.commit) is None:
        return None
    return hub_address(f"{source.name}/tree/{source.commit}")


def figure(value: float | None, form: str) -> str:
    """Return a number in Python's format ``form``, or a dash if there is none."""
    return "–" if value is None else format(value, form)


def share(part: int, whole: int) -> str:
    """Return a share in percent. It is 0% or 100% only if that is exact."""
    if part in (0, whole):
        return "0%" if not part else "100%"
    share = part / whole
    return "< 0.1%" if share < 0.0005 else "> 99.9%" if share > 0.9995 else f"{share:.1%}"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[:_NAME_LENGTH]}…"


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
