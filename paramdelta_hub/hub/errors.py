"""Translating the errors of the Hub's client into ours: one translator for models and for the registry."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from paramdelta_hub.errors import CheckpointError, OptionError, ParamdeltaError, RegistryError, StorageError
from paramdelta_hub.fileio.durable import storage_error
from paramdelta_hub.fileio.names import without_secrets
from paramdelta_hub.hub.endpoint import DEFAULT_ENDPOINT, endpoint
from paramdelta_hub.hub.waits import asked_wait

__all__ = ["MissingError", "NotFoundError", "StaleError", "translate_hub_errors"]

_DISK_ERRNOS = {errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS}
_NO_ANSWERS_OF_A_HUB = (ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What the client raises if it can't read an answer."""
_FILE_ERRNOS = {errno.EACCES, errno.EPERM}
"""Errors of the disk too, but only with a file name: a socket can raise them as well."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""The form in which hf-xet, which is written in Rust, reports errors of the system."""
_RETRY = "run the command again"
_LOGIN = "set HF_TOKEN or run `hf auth login`"
_STATUS_MESSAGES: dict[int, tuple[str, str]] = {
    401: ("the Hub does not accept the token, or needs one", f"{_LOGIN}; a token can expire or be revoked"),
    402: ("the Hub requires a payment", "see the billing settings of the account on the Hub"),
    403: ("the Hub does not allow this", "use a token with write access, or open a pull request with --create-pr"),
    404: ("the Hub did not find it", "check the spelling; `pd-versions` lists what is there"),
    408: ("the Hub took too long to answer", _RETRY),
    413: ("a file is too large for the Hub", "publish it to a folder or a bucket instead"),
    400: ("the Hub refuses this", "change what it names, then run the command again"),
    429: ("too many requests to the Hub", "wait a while, then run the command again; with a token the limit is higher"),
}  # fmt: skip
"""The message and the remedy for each HTTP status."""
_RIGHTS = re.compile(r"permission|right|authori|token|scope|read-?only", re.IGNORECASE)
"""Words of the Hub by which a 403 is about the token. Others are about a quota, a protected branch or a setting."""
_STATUS_MESSAGES_FOR_MODELS: dict[int, tuple[str, str]] = {
    401: _STATUS_MESSAGES[401],
    403: ("the Hub does not allow this", f"use a token with read access: {_LOGIN}"),
    404: ("the Hub did not find it", "check the spelling"),
}
"""What is about the model, where one is read. All other answers are about the server."""


class NotFoundError(RegistryError):
    """The Hub has no such thing: status 404."""


class MissingError(NotFoundError):
    """The Hub has no such repository, or this token may not see it."""


class StaleError(RegistryError):
    """Somebody else was faster: the parent commit is no longer the newest, or the tag exists."""


@contextmanager
def translate_hub_errors(
    where: str, kind: type[CheckpointError] | type[RegistryError] = RegistryError
) -> Iterator[None]:
    """Turn every exception of the client into an error about ``where``, a repository or ``org/name@REVISION``.

    Wrap only single calls of the client, and none of our own code. The client uses several libraries, and nobody
    documents what they raise on a broken answer. So all exceptions are caught.

    ``kind`` is CheckpointError for models. Then an error that is about the server, and not about the model, is still a
    RegistryError: one that can't be reached, is silent, busy or broken.

    Raises:
        StorageError: the disk of the client's cache is full or fails.
        OptionError: the name of the repository is not valid.
        MissingError: there is no such repository (if ``kind`` is RegistryError).
        NotFoundError: something else is not there (likewise).
        StaleError: status 409 or 412.
        ParamdeltaError: (as ``kind``) the repository lacks something, or is not for this account.
        RegistryError: the server can't be reached, or answers with an error of its own.
    """
    try:
        yield
    except ParamdeltaError:
        raise
    except Exception as problem:
        error = _disk_error(problem) or _translate(problem, where, kind)
        if not isinstance(error, StorageError) and _is_of_the_place(problem) and endpoint() != DEFAULT_ENDPOINT:
            error.remedy = f"{error.remedy}; and check HF_ENDPOINT, which is {endpoint()}"
        raise error from problem


