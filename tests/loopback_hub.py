"""A Hub on loopback, for reading: real HTTP, real sockets, a few folders as repositories. A test part, not a product.

It speaks what ``huggingface_hub`` asks of the real one when it downloads: model info, the tree, and resolve, with
commits, ETags, linked sizes and Range. Weights are answered as LFS files: their ETag is the sha256.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class LoopbackHub:
    """Serves ``repositories`` (id → folder); ``refused`` ids answer with a status and the Hub's error code."""

    def __init__(self, repositories: dict[str, Path], refused: dict[str, tuple[int, str]] | None = None) -> None:
        self.repositories = repositories
        self.refused = refused or {}
        self.requests: list[tuple[str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.requests.append((self.command, self.path))
                status, headers, body = hub.answer(unquote(urlsplit(self.path).path), self.headers.get("Range"))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - the base class's naming

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's naming
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[LoopbackHub]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def commit(self, repository: str) -> str:
        """The commit of a repository's only revision: follows from its content."""
        digest = hashlib.sha1(repository.encode())
        for name, path in self._files(repository).items():
            digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()

    def _files(self, repository: str) -> dict[str, Path]:
        folder = self.repositories[repository]
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def answer(self, path: str, span: str | None) -> tuple[int, dict[str, str], bytes]:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            return self._api(found[1], found[2], found[3])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(found[1], found[2], found[3], span)
        return 404, {}, b""

    def _refusal(self, repository: str, revision: str) -> tuple[int, dict[str, str], bytes] | None:
        if repository in self.refused:
            status, code = self.refused[repository]
            return status, {"X-Error-Code": code}, b""
        if repository not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in ("main", self.commit(repository)):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        return None

    def _api(self, repository: str, verb: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        if refusal := self._refusal(repository, revision):
            return refusal
        files = self._files(repository)
        if verb == "revision":
            value: Any = {
                "id": repository, "modelId": repository, "sha": self.commit(repository), "private": False, "tags": [],
                "downloads": 0, "likes": 0, "siblings": [{"rfilename": name} for name in files],
            }  # fmt: skip
        else:
            value = [
                {"type": "file", "path": name, "size": f.stat().st_size, "oid": "0" * 40} for name, f in files.items()
            ]
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def _resolve(
        self, repository: str, revision: str, name: str, span: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        if refusal := self._refusal(repository, revision):
            return refusal
        path = self._files(repository).get(name)
        commit = self.commit(repository)
        if path is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        content = path.read_bytes()
        lfs = name.endswith(".safetensors")
        etag = (hashlib.sha256 if lfs else hashlib.sha1)(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if lfs:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", span or ""):
            start, stop = int(found[1]), min(int(found[2] or len(content)) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            return 206, headers, content[start:stop]
        return 200, headers, content
