"""The Hugging Face Hub as a registry: a delta is a model repository, a version is a tag on one atomic commit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramdelta_hub.errors import IntegrityError, PackageError, RegistryError
from paramdelta_hub.fileio.names import is_clear
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.hub.client import connect, is_offline
from paramdelta_hub.hub.endpoint import endpoint
from paramdelta_hub.hub.errors import MissingError, NotFoundError, translate_hub_errors
from paramdelta_hub.limits import MANIFEST_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord, parse_manifest
from paramdelta_hub.registry.cards.card import (
    BASE_PREFIX,
    FACTS_KEY,
    FINGERPRINT_PREFIX,
    LICENSE_PREFIX,
    TAG,
    fingerprint_tag,
    tag_value,
)
from paramdelta_hub.registry.hub.fetch import (
    cache_folder,
    card_of,
    check_remote_files,
    fetch,
    fetch_small,
    get_commit,
    read_cached,
)
from paramdelta_hub.registry.hub.publishing import plan, publish, tagged
from paramdelta_hub.registry.hub.withdrawal import reason_for, yank
from paramdelta_hub.registry.materialize import CARD_NAME, EXTRAS, check_free_space, file_chunks, is_intact, receive
from paramdelta_hub.registry.names import check_repo, is_commit, is_repo, is_version, newest, newest_first
from paramdelta_hub.registry.protocol import (
    CardMaker,
    Hit,
    Part,
    Publication,
    Published,
    Registry,
    Snapshot,
    Version,
    all_withdrawn,
)
from paramdelta_hub.registry.words import has_words
from paramdelta_hub.registry.yanks import YANK_BYTES, parse_yank, yank_name, yanked_in
from paramdelta_hub.tasks.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

__all__ = ["HubRegistry"]

_TEXT_LENGTH = 1024


class HubRegistry(Registry):
    """Publishes to, pulls from and searches the Hub at HF_ENDPOINT, with the account of HF_TOKEN.

    A version or commit that is complete in the cache needs no network, because a version never changes.
    """

    @property
    def address(self) -> str:
        """The Hub's address."""
        return endpoint()

    def versions(self, repo: str) -> list[Version]:
        """Return all versions, the newest first by semantic version. Other tags are left out."""
        api = connect()
        commits = tagged(api, check_repo(repo))
        head = get_commit(api, repo)
        reasons = {version: reason_for(api, repo, head, version) for version in yanked_in(head.files)}
        return [Version(name, commits[name], None, None, reasons.get(name)) for name in newest_first(commits)]

    def search(self, query: str | None, base: str | None, fingerprint: str | None) -> Iterator[Hit]:
        """Yield deltas page by page. What a hit says comes from its card and is not checked.

        The words are compared here, because the Hub's own search looks at names only.
        """
        tags = [TAG, *([BASE_PREFIX + base] if base else []), *([fingerprint_tag(fingerprint)] if fingerprint else [])]
        with translate_hub_errors("the Hub"):
            models = iter(connect().list_models(filter=tags, full=True, cardData=True))
        while True:
            with translate_hub_errors("the Hub"):
                model = next(models, None)
            if model is None:
                return
            if not isinstance(model.id, str) or not is_repo(model.id):
                continue
            hit = _hit(model)
            # The card is that of the newest version that is left, unless one was withdrawn by hand.
            yanked = yanked_in(file.rfilename for file in model.siblings or () if isinstance(file.rfilename, str))
            if hit.version in yanked:
                left = newest(tagged(connect(), hit.repo).keys() - yanked)
                if left is None:
                    continue
                hit = replace(hit, version=left, nbytes=None)
            if has_words(query, (hit.repo, hit.title, hit.base, hit.post, *_tags(model))):
                yield hit

    def card(self, repo: str) -> str | None:
        """Return the model card on the main branch; None if the repository or its card does not exist."""
        api = connect()
        try:
            return card_of(api, get_commit(api, check_repo(repo)))
        except MissingError:
            return None

    def _publish(self, publication: Publication) -> Published:
        return publish(connect(), publication)

    def _plan(self, publication: Publication) -> Published:
        return plan(connect(), publication)

    def _yank(self, repo: str, version: str, reason: str | None, make_card: CardMaker) -> None:
        yank(connect(), repo, version, reason, make_card)

    def _find(self, repo: str, revision: str | None) -> Snapshot:
        """Return a version, a commit or the head of a branch; by default the newest version."""
        wanted, at = (revision, None) if revision else self._newest(repo)
        where = f"{repo}@{wanted}"
        cached = self._cached_manifest(repo, wanted)
        notes: list[str] = []
        extras: dict[str, bytes] = {}
        content, commit = cached or self._fetch_manifest(repo, wanted, at or _commit_of(repo, wanted), notes, extras)
        manifest, package_id = parse_manifest(content, where)
        if is_version(wanted) and manifest.version != wanted:
            raise IntegrityError(
                f"the tag {wanted} holds version {manifest.version}",
                where=where,
                remedy="the tag was moved or set by hand; use another version, or tell the publisher",
            )
        yanked = self._yanked(repo, manifest.version, is_cached=cached is not None) if revision else None
        return Snapshot(repo, commit, manifest, content, package_id, where, yanked, tuple(notes), extras)

    def _yanked(self, repo: str, version: str, *, is_cached: bool) -> str | None:
        """Return why a version is withdrawn, if it is.

        What is complete in the cache needs no network, so for that only what the cache knows counts.
        """
        if is_cached:
            known = read_cached(repo, yank_name(version), "main", YANK_BYTES, unchecked=True)
            return parse_yank(known[0]) if known else None
        api = connect()
        head = get_commit(api, repo)
        return reason_for(api, repo, head, version) if version in yanked_in(head.files) else None

    def _newest(self, repo: str) -> tuple[str, str | None]:
        """Return the newest version and its commit, or the main branch if there is none.

        If offline, it is the newest in the cache, and the commit is not known.
        """
        commits: dict[str, str] = {}
        if is_offline():
            refs = cache_folder(repo) / "refs"
            names = os.listdir(refs) if refs.is_dir() else []
            reasons = {name: self._yanked(repo, name, is_cached=True) for name in names if is_version(name)}
        else:
            versions = self.versions(repo)
            commits = {version.version: version.revision for version in versions}
            reasons = {version.version: version.yanked for version in versions}
        found = newest(version for version, reason in reasons.items() if reason is None)
        if found is None and reasons:
            raise all_withdrawn(repo, {version: reason or "" for version, reason in reasons.items()})
        return found or "main", commits.get(found or "")

    def _cached_manifest(self, repo: str, revision: str) -> tuple[bytes, str] | None:
        """Return (manifest, commit) from the cache, if the cached one is sure to be the current one."""
        if is_offline() or is_version(revision) or is_commit(revision):
            return read_cached(repo, MANIFEST_NAME, revision, MANIFEST_BYTES, unchecked=is_offline())
        return None

    def _fetch_manifest(
        self, repo: str, revision: str, at: str, notes: list[str], extras: dict[str, bytes]
    ) -> tuple[bytes, str]:
        """Fetch the card and the signature into the cache, then the manifest: a cached manifest implies the others.

        ``at`` is where ``revision`` is: a commit, or the same.

        Card and signature go to ``extras`` too. Nothing depends on the card: if it can't be had, that goes to
        ``notes``.
        """
        api = connect()
        commit = get_commit(api, repo, at)
        if MANIFEST_NAME not in commit.files:
            raise RegistryError(
                "not a delta: the repository has no manifest.json",
                where=f"{repo}@{revision}",
                remedy="`pd-search` finds deltas; `pd-versions` lists a delta's versions",
            )
        for name, limit in EXTRAS.items():
            if name in commit.files and (commit.files[name].size or 0) <= limit:
                try:
                    extras[name] = fetch_small(api, repo, name, commit, limit)
                except (RegistryError, PackageError) as error:
                    if name != CARD_NAME:
                        raise
                    notes.append(f"the card could not be had: {error.what}")
        return fetch_small(api, repo, MANIFEST_NAME, commit, MANIFEST_BYTES, revision), commit.id

    def _extra(self, found: Snapshot, name: str) -> bytes | None:
        if name in found.extras:
            return found.extras[name]
        # What can't be checked in the cache was compared with the Hub's digest when it was fetched.
        cached = read_cached(found.repo, name, found.revision, EXTRAS[name], unchecked=True)
        return cached[0] if cached else None

    def _pull_into_cache(self, found: Snapshot, part: Part, signed: bool, progress: Progress) -> tuple[Path, int]:
        folder = _snapshot_folder(found)
        return folder, self._fetch_missing(found, found.files(part), folder, None, progress)

    def _fetch(self, found: Snapshot, files: Sequence[FileRecord], folder: Path, progress: Progress) -> int:
        return self._fetch_missing(found, files, folder, folder, progress)

    def _fetch_missing(
        self, found: Snapshot, files: Sequence[FileRecord], folder: Path, into: Path | None, progress: Progress
    ) -> int:
        """Do what :meth:`_fetch` does; ``into`` is as for :func:`.fetch.fetch`."""
        api = connect()
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
                missing = _copy_cached(found, missing, into, progress)
            if missing and not is_offline():
                commit = get_commit(api, found.repo, found.revision)
                check_remote_files(missing, commit, f"{found.repo}@{found.revision[:12]}")
                check_free_space(folder, sum(file.size for file in missing))
            for file in missing:
                fetch(api, found.repo, found.revision, file, folder, into, progress)
            return needed
        finally:
            progress.finish()


