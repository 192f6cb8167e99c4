"""How long we wait for a server, and how often we ask again: one rule for every request of the Hub's client.

The client itself has no time limit for most of its requests, and repeats only some of them. Here a limit holds for
every read and write of a connection, so also for a server that answers and then falls silent, or sends a byte now and
then. A request is repeated only if that can do no harm: one that reads, one that the server has refused to carry out,
or one that never reached it.

Importing this module imports the Hub's client.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import hf_hub_url
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import _http
from huggingface_hub.utils._headers import build_hf_headers

from paramdelta_hub import limits
from paramdelta_hub.fileio.names import without_secrets
from paramdelta_hub.hub.waits import asked_wait

__all__ = ["NoAnswerError", "install", "read_range"]

# The client's HTTP library: httpx, or httpx2 in newer releases.
_httpx: Any = _http.httpx2 if hasattr(_http, "httpx2") else vars(_http)["httpx"]
_LOG = logging.getLogger("paramdelta_hub.hub")
_READING_POSTS = re.compile(r"/(paths-info|preupload)/|/info/lfs/objects/batch$|/api/validate-yaml$")
"""Requests that change nothing although they are sent by POST."""
_ANSWERS = re.compile(r"^(?!.*/resolve/).*/api/")
"""Requests whose answers are small, and no files."""
_REFUSED = {429, 503}
"""The server has not carried the request out."""
_UNCERTAIN = {408, 500, 502, 504}
"""It may have, so only requests that may be carried out twice are repeated."""


class NoAnswerError(OfflineModeIsEnabled):
    """A server has been silent for too long. To the client this is "offline": it uses its cache, and does not retry.

    Args:
        host: the server.
        what: what is wrong with it, to be read after its name.
    """

    def __init__(self, host: str, what: str) -> None:
        super().__init__(f"{host} {what}")
        self.host, self.what = host, what


class _Waiting(threading.local):
    """What this thread waits for."""

    host = ""
    limit = 0.0
    """How long the server may be silent, in seconds."""
    stalls = 0
    """How often in a row a server fell silent in the middle of an answer."""


_waiting = _Waiting()


class _Stream:
    """A connection on which nothing is waited for without end."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._begun, self._spent, self._received = False, 0.0, 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what the server sends next. The client's own ``timeout`` is not used."""
        started = time.monotonic()
        try:
            data: bytes = self._read(max_bytes)
        except Exception:
            if self._begun and time.monotonic() - started >= _waiting.limit:
                _waiting.stalls += 1
                if _waiting.stalls >= limits.SILENT_TRIES:
                    _waiting.stalls = 0
                    raise NoAnswerError(_waiting.host, "stopped sending in the middle of an answer") from None
            raise
        if self._begun:
            _waiting.stalls = 0
            self._check_rate(time.monotonic() - started, len(data))
        self._begun = True
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send, as a request or a part of one. The client's own ``timeout`` is not used."""
        self._begun, self._spent, self._received = False, 0.0, 0
        self._inner.write(buffer, _waiting.limit)

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> _Stream:
        """Return the connection, encrypted."""
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, limits.SILENT_SECONDS))

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        """Return what the client's library asks of a connection."""
        return self._inner.get_extra_info(info)

    def _read(self, max_bytes: int) -> Any:
        """Read in slices, so that we can tell that we wait. A read that ran out of time has taken no bytes."""
        waited = 0.0
        while True:
            piece = min(limits.SILENT_NOTE_SECONDS, _waiting.limit - waited)
            try:
                return self._inner.read(max_bytes, piece)
            except Exception as problem:
                if "Timeout" not in type(problem).__name__:
                    raise
                waited += piece
                if waited >= _waiting.limit:
                    raise
                _LOG.warning("waiting for %s, %.0f s", _waiting.host, waited)

    def _check_rate(self, spent: float, received: int) -> None:
        """Check that the server does not send next to nothing. Only the time in which we wait for it counts."""
        self._spent += spent
        self._received += received
        if self._spent >= limits.SLOW_SECONDS:
            if self._received < limits.SLOW_BYTES:
                raise NoAnswerError(
                    _waiting.host, f"sent only {self._received} bytes in the last {self._spent:.0f} seconds"
                )
            self._spent, self._received = 0.0, 0


