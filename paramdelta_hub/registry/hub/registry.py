"""The Hugging Face Hub as a registry: a delta is a model repository, a version is a tag on one atomic commit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramdelta_hub.errors import IntegrityError, RegistryError
from paramdelta_hub.fileio.names import is_clear
from paramdelta_hub.fileio.symlinks import settle
from paramdelta_hub.hub.client import connect, is_offline
from paramdelta_hub.hub.errors import MissingError, endpoint, translate_hub_errors
from paramdelta_hub.limits import CARD_BYTES, MANIFEST_BYTES, SIGNATURE_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord, parse_manifest
from paramdelta_hub.registry.cards.tags import (
    BASE_PREFIX,
    FACTS_KEY,
    FINGERPRINT_PREFIX,
    LICENSE_PREFIX,
    TAG,
    base_tag,
    fingerprint_tag,
    tagged,
)
from paramdelta_hub.registry.hub.fetch import (
    check_announced,
    fetch,
    fetch_small,
    look,
    saved,
)
from paramdelta_hub.registry.hub.publishing import publish
from paramdelta_hub.registry.lockfile import Lock, pin
from paramdelta_hub.registry.materialize import (
    CARD_NAME,
    EXTRAS,
    SIGNATURE_NAME,
    alone_in,
    check_space,
    file_chunks,
    is_right,
    put_small,
    receive,
)
from paramdelta_hub.registry.names import check_repo, is_commit, is_version, newest, precedence
from paramdelta_hub.registry.protocol import Hit, Part, Published, Pulled, Version, files_of
from paramdelta_hub.registry.signing import Trust
from paramdelta_hub.tasks.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

__all__ = ["HubRegistry"]

_TEXT_LENGTH = 1024


@dataclass(frozen=True)
class _Found:
    """A manifest, and the commit that holds it."""

    content: bytes
    commit: str


class HubRegistry:
    """Publishes to, pulls from and searches the Hub that HF_ENDPOINT names, as the account of HF_TOKEN."""

    def publish(
        self,
        package: Path,
        repo: str,
        version: str,
        *,
        extras: Mapping[str, bytes] | None = None,
        private: bool = False,
        create_pr: bool = False,
        message: str | None = None,
        notes: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Published:
        """Publish a package whole or not at all: one commit, then the tag ``version``; see :mod:`.publishing`.

        The arguments are those of :meth:`.protocol.Registry.publish`.

        Raises:
            PublishError: the version is there with other content, or somebody else was faster; nothing is replaced.
            RegistryError: not allowed, not reachable, not a place for a delta.
            OptionError: ``version`` is not the manifest's, or ``repo`` can't be a name.
            PackageError: the package is broken.
        """
        return publish(
            connect(),
            package,
            check_repo(repo),
            version,
            extras=extras,
            private=private,
            create_pr=create_pr,
            message=message,
            notes=notes,
            progress=progress or Progress(),
        )

    def pull(
        self,
        repo: str,
        revision: str | None,
        folder: Path | None = None,
        *,
        part: Part = "package",
        allow_downgrade: bool = False,
        trust: Trust | None = None,
        progress: Progress | None = None,
    ) -> Pulled:
        """Fetch a version, commit or branch (the newest version if None) into ``folder``, or the Hub's cache.

        What is there already with the right bytes is kept, so a rerun goes on file by file. A version or commit that
        the cache has whole needs no network: a version never changes. In ``folder``, the manifest comes last.

        Raises:
            SignatureError: see :meth:`.protocol.Registry.pull`.
            IntegrityError: what came is not what the manifest promises, or the tag is not the manifest's version.
            DestinationError: ``folder`` holds something else.
            RegistryError: no such repository or version, not allowed, not reachable, offline and not in the cache.
        """
        check_repo(repo)
        api, progress = connect(), progress or Progress()
        wanted = revision or self._newest(api, repo)
        found = self._saved(repo, wanted) or self._manifest(api, repo, wanted)
        where = f"{repo}@{wanted}"
        manifest, package_id = parse_manifest(found.content, where)
        if is_version(wanted) and manifest.version != wanted:
            raise IntegrityError(
                f"the tag {wanted} holds version {manifest.version}",
                where=where,
                remedy="the tag was moved or set by hand; take another version, or tell the publisher",
            )
        signed_by = None
        if trust is not None:
            signature = saved(repo, SIGNATURE_NAME, found.commit, SIGNATURE_BYTES)
            signed_by = trust.check(found.content, signature[0] if signature else None, where, repo)
        files = list(files_of(manifest, part))
        if folder is None:
            place = self._cache(repo) / "snapshots" / found.commit
            came = self._files(api, repo, found.commit, files, place, None, progress)
            return Pulled(place, repo, manifest.version, found.commit, package_id, came, signed_by)
        out = Path(os.path.abspath(os.path.expanduser(folder)))
        beside = _extras(repo, found.commit) if part == "package" else None
        lock = Lock.of(manifest, package_id, registry=endpoint(), repo=repo, revision=found.commit, extras=beside)
        with alone_in(out):
            named = revision is not None
            pin(
                out,
                lock,
                named=named,
                allow_downgrade=allow_downgrade,
                with_extras=beside is not None,
                companions=[file for file in manifest.companions if file in files],
            )
            came = self._files(api, repo, found.commit, files, out, out, progress)
            if beside is not None:
                came += sum(put_small(out / name, beside.get(name)) for name in EXTRAS)
            came += put_small(out / MANIFEST_NAME, found.content)
        return Pulled(out, repo, manifest.version, found.commit, package_id, came, signed_by)

    def versions(self, repo: str) -> list[Version]:
        """Return all versions, the newest first by semantic version; other tags are left out.

        Raises:
            RegistryError: no such repository, not allowed, not reachable.
        """
        with translate_hub_errors(check_repo(repo)):
            tags = [(tag.name, tag.target_commit) for tag in connect().list_repo_refs(repo).tags]
        found = [Version(name, commit, None, None) for name, commit in tags if is_version(name)]
        return sorted(found, key=lambda version: (precedence(version.version), version.version), reverse=True)

    def search(self, query: str | None, base: str | None, fingerprint: str | None) -> Iterator[Hit]:
        """Yield deltas, page by page as they are asked for; what a hit says comes from its card and is not checked.

        Raises:
            RegistryError: not reachable, or offline.
        """
        wanted = [TAG, *([base_tag(base)] if base else []), *([fingerprint_tag(fingerprint)] if fingerprint else [])]
        with translate_hub_errors("the Hub"):
            models = iter(connect().list_models(filter=wanted, search=query, full=True, cardData=True))
        while True:
            with translate_hub_errors("the Hub"):
                model = next(models, None)
            if model is None:
                return
            yield _hit(model)

    def card(self, repo: str) -> str | None:
        """Return the model card on the main branch; None if there is no such repository, or no card in it.

        Raises:
            RegistryError: not allowed, not reachable.
            PackageError: too large.
        """
        api = connect()
        try:
            head = look(api, check_repo(repo))
        except MissingError:
            return None
        if CARD_NAME not in head.files:
            return None
        return fetch_small(api, repo, CARD_NAME, head, CARD_BYTES).decode("utf-8", "replace")

    def _newest(self, api: HfApi, repo: str) -> str:
        """Return the newest version; offline, of those in the cache. Without any: the main branch."""
        if is_offline():
            refs = self._cache(repo) / "refs"
            names = os.listdir(refs) if refs.is_dir() else []
        else:
            names = [version.version for version in self.versions(repo)]
        return newest(filter(is_version, names)) or "main"

    def _saved(self, repo: str, revision: str) -> _Found | None:
        if not (is_offline() or is_version(revision) or is_commit(revision)):
            return None
        found = saved(repo, MANIFEST_NAME, revision, MANIFEST_BYTES)
        return _Found(*found) if found else None

    def _manifest(self, api: HfApi, repo: str, revision: str) -> _Found:
        """Fetch the manifest into the cache, and before it what lies beside it, so that it is the last of the small."""
        commit = look(api, repo, revision)
        if MANIFEST_NAME not in commit.files:
            raise RegistryError(
                "holds no delta: there is no manifest.json",
                where=f"{repo}@{revision}",
                remedy="`pd-search` finds deltas; `pd-versions` lists a delta's versions",
            )
        for name, most in EXTRAS.items():
            if name in commit.files and commit.files[name].size <= most:
                fetch_small(api, repo, name, commit, most)
        return _Found(fetch_small(api, repo, MANIFEST_NAME, commit, MANIFEST_BYTES, revision), commit.id)

    def _files(
        self,
        api: HfApi,
        repo: str,
        commit: str,
        files: list[FileRecord],
        place: Path,
        into: Path | None,
        progress: Progress,
    ) -> int:
        """Make every listed file lie at ``place``; return the bytes that had to come."""
        progress.start("pulling", sum(file.size for file in files))
        try:
            missing = []
            for file in files:
                if is_right(place, file):
                    progress.advance(file.size)
                else:
                    missing.append(file)
            needed = sum(file.size for file in missing)
            if into is not None:
                missing = self._copied(repo, commit, missing, into, progress)
            if missing and not is_offline():
                check_announced(missing, look(api, repo, commit), f"{repo}@{commit[:12]}")
                check_space(place, sum(file.size for file in missing))
            for file in missing:
                fetch(api, repo, commit, file, place, into, progress)
            return needed
        finally:
            progress.finish()

    def _copied(
        self, repo: str, commit: str, files: list[FileRecord], into: Path, progress: Progress
    ) -> list[FileRecord]:
        """Copy what the cache has right, offline or not; return what it has not."""
        snapshot = self._cache(repo) / "snapshots" / commit
        here = [file for file in files if is_right(snapshot, file)]
        receive(here, lambda name: file_chunks(settle(snapshot, name)), into, str(snapshot))
        for file in here:
            progress.advance(file.size)
        return [file for file in files if file not in here]

    def _cache(self, repo: str) -> Path:
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")


def _extras(repo: str, commit: str) -> dict[str, bytes]:
    """Return what the cache has beside a commit's package and is not listed, by name."""
    found = {name: saved(repo, name, commit, most) for name, most in EXTRAS.items()}
    return {name: kept[0] for name, kept in found.items() if kept is not None}


def _hit(model: ModelInfo) -> Hit:
    """Return what a card says of itself; whatever is not of the right kind counts as not said."""
    facts: Any = getattr(model.card_data, FACTS_KEY, None)
    facts = facts if isinstance(facts, dict) else {}
    tags = [tag for tag in model.tags or () if isinstance(tag, str)]
    fingerprint, short = _text(facts.get("fingerprint")), tagged(tags, FINGERPRINT_PREFIX)
    if short and not (fingerprint and fingerprint.startswith(short)):
        fingerprint = short  # the tag is what was searched for
    nbytes = facts.get("bytes")
    return Hit(
        repo=model.id,
        title=_text(facts.get("name")) or model.id,
        version=_text(facts.get("version")),
        revision=model.sha or "",
        base=tagged(tags, BASE_PREFIX) or _text(facts.get("base")),
        post=_text(facts.get("post")),
        fingerprint=fingerprint,
        nbytes=nbytes if type(nbytes) is int and nbytes >= 0 else None,
        license=tagged(tags, LICENSE_PREFIX),
        created=model.created_at.isoformat() if model.created_at else None,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _TEXT_LENGTH and is_clear(value) else None
