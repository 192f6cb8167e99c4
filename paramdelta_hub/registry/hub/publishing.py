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
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from paramdelta_hub.errors import IntegrityError, PackageError, PublishError, RegistryError
from paramdelta_hub.fileio.durable import read_small
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.hub.client import connect
from paramdelta_hub.hub.errors import MissingError, StaleError, endpoint, translate_hub_errors
from paramdelta_hub.limits import CARD_BYTES, MANIFEST_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord, Manifest, parse_manifest
from paramdelta_hub.package.package import PICTURE_NAME, Package
from paramdelta_hub.registry.cards.card import FACTS_KEY
from paramdelta_hub.registry.cards.front_matter import metadata
from paramdelta_hub.registry.cards.heatmap import heat_map, heat_parts
from paramdelta_hub.registry.hub.fetch import Commit, fetch_listed, fetch_small, get_commit
from paramdelta_hub.registry.materialize import CARD_NAME, SIGNATURE_NAME, read_extras
from paramdelta_hub.registry.names import is_version, newest
from paramdelta_hub.registry.protocol import HIGHER_VERSION, CardMaker, Publication, Published
from paramdelta_hub.registry.yanks import YANK_BYTES, parse_yank, yank_content, yank_name, yanked_in
from paramdelta_hub.tasks.package_files import check_files

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

__all__ = ["can_write", "find_pull_request", "plan", "publish", "reason_for", "tagged", "yank"]

ATTEMPTS = 6
"""How often a publication is tried while others commit at the same time."""


def publish(api: HfApi, publication: Publication) -> Published:
    """Publish a package as a version of a repository. The repository is created if needed.

    With ``create_pr`` the commit becomes a pull request without a tag. After it is merged, publish again: this finds
    the content on the main branch and tags it.

    Raises:
        PublishError: the version exists with other content, or somebody else published it first.
        RegistryError: not allowed, not reachable, or the repository is no place for a delta.
        PackageError: the package is broken.
    """
    delta, repo, create_pr = publication.package, publication.repo, publication.create_pr
    check_files(delta, delta.manifest.files, publication.progress)
    extras = read_extras(delta.path, publication.extras)
    announced = False

    def announce(visibility: str) -> None:
        nonlocal announced
        if not announced:  # only once, however many attempts it takes
            announced = True
            publication.announce(f"{endpoint()}/{repo} ({visibility})")

    manifest = delta.manifest
    title = f"{publication.message or f'Publish {manifest.name}'} ({manifest.version}, {delta.digest[:12]})"
    for _ in range(ATTEMPTS):
        try:
            head = _get_or_create_head(api, publication, announce)
            tags = tagged(api, repo)
            if manifest.version in tags:
                published = _check_tagged(api, publication)
                return _add_missing_card(api, publication, extras, head, title) or published
            behind = _newer_version(publication, head, tags)
            announce(_visibility(publication, head))
            if create_pr:
                return _open_pull_request(api, publication, extras, head, title)
            if _is_uploaded(delta, extras, head):
                commit = head.id
            elif behind:
                publication.progress.note(f"{behind} stays the newest version: {manifest.version} becomes a tag only")
                commit = _commit_apart(api, repo, delta, extras, head, title)
            else:
                commit = _commit(api, repo, delta, extras, head, title)
            with translate_hub_errors(repo):
                api.create_tag(repo, tag=manifest.version, revision=commit, tag_message=title)
            if behind:
                _delete_branch(api, repo, manifest.version)
            return _done(publication, commit, uploaded=True)
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
    delta, repo, version = publication.package, publication.repo, publication.package.manifest.version
    check_files(delta, delta.manifest.files, publication.progress)
    extras = read_extras(delta.path, publication.extras)
    small = {**extras, MANIFEST_NAME: _manifest_text(delta), PICTURE_NAME: _picture(delta)}
    files = {file.path: file.size for file in delta.manifest.files}
    files |= {name: len(content) for name, content in small.items()}
    url, head, behind = f"{endpoint()}/{repo}/tree/{version}", None, None
    with contextlib.suppress(*(() if publication.create_pr else (MissingError,))):
        head = get_commit(api, repo)
    if head is not None:
        _check_head(publication, head)
        tags = tagged(api, repo)
        if version in tags:
            done = _check_tagged(api, publication)
            files = {CARD_NAME: files[CARD_NAME]} if _lacks_card(api, publication, extras, head) else {}
            return publication.planned(done.revision, url, files, newest=_has_manifest(delta, head))
        behind = _newer_version(publication, head, tags)
        if publication.create_pr:
            _check_not_merged(delta, extras, head)
        _check_untagged(api, repo, delta, head)
        held = {name for name, file in head.files.items() if file.is_known}
        there = {name for name in held & small.keys() if head.files[name].matches(small[name])}
        there |= {file.path for file in delta.manifest.files if file.path in held and _has_file(delta, file, head)}
        files = {name: size for name, size in files.items() if name not in there}
    if not (publication.create_pr or can_write(api, repo)):
        raise RegistryError(
            "the account of this token can't write there",
            where=repo,
            remedy="use a token with write access, or open a pull request with --create-pr",
        )
    publication.announce(f"{endpoint()}/{repo} ({_visibility(publication, head)})")
    return publication.planned(version, url, files, newest=behind is None)


