"""The Hub's protocol over HTTP: what ``huggingface_hub`` asks for when it reads, searches, publishes and links."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from tests.support.hub.faults import Fault, flipped
from tests.support.hub.repositories import (
    LARGE_FILES,
    REGULAR_BYTES,
    Account,
    Blob,
    Commit,
    Proposal,
    Repository,
    metadata,
)


@dataclass(frozen=True)
class Request:
    """One request, its path unquoted into the parts that its route names."""

    path: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes
    account: Account | None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")


@dataclass(frozen=True)
class Answer:
    """One answer; a value that is not bytes becomes JSON."""

    value: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """A request the Hub does not carry out."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status, code, message)
        headers = {"X-Error-Code": code} if code else {}
        headers |= {"X-Error-Message": message} if message else {}
        self.answer = Answer({"error": message or code}, status, headers)


Handle = Callable[..., Answer]
REPO = r"(?P<repo>[^/]+/[^/]+)"
SIGNATURE = "presigned-and-secret"
"""In every URL that works without a token."""
API = rf"/api/models/{REPO}"


class LoopbackHub:
    """A Hub with ``repositories``, the ``accounts`` of its tokens, and ``faults`` to come; run by :meth:`running`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.accounts: dict[str, Account] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        """Every request: method, path with query."""
        self.sent = 0
        """Bytes of all answers' bodies."""
        self.page_size = 1000
        self.part_bytes: int | None = None
        """Large files above it are uploaded in parts of it."""
        self.xet: Path | None = None
        """Folder of a Xet store, spoken to by the client itself; see :meth:`know`."""
        self.bare: set[str] = set()
        """Where it says no digests, like other hubs: ``info`` (of a commit), ``paths``, ``tree``, ``head``."""
        self.cdn = False
        """Whether large files are on another server, to which a signed URL leads."""
        self.rejects = ""
        """What it finds wrong with the metadata of every card."""
        self.renamed: dict[str, str] = {}
        """The new names of repositories, by the old ones, to which every request is sent on."""
        self.date: str | None = None
        """What its clock says."""
        self._xet_hashes: dict[str, str] = {}
        self._stored: dict[str, bytes] = {}
        self._parts: dict[str, dict[int, bytes]] = {}
        self._lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def add(self, name: str, folder: Path | None = None, **settings: Any) -> Repository:
        """Make a repository, of a folder's files if one is given."""
        made = self.repositories[name] = Repository(name, **settings)
        if folder is not None:
            made.add(
                {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
            )
        return made

    def know(self, file: Path) -> None:
        """Learn which Xet hash a large file has: the real Hub takes it from its store."""
        import hf_xet

        (hashed,) = hf_xet.hash_files([str(file)])
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self._stored[digest], self._xet_hashes[digest] = content, hashed.hash

    @contextmanager
    def running(self) -> Iterator[LoopbackHub]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def environment(self, home: Path, token: str | None = None, **extra: str) -> dict[str, str]:
        """Return the environment of a client process: this Hub, an empty cache below ``home``, uploads by LFS."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        told = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return {**inherited, **told, "HF_HUB_DISABLE_TELEMETRY": "1", **({"HF_TOKEN": token} if token else {}), **extra}

    def respond(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        """Carry out one request."""
        parts = urlsplit(target)
        for old, new in self.renamed.items():
            if re.match(rf"(/api/models)?/{old}(/|$)", parts.path):
                return Answer(b"", 307, {"Location": target.replace(old, new, 1)})
        token = (headers.get("Authorization") or "").removeprefix("Bearer ")
        try:
            if token and token not in self.accounts:
                raise RefusedError(401, message="Invalid credentials in Authorization header")
            request = Request(parts.path, parse_qs(parts.query), headers, body, self.accounts.get(token))
            for verbs, pattern, handle in self._ROUTES:
                if method in verbs.split() and (found := re.fullmatch(pattern, parts.path)):
                    with self._lock:
                        return handle(self, request, **{k: unquote(v) for k, v in found.groupdict().items()})
            raise RefusedError(404, message=f"no route for {method} {parts.path}")
        except RefusedError as refused:
            return refused.answer

    # Who may do what.

    def _repository(self, request: Request, name: str, *, files: bool = False, write: bool = False) -> Repository:
        found, account = self.repositories.get(name), request.account
        owner = account is not None and account.owns(name)
        reader = owner or (account is not None and found is not None and account.name in found.readers)
        if found is None or (found.private and not reader):
            raise RefusedError(404 if account else 401, "RepoNotFound", "Repository not found")
        if files and found.gated and not reader:
            raise RefusedError(403 if account else 401, "GatedRepo", "Access to model is restricted")
        if write and not owner:
            raise RefusedError(403 if account else 401, message="You don't have the required permissions")
        return found

    def _commit_at(self, found: Repository, revision: str) -> Commit:
        commit = found.resolve(revision)
        if commit is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Reading.

    def _whoami(self, request: Request) -> Answer:
        if request.account is None:
            raise RefusedError(401, message="Invalid user token")
        organisations = [{"type": "org", "name": name, "roleInOrg": "write"} for name in request.account.organisations]
        return Answer({"type": "user", "name": request.account.name, "orgs": organisations, "auth": {}})

    def _describe(self, found: Repository, commit: Commit, *, blobs: bool, full: bool = True) -> dict[str, Any]:
        siblings = [
            {"rfilename": name}
            | ({"size": len(blob.content), "blobId": blob.git_digest} if blobs and "info" not in self.bare else {})
            | ({"lfs": blob.lfs()} if blobs and blob.large and "info" not in self.bare else {})
            for name, blob in sorted(commit.files.items())
        ]
        dates = [found.commits[commit_id].date for commit_id in found.branches.values()]
        return {
            "id": found.name, "modelId": found.name, "author": found.name.split("/")[0], "sha": commit.id,
            "private": found.private, "gated": "manual" if found.gated else False, "tags": found.search_tags,
            "createdAt": next(iter(found.commits.values())).date, "lastModified": max(dates), "downloads": 0,
            "likes": 0, "cardData": found.card, **({"siblings": siblings} if full else {}),
        }  # fmt: skip

    def _info(self, request: Request, repo: str, revision: str = "main") -> Answer:
        found = self._repository(request, repo)
        return Answer(self._describe(found, self._commit_at(found, revision), blobs=request.flag("blobs")))

    def _list(self, request: Request) -> Answer:
        query = request.query
        wanted, text = set(query.get("filter", [])), query.get("search", [""])[0].lower()
        visible = [
            found
            for found in self.repositories.values()
            if wanted <= set(found.search_tags)
            and text in found.name.lower()
            and query.get("author", [found.name.split("/")[0]])[0] == found.name.split("/")[0]
            and (not found.private or (request.account is not None and request.account.owns(found.name)))
        ]
        start = int(query.get("cursor", ["0"])[0])
        stop = start + min(self.page_size, int(query.get("limit", ["1000"])[0]))
        rest = urlencode({**query, "cursor": [str(stop)]}, doseq=True)
        link = {"Link": f'<{self.endpoint}/api/models?{rest}>; rel="next"'} if stop < len(visible) else {}
        page = [
            self._describe(found, found.head, blobs=False, full=request.flag("full")) for found in visible[start:stop]
        ]
        if not request.flag("cardData"):
            page = [{name: value for name, value in item.items() if name != "cardData"} for item in page]
        return Answer(page, headers=link)

    def _entries(self, commit: Commit, names: list[str]) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(blob.content), "oid": blob.git_digest}
            | ({"lfs": {"oid": blob.sha256, **blob.lfs()}} if blob.large else {})
            for name in names
            if (blob := commit.files.get(name))
        ]

    def _tree(self, request: Request, repo: str, revision: str) -> Answer:
        commit = self._commit_at(found := self._repository(request, repo), revision)
        assert found.name == repo
        if "tree" in self.bare:
            raise RefusedError(404, message="Not Found")
        return Answer(self._entries(commit, sorted(commit.files)))

    def _paths_info(self, request: Request, repo: str, revision: str) -> Answer:
        names = parse_qs(request.body.decode()).get("paths", [])
        if "paths" in self.bare:
            raise RefusedError(404, message="Not Found")
        return Answer(self._entries(self._commit_at(self._repository(request, repo), revision), names))

    def _refs(self, request: Request, repo: str) -> Answer:
        found = self._repository(request, repo)

        def listed(refs: dict[str, str], prefix: str = "") -> list[dict[str, str]]:
            return [{"name": n.split("/")[-1], "ref": prefix + n, "targetCommit": c} for n, c in refs.items()]

        proposed = {name: at for name, at in found.branches.items() if name.startswith("refs/pr/")}
        branches = {name: at for name, at in found.branches.items() if name not in proposed}
        value = {"branches": listed(branches, "refs/heads/"), "converts": [], "tags": listed(found.tags, "refs/tags/")}
        return Answer(value | ({"pullRequests": listed(proposed)} if request.flag("include_prs") else {}))

    def _commits(self, request: Request, repo: str, revision: str) -> Answer:
        found = self._repository(request, repo)
        at: str | None = self._commit_at(found, revision).id
        history = []
        while at is not None:
            commit = found.commits[at]
            author = [{"user": commit.author}]
            entry = {"id": at, "title": commit.title, "message": commit.description, "authors": author}
            history.append({**entry, "date": commit.date})
            at = commit.parent
        return Answer(history)

    def _resolve(self, request: Request, repo: str, revision: str, name: str) -> Answer:
        commit = self._commit_at(self._repository(request, repo, files=True), revision)
        blob = commit.files.get(name)
        if blob is None:
            return replace(RefusedError(404, "EntryNotFound").answer, headers={
                "X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.id})  # fmt: skip
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.large:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        if "head" in self.bare:
            headers |= {"ETag": f'W/"{hashlib.md5(blob.content).hexdigest()}"'}
            headers.pop("X-Linked-Etag", None)
        if blob.large:
            if self.xet and blob.sha256 in self._xet_hashes:
                route = f"{self.endpoint}/api/models/{repo}/xet-read-token/{commit.id}"
                headers |= {"X-Xet-Hash": self._xet_hashes[blob.sha256], "X-Xet-Refresh-Route": route}
            if self.cdn:
                at = f"{self.endpoint.replace('127.0.0.1', 'localhost')}/cdn/{blob.sha256}"
                self._stored[blob.sha256] = blob.content
                return Answer(b"", 302, headers | {"Location": f"{at}?X-Amz-Signature={SIGNATURE}"})
        return self._content(request, blob.content, headers)

    def _fetch_signed(self, request: Request, oid: str) -> Answer:
        if request.query.get("X-Amz-Signature") != [SIGNATURE] or request.account:
            raise RefusedError(403, message="the signature does not match, or there is a token too")
        return self._content(request, self._stored[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _content(self, request: Request, content: bytes, headers: dict[str, str]) -> Answer:
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or ""):
            start, stop = int(found[1]), min(int(found[2] or len(content)) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            return Answer(content[start:stop], 206, headers)
        return Answer(content, 200, headers)

    # Publishing.

    def _create(self, request: Request) -> Answer:
        if request.account is None:
            raise RefusedError(401, message="Invalid username or password.")
        wanted = request.json
        name = f"{wanted.get('organization') or request.account.name}/{wanted['name']}"
        if not request.account.owns(name):
            raise RefusedError(403, message="You don't have the rights to create a model under this namespace")
        there = name in self.repositories
        if not there:
            self.add(name, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return Answer({"url": f"{self.endpoint}/{name}", "name": name}, 409 if there else 200)

    def _validate_card(self, request: Request) -> Answer:
        if self.rejects:
            return Answer({"errors": [{"message": self.rejects}], "warnings": []}, 400)
        try:
            metadata(request.json["content"])
        except ValueError as error:
            return Answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return Answer({"errors": [], "warnings": []})

    def _preupload(self, request: Request, repo: str, revision: str) -> Answer:
        found = self._repository(request, repo, write=not request.flag("create_pr"))
        files = self._commit_at(found, revision).files
        answers = []
        for file in request.json["files"]:
            large = file["path"].endswith(LARGE_FILES) or file["size"] > REGULAR_BYTES
            there = {"oid": files[file["path"]].etag} if file["path"] in files else {}
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **there})
        return Answer({"files": answers})

    def _batch(self, request: Request, repo: str) -> Answer:
        self._repository(request, repo)
        if request.account is None:
            raise RefusedError(401)
        objects = []
        for item in request.json["objects"]:
            entry: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self._stored:
                href = f"{self.endpoint}/lfs/{item['oid']}?X-Amz-Signature={SIGNATURE}"
                upload: dict[str, Any] = {"href": href}
                if self.part_bytes and item["size"] > self.part_bytes:
                    count = -(-item["size"] // self.part_bytes)
                    urls = {str(number): f"{href}&part={number}" for number in range(1, count + 1)}
                    upload["header"] = {"chunk_size": str(self.part_bytes), **urls}
                verify = {"href": f"{self.endpoint}/{repo}.git/info/lfs/verify"}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        return Answer({"transfer": "basic", "objects": objects})

    def _store(self, request: Request, oid: str) -> Answer:
        if "part" in request.query:
            number = int(request.query["part"][0])
            self._parts.setdefault(oid, {})[number] = request.body
            return Answer(headers={"ETag": hashlib.md5(request.body).hexdigest()})
        return self._keep(oid, request.body)

    def _join(self, request: Request, oid: str) -> Answer:
        parts = self._parts.pop(oid, {})
        return self._keep(oid, b"".join(parts.get(part["partNumber"], b"") for part in request.json["parts"]))

    def _keep(self, oid: str, content: bytes) -> Answer:
        if hashlib.sha256(content).hexdigest() != oid:
            raise RefusedError(400, message="the content does not have the announced sha256")
        self._stored[oid] = content
        return Answer()

    def _xet_token(self, request: Request, repo: str, kind: str, revision: str) -> Answer:
        self._repository(request, repo, write=kind == "write", files=True)
        if self.xet is None:
            raise RefusedError(404, message="no Xet here")
        url, until = f"local://{self.xet}", str(int(time.time()) + 3600)
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Token-Expiration": until, "X-Xet-Access-Token": "token"}
        return Answer({"casUrl": url, "exp": int(until), "accessToken": "token"}, headers=headers)

    def _verify(self, request: Request, repo: str) -> Answer:
        self._repository(request, repo)
        if len(self._stored.get(request.json["oid"], b"")) != request.json["size"]:
            raise RefusedError(404, message="no such object")
        return Answer({})

    def _commit(self, request: Request, repo: str, revision: str) -> Answer:
        proposing = request.flag("create_pr")
        found = self._repository(request, repo, write=not proposing)
        if request.account is None:
            raise RefusedError(401)
        lines = [json.loads(line) for line in request.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, self._commit_at(found, revision).id):
            raise RefusedError(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(self._commit_at(found, revision).files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), large=False)
            elif line["key"] == "lfsFile":
                for commit in found.commits.values():  # what a repository has, it can have under other names too
                    self._stored |= {blob.sha256: blob.content for blob in commit.files.values() if blob.large}
                if value["oid"] not in self._stored:
                    raise RefusedError(400, message=f"LFS pointer to a file that does not exist: {value['path']}")
                files[value["path"]] = Blob(self._stored[value["oid"]], large=True)
            elif files.pop(value["path"], None) is None:
                raise RefusedError(404, "EntryNotFound", "A file with this name doesn't exist")
        told = (header["summary"], header.get("description", ""), request.account.name)
        pull_request = {}
        if proposing:
            made, proposal = found.propose(files, *told)
            pull_request = {"pullRequestUrl": f"{self.endpoint}/{repo}/discussions/{proposal.number}"}
        else:
            made = found.commit(revision, files, *told)
        return Answer({"commitUrl": f"{self.endpoint}/{repo}/commit/{made.id}", "commitOid": made.id, **pull_request})

    def _tag(self, request: Request, repo: str, revision: str) -> Answer:
        found = self._repository(request, repo, write=True)
        name = request.json["tag"]
        if name in found.tags:
            raise RefusedError(409, message="Tag reference exists already")
        found.tags[name] = self._commit_at(found, revision).id
        return Answer({})

    def _delete_tag(self, request: Request, repo: str, revision: str) -> Answer:
        if self._repository(request, repo, write=True).tags.pop(revision, None) is None:
            raise RefusedError(404, "RevisionNotFound")
        return Answer({})

    def _branch(self, request: Request, repo: str, branch: str) -> Answer:
        found = self._repository(request, repo, write=True)
        if branch in found.branches:
            raise RefusedError(409, message="Reference already exists")
        found.branches[branch] = self._commit_at(found, request.json.get("startingPoint", "main")).id
        return Answer({})

    def _delete_branch(self, request: Request, repo: str, branch: str) -> Answer:
        if branch == "main" or self._repository(request, repo, write=True).branches.pop(branch, None) is None:
            raise RefusedError(404, "RevisionNotFound")
        return Answer({})

    # Pull requests.

    def _discussions(self, request: Request, repo: str) -> Answer:
        found = self._repository(request, repo)
        status = request.query.get("status", ["all"])[0]

        def shown(proposal: Proposal) -> dict[str, Any]:
            named = {"num": proposal.number, "title": proposal.title, "status": proposal.status, "isPullRequest": True}
            at = {"createdAt": proposal.date, "repo": {"name": repo, "type": "model"}}
            return {**named, **at, "author": {"name": proposal.author}}

        items = [shown(proposal) for proposal in found.proposals if status in ("all", proposal.status)]
        start = int(request.query.get("p", ["0"])[0]) * 10
        return Answer({"count": len(items), "start": start, "discussions": items[start : start + 10]})

    def _merge(self, request: Request, repo: str, number: str) -> Answer:
        self._repository(request, repo, write=True).merge(int(number))
        return Answer({})

    _ROUTES: ClassVar[list[tuple[str, str, Handle]]] = [
        ("GET", "/api/whoami-v2", _whoami),
        ("GET", "/api/models", _list),
        ("POST", "/api/repos/create", _create),
        ("POST", "/api/validate-yaml", _validate_card),
        ("GET HEAD", API, _info),
        ("GET HEAD", rf"{API}/revision/(?P<revision>[^/]+)", _info),
        ("GET", rf"{API}/tree/(?P<revision>[^/]+)", _tree),
        ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", _paths_info),
        ("GET", rf"{API}/refs", _refs),
        ("GET", rf"{API}/commits/(?P<revision>[^/]+)", _commits),
        ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", _preupload),
        ("POST", rf"{API}/commit/(?P<revision>[^/]+)", _commit),
        ("POST", rf"{API}/tag/(?P<revision>[^/]+)", _tag),
        ("DELETE", rf"{API}/tag/(?P<revision>[^/]+)", _delete_tag),
        ("POST", rf"{API}/branch/(?P<branch>[^/]+)", _branch),
        ("DELETE", rf"{API}/branch/(?P<branch>[^/]+)", _delete_branch),
        ("GET", rf"{API}/xet-(?P<kind>read|write)-token/(?P<revision>[^/]+)", _xet_token),
        ("GET", rf"{API}/discussions", _discussions),
        ("POST", rf"{API}/discussions/(?P<number>\d+)/merge", _merge),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _batch),
        ("POST", rf"/{REPO}\.git/info/lfs/verify", _verify),
        ("GET HEAD", r"/cdn/(?P<oid>[0-9a-f]{64})", _fetch_signed),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _store),
        ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})", _join),
        ("GET HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _resolve),
    ]


class _Server(ThreadingHTTPServer):
    """Serves a Hub; each connection has its thread."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], hub: LoopbackHub) -> None:
        self.hub = hub
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that are killed, or whose connection we cut, leave broken pipes."""


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, lets a fault strike, answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or an answer's body waits 40 ms until the client has confirmed the head
    server: _Server

    def handle_one(self) -> None:
        hub = self.server.hub
        body = self._body()
        line = f"{self.command} {self.path}"
        hub.requests.append((self.command, self.path))
        with hub._lock:
            fault = next((fault for fault in hub.faults if fault.strikes(line)), None)
        kind = fault.kind if fault else None
        if fault and kind == "status":
            self._send(Answer({"error": fault.text}, fault.value, {"Retry-After": str(fault.after)}))
            return
        if fault and kind == "page":
            self._send(Answer(b"<!DOCTYPE html><title>Welcome</title>", 200, {"Content-Type": "text/html"}))
            return
        if fault and kind == "say":
            self._send(Answer(fault.text.encode()))
            return
        if fault and kind == "send on":
            self._send(Answer(b"", 307, {"Location": fault.text + self.path}))
            return
        if fault and kind == "mute":
            self._wait_for_the_end()
            return
        if fault and kind == "drop" and fault.value:
            self._hang_up()
            return
        if fault and kind == "intrude":
            fault.act()
        answer = hub.respond(self.command, self.path, self.headers, body)
        if fault and kind == "drop":
            self._hang_up()
        elif fault and kind == "slow head":
            self._drip()
        elif fault and kind in ("stall", "slow"):
            self._trickle(answer, fault)
        else:
            self._send(answer, cut=fault.value if fault and kind == "cut" else None,
                       flip=fault.value if fault and kind == "flip" else None)  # fmt: skip

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one  # noqa: N815 - the base class's naming

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, answer: Answer, cut: int | None = None, flip: int | None = None) -> None:
        body = answer.value if isinstance(answer.value, bytes) else json.dumps(answer.value, default=str).encode()
        if flip is not None:
            body = flipped(body, flip)
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.server.hub.sent += len(body)
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self._hang_up()

    def _trickle(self, answer: Answer, fault: Fault) -> None:
        """Send the head at once, and of the body a few bytes and no more, or all of it, byte by byte."""
        body = answer.value if isinstance(answer.value, bytes) else json.dumps(answer.value, default=str).encode()
        self._send(replace(answer, value=b"", headers={"Content-Length": str(len(body)), **answer.headers}))
        if self.command == "HEAD":
            return
        if fault.kind == "stall":
            self.wfile.write(body[: fault.value])
            self._wait_for_the_end()
            return
        for at in range(len(body)):
            self.wfile.write(body[at : at + 1])
            time.sleep(0.02)

    def _drip(self) -> None:
        """Send a head that never ends, byte by byte."""
        self.close_connection = True
        for byte in itertools.chain(b"HTTP/1.1 200 OK\r\nX-Slow: ", itertools.repeat(46)):
            self.wfile.write(bytes([byte]))
            time.sleep(0.02)

    def _wait_for_the_end(self) -> None:
        """Say nothing more, until the client hangs up."""
        self.close_connection = True
        self.connection.recv(1, socket.MSG_PEEK)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return self.server.hub.date or super().date_time_string(timestamp)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's naming
        pass
