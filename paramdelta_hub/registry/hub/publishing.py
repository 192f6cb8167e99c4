"""Publishing to the Hub: one commit made on the very commit that was looked at, checked there, then tagged.

The tag is what makes a version: it is made once and never moved. Whoever is interrupted before it runs the command
again, finds the commit, and only tags. Of two who publish the same version, the tag, which the Hub makes only once,
decides; the other is told. Of two who publish different versions, the later one's commit is refused as stale and made
again on the new head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paramdelta_hub.errors import PackageError, PublishError, RegistryError
from paramdelta_hub.fileio.durable import read_small
from paramdelta_hub.fileio.symlinks import settle
from paramdelta_hub.hub.errors import MissingError, StaleError, endpoint, translate_hub_errors
from paramdelta_hub.limits import MANIFEST_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord, Manifest, parse_manifest
from paramdelta_hub.package.package import PICTURE_NAME, Package, open_package
from paramdelta_hub.registry.cards.heatmap import heat_map, heat_parts
from paramdelta_hub.registry.hub.fetch import Commit, fetch_small, look
from paramdelta_hub.registry.materialize import SIGNATURE_NAME, read_extras
from paramdelta_hub.registry.names import check_version
from paramdelta_hub.registry.protocol import HIGHER_VERSION, Published
from paramdelta_hub.tasks.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

__all__ = ["open_proposal", "publish"]

ATTEMPTS = 6
"""How often a publication starts again because others commit at the same time."""


def publish(
    api: HfApi,
    package: Path,
    repo: str,
    version: str,
    *,
    extras: Mapping[str, bytes] | None,
    private: bool,
    create_pr: bool,
    message: str | None,
    notes: Sequence[str] = (),
    progress: Progress,
) -> Published:
    """Publish the package in a folder as a version of a repository, which is made if need be.

    With ``create_pr`` the commit becomes a pull request, and nothing is tagged: once it is merged, publishing again
    finds the content there and tags it.

    Raises:
        PublishError, RegistryError, OptionError, PackageError: see :meth:`.hub.HubRegistry.publish`.
    """
    delta = _checked(package, version, progress)
    beside = read_extras(delta.path, extras)
    told: list[str] = []

    def tell(visibility: str) -> None:
        if not told:  # once, however often it starts again
            told.extend([*notes, f"publishing {delta.manifest.name} {version} to {endpoint()}/{repo} ({visibility})"])
            for note in told:
                progress.note(note)

    title = f"{message or f'Publish {delta.manifest.name}'} ({version}, {delta.digest[:12]})"
    for _ in range(ATTEMPTS):
        try:
            head = _head(api, repo, private, create_pr, tell)
            if found := _tagged(api, repo, delta):
                return found
            visibility = "private" if head.private else "public"
            tell(f"{visibility}, by a pull request" if create_pr else visibility)
            if create_pr:
                return _propose(api, repo, delta, beside, head, title)
            commit = head.id if _stored(delta, beside, head) else _commit(api, repo, delta, beside, head, title)
            with translate_hub_errors(repo):
                api.create_tag(repo, tag=version, revision=commit, tag_message=title)
            return _published(api, repo, delta, commit, uploaded=True)
        except StaleError:
            continue
    raise PublishError(
        "others keep committing to this repository", where=repo, remedy="run the command again in a minute"
    )


def open_proposal(api: HfApi, repo: str, title: str) -> str | None:
    """Return the address of an open pull request with just this title, so that a rerun does not open another.

    Raises:
        RegistryError: not allowed, not reachable.
    """
    with translate_hub_errors(repo):
        for found in api.get_repo_discussions(repo, discussion_type="pull_request", discussion_status="open"):
            if found.title == title:
                return str(found.url)
    return None


def _checked(path: Path, version: str, progress: Progress) -> Package:
    delta = open_package(path)
    check_version(delta.manifest.version, version, str(path))
    progress.start("checking", delta.manifest.nbytes)
    try:
        delta.check_files(progress.advance)
    finally:
        progress.finish()
    return delta


def _head(api: HfApi, repo: str, private: bool, create_pr: bool, tell: Callable[[str], None]) -> Commit:
    """Return the main branch of the repository, made if need be, which ``tell`` is told before.

    Raises:
        RegistryError: it is public where ``private`` is asked for, or holds a model.
    """
    try:
        head = look(api, repo)
    except MissingError:
        if create_pr:
            raise
        tell(f"{'private' if private else 'public'}, a new repository")
        with translate_hub_errors(repo):
            api.create_repo(repo, private=private, exist_ok=True)
        head = look(api, repo)
    if private and not head.private:
        raise RegistryError(
            "exists and is public", where=repo, remedy="make it private in its settings, or choose another name"
        )
    if any(
        name == "config.json" or (name.startswith("model") and name.endswith(".safetensors")) for name in head.files
    ):
        raise RegistryError(
            "holds a model", where=repo, remedy="give the delta a repository of its own; pd-link makes the two known"
        )
    return head


def _tagged(api: HfApi, repo: str, delta: Package) -> Published | None:
    """Return the publication if the version has its tag already, on equal content.

    Raises:
        PublishError: on other content.
    """
    with translate_hub_errors(repo):
        tags = {tag.name for tag in api.list_repo_refs(repo).tags}
    if delta.manifest.version not in tags:
        return None
    commit = look(api, repo, delta.manifest.version)
    if not _is_manifest(delta, commit):
        raise _taken(repo, delta.manifest.version)
    return _published(api, repo, delta, commit.id, uploaded=False)


def _propose(api: HfApi, repo: str, delta: Package, extras: Mapping[str, bytes], head: Commit, title: str) -> Published:
    if _stored(delta, extras, head):  # merged, and only the tag is missing: nothing left to propose
        raise RegistryError(
            "main holds this content already", where=repo, remedy="publish without --create-pr to tag it"
        )
    if url := open_proposal(api, repo, title):
        return _published(api, repo, delta, head.id, uploaded=False, pull_request=url)
    with translate_hub_errors(repo):
        made = api.create_commit(
            repo,
            list(_operations(api, repo, delta, extras, head)),
            commit_message=title,
            commit_description=f"Package {delta.digest}. Once merged, publish again to tag it.",
            parent_commit=head.id,
            create_pr=True,
        )
    return _published(api, repo, delta, made.oid, uploaded=True, pull_request=made.pr_url)


def _commit(api: HfApi, repo: str, delta: Package, extras: Mapping[str, bytes], head: Commit, title: str) -> str:
    """Commit the package on ``head``, see that the Hub holds what the manifest lists, and return the commit."""
    operations = list(_operations(api, repo, delta, extras, head))
    with translate_hub_errors(repo):
        made = api.create_commit(
            repo,
            operations,
            commit_message=title,
            commit_description=f"Package {delta.digest}",
            parent_commit=head.id,
        )
    if not _stored(delta, extras, look(api, repo, made.oid)):
        raise RegistryError(
            "the Hub does not hold what was sent, so it was not tagged",
            where=f"{repo}@{made.oid[:12]}",
            remedy="see whether the package was changed meanwhile (pd-verify), or a .gitignore in the repository "
            "leaves files out, then run the command again",
        )
    return str(made.oid)


def _operations(
    api: HfApi, repo: str, delta: Package, extras: Mapping[str, bytes], head: Commit
) -> Iterator[CommitOperationAdd | CommitOperationDelete]:
    """Yield what makes ``head`` hold this package: its files, and no file of another version.

    Raises:
        PublishError: ``head`` is this version with other content, whose publisher has not tagged it yet.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    listed = [*(file.path for file in delta.manifest.files), MANIFEST_NAME]
    for name in listed:
        yield CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(settle(delta.path, name)))
    for name, content in extras.items():
        yield CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
    # Drawn of the manifest here and now: a file in the package's folder could be anything.
    picture = heat_map(heat_parts(delta.manifest.tensors), alone=True)
    yield CommitOperationAdd(path_in_repo=PICTURE_NAME, path_or_fileobj=picture.encode())
    before = _manifest_of(api, repo, head)
    if before is not None:
        if before.version == delta.manifest.version and not _is_manifest(delta, head):
            raise _taken(repo, before.version)
        old = {file.path for file in before.files} | {SIGNATURE_NAME}
        for name in sorted((old & head.files.keys()) - {*listed, *extras}):
            yield CommitOperationDelete(path_in_repo=name)


