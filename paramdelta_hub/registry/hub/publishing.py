"""Publishing to the Hub: one commit on a known parent commit, then a check, then a tag.

The tag makes the version. It is created once and never moved.

- After an interruption before the tag, a rerun finds the commit and only creates the tag.
- If two people publish the same version, the Hub creates the tag for one of them. The other gets an error.
- If two people publish different versions, the Hub refuses the later commit as stale. It is made again on the new head.

The main branch holds the newest version: the highest release that is not withdrawn. Any other version is committed to a
branch of its own, which is deleted when the tag is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paramdelta_hub.errors import PackageError, PublishError, RegistryError
from paramdelta_hub.fileio.durable import read_small
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.hub.client import connect
from paramdelta_hub.hub.endpoint import endpoint
from paramdelta_hub.hub.errors import MissingError, StaleError, translate_hub_errors
from paramdelta_hub.limits import MANIFEST_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord, Manifest, parse_manifest
from paramdelta_hub.package.package import PICTURE_NAME, Package
from paramdelta_hub.registry.cards.card import FACTS_KEY
from paramdelta_hub.registry.cards.front_matter import metadata
from paramdelta_hub.registry.cards.heatmap import heat_map, heat_parts
from paramdelta_hub.registry.hub.fetch import Commit, card_of, check_name, fetch_listed, fetch_small, get_commit
from paramdelta_hub.registry.materialize import CARD_NAME, SIGNATURE_NAME
from paramdelta_hub.registry.names import is_commit, is_version, newest
from paramdelta_hub.registry.protocol import HIGHER_VERSION, Extras, Publication, Published
from paramdelta_hub.registry.yanks import yanked_in
from paramdelta_hub.tasks.package_files import check_files

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

__all__ = ["ATTEMPTS", "can_write", "find_pull_request", "manifest_of", "plan", "publish", "tagged"]

ATTEMPTS = 6
"""How often a publication is tried while others commit at the same time."""


@dataclass(frozen=True)
class _Plan:
    """What a publication has to do, by the repository as it is at this moment. The dry run shares it."""

    publication: Publication
    extras: Extras
    head: Commit | None = None
    """The head of the main branch; None if there is no repository yet."""
    tagged: str | None = None
    """The commit of the version, if it is published already."""
    lacks_card: bool = False
    """Whether it is published, and its card on the main branch is none of ours."""
    newer: str | None = None
    """The version that stays the newest; None if this one becomes it."""
    old: Manifest | None = None
    """The manifest on the main branch."""

    @property
    def is_done(self) -> bool:
        return self.tagged is not None and not self.lacks_card

    @property
    def place(self) -> str:
        """Where the package goes, and who can see it."""
        private = self.publication.private if self.head is None else self.head.private
        how = ", a new repository" if self.head is None else ", by a pull request" * self.publication.create_pr
        return f"{endpoint()}/{self.publication.repo} ({'private' if private else 'public'}{how})"

    @property
    def title(self) -> str:
        """The title of the commit."""
        manifest, message = self.publication.package.manifest, self.publication.message
        title = f"{message or f'Publish {manifest.name}'} ({manifest.version}, {self.publication.package.digest[:12]})"
        return f"Add the card: {title}" if self.tagged else title

    def is_held(self, commit: Commit) -> bool:
        """Whether a commit holds all files of the package, its card, and its signature if it has one."""
        delta = self.publication.package
        if not _has_manifest(delta, commit) or not all(_has_file(delta, file, commit) for file in delta.manifest.files):
            return False
        extras = self.extras.files.items()
        return all(name in commit.files and commit.files[name].matches(content) for name, content in extras)

    def uploads(self) -> dict[str, int]:
        """Return the sizes of the files that would be uploaded, by name. None is read back from the Hub."""
        delta, head = self.publication.package, self.head
        small = {**self.extras.files, MANIFEST_NAME: _manifest_text(delta), PICTURE_NAME: _picture(delta)}
        sizes = {file.path: file.size for file in delta.manifest.files}
        sizes |= {name: len(content) for name, content in small.items()}
        if self.tagged:
            return {CARD_NAME: sizes[CARD_NAME]} if self.lacks_card else {}
        known = {name: file for name, file in head.files.items() if file.is_known} if head else {}
        there = {name for name in known.keys() & small.keys() if known[name].matches(small[name])}
        there |= {
            file.path for file in delta.manifest.files if head and file.path in known and _has_file(delta, file, head)
        }
        return {name: size for name, size in sizes.items() if name not in there}

    def done(self, commit: str, *, uploaded: bool, pull_request: str | None = None) -> Published:
        """Return the report."""
        url = _url(self.publication)
        return self.publication.done(commit, url, self.extras if uploaded else None, pull_request)


def publish(api: HfApi, publication: Publication) -> Published:
    """Publish a package as a version of a repository. The repository is created if needed.

    With ``create_pr`` the commit becomes a pull request without a tag. After it is merged, publish again: this finds
    the content on the main branch and tags it.

    Raises:
        PublishError: the version exists with other content, or somebody else published it first.
        RegistryError: not allowed, not reachable, or the repository is no place for a delta.
        PackageError: the package is broken.
    """
    repo = publication.repo
    check_files(publication.package, publication.package.manifest.files, publication.progress)
    told: list[tuple[str, ...]] = []
    for _ in range(ATTEMPTS):
        try:
            found = _make_plan(api, publication)
            if found.is_done:
                return found.done(str(found.tagged), uploaded=False)
            # Once, however many attempts it takes, unless the card changes meanwhile.
            if found.extras.notes not in told:
                told.append(found.extras.notes)
                publication.announce(found.place, found.extras)
            if found.head is not None:
                return _carry_out(api, found, found.head)
            with translate_hub_errors(repo):
                api.create_repo(repo, private=publication.private, exist_ok=True)
        except StaleError:
            continue
    raise PublishError(
        "others keep committing to this repository", where=repo, remedy="run the command again in a minute"
    )


def plan(api: HfApi, publication: Publication) -> Published:
    """Return what :func:`publish` would do, and raise what it would raise, as far as can be known without trying.

    Raises:
        PublishError, RegistryError, PackageError: as :func:`publish`.
    """
    check_files(publication.package, publication.package.manifest.files, publication.progress)
    found = _make_plan(api, publication)
    if not found.is_done:
        if not (publication.create_pr or can_write(api, publication.repo)):
            raise RegistryError(
                "the account of this token can't write there",
                where=publication.repo,
                remedy="use a token with write access, or open a pull request with --create-pr",
            )
        publication.announce(found.place, found.extras)
    revision = found.tagged or publication.package.manifest.version
    extras = None if found.is_done else found.extras
    return publication.planned(revision, _url(publication), found.uploads(), found.newer is None, extras)


def _make_plan(api: HfApi, publication: Publication) -> _Plan:
    """Look at the repository, and check all that can be checked before anything is sent."""
    delta, repo, version = publication.package, publication.repo, publication.package.manifest.version
    try:
        head = get_commit(api, repo)
    except MissingError:
        if publication.create_pr:
            raise
        return _Plan(publication, publication.make_extras(None))
    _check_head(publication, head)
    extras = publication.make_extras(card_of(api, head))
    tags, branches = refs(api, repo)
    if version in tags:
        at = get_commit(api, repo, tags[version])
        if not _has_manifest(delta, at):
            raise _version_exists(repo, version)
        found = _Plan(publication, extras, head, at.id, newer=_newer_version(version, head, tags, None))
        return replace(found, lacks_card=_lacks_card(api, found, head))
    old = None if _has_manifest(delta, head) else manifest_of(api, repo, head)
    newer = _newer_version(version, head, tags, old)
    if version in branches:
        raise RegistryError(
            f"a branch is called {version}, like the version",
            where=repo,
            remedy="delete the branch, or publish another version",
        )
    if newer and publication.create_pr:
        raise RegistryError(
            f"a pull request would put version {version} in the place of {newer}",
            where=repo,
            remedy="let an owner of the repository publish it",
        )
    if old is not None and old.version == version:
        raise _version_exists(repo, version)
    found = _Plan(publication, extras, head, newer=newer, old=old or delta.manifest)
    if publication.create_pr and found.is_held(head):  # only the tag is missing
        raise RegistryError(
            "the main branch holds this content already", where=repo, remedy="publish without --create-pr to tag it"
        )
    return found


def _carry_out(api: HfApi, found: _Plan, head: Commit) -> Published:
    from huggingface_hub import CommitOperationAdd

    publication, repo = found.publication, found.publication.repo
    version = publication.package.manifest.version
    if found.tagged:
        with translate_hub_errors(repo):
            card = CommitOperationAdd(path_in_repo=CARD_NAME, path_or_fileobj=found.extras.files[CARD_NAME])
            api.create_commit(repo, [card], commit_message=found.title, parent_commit=head.id)
        done = found.done(found.tagged, uploaded=False)
        return done.model_copy(update={"notes": ("the version was there already; its card was added",)})
    if publication.create_pr:
        return _open_pull_request(api, found, head)
    if found.is_held(head):
        commit = head.id
    elif found.newer:
        publication.progress.note(f"{found.newer} stays the newest version: {version} becomes a tag only")
        commit = _commit_apart(api, found, head)
    else:
        commit = _commit(api, found, head)
    with translate_hub_errors(repo):
        api.create_tag(repo, tag=version, revision=commit, tag_message=found.title)
    if found.newer:
        _delete_branch(api, repo, version)
    return found.done(commit, uploaded=True)


def can_write(api: HfApi, repo: str) -> bool:
    """Whether the token's account is expected to have write access to a repository.

    Raises:
        RegistryError: there is no token, or it is not valid.
    """
    with translate_hub_errors(repo):
        account = api.whoami()
    token = (account.get("auth") or {}).get("accessToken") or {}
    organizations = [org.get("name") for org in account.get("orgs") or () if org.get("roleInOrg") != "read"]
    return token.get("role") != "read" and repo.split("/")[0] in (account.get("name"), *organizations)


def find_pull_request(api: HfApi, repo: str, title: str) -> str | None:
    """Return the URL of an open pull request with exactly this title, so that a rerun does not open a second one.

    Raises:
        RegistryError: not allowed, or not reachable.
    """
    with translate_hub_errors(repo):
        for found in api.get_repo_discussions(repo, discussion_type="pull_request", discussion_status="open"):
            if found.title == title:
                return str(found.url)
    return None


def _check_head(publication: Publication, head: Commit) -> None:
    repo = publication.repo
    check_name(head)
    if publication.private and not head.private:
        raise RegistryError(
            "the repository exists and is public",
            where=repo,
            remedy="make it private in its settings, or choose another name",
        )
    # What people add to a delta, such as a config.json by which downloads are counted, makes no model of it.
    if MANIFEST_NAME not in head.files and any(
        name == "config.json" or (name.startswith("model") and name.endswith(".safetensors")) for name in head.files
    ):
        raise RegistryError(
            "the repository holds a model",
            where=repo,
            remedy="give the delta a repository of its own; pd-link links the two",
        )


def _newer_version(version: str, head: Commit, tags: Mapping[str, str], old: Manifest | None) -> str | None:
    """Return the version that stays the newest; None if the one that is published becomes it.

    A version on the main branch that has no tag counts: somebody is about to set it.
    """
    others = {*tags, *([old.version] if old else [])} - yanked_in(head.files) - {version}
    before = newest(others)
    return before if before is not None and newest([before, version]) == before else None


def tagged(api: HfApi, repo: str) -> dict[str, str]:
    """Return the commit of every version of a repository. Other tags are left out.

    Raises:
        RegistryError: no such repository, not allowed, or not reachable.
    """
    return refs(api, repo)[0]


def refs(api: HfApi, repo: str) -> tuple[dict[str, str], set[str]]:
    """Return the commit of every version of a repository, and the names of its branches.

    Raises:
        RegistryError: no such repository, not allowed, or not reachable.
    """
    with translate_hub_errors(repo):
        found = api.list_repo_refs(repo)
        tags = {tag.name: str(tag.target_commit) for tag in found.tags if is_version(tag.name)}
        branches = {branch.name for branch in found.branches}
    if not all(map(is_commit, tags.values())):
        raise RegistryError("the Hub's answer names no commit", where=repo, remedy="run the command again")
    return tags, branches


def _commit_apart(api: HfApi, found: _Plan, head: Commit) -> str:
    """Commit a package that is not to be the newest version to a branch of its own, and return the commit.

    The branch is needed until the tag is there; a killed run leaves it, and the next one goes on with it.
    """
    repo, branch = head.repo, _branch(found.publication.package.manifest.version)
    with translate_hub_errors(repo):
        api.create_branch(repo, branch=branch, revision=head.id, exist_ok=True)
    at = get_commit(api, repo, branch)
    return at.id if found.is_held(at) else _commit(api, found, at, branch)


def _delete_branch(api: HfApi, repo: str, version: str) -> None:
    """Delete the branch of :func:`_commit_apart`, if it is there. Nothing depends on it any more."""
    with contextlib.suppress(RegistryError), translate_hub_errors(repo):
        api.delete_branch(repo, branch=_branch(version))


def _branch(version: str) -> str:
    return f"publish-{version}"


def _lacks_card(api: HfApi, found: _Plan, head: Commit) -> bool:
    """Whether the version is on the main branch, and its card there is none of ours."""
    publication = found.publication
    if CARD_NAME not in found.extras.files or publication.create_pr or not _has_manifest(publication.package, head):
        return False
    return FACTS_KEY not in metadata(card_of(api, head) or "", head.repo)


def _open_pull_request(api: HfApi, found: _Plan, head: Commit) -> Published:
    if url := find_pull_request(api, head.repo, found.title):
        return found.done(head.id, uploaded=False, pull_request=url)
    with translate_hub_errors(head.repo):
        made = api.create_commit(
            head.repo,
            list(_operations(found, head)),
            commit_message=found.title,
            commit_description=f"Package {found.publication.package.digest}. Once merged, publish again to tag it.",
            parent_commit=head.id,
            create_pr=True,
        )
    return found.done(made.oid, uploaded=True, pull_request=made.pr_url)


def _commit(api: HfApi, found: _Plan, head: Commit, branch: str | None = None) -> str:
    """Commit the package on top of ``head``, check that the Hub holds all of it, and return the commit."""
    repo, operations = head.repo, list(_operations(found, head))
    with translate_hub_errors(repo):
        made = api.create_commit(
            repo,
            operations,
            commit_message=found.title,
            commit_description=f"Package {found.publication.package.digest}",
            revision=branch,
            parent_commit=head.id,
        )
    if not found.is_held(get_commit(api, repo, made.oid)):
        raise RegistryError(
            "the Hub does not hold what was uploaded, so no tag was created",
            where=f"{repo}@{made.oid[:12]}",
            remedy="check the package with pd-verify, and whether a .gitignore in the repository excludes files;"
            " then run the command again",
        )
    return str(made.oid)


def _operations(found: _Plan, head: Commit) -> Iterator[CommitOperationAdd | CommitOperationDelete]:
    """Yield the operations that make ``head`` hold this package: add its files, and delete those of another version."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    delta, extras = found.publication.package, found.extras.files
    listed = [*(file.path for file in delta.manifest.files), MANIFEST_NAME]
    for name in listed:
        yield CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(resolve_inside(delta.path, name)))
    for name, content in extras.items():
        yield CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
    # Drawn from the manifest. A picture in the package's folder could show anything.
    yield CommitOperationAdd(path_in_repo=PICTURE_NAME, path_or_fileobj=_picture(delta))
    if found.old is not None:
        old_names = {file.path for file in found.old.files} | {SIGNATURE_NAME}
        for name in sorted((old_names & head.files.keys()) - {*listed, *extras}):
            yield CommitOperationDelete(path_in_repo=name)