def can_write(api: HfApi, repo: str) -> bool:
    """Whether the token's account is expected to have write access to a repository.

    Raises:
        RegistryError: there is no token, or it is not valid.
    """
    with translate_hub_errors("the Hub"):
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


def _get_or_create_head(api: HfApi, publication: Publication, announce: Callable[[str], None]) -> Commit:
    """Return the head of the repository's main branch. A missing repository is created, after ``announce`` was called.

    A repository is refused if it is public although a private one was asked for, or if it holds a model and no delta.
    """
    repo, private = publication.repo, publication.private
    try:
        head = get_commit(api, repo)
    except MissingError:
        if publication.create_pr:
            raise
        announce(_visibility(publication, None))
        with translate_hub_errors(repo):
            api.create_repo(repo, private=private, exist_ok=True)
        head = get_commit(api, repo)
    _check_head(publication, head)
    return head


def _check_head(publication: Publication, head: Commit) -> None:
    repo = publication.repo
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


def _newer_version(publication: Publication, head: Commit, tags: Mapping[str, str]) -> str | None:
    """Return the version that stays the newest; None if the one that is published becomes it."""
    version = publication.package.manifest.version
    before = newest(tags.keys() - yanked_in(head.files))
    if before is None or newest([before, version]) != before:
        return None
    if publication.create_pr:
        raise RegistryError(
            f"a pull request would put version {version} in the place of {before}",
            where=publication.repo,
            remedy="let an owner of the repository publish it",
        )
    return before


def _visibility(publication: Publication, head: Commit | None) -> str:
    if head is None:
        return f"{'private' if publication.private else 'public'}, a new repository"
    visibility = "private" if head.private else "public"
    return f"{visibility}, by a pull request" if publication.create_pr else visibility


def tagged(api: HfApi, repo: str) -> dict[str, str]:
    """Return the commit of every version of a repository. Other tags are left out.

    Raises:
        RegistryError: no such repository, not allowed, or not reachable.
    """
    with translate_hub_errors(repo):
        return {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags if is_version(tag.name)}


def reason_for(api: HfApi, repo: str, head: Commit, version: str) -> str:
    """Return why a version is withdrawn, by the head of the main branch.

    Raises:
        RegistryError: not reachable.
    """
    try:
        return parse_yank(fetch_small(api, repo, yank_name(version), head, YANK_BYTES, "main"))
    except PackageError:  # of any size, and of any content
        return parse_yank(None)


