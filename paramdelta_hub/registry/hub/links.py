"""Naming a delta on the cards of its models: a section in the text, and a key in the metadata.

Only the text between our markers, and our key, are ever written. Every other byte of the card stays as it is. Adding a
link that exists changes nothing, and removing a link restores the card as it was before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from paramdelta_hub.errors import OptionError, PackageError, RegistryError, SourceError
from paramdelta_hub.fileio.report import Report, derived
from paramdelta_hub.hub.client import connect
from paramdelta_hub.hub.endpoint import endpoint
from paramdelta_hub.hub.errors import StaleError, translate_hub_errors
from paramdelta_hub.limits import MANIFEST_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, Manifest, parse_manifest
from paramdelta_hub.registry.cards.front_matter import Items, change_metadata, line_end, metadata
from paramdelta_hub.registry.cards.markdown import hub_address
from paramdelta_hub.registry.cards.merge import card_diff
from paramdelta_hub.registry.cards.sections import append_section, cut_section, find_section
from paramdelta_hub.registry.hub.fetch import Commit, card_of, check_name, fetch_small, get_commit
from paramdelta_hub.registry.hub.publishing import ATTEMPTS, can_write, find_pull_request
from paramdelta_hub.registry.materialize import CARD_NAME
from paramdelta_hub.registry.names import check_repo, is_repo
from paramdelta_hub.tasks.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["BEGIN", "END", "LINK_KEY", "CardEdit", "Linked", "Role", "add_link", "link", "remove_link"]

Role = Literal["base", "post", "result"]
"""What the model is to the delta: its base, its post-trained model, or a model made by applying it."""

BEGIN, END = "<!-- paramdelta:begin -->", "<!-- paramdelta:end -->"
LINK_KEY = "paramdelta_deltas"
"""Metadata key with the delta repositories. It is not the tag of deltas: a search would take the model for a delta."""

_DESCRIPTIONS: dict[Role, str] = {
    "base": "carries post-training over to this model and its successors",
    "post": "what post-training changed in this model, to be applied to other base models",
    "result": "this model was made by applying it",
}
_HEADING = "## Deltas (Param∆)"
_ITEM = re.compile(r"- \[([^\]]+)\]\(")


@dataclass(frozen=True)
class CardEdit:
    """A complete card before and after a change."""

    repo: str
    delta: str
    before: str
    after: str

    @property
    def diff(self) -> str:
        """The unified diff; empty if nothing changes."""
        return card_diff(self.before, self.after, self.repo)


class Linked(Report):
    """The result of linking a delta on a card, or of removing the link."""

    repo: str
    delta: str
    diff: str
    """The unified diff; empty if nothing was to be done."""
    commit: str | None = None
    """Set if the card was changed by a commit."""
    pull_request: str | None = None

    @derived
    def changed(self) -> bool:
        """Whether the card was not yet as it should be."""
        return bool(self.diff)


def add_link(card: str, repo: str, delta: str, role: Role) -> CardEdit:
    """Return the card of ``repo`` with the delta added to its section and its metadata. Other deltas stay.

    Raises:
        OptionError: a name is not valid, or both names are the same.
        SourceError: the card's metadata or markers are malformed.
    """
    _check_names(repo, delta)
    _check_key(card, repo)
    line = f"- [{delta}]({hub_address(delta)}): {_DESCRIPTIONS[role]}; `pd-apply TARGET {delta} -o OUT`"
    span = find_section(card, re.escape(BEGIN), END, repo)
    end = line_end(card)
    if span is None:
        after = append_section(card, end.join([BEGIN, _HEADING, "", line, "", END]))
    else:
        after = card[: span[0]] + _with_item(card[slice(*span)], delta, line, end) + card[span[1] :]
    return CardEdit(repo, delta, card, change_metadata(after, {LINK_KEY: Items([delta], in_order=True)}, repo))


def remove_link(card: str, repo: str, delta: str) -> CardEdit:
    """Return the card of ``repo`` without the delta in its section and its metadata.

    With the last delta, the section and the key are removed too. The card is then as it was before :func:`add_link`.

    Raises:
        OptionError: a name is not valid, or both names are the same.
        SourceError: the card's metadata or markers are malformed.
    """
    _check_names(repo, delta)
    _check_key(card, repo)
    after = change_metadata(card, {LINK_KEY: Items(drop=[delta])}, repo)
    if span := find_section(after, re.escape(BEGIN), END, repo):
        lines = after[slice(*span)].splitlines(keepends=True)
        kept = [line for line in lines if not ((found := _ITEM.match(line)) and found[1] == delta)]
        if len(kept) < len(lines) and {line.strip() for line in kept} <= {BEGIN, _HEADING, "", END}:
            after = cut_section(after, span)
        else:
            after = after[: span[0]] + "".join(kept) + after[span[1] :]
    return CardEdit(repo, delta, card, after)


def link(
    repo: str,
    delta: str,
    role: Role | None = None,
    *,
    remove: bool = False,
    create_pr: bool | None = None,
    dry_run: bool = False,
    message: str | None = None,
    progress: Progress | None = None,
) -> Linked:
    """Name a delta on a model's card on the Hub: by a commit to your own repositories, by a pull request to others.

    With ``remove``, the link is taken away. Running it again changes nothing, and opens no second pull request.
    ``create_pr`` overrules the choice between the two, which goes by whether the token's account may write to ``repo``.
    ``role`` is by default what the delta's manifest says. ``progress`` is told the difference before it is committed.

    Raises:
        RegistryError: not allowed, not reachable, no such repository, no delta, or no card.
        OptionError, SourceError: see :func:`add_link`.
    """
    api = connect()
    _check_names(repo, delta)
    manifest = None if remove else _check_delta(api, delta)
    title = message or (f"Remove the link to the delta {delta}" if remove else f"Name the delta {delta}")
    told = ""
    for _ in range(ATTEMPTS):
        head = get_commit(api, repo)
        check_name(head)
        card = _fetch_card(api, repo, head)
        if manifest is None:
            edit = remove_link(card, repo, delta)
        else:
            edit = add_link(card, repo, delta, role or _role(manifest, repo))
        if not edit.diff or dry_run:
            return Linked(repo=repo, delta=delta, diff=edit.diff)
        by_pull_request = not can_write(api, repo) if create_pr is None else create_pr
        if by_pull_request and (url := find_pull_request(api, repo, title)):
            return Linked(repo=repo, delta=delta, diff=edit.diff, pull_request=url)
        if progress and edit.diff != told:
            progress.note(edit.diff.rstrip("\n"))
            told = edit.diff
        try:
            return _commit_card(api, edit, head.id, title, by_pull_request)
        except StaleError:
            continue
    raise RegistryError("others keep committing to this repository", where=repo, remedy="run the command again later")


_SWAPPED = "name the delta first, then the model: pd-link DELTA MODEL"


def _check_delta(api: HfApi, delta: str) -> Manifest:
    """Return the manifest of a delta, so that nothing else is called one on a card."""
    head = get_commit(api, delta)
    check_name(head)
    found, reason = _manifest_at(api, delta, head)
    if found is None:
        raise RegistryError(f"not a delta: {reason}", where=delta, remedy=_SWAPPED)
    return found


def _manifest_at(api: HfApi, repo: str, head: Commit) -> tuple[Manifest | None, str]:
    """Return the manifest of a delta, or None and why there is none."""
    if MANIFEST_NAME not in head.files:
        return None, f"the repository has no {MANIFEST_NAME}"
    try:
        return parse_manifest(fetch_small(api, repo, MANIFEST_NAME, head, MANIFEST_BYTES), repo)[0], ""
    except PackageError as error:
        return None, error.what


def _role(manifest: Manifest, repo: str) -> Role:
    roles: dict[str, Role] = {manifest.post.name: "post", manifest.base.name: "base"}
    return roles.get(repo, "result")


def _fetch_card(api: HfApi, repo: str, head: Commit) -> str:
    if _manifest_at(api, repo, head)[0] is not None:
        raise RegistryError("this is a delta itself", where=repo, remedy=_SWAPPED)
    if CARD_NAME not in head.files:
        raise RegistryError(
            "the model has no card to write on",
            where=repo,
            remedy=f"create a {CARD_NAME} first, on {endpoint()}/{repo}",
        )
    return card_of(api, head) or ""


def _commit_card(api: HfApi, edit: CardEdit, parent: str, title: str, create_pr: bool) -> Linked:
    from huggingface_hub import CommitOperationAdd

    with translate_hub_errors(edit.repo):
        made = api.create_commit(
            edit.repo,
            [CommitOperationAdd(path_in_repo=CARD_NAME, path_or_fileobj=edit.after.encode())],
            commit_message=title,
            parent_commit=parent,
            create_pr=create_pr,
        )
    done = {"pull_request": made.pr_url} if create_pr else {"commit": made.oid}
    return Linked(repo=edit.repo, delta=edit.delta, diff=edit.diff, **done)


def _check_names(repo: str, delta: str) -> None:
    if check_repo(delta) == check_repo(repo):
        raise OptionError("a card can't be linked to itself", where=repo, remedy="name a model and a delta")


def _check_key(card: str, repo: str) -> None:
    listed = metadata(card, repo).get(LINK_KEY)
    if not all(isinstance(name, str) for name in (listed if isinstance(listed, list) else [listed or ""])):
        raise SourceError(
            f"the card's {LINK_KEY} is not a plain list", where=repo, remedy="write one name a line, as - org/name"
        )


def _with_item(section: str, delta: str, line: str, end: str) -> str:
    """Return a section with a delta's line at its alphabetical place; what else is in the section stays."""
    lines = section.splitlines(keepends=True)
    if len(lines) < 2:
        return end.join([BEGIN, _HEADING, "", line, "", END])
    names = [found[1] if (found := _ITEM.match(text)) and is_repo(found[1]) else None for text in lines]
    if delta in names:
        lines[names.index(delta)] = line + end
        return "".join(lines)
    items = [index for index, name in enumerate(names) if name is not None]
    below = next((index for index in items if str(names[index]) > delta), items[-1] + 1 if items else len(lines) - 1)
    return "".join([*lines[:below], line + end, *lines[below:]])