def _is_of_the_place(problem: Exception) -> bool:
    """Whether an error may come from asking the wrong server, one that is not there or is no Hub."""
    from paramdelta_hub.hub.client import is_offline

    if is_offline():
        return False
    status = getattr(_response(problem), "status_code", None)
    return status is None or status in (401, 404, 405) or status >= 500


def _disk_error(problem: Exception) -> StorageError | None:
    """Return an error of the disk, if there is one anywhere in the chain of causes."""
    for link in _causes(problem, contexts=True):
        if isinstance(link, OSError) and (
            link.errno in _DISK_ERRNOS or (link.errno in _FILE_ERRNOS and link.filename is not None)
        ):
            return _storage_error(link)
        if found := _OS_ERROR.search(str(link)):
            number = int(found[1])
            if number in _DISK_ERRNOS:
                return _storage_error(OSError(number, os.strerror(number)))
    return None


def _storage_error(error: OSError) -> StorageError:
    translated = storage_error("storing a download from the Hub", error)
    translated.remedy = f"{translated.remedy}; HF_HOME can name a folder on another disk"
    return translated


def _is_valid_name(repository: str) -> bool:
    """Whether the client accepts a repository name."""
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
        FileMetadataError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def is_a(raised: type[Exception]) -> bool:
        return any(isinstance(link, raised) for link in _causes(problem))

    from paramdelta_hub.hub.patience import NoAnswerError

    of_model = issubclass(kind, CheckpointError)
    repository = where.partition("@")[0]
    for link in _causes(problem):
        if isinstance(link, NoAnswerError):
            return RegistryError(str(link), where=where, remedy=f"check the connection, then {_RETRY}")
    # With a valid name it is the server's answer that holds an invalid one.
    if is_a(HFValidationError) and not _is_valid_name(repository):
        return OptionError(f"not a repository id: {_first_line(problem)}", where=where, remedy="write org/name")
    if is_a(GatedRepoError):
        page = f"{endpoint()}/{repository}" if "/" in repository else "the Hub"
        return kind("the repository is gated", where=where, remedy=f"accept its terms on {page}, then {_LOGIN}")
    if is_a(RevisionNotFoundError):
        what = "the repository has no such revision" if of_model else "no such version, tag or commit"
        remedy = "check the spelling" if of_model else "`pd-versions` lists what is there"
        return kind(what, where=where, remedy=remedy)
    if is_a(RepositoryNotFoundError):
        remedy = f"check the spelling; for a private repository, {_LOGIN}"
        if of_model:
            return kind("no such folder here and no such repository on the Hub", where=where, remedy=remedy)
        return MissingError("no such repository on the Hub, or a private one", where=where, remedy=remedy)
    if is_a(LocalTokenNotFoundError):
        return kind("the Hub needs a token, and there is none", where=where, remedy=_LOGIN)
    if is_a(OfflineModeIsEnabled):
        if of_model:
            what = "no such folder here, and not in the Hub's cache; HF_HUB_OFFLINE is set"
            return kind(what, where=where, remedy="check the path, or unset HF_HUB_OFFLINE")
        return kind("this needs the Hub, but HF_HUB_OFFLINE is set", where=where, remedy="unset HF_HUB_OFFLINE")
    if error := _translate_status(problem, where, kind):
        return error
    if isinstance(problem, LocalEntryNotFoundError):
        is_odd = is_a(FileMetadataError)
        why = "does not tell of the file what a Hub tells" if is_odd else "can't be reached"
        what = f"{_host()} {why}, and the cache is incomplete"
        if of_model:
            what = f"no such folder here, {what}"
        return RegistryError(what, where=where, remedy=f"check the spelling and the connection, then {_RETRY}")
    root = list(_causes(problem))[-1]
    if isinstance(root, _NO_ANSWERS_OF_A_HUB) and not isinstance(root, OSError):
        what = f"the answer of {_host()} is not a Hub's ({type(root).__name__}: {_first_line(root)})"
        return RegistryError(what, where=where, remedy=_RETRY)
    what = f"the connection to {_host()} failed ({type(root).__name__}: {_first_line(root)})"
    return RegistryError(what, where=where, remedy=f"check the connection, then {_RETRY}")