def _commit_of(repo: str, revision: str) -> str:
    """Return the commit of a version, and any other revision as it is.

    A version is a tag. A branch of the same name is none, which the Hub would look for too. A mirror that has no list
    of tags is asked for the name itself.
    """
    if not is_version(revision) or is_offline():
        return revision
    try:
        commits = tagged(connect(), repo)
    except NotFoundError:  # if the repository is what is missing, the next request tells
        return revision
    if revision not in commits:
        raise RegistryError("no such version", where=f"{repo}@{revision}", remedy="`pd-versions` lists what is there")
    return commits[revision]


def _snapshot_folder(found: Snapshot) -> Path:
    return cache_folder(found.repo) / "snapshots" / found.revision


def _copy_cached(found: Snapshot, files: Sequence[FileRecord], into: Path, progress: Progress) -> list[FileRecord]:
    """Copy the files that are intact in the cache; return those that are not."""
    snapshot = _snapshot_folder(found)
    cached = [file for file in files if is_intact(snapshot, file)]
    receive(cached, lambda name: file_chunks(resolve_inside(snapshot, name)), into, str(snapshot))
    for file in cached:
        progress.advance(file.size)
    return [file for file in files if file not in cached]


def _hit(model: ModelInfo) -> Hit:
    """Return what a card says about a delta. A value of the wrong type counts as missing."""
    facts: Any = getattr(model.card_data, FACTS_KEY, None)
    facts = facts if isinstance(facts, dict) else {}
    tags = [tag for tag in model.tags or () if isinstance(tag, str)]
    fingerprint, short = _text(facts.get("fingerprint")), tag_value(tags, FINGERPRINT_PREFIX)
    if short and not (fingerprint and fingerprint.startswith(short)):
        fingerprint = short  # the search was for the tag
    nbytes, base = facts.get("bytes"), _text(facts.get("base"))
    if base is None or BASE_PREFIX + base not in tags:  # a card may name more than one
        base = tag_value(tags, BASE_PREFIX) or base
    return Hit(
        repo=model.id,
        title=_text(facts.get("name")) or model.id,
        version=_text(facts.get("version")),
        revision=model.sha or "",
        base=base,
        post=_text(facts.get("post")),
        fingerprint=fingerprint,
        nbytes=nbytes if type(nbytes) is int and nbytes >= 0 else None,
        license=tag_value(tags, LICENSE_PREFIX),
        created=model.created_at.isoformat() if model.created_at else None,
    )


def _tags(model: ModelInfo) -> list[str]:
    """Return the tags on a card, or all that the Hub knows if it does not send cards."""
    tags: Any = getattr(model.card_data, "tags", None) if model.card_data else model.tags
    return [tag for tag in (tags if isinstance(tags, list) else [tags]) if isinstance(tag, str)]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _TEXT_LENGTH and is_clear(value) else None
