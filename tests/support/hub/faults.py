"""Faults on schedule: what a bad network, a busy server and other people at work do to a request."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["status", "drop", "cut", "flip", "intrude"]


@dataclass
class Fault:
    """One thing that goes wrong with the first ``times`` requests whose ``METHOD path`` matches.

    status: answered with ``value`` (429, 500, 503, …) and ``Retry-After: 0``, and not carried out.
    drop: carried out, then the connection is closed without an answer, or before it is carried out if ``value`` is 1.
    cut: carried out, and the answer ends after ``value`` bytes of its body.
    flip: one bit of the body is wrong, at byte ``value`` modulo its length; the size is right.
    intrude: before the request is carried out, ``act`` is called: somebody else commits, tags, merges.
    """

    kind: Kind
    pattern: str = "."
    value: int = 0
    times: int = 1
    act: Callable[[], object] = lambda: None

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
