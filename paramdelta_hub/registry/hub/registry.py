"""The Hugging Face Hub as a registry: a delta is a model repository, a version is a tag on one atomic commit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramdelta_hub.errors import IntegrityError, RegistryError
from paramdelta_hub.fileio.names import is_clear
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.hub.client import connect, is_offline
from paramdelta_hub.hub.errors import MissingError, endpoint, translate_hub_errors
from paramdelta_hub.limits import CARD_BYTES, MANIFEST_BYTES, SIGNATURE_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord, Manifest, parse_manifest
from paramdelta_hub.registry.cards.tags import (
    BASE_PREFIX,
    FACTS_KEY,
    FINGERPRINT_PREFIX,
    LICENSE_PREFIX,
    TAG,
    base_tag,
    fingerprint_tag,
    tag_value,
)
from paramdelta_hub.registry.hub.fetch import check_remote_files, fetch, fetch_small, get_commit, read_cached
from paramdelta_hub.registry.hub.publishing import publish
from paramdelta_hub.registry.install import Snapshot, install
from paramdelta_hub.registry.materialize import (
    CARD_NAME,
    EXTRAS,
    SIGNATURE_NAME,
    check_free_space,
    file_chunks,
    is_intact,
    receive,
)
from paramdelta_hub.registry.names import check_repo, is_commit
from paramdelta_hub.registry.protocol import Hit, Part, Published, Pulled, Version, files_of
from paramdelta_hub.registry.signing import Trust
from paramdelta_hub.registry.versions import is_version, newest, newest_first
from paramdelta_hub.tasks.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

__all__ = ["HubRegistry"]

_TEXT_LENGTH = 1024


@dataclass(frozen=True)
class _ManifestFile:
    """The content of a manifest, and the commit that holds it."""

    content: bytes
    commit: str


class HubRegistry:
    """Publishes to, pulls from and searches the Hub at HF_ENDPOINT, with the account of HF_TOKEN."""

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
        """Publish a package completely or not at all: one commit, then the tag ``version``; see :mod:`.publishing`.

        The arguments are those of :meth:`.protocol.Registry.publish`.

        Raises:
            PublishError: the version exists with other content, or somebody else published it first.
            RegistryError: not allowed, not reachable, or the repository is no place for a delta.
            OptionError: ``version`` is not the manifest's, or ``repo`` is not a valid name.
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
        """Fetch a version, commit or branch (by default the newest version) into ``folder``, or into the Hub's cache.

        Intact files that are already there are kept, so a rerun continues file by file. A version or commit that is
        complete in the cache needs no network, because a version never changes.

        Raises:
            SignatureError: see :meth:`.protocol.Registry.pull`.
            IntegrityError: a file is not what the manifest promises, or the tag is not the manifest's version.
            DestinationError: ``folder`` holds something else.
            RegistryError: no such repository or version, not allowed, not reachable, or offline and not in the cache.
        """
        check_repo(repo)
        api, progress = connect(), progress or Progress()
        wanted = revision or self._newest(repo)
        found = self._cached_manifest(repo, wanted) or self._fetch_manifest(api, repo, wanted)
        manifest, package_id = parse_manifest(found.content, f"{repo}@{wanted}")
        _check_tag(manifest, repo, wanted)
        signed_by = None
        if trust is not None:
            signature = read_cached(repo, SIGNATURE_NAME, found.commit, SIGNATURE_BYTES)
            signed_by = trust.check(found.content, signature[0] if signature else None, f"{repo}@{wanted}", repo)
        files = files_of(manifest, part)
        if folder is None:
            out = _snapshot_folder(repo, found.commit)
            downloaded = self._fetch_files(api, repo, found.commit, files, out, None, progress)
        else:
            out = Path(os.path.abspath(os.path.expanduser(folder)))
            extras = _cached_extras(repo, found.commit) if part == "package" else None
            downloaded = install(
                Snapshot(endpoint(), repo, found.commit, manifest, found.content, package_id, extras),
                out,
                lambda: self._fetch_files(api, repo, found.commit, files, out, out, progress),
                named=revision is not None,
                allow_downgrade=allow_downgrade,
                companions=[file for file in manifest.companions if file in files],
            )
        return Pulled(
            path=out,
            repo=repo,
            version=manifest.version,
            revision=found.commit,
            id=package_id,
            downloaded_nbytes=downloaded,
            signed_by=signed_by,
        )

    def versions(self, repo: str) -> list[Version]:
        """Return all versions, the newest first by semantic version. Other tags are left out.

        Raises:
            RegistryError: no such repository, not allowed, or not reachable.
        """
        with translate_hub_errors(check_repo(repo)):
            commits = {tag.name: tag.target_commit for tag in connect().list_repo_refs(repo).tags}
        return [Version(name, commits[name], None, None) for name in newest_first(filter(is_version, commits))]

    def search(self, query: str | None, base: str | None, fingerprint: str | None) -> Iterator[Hit]:
        """Yield deltas page by page. What a hit says comes from its card and is not checked.

        Raises:
            RegistryError: not reachable, or offline.
        """
        tags = [TAG, *([base_tag(base)] if base else []), *([fingerprint_tag(fingerprint)] if fingerprint else [])]
        with translate_hub_errors("the Hub"):
            models = iter(connect().list_models(filter=tags, search=query, full=True, cardData=True))
        while True:
            with translate_hub_errors("the Hub"):
                model = next(models, None)
            if model is None:
                return
            yield _hit(model)

    def card(self, repo: str) -> str | None:
        """Return the model card on the main branch; None if the repository or its card does not exist.

        Raises:
            RegistryError: not allowed, or not reachable.
            PackageError: the card is too large.
        """
        api = connect()
        try:
            head = get_commit(api, check_repo(repo))
        except MissingError:
            return None
        if CARD_NAME not in head.files:
            return None
        return fetch_small(api, repo, CARD_NAME, head, CARD_BYTES).decode("utf-8", "replace")

    def _newest(self, repo: str) -> str:
        """Return the newest version (if offline: the newest in the cache), or the main branch if there is none."""
        if is_offline():
            refs = _cache_folder(repo) / "refs"
            names = os.listdir(refs) if refs.is_dir() else []
        else:
            names = [version.version for version in self.versions(repo)]
        return newest(filter(is_version, names)) or "main"

    def _cached_manifest(self, repo: str, revision: str) -> _ManifestFile | None:
        """Return the manifest from the cache, if the cached one is sure to be the current one."""
        if not (is_offline() or is_version(revision) or is_commit(revision)):
            return None
        found = read_cached(repo, MANIFEST_NAME, revision, MANIFEST_BYTES)
        return _ManifestFile(*found) if found else None

    def _fetch_manifest(self, api: HfApi, repo: str, revision: str) -> _ManifestFile:
        """Fetch the card and the signature into the cache, then the manifest: a cached manifest implies the others."""
        commit = get_commit(api, repo, revision)
        if MANIFEST_NAME not in commit.files:
            raise RegistryError(
                "not a delta: the repository has no manifest.json",
                where=f"{repo}@{revision}",
                remedy="`pd-search` finds deltas; `pd-versions` lists a delta's versions",
            )
        for name, limit in EXTRAS.items():
            if name in commit.files and commit.files[name].size <= limit:
                fetch_small(api, repo, name, commit, limit)
        return _ManifestFile(fetch_small(api, repo, MANIFEST_NAME, commit, MANIFEST_BYTES, revision), commit.id)

    def _fetch_files(
        self,
        api: HfApi,
        repo: str,
        commit: str,
        files: Sequence[FileRecord],
        folder: Path,
        into: Path | None,
        progress: Progress,
    ) -> int:
        """Make ``folder`` hold every listed file; return the size of those that were missing or damaged.

        ``into`` is as for :func:`.fetch.fetch`.
        """
        progress.start("pulling", sum(file.size for file in files))
        try:
            missing = []
            for file in files:
                if is_intact(folder, file):
                    progress.advance(file.size)
                else:
                    missing.append(file)
            needed = sum(file.size for file in missing)
            if into is not None:
                missing = self._copy_cached(repo, commit, missing, into, progress)
            if missing and not is_offline():
                check_remote_files(missing, get_commit(api, repo, commit), f"{repo}@{commit[:12]}")
                check_free_space(folder, sum(file.size for file in missing))
            for file in missing:
                fetch(api, repo, commit, file, folder, into, progress)
            return needed
        finally:
            progress.finish()

    def _copy_cached(
        self, repo: str, commit: str, files: list[FileRecord], into: Path, progress: Progress
    ) -> list[FileRecord]:
        """Copy the files that are intact in the cache; return those that are not."""
        snapshot = _snapshot_folder(repo, commit)
        cached = [file for file in files if is_intact(snapshot, file)]
        receive(cached, lambda name: file_chunks(resolve_inside(snapshot, name)), into, str(snapshot))
        for file in cached:
            progress.advance(file.size)
        return [file for file in files if file not in cached]