def _manifest_of(api: HfApi, repo: str, head: Commit) -> Manifest | None:
    if MANIFEST_NAME not in head.files:
        return None
    try:
        return parse_manifest(fetch_small(api, repo, MANIFEST_NAME, head, MANIFEST_BYTES))[0]
    except PackageError:
        return None  # nothing of ours to compare with or to remove; what it was stays in the history


def _is_manifest(delta: Package, commit: Commit) -> bool:
    """Whether the commit's manifest is this package's: which settles all else, as it lists every digest."""
    remote = commit.files.get(MANIFEST_NAME)
    return remote is not None and remote.holds(read_small(settle(delta.path, MANIFEST_NAME), MANIFEST_BYTES))


def _stored(delta: Package, extras: Mapping[str, bytes], commit: Commit) -> bool:
    """Whether a commit holds the package whole, and its signature if it has one."""
    if not _is_manifest(delta, commit) or not all(_holds(delta, file, commit) for file in delta.manifest.files):
        return False
    signature, remote = extras.get(SIGNATURE_NAME), commit.files.get(SIGNATURE_NAME)
    return signature is None or (remote is not None and remote.holds(signature))


def _holds(delta: Package, file: FileRecord, commit: Commit) -> bool:
    remote = commit.files.get(file.path)
    if remote is None or remote.size != file.size:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == file.sha256
    return remote.holds(read_small(settle(delta.path, file.path), file.size))  # kept by git, so it is small


def _published(
    api: HfApi, repo: str, delta: Package, commit: str, *, uploaded: bool, pull_request: str | None = None
) -> Published:
    version = delta.manifest.version
    return Published(repo, version, commit, delta.digest, f"{endpoint()}/{repo}/tree/{version}", uploaded, pull_request)


def _taken(repo: str, version: str) -> PublishError:
    return PublishError(
        f"version {version} is there with other content; a version is never replaced",
        where=repo,
        remedy=f"{HIGHER_VERSION}; or pull that version, if it is what you meant",
    )
