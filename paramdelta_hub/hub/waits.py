"""How long a busy server asks us to wait."""

from __future__ import annotations

import contextlib
import re
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

__all__ = ["asked_wait"]

_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
_RESET = re.compile(r"\bt\s*=\s*([0-9]+)")
"""The seconds until a limit ends, in the header ``RateLimit`` of the Hub."""
_YEAR = 365 * 86400.0


def asked_wait(response: Any) -> float | None:
    """Return for how many seconds a server wants us to wait, if it says so: at most a year, and none is less than 0."""
    after, limit = str(response.headers.get("Retry-After", "")).strip(), str(response.headers.get("RateLimit", ""))
    if _SECONDS.fullmatch(after):
        return min(float(after), _YEAR)
    with contextlib.suppress(ValueError, TypeError):  # it is no date
        until = parsedate_to_datetime(after)
        try:  # by the server's clock, if it says what that is
            now = parsedate_to_datetime(str(response.headers.get("Date", "")))
        except (ValueError, TypeError):
            now = datetime.now(timezone.utc)
        return min(max((until - now).total_seconds(), 0.0), _YEAR)
    found = _RESET.search(limit) if response.status_code == 429 else None
    return min(float(found[1]), _YEAR) if found else None