def _picture(delta: Package) -> bytes:
    return heat_map(heat_parts(delta.manifest.tensors), alone=True).encode()


def manifest_of(api: HfApi, repo: str, head: Commit) -> Manifest | None:
    """Return the manifest of a commit; None if it has none of ours.

    Raises:
        RegistryError: not reachable.
    """
    if MANIFEST_NAME not in head.files:
        return None
    try:
        return parse_manifest(fetch_small(api, repo, MANIFEST_NAME, head, MANIFEST_BYTES))[0]
    except PackageError:
        return None  # not a manifest of ours: nothing to compare or delete


def _has_manifest(delta: Package, commit: Commit) -> bool:
    """Whether the commit has this package's manifest. The manifest lists the digests of all other files."""
    remote = commit.files.get(MANIFEST_NAME)
    if remote is None:
        return False
    content = _manifest_text(delta)
    if not remote.is_known:
        return fetch_small(connect(), commit.repo, MANIFEST_NAME, commit, MANIFEST_BYTES) == content
    return remote.matches(content)


def _manifest_text(delta: Package) -> bytes:
    return read_small(resolve_inside(delta.path, MANIFEST_NAME), MANIFEST_BYTES)


def _has_file(delta: Package, file: FileRecord, commit: Commit) -> bool:
    remote = commit.files.get(file.path)
    if remote is None or remote.size not in (None, file.size):
        return False
    if not remote.is_known:
        return fetch_listed(commit, file) is not None  # read back: nothing else tells what is there
    if remote.sha256 is not None:
        return remote.sha256 == file.sha256
    # Without a sha256 it is kept by git itself, so it is small.
    return remote.matches(read_small(resolve_inside(delta.path, file.path), file.size))


def _url(publication: Publication) -> str:
    return f"{endpoint()}/{publication.repo}/tree/{publication.package.manifest.version}"


def _version_exists(repo: str, version: str) -> PublishError:
    return PublishError(
        f"version {version} exists with other content; a published version is never replaced",
        where=repo,
        remedy=f"{HIGHER_VERSION}; or pull the published one, if it is what you meant",
    )
