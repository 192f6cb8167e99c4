"""Faults on schedule: what a bad network, a busy server and other people at work do to a request."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "status", "drop", "cut", "flip", "intrude", "mute", "stall", "slow", "slow head", "page", "say", "send on"
]


@dataclass
class Fault:
    """One thing that goes wrong with the first ``times`` requests whose ``METHOD path`` matches.

    status: answered with ``value`` (429, 500, 503, …), ``Retry-After: after`` and ``text``, and not carried out.
    drop: carried out, then the connection is closed without an answer, or before it is carried out if ``value`` is 1.
    cut: carried out, and the answer ends after ``value`` bytes of its body.
    flip: one bit of the body is wrong, at byte ``value`` modulo its length; the size is right.
    mute: read, and never answered.
    stall: carried out, and nothing comes after the answer's head and ``value`` bytes of its body.
    slow: carried out, and the answer's body comes byte by byte, with a pause between them.
    slow head: carried out, and the answer's head comes byte by byte, without end.
    page: answered with a web page, by a server that is no Hub.
    say: answered with ``text``.
    send on: answered with the same path on the server ``text``.
    intrude: before the request is carried out, ``act`` is called: somebody else commits, tags, merges.
    """

    kind: Kind
    pattern: str = "."
    value: int = 0
    times: int = 1
    act: Callable[[], object] = lambda: None
    after: int | str = 0
    text: str = "busy"

    def strikes(self, request: str) -> bool:
        """Whether the request meets this fault; counts it."""
        if self.times and re.search(self.pattern, request):
            self.times -= 1
            return True
        return False


def flipped(body: bytes, at: int) -> bytes:
    """Return ``body`` with one bit changed."""
    if not body:
        return body
    at %= len(body)
    return body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]