def yank(api: HfApi, repo: str, version: str, reason: str | None, make_card: CardMaker) -> None:
    """Withdraw a version, or take that back, and make the main branch hold the newest version that is left.

    Both is one commit. The card of the main branch keeps what people wrote.

    Raises:
        RegistryError: not allowed, or not reachable.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    name = yank_name(version)
    for _ in range(ATTEMPTS):
        head, tags = get_commit(api, repo), tagged(api, repo)
        there = yanked_in(head.files)
        left = newest(tags.keys() - ({*there, version} if reason is not None else there - {version}))
        operations: list[Any] = list(_restore(api, repo, head, left, make_card)) if left is not None else []
        if reason is not None:
            operations.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=yank_content(reason)))
        elif name in head.files:
            operations.append(CommitOperationDelete(path_in_repo=name))
        title = f"Withdraw {version}" if reason is not None else f"Take back the withdrawal of {version}"
        try:
            with translate_hub_errors(repo):
                made = api.create_commit(
                    repo, operations, commit_message=title, commit_description=reason or "", parent_commit=head.id
                )
        except StaleError:
            continue
        head = get_commit(api, repo, str(made.oid))
        if reason is not None:
            reason_for(api, repo, head, version)  # so the cache knows it too
        return
    raise RegistryError(
        "others keep committing to this repository", where=repo, remedy="run the command again in a minute"
    )


def _restore(api: HfApi, repo: str, head: Commit, version: str, make_card: CardMaker) -> Iterator[Any]:
    """Yield the operations that make the main branch hold a published version, unless it does."""
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    now = _manifest_of(api, repo, head)
    if now is None or now.version == version:
        return
    wanted = get_commit(api, repo, version)
    content = fetch_small(api, repo, MANIFEST_NAME, wanted, MANIFEST_BYTES)
    manifest, package_id = parse_manifest(content, f"{repo}@{version}")
    listed = {file.path: file for file in manifest.files}
    names = {*listed, MANIFEST_NAME, SIGNATURE_NAME, PICTURE_NAME}
    can_copy = _can_copy(api, wanted)
    for name in sorted(names & wanted.files.keys()):
        if head.files.get(name) == wanted.files[name] and wanted.files[name].is_known:
            continue
        if can_copy:
            yield CommitOperationCopy(src_path_in_repo=name, path_in_repo=name, src_revision=wanted.id)
        elif name in listed:
            path = fetch_listed(wanted, listed[name])
            if path is None:
                raise IntegrityError(
                    f"{name} arrived damaged", where=f"{repo}@{version}", remedy="run the command again"
                )
            yield CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
        else:
            small = fetch_small(api, repo, name, wanted, MANIFEST_BYTES)
            yield CommitOperationAdd(path_in_repo=name, path_or_fileobj=small)
    old_names = {file.path for file in now.files} | {SIGNATURE_NAME}
    for name in sorted((old_names & head.files.keys()) - (names & wanted.files.keys())):
        yield CommitOperationDelete(path_in_repo=name)
    old = fetch_small(api, repo, CARD_NAME, head, CARD_BYTES) if CARD_NAME in head.files else None
    if (card := make_card(manifest, package_id, old)) is not None:
        yield CommitOperationAdd(path_in_repo=CARD_NAME, path_or_fileobj=card)


def _can_copy(api: HfApi, commit: Commit) -> bool:
    """Whether the Hub copies files itself. Others lack what the client asks for first; then files are sent anew."""
    try:
        with translate_hub_errors(commit.repo):
            return bool(api.get_paths_info(commit.repo, [MANIFEST_NAME], revision=commit.id))
    except RegistryError:
        return False


def _commit_apart(api: HfApi, repo: str, delta: Package, extras: Mapping[str, bytes], head: Commit, title: str) -> str:
    """Commit a package that is not to be the newest version to a branch of its own, and return the commit.

    The branch is needed until the tag is there; a killed run leaves it, and the next one goes on with it.
    """
    branch = _branch(delta.manifest.version)
    with translate_hub_errors(repo):
        api.create_branch(repo, branch=branch, revision=head.id, exist_ok=True)
    at = get_commit(api, repo, branch)
    return at.id if _is_uploaded(delta, extras, at) else _commit(api, repo, delta, extras, at, title, branch)


def _delete_branch(api: HfApi, repo: str, version: str) -> None:
    """Delete the branch of :func:`_commit_apart`, if it is there. Nothing depends on it any more."""
    with contextlib.suppress(RegistryError), translate_hub_errors(repo):
        api.delete_branch(repo, branch=_branch(version))


def _branch(version: str) -> str:
    return f"publish-{version}"


def _check_tagged(api: HfApi, publication: Publication) -> Published:
    """Return the report if the tag of this version has the same content; PublishError if another."""
    repo, version = publication.repo, publication.package.manifest.version
    commit = get_commit(api, repo, version)
    if not _has_manifest(publication.package, commit):
        raise _version_exists(repo, version)
    return _done(publication, commit.id, uploaded=False)


def _add_missing_card(
    api: HfApi, publication: Publication, extras: Mapping[str, bytes], head: Commit, title: str
) -> Published | None:
    """Commit the card of a version that somebody uploaded and tagged by other means; None if it has one of ours."""
    from huggingface_hub import CommitOperationAdd

    repo = publication.repo
    if not _lacks_card(api, publication, extras, head):
        return None
    with translate_hub_errors(repo):
        operation = CommitOperationAdd(path_in_repo=CARD_NAME, path_or_fileobj=extras[CARD_NAME])
        api.create_commit(repo, [operation], commit_message=f"Add the card: {title}", parent_commit=head.id)
    commit = get_commit(api, repo, publication.package.manifest.version).id
    done = _done(publication, commit, uploaded=False)
    return done.model_copy(update={"notes": ("the version was there already; its card was added",)})


def _lacks_card(api: HfApi, publication: Publication, extras: Mapping[str, bytes], head: Commit) -> bool:
    """Whether the version is on the main branch, and its card there is none of ours."""
    if CARD_NAME not in extras or publication.create_pr or not _has_manifest(publication.package, head):
        return False
    if CARD_NAME not in head.files:
        return True
    there = fetch_small(api, publication.repo, CARD_NAME, head, CARD_BYTES).decode("utf-8", "replace")
    return FACTS_KEY not in metadata(there, publication.repo)


def _open_pull_request(
    api: HfApi, publication: Publication, extras: Mapping[str, bytes], head: Commit, title: str
) -> Published:
    repo, delta = publication.repo, publication.package
    _check_not_merged(delta, extras, head)
    if url := find_pull_request(api, repo, title):
        return _done(publication, head.id, uploaded=False, pull_request=url)
    with translate_hub_errors(repo):
        made = api.create_commit(
            repo,
            list(_operations(api, repo, delta, extras, head)),
            commit_message=title,
            commit_description=f"Package {delta.digest}. Once merged, publish again to tag it.",
            parent_commit=head.id,
            create_pr=True,
        )
    return _done(publication, made.oid, uploaded=True, pull_request=made.pr_url)


def _check_not_merged(delta: Package, extras: Mapping[str, bytes], head: Commit) -> None:
    if _is_uploaded(delta, extras, head):  # only the tag is missing
        raise RegistryError(
            "the main branch holds this content already",
            where=head.repo,
            remedy="publish without --create-pr to tag it",
        )


def _commit(
    api: HfApi,
    repo: str,
    delta: Package,
    extras: Mapping[str, bytes],
    head: Commit,
    title: str,
    branch: str | None = None,
) -> str:
    """Commit the package on top of ``head``, check that the Hub holds all of it, and return the commit."""
    operations = list(_operations(api, repo, delta, extras, head))
    with translate_hub_errors(repo):
        made = api.create_commit(
            repo,
            operations,
            commit_message=title,
            commit_description=f"Package {delta.digest}",
            revision=branch,
            parent_commit=head.id,
        )
    if not _is_uploaded(delta, extras, get_commit(api, repo, made.oid)):
        raise RegistryError(
            "the Hub does not hold what was uploaded, so no tag was created",
            where=f"{repo}@{made.oid[:12]}",
            remedy="check the package with pd-verify, and whether a .gitignore in the repository excludes files;"
            " then run the command again",
        )
    return str(made.oid)


def _operations(
    api: HfApi, repo: str, delta: Package, extras: Mapping[str, bytes], head: Commit
) -> Iterator[CommitOperationAdd | CommitOperationDelete]:
    """Yield the operations that make ``head`` hold this package: add its files, and delete those of another version."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    listed = [*(file.path for file in delta.manifest.files), MANIFEST_NAME]
    for name in listed:
        yield CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(resolve_inside(delta.path, name)))
    for name, content in extras.items():
        yield CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
    # Drawn from the manifest. A picture in the package's folder could show anything.
    yield CommitOperationAdd(path_in_repo=PICTURE_NAME, path_or_fileobj=_picture(delta))
    if (old := _check_untagged(api, repo, delta, head)) is not None:
        old_names = {file.path for file in old.files} | {SIGNATURE_NAME}
        for name in sorted((old_names & head.files.keys()) - {*listed, *extras}):
            yield CommitOperationDelete(path_in_repo=name)


