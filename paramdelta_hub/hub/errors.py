"""Whatever the Hub's client raises, told in our words: one translator for models and for the registry."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paramdelta_hub.errors import CheckpointError, OptionError, ParamdeltaError, RegistryError, StorageError
from paramdelta_hub.fileio.durable import storage_error

__all__ = ["MissingError", "StaleError", "endpoint", "translate_hub_errors"]

_OF_THE_DISK = {errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS}
_OF_A_FILE = {errno.EACCES, errno.EPERM}
"""Of the disk too, but only with a file's name: a socket can be refused as well."""
_NATIVE = re.compile(r"\(os error (\d+)\)")
"""How hf-xet, which is compiled, tells what the system said."""
_AGAIN = "run the command again"
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
_FOR_MODELS: dict[int, tuple[str, str]] = {
    403: ("the Hub does not allow this", f"use a token with the right to read it: {_LOGIN}"),
    404: ("the Hub has no such thing", "check the spelling"),
}
"""Where a model is read, and not a delta published."""


class MissingError(RegistryError):
    """The Hub has no such repository, or none that this token may see."""


class StaleError(RegistryError):
    """Somebody else was faster: the commit that ours was made on is no longer the newest, or the tag is there."""


def endpoint() -> str:
    """Return the Hub's address, which HF_ENDPOINT may name, without a name and a password in it."""
    from huggingface_hub import constants

    return re.sub(r"//[^/]*@", "//", constants.ENDPOINT)


@contextmanager
def translate_hub_errors(
    where: str, kind: type[CheckpointError] | type[RegistryError] = RegistryError
) -> Iterator[None]:
    """Tell whatever the client raises within as an error about ``where``, with what helps.

    Wrap single calls of the client and nothing of ours: a client speaks to a foreign server through several libraries,
    and what they raise on a broken answer is not listed anywhere.

    Args:
        where: the repository, perhaps with a revision: ``org/name@1.0.0``.
        kind: what to raise: CheckpointError where a model is wanted, RegistryError where a delta is.

    Raises:
        StorageError: the disk is full or fails, where the client keeps what it gets.
        OptionError: the Hub takes no such name of a repository.
        MissingError: no such repository, where ``kind`` is RegistryError.
        StaleError: 409 or 412, likewise.
        ParamdeltaError: (as ``kind``) anything else.
    """
    try:
        yield
    except ParamdeltaError:
        raise
    except Exception as problem:
        raise _of_the_disk(problem) or _translate(problem, where, kind) from problem


def _of_the_disk(problem: Exception) -> StorageError | None:
    """Return what the disk did, wherever in the chain of causes it hides."""
    for link in _chain(problem, contexts=True):
        if isinstance(link, OSError) and (
            link.errno in _OF_THE_DISK or (link.errno in _OF_A_FILE and link.filename is not None)
        ):
            return _full(link)
        if found := _NATIVE.search(str(link)):
            number = int(found[1])
            if number in _OF_THE_DISK:
                return _full(OSError(number, os.strerror(number)))
    return None


def _full(error: OSError) -> StorageError:
    told = storage_error("keeping what the Hub sent", error)
    told.remedy = f"{told.remedy}; HF_HOME can name a folder on another disk"
    return told


def _is_name(repository: str) -> bool:
    """Whether the client itself takes a name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        return False
    return True


def _translate(
    problem: Exception, where: str, kind: type[CheckpointError] | type[RegistryError]
) -> CheckpointError | RegistryError | OptionError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def is_a(raised: type[Exception]) -> bool:
        return any(isinstance(link, raised) for link in _chain(problem))

    of_model = issubclass(kind, CheckpointError)
    repository = where.partition("@")[0]
    # An answer to HEAD hides as the cause of "not in the cache", a failed upload as that of "error while uploading".
    status = _status(problem)
    if is_a(HFValidationError) and not _is_name(repository):  # else it is the server that named what can't be
        return OptionError(f"not a repository id: {_line(problem)}", where=where, remedy="give org/name")
    if is_a(GatedRepoError):
        page = f"{endpoint()}/{repository}" if "/" in repository else "the Hub"
        return kind("a gated repository", where=where, remedy=f"accept its terms on {page}, then {_LOGIN}")
    if is_a(RevisionNotFoundError):
        what = "the repository has no such revision" if of_model else "no such version, tag or commit"
        remedy = "check the spelling" if of_model else "`pd-versions` lists what is there"
        return kind(what, where=where, remedy=remedy)
    if is_a(RepositoryNotFoundError):
        remedy = f"check the spelling; for a private repository {_LOGIN}"
        if of_model:
            return kind("no such folder here and no such repository on the Hub", where=where, remedy=remedy)
        return MissingError("no such repository on the Hub, or a private one", where=where, remedy=remedy)
    if is_a(LocalTokenNotFoundError):
        return kind("the Hub asks for a token, and there is none", where=where, remedy=_LOGIN)
    if is_a(OfflineModeIsEnabled):
        if of_model:
            what = "no such folder here, and not in the Hub's cache; HF_HUB_OFFLINE is set"
            return kind(what, where=where, remedy="check the path, or unset HF_HUB_OFFLINE")
        what = "HF_HUB_OFFLINE is set, and this needs the Hub"
        return kind(what, where=where, remedy="unset HF_HUB_OFFLINE")
    if status in (409, 412):
        return (kind if of_model else StaleError)("somebody else was faster", where=where, remedy=_AGAIN)
    if found := (_FOR_MODELS.get(status or 0) if of_model else None) or _STATUSES.get(status or 0):
        return kind(f"{found[0]} ({status})", where=where, remedy=found[1] + _wait(problem))
    if status is not None:
        what = "the Hub has trouble" if status >= 500 else "the Hub refuses"
        return kind(f"{what} ({status}: {_line(problem)})", where=where, remedy=_AGAIN)
    if isinstance(problem, LocalEntryNotFoundError):
        what = "the Hub can't be reached, and the cache has not all of it"
        if of_model:
            what = f"no such folder here, {what}"
        return kind(what, where=where, remedy=f"check the spelling and the connection, then {_AGAIN}")
    root = list(_chain(problem))[-1]
    what = f"talking to the Hub failed ({type(root).__name__}: {_line(root)})"
    return kind(what, where=where, remedy=f"check the connection, then {_AGAIN}")


def _chain(problem: BaseException | None, *, contexts: bool = False) -> Iterator[BaseException]:
    """Yield an error and its causes; with ``contexts`` also what it was raised in the middle of."""
    for _ in range(16):
        if problem is None:
            return
        yield problem
        around = None if problem.__suppress_context__ or not contexts else problem.__context__
        problem = problem.__cause__ or around


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
