"""Withdrawing a version on the Hub: one commit says why, and puts the newest one that is left on the main branch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from paramdelta_hub.errors import IntegrityError, PackageError, RegistryError
from paramdelta_hub.hub.errors import StaleError, translate_hub_errors
from paramdelta_hub.limits import CARD_BYTES, MANIFEST_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME
from paramdelta_hub.package.package import PICTURE_NAME
from paramdelta_hub.registry.hub.fetch import Commit, check_name, fetch_listed, fetch_small, get_commit
from paramdelta_hub.registry.hub.publishing import ATTEMPTS, manifest_of, tagged
from paramdelta_hub.registry.materialize import CARD_NAME, SIGNATURE_NAME
from paramdelta_hub.registry.names import newest
from paramdelta_hub.registry.protocol import CardMaker
from paramdelta_hub.registry.yanks import YANK_BYTES, parse_yank, yank_content, yank_name, yanked_in

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["reason_for", "yank"]


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
        check_name(head)
        there = yanked_in(head.files)
        left = newest(tags.keys() - ({*there, version} if reason is not None else there - {version}))
        operations: list[Any] = list(_restore(api, head, tags, left, make_card)) if left is not None else []
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


def _restore(api: HfApi, head: Commit, tags: Mapping[str, str], version: str, make_card: CardMaker) -> Iterator[Any]:
    """Yield the operations that make the main branch hold a published version, unless it does.

    A main branch that holds no version that is published is left alone: somebody else is at work there. So it is if the
    tag was set by hand, on something else.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    repo, now = head.repo, manifest_of(api, head.repo, head)
    if now is None or now.version == version or now.version not in tags:
        return
    wanted = get_commit(api, repo, tags[version])
    manifest = manifest_of(api, repo, wanted)
    if manifest is None or manifest.version != version:
        return
    package_id = hashlib.sha256(fetch_small(api, repo, MANIFEST_NAME, wanted, MANIFEST_BYTES)).hexdigest()
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