def _picture(delta: Package) -> bytes:
    return heat_map(heat_parts(delta.manifest.tensors), alone=True).encode()


def _check_untagged(api: HfApi, repo: str, delta: Package, head: Commit) -> Manifest | None:
    """Return the manifest on the main branch, after checking that it is not of this version with other content."""
    old = _manifest_of(api, repo, head)
    if old is not None and old.version == delta.manifest.version and not _has_manifest(delta, head):
        raise _version_exists(repo, old.version)
    return old


def _manifest_of(api: HfApi, repo: str, head: Commit) -> Manifest | None:
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


def _is_uploaded(delta: Package, extras: Mapping[str, bytes], commit: Commit) -> bool:
    """Whether a commit holds all files of the package, its card, and its signature if it has one."""
    if not _has_manifest(delta, commit) or not all(_has_file(delta, file, commit) for file in delta.manifest.files):
        return False
    return all(name in commit.files and commit.files[name].matches(content) for name, content in extras.items())


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


def _done(publication: Publication, commit: str, *, uploaded: bool, pull_request: str | None = None) -> Published:
    url = f"{endpoint()}/{publication.repo}/tree/{publication.package.manifest.version}"
    return publication.done(commit, url, uploaded=uploaded, pull_request=pull_request)


def _version_exists(repo: str, version: str) -> PublishError:
    return PublishError(
        f"version {version} exists with other content; a published version is never replaced",
        where=repo,
        remedy=f"{HIGHER_VERSION}; or pull the published one, if it is what you meant",
    )
