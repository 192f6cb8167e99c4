"""The Hub's client, held at arm's length: made on demand, and everything it raises told in our words."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from paramdelta_hub.__about__ import __version__
from paramdelta_hub.errors import ParamdeltaError, RegistryError
from paramdelta_hub.format.durable import storage_error

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["MissingError", "StaleError", "asking", "connect", "is_offline"]

_OF_THE_DISK = {errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS}
_AGAIN = "run the command again: it goes on where it stopped"
_LOGIN = "set HF_TOKEN or run `hf auth login`"
_STATUSES: dict[int, tuple[str, str]] = {
    401: ("the Hub does not accept the token, or asks for one", f"{_LOGIN}; a token can expire or be revoked"),
    402: ("the Hub asks for a payment", "see the billing settings of the account on the Hub"),
    403: ("the Hub does not allow this", "use a token with the right to write here, or propose it: --create-pr"),
    404: ("the Hub has no such thing", "check the spelling; `pd-versions` lists what is there"),
    408: ("the Hub took too long to answer", _AGAIN),
    413: ("too large for the Hub", "extract again with smaller shards"),
    429: ("too many requests, says the Hub", "wait a while, then run the command again; a token allows more"),
}  # fmt: skip
"""What an HTTP status means to whoever ran the command, and what helps."""


class MissingError(RegistryError):
    """The Hub has no such repository, or none that this token may see."""


class StaleError(RegistryError):
    """Somebody else was faster: the commit that ours was made on is no longer the newest, or the tag is there."""


def connect() -> HfApi:
    """Return the Hub's client; HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are honoured.

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


@contextmanager
def asking(where: str) -> Iterator[None]:
    """Tell whatever the client raises within as a RegistryError about ``where``, with what helps.

    Wrap single calls of the client and nothing of ours: a client speaks to a foreign server through several libraries,
    and what they raise on a broken answer is not listed anywhere.

    Raises:
        MissingError: no such repository.
        StaleError: 409 or 412.
        StorageError: the disk is full or fails, where the client keeps what it gets.
        RegistryError: anything else.
    """
    try:
        yield
    except ParamdeltaError:
        raise
    except Exception as problem:
        root = list(_chain(problem))[-1]
        if isinstance(root, OSError) and root.errno in _OF_THE_DISK:
            raise storage_error("keeping what the Hub sent", root) from problem
        raise _translate(problem, where) from problem


def _translate(problem: Exception, where: str) -> RegistryError:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # An answer to HEAD hides as the cause of "not in the cache", a failed upload as that of "error while uploading".
    status = _status(problem)
    kinds: tuple[tuple[type[Exception], type[RegistryError], str, str], ...] = (
        (GatedRepoError, RegistryError, "a gated repository", f"accept its terms on the Hub, then {_LOGIN}"),
        (RevisionNotFoundError, RegistryError, "no such version, tag or commit", "`pd-versions` lists what is there"),
        (
            RepositoryNotFoundError,
            MissingError,
            "no such repository on the Hub, or a private one",
            f"check the spelling, or {_LOGIN}",
        ),
        (LocalTokenNotFoundError, RegistryError, "the Hub asks for a token, and there is none", _LOGIN),
        (OfflineModeIsEnabled, RegistryError, "HF_HUB_OFFLINE is set, and this needs the Hub", "unset HF_HUB_OFFLINE"),
    )
    for raised, kind, what, remedy in kinds:
        if any(isinstance(link, raised) for link in _chain(problem)):
            return kind(what, where=where, remedy=remedy)
    if status in (409, 412):
        return StaleError("somebody else was faster", where=where, remedy="run the command again")
    if status in _STATUSES:
        what, remedy = _STATUSES[status]
        return RegistryError(f"{what} ({status})", where=where, remedy=remedy + _wait(problem))
    if status is not None:
        what = "the Hub has trouble" if status >= 500 else "the Hub refuses"
        return RegistryError(f"{what} ({status}: {_line(problem)})", where=where, remedy=_AGAIN)
    if isinstance(problem, LocalEntryNotFoundError):
        return RegistryError("the Hub can't be reached, and the cache has not all of it", where=where, remedy=_AGAIN)
    root = list(_chain(problem))[-1]
    what = f"talking to the Hub failed ({type(root).__name__}: {_line(root)})"
    return RegistryError(what, where=where, remedy=f"check the connection, then {_AGAIN}")


def _chain(problem: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):
        if problem is None:
            return
        yield problem
        problem = problem.__cause__


def _response(problem: Exception) -> Any:
    return next((found for link in _chain(problem) if (found := getattr(link, "response", None)) is not None), None)


def _status(problem: Exception) -> int | None:
    status = getattr(_response(problem), "status_code", None)
    return status if isinstance(status, int) else None


def _wait(problem: Exception) -> str:
    seconds = str(getattr(_response(problem), "headers", {}).get("Retry-After", ""))
    return f" (the Hub asks for {seconds} s)" if seconds.isdigit() and seconds != "0" else ""


def _line(problem: BaseException) -> str:
    """Return the first line of a foreign message, short, and with nothing in it that moves a cursor."""
    text = next((line.strip() for line in str(problem).splitlines() if line.strip()), "no reason given")
    return "".join(character if character.isprintable() else "?" for character in text)[:200]