class _Network:
    """Opens connections that have limits."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, **options: Any) -> _Stream:
        return _Stream(self._inner.connect_tcp(host, port, timeout=limits.SILENT_SECONDS, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Transport:
    """Sends requests, and repeats those that fail for a moment."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        pool = getattr(inner, "_pool", None)
        if pool is not None:
            pool._network_backend = _Network(pool._network_backend)

    def handle_request(self, request: Any) -> Any:
        """Return the server's answer.

        Raises:
            NoAnswerError: there is none.
            Exception: what the client raises.
        """
        reads = request.method in ("GET", "HEAD") or _READING_POSTS.search(request.url.path)
        safe = reads or request.method in ("PUT", "DELETE")  # it may be carried out twice
        repeatable = isinstance(request.stream, _httpx.ByteStream)  # others can't be sent twice from here
        host = _host(request)
        waits = _waits()
        silent = refused = 0
        while True:
            _waiting.host = host
            _waiting.limit = limits.SILENT_SECONDS if reads else limits.COMMIT_SECONDS
            try:
                response = self._inner.handle_request(request)
                if request.method == "GET" and _ANSWERS.search(request.url.path):
                    response.read()  # here, so that an answer that breaks off is asked for again
            except _httpx.TimeoutException as problem:
                silent += 1
                if silent >= limits.SILENT_TRIES or not reads or not repeatable:
                    waited = _waiting.limit * silent
                    raise NoAnswerError(host, f"does not answer (waited {waited:.0f} seconds)") from problem
                _LOG.warning("%s does not answer; asking again", host)
                continue
            except (_httpx.NetworkError, _httpx.RemoteProtocolError) as problem:
                unreached = isinstance(problem, _httpx.ConnectError)
                refused += unreached
                if refused > limits.SILENT_TRIES:
                    raise NoAnswerError(host, f"can't be reached ({problem})") from problem
                again = repeatable and (safe or unreached)
                if not again or not waits(None, f"the connection to {host} failed"):
                    raise
                continue
            if response.status_code not in _REFUSED and not (safe and response.status_code in _UNCERTAIN):
                return response
            asked = asked_wait(response)
            if repeatable and waits(asked, f"{host} is busy ({response.status_code})"):
                response.close()
                continue
            if repeatable or (asked or 0) > limits.RETRY_SECONDS:
                # The client would begin anew with retries of its own.
                response.request = request
                response.read()
                _http.hf_raise_for_status(response)
            return response

    def close(self) -> None:
        """Close all connections."""
        self._inner.close()

    def __enter__(self) -> _Transport:
        self._inner.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._inner.__exit__(*exception)


def read_range(repository: str, revision: str, name: str, start: int, end: int) -> bytes | None:
    """Return bytes [start, end) of a file on the Hub, and at most one piece more, whatever the server sends.

    Return None if the server does not know Range requests. An answer that breaks off is asked for again.

    Raises:
        Exception: what the client raises.
    """
    url = hf_hub_url(repository, name, revision=revision)
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}"}
    for again in reversed(range(limits.SILENT_TRIES)):
        content = bytearray()
        try:
            with _http.get_session().stream("GET", url, headers=headers) as response:
                _http.hf_raise_for_status(response)
                if response.status_code != 206:
                    return None
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > end - start:
                        break
            break
        except (_httpx.TimeoutException, _httpx.NetworkError, _httpx.RemoteProtocolError):
            if not again:
                raise
    return bytes(content)


def install() -> None:
    """Make every request of the Hub's client patient. What another program has set for the client stays in force."""
    _http.set_client_factory(functools.partial(_patient_client, _http._GLOBAL_CLIENT_FACTORY))
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_Redact())


def _patient_client(factory: Callable[[], Any]) -> Any:
    client = factory()
    client._transport = _Transport(client._transport)
    client._mounts = {pattern: inner and _Transport(inner) for pattern, inner in client._mounts.items()}
    return client


def _waits() -> Callable[[float | None, str], bool]:
    """Return a function that waits before a request is repeated, or returns False if it is not to be repeated."""
    tries, left = 0, limits.RETRY_SECONDS

    def wait(asked: float | None, why: str) -> bool:
        nonlocal tries, left
        seconds = asked or min(2.0**tries, 8.0)
        tries += 1
        if tries >= limits.RETRY_TRIES or seconds > left:
            return False
        left -= seconds
        if seconds >= limits.SILENT_NOTE_SECONDS:
            _LOG.warning("%s; asking again in %.0f s", why, seconds)
        time.sleep(seconds)
        return True

    return wait


def _host(request: Any) -> str:
    return urlsplit(str(request.url)).netloc.rpartition("@")[2]


class _Redact(logging.Filter):
    """Takes the secrets out of the messages that the Hub's client logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True: every message is shown."""
        record.msg, record.args = without_secrets(record.getMessage()), ()
        return True