def _translate_status(
    problem: Exception, where: str, kind: type[CheckpointError] | type[RegistryError]
) -> CheckpointError | RegistryError | None:
    """Return the error for an HTTP status, if there is one in the chain of causes.

    A failed HEAD request becomes the cause of "not in the cache", and a failed upload that of "error while uploading".
    """
    response = _response(problem)
    status = getattr(response, "status_code", None)
    if not isinstance(status, int):
        return None
    if status in (409, 412):
        return StaleError("somebody else changed the repository first", where=where, remedy=_RETRY)
    words = _words(problem)
    said = f"({status} from {_host(response)}{words and f': {words}'})"
    if status in (401, 403, 404, 410) and _is_of_a_store(response):
        remedy = f"{_RETRY}: the address that the Hub gave may have expired"
        return RegistryError(f"the server that keeps the Hub's files refuses this {said}", where=where, remedy=remedy)
    is_setting = bool(status == 403 and words and not _RIGHTS.search(words))
    if issubclass(kind, CheckpointError) and status in _STATUS_MESSAGES_FOR_MODELS and not is_setting:
        what, remedy = _STATUS_MESSAGES_FOR_MODELS[status]
        return kind(f"{what} {said}", where=where, remedy=remedy)
    unknown = "the Hub has an internal error" if status >= 500 else "the Hub refuses this"
    what, remedy = _STATUS_MESSAGES.get(status, (unknown, _RETRY))
    if is_setting:
        remedy = "do what the Hub asks for, or ask the repository's owner to"
    if seconds := asked_wait(response):
        remedy = f"{remedy} (the Hub asks for a wait of {seconds:.0f} s)"
    error = NotFoundError if status == 404 else RegistryError
    return error(f"{what} {said}", where=where, remedy=remedy)


def _host(response: Any = None) -> str:
    """Return the server that answered, or else the one that was to be asked."""
    try:
        return str(response.request.url.netloc.decode()).rpartition("@")[2]
    except (AttributeError, RuntimeError):  # there is no answer, or it does not know what it answers
        return urlsplit(endpoint()).netloc


def _is_of_a_store(response: Any) -> bool:
    """Whether another server than the Hub answered, to which it sent us for a file. Such addresses end in time."""
    try:
        url = response.request.url
    except (AttributeError, RuntimeError):
        return False
    return url.host != urlsplit(endpoint()).hostname and "/api/" not in url.path


def _response(problem: BaseException) -> Any:
    responses = (getattr(link, "response", None) for link in _causes(problem))
    return next((found for found in responses if found is not None), None)


def _words(problem: BaseException) -> str:
    """Return what the server itself says about an error, in one line; empty if it says nothing."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    for link in _causes(problem):
        if isinstance(said := getattr(link, "server_message", None), str) and said.strip():
            is_known = link is problem or isinstance(problem, LocalEntryNotFoundError)
            about = "" if is_known else f"{_first_line(problem).rstrip('.')}: "
            return _one_line(f"{about}{' '.join(said.split())}")
    return ""


def _causes(problem: BaseException | None, *, contexts: bool = False) -> Iterator[BaseException]:
    """Yield an error and its causes; with ``contexts`` also the errors that were being handled."""
    for _ in range(16):
        if problem is None:
            return
        yield problem
        around = None if problem.__suppress_context__ or not contexts else problem.__context__
        problem = problem.__cause__ or around


def _first_line(problem: BaseException) -> str:
    """Return the first line of a foreign message: short, and without control characters and secrets."""
    return _one_line(next((line.strip() for line in str(problem).splitlines() if line.strip()), "no reason given"))


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in without_secrets(text))[:300]