def _check_tag(manifest: Manifest, repo: str, wanted: str) -> None:
    """Check that a tag that is a version holds this version.

    Raises:
        IntegrityError: it holds another one.
    """
    if is_version(wanted) and manifest.version != wanted:
        raise IntegrityError(
            f"the tag {wanted} holds version {manifest.version}",
            where=f"{repo}@{wanted}",
            remedy="the tag was moved or set by hand; use another version, or tell the publisher",
        )


def _cache_folder(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")


def _snapshot_folder(repo: str, commit: str) -> Path:
    return _cache_folder(repo) / "snapshots" / commit


def _cached_extras(repo: str, commit: str) -> dict[str, bytes]:
    """Return the card and the signature of a commit from the cache, by file name."""
    found = {name: read_cached(repo, name, commit, limit) for name, limit in EXTRAS.items()}
    return {name: cached[0] for name, cached in found.items() if cached is not None}


def _hit(model: ModelInfo) -> Hit:
    """Return what a card says about a delta. A value of the wrong type counts as missing."""
    facts: Any = getattr(model.card_data, FACTS_KEY, None)
    facts = facts if isinstance(facts, dict) else {}
    tags = [tag for tag in model.tags or () if isinstance(tag, str)]
    fingerprint, short = _text(facts.get("fingerprint")), tag_value(tags, FINGERPRINT_PREFIX)
    if short and not (fingerprint and fingerprint.startswith(short)):
        fingerprint = short  # the search was for the tag
    nbytes = facts.get("bytes")
    return Hit(
        repo=model.id,
        title=_text(facts.get("name")) or model.id,
        version=_text(facts.get("version")),
        revision=model.sha or "",
        base=tag_value(tags, BASE_PREFIX) or _text(facts.get("base")),
        post=_text(facts.get("post")),
        fingerprint=fingerprint,
        nbytes=nbytes if type(nbytes) is int and nbytes >= 0 else None,
        license=tag_value(tags, LICENSE_PREFIX),
        created=model.created_at.isoformat() if model.created_at else None,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _TEXT_LENGTH and is_clear(value) else None
