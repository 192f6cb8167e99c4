"""HTML that strangers' words can be put into: everything is escaped, unless it was made here.

There is no template language: a page is made of calls, and a text that is no :class:`Markup` can't become one by
accident.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from html import escape
from importlib import resources
from typing import TypeAlias

from paramdelta_hub.fileio.seal import is_sealed, seal

__all__ = ["Markup", "Piece", "element", "figures", "is_page", "join", "link", "name", "page", "table"]

_BEGIN = b"<!doctype html>\n"
_SHOWN = 120
"""Letters of a name that are shown: the longest in use have about as many."""
_VOID = {"input", "link", "meta"}
_ADDRESS = re.compile(r"https://huggingface\.co/[A-Za-z0-9._/@+-]+|(?:\.\./)*[A-Za-z0-9][A-Za-z0-9._/+-]*|#[a-z0-9-]+")


class Markup(str):
    """HTML, as opposed to text."""

    __slots__ = ()


Piece: TypeAlias = "str | Iterable[str] | None"
"""A text, which is escaped; markup, which is not; several of them; or nothing."""


def element(tag: str, *pieces: Piece, **attributes: str | bool | None) -> Markup:
    """Return an element; attributes that are None or False are left out, True stands alone.

    A trailing underscore of an attribute's name is dropped, the others become hyphens: ``class_``, ``aria_label``.
    """
    shown = "".join(
        f" {_attribute(key)}" if value is True else f' {_attribute(key)}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    closing = "" if tag in _VOID else f"</{tag}>"
    return Markup(f"<{tag}{shown}>{join(*pieces)}{closing}")


def join(*pieces: Piece) -> Markup:
    """Return pieces one after another, escaped where they are text."""
    flat: list[str] = []
    for piece in pieces:
        for part in (piece,) if isinstance(piece, str) else piece or ():
            flat.append(part if isinstance(part, Markup) else escape(part))
    return Markup("".join(flat))


def name(text: str) -> Markup:
    """Return a stranger's name, cut where it is over-long; its direction can't reorder what stands around it."""
    return element("bdi", text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…", class_="name")


def link(address: str, *pieces: Piece) -> Markup:
    """Return a link to the Hub or to another page of the same site; any other address is a mistake of ours."""
    if not _ADDRESS.fullmatch(address):
        raise ValueError(f"no address of ours: {address!r}")
    return element("a", *pieces, href=address)


def table(heads: Iterable[Piece], rows: Iterable[Iterable[Piece]], caption: str, *, numbers: int = 0) -> Markup:
    """Return a table that scrolls by itself where it is too wide; its last ``numbers`` columns are figures.

    The first column names the row.
    """
    heads = list(heads)
    first = len(heads) - numbers

    def cell(tag: str, column: int, content: Piece, scope: str | None = None) -> Markup:
        return element(tag, content, class_="number" if column >= first else None, scope=scope)

    head = element("tr", (cell("th", column, content, "col") for column, content in enumerate(heads)))
    body = [
        element("tr", (cell("td" if i else "th", i, content, None if i else "row") for i, content in enumerate(row)))
        for row in rows
    ]
    inner = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", body),
    )
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def figures(items: Iterable[tuple[str, Piece, Piece]]) -> Markup:
    """Return the figures at the top of a page: (what, the figure, what more there is to say of it)."""
    return element(
        "dl",
        (
            element("div", element("dt", what), element("dd", figure), element("dd", more, class_="more"))
            for what, figure, more in items
        ),
        class_="figures",
    )


def page(title: str, *body: Piece, script: str | None = None) -> bytes:
    """Return a whole page in one file, which asks for nothing from anywhere and whose policy forbids that it does.

    Only the very style and script that are in it are allowed, by their sha256; no image, font, frame, form or request.
    """
    style = resources.files(__package__).joinpath("style.css").read_text("utf-8")
    policy = [
        "default-src 'none'",
        f"style-src '{_hash(style)}'",
        f"script-src '{_hash(script)}'" if script else "script-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content="; ".join(policy)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(style)),
    )
    end = element("script", Markup(script)) if script else None
    return seal(_BEGIN + f"{element('html', head, element('body', *body, end), lang='en')}\n".encode())


def is_page(content: bytes) -> bool:
    """Whether a file is a page that :func:`page` made, not changed by a byte."""
    return content.startswith(_BEGIN) and is_sealed(content)


def _attribute(key: str) -> str:
    return key.removesuffix("_").replace("_", "-")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
