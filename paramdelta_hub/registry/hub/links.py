"""Naming a delta on the cards of its models: a section in the text, and a key in the metadata.

Only the text between our markers, and our key, are ever written. Every other byte of the card stays as it is. Adding a
link that exists changes nothing.

The metadata is edited as text, not by ``huggingface_hub.metadata_update`` or ``RepoCard``: these load the YAML and dump
it again, which loses the comments, quotes and layout of cards that belong to other people.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from paramdelta_hub.errors import OptionError, RegistryError, SourceError
from paramdelta_hub.fileio.report import Report, derived
from paramdelta_hub.hub.client import connect
from paramdelta_hub.hub.errors import StaleError, translate_hub_errors
from paramdelta_hub.limits import CARD_BYTES
from paramdelta_hub.registry.hub.fetch import fetch_small, get_commit
from paramdelta_hub.registry.hub.publishing import ATTEMPTS, find_pull_request
from paramdelta_hub.registry.names import check_repo, is_repo

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["BEGIN", "END", "LINK_KEY", "CardEdit", "Linked", "Role", "add_link", "link"]

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
_METADATA = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*$\n?", re.DOTALL | re.MULTILINE)
_KEY = re.compile(rf"^{LINK_KEY}:[ \t]*\n((?:[ \t]*-[ \t]+\S+[ \t]*\n)*)", re.MULTILINE)


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
        old, new = (text.splitlines(keepends=True) for text in (self.before, self.after))
        lines = difflib.unified_diff(old, new, f"{self.repo}/README.md", f"{self.repo}/README.md")
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


class Linked(Report):
    """The result of linking a delta on a card."""

    repo: str
    delta: str
    diff: str
    """The unified diff; empty if the card names the delta already."""
    commit: str | None = None
    """Set if the card was changed by a commit."""
    pull_request: str | None = None

    @derived
    def changed(self) -> bool:
        """Whether the card did not name the delta before."""
        return bool(self.diff)


def add_link(card: str, repo: str, delta: str, role: Role) -> CardEdit:
    """Return the card of ``repo`` with the delta added to its section and its metadata. Other deltas stay.

    Raises:
        OptionError: a name is not valid, or both names are the same.
        SourceError: the card's metadata or markers are malformed.
    """
    if check_repo(delta) == check_repo(repo):
        raise OptionError("a card can't be linked to itself", where=repo, remedy="name a model and a delta")
    newline = "\r\n" if "\r\n" in card else "\n"
    text = card.replace("\r\n", "\n")
    text = _add_section(_add_key(text, repo, delta), repo, delta, role)
    return CardEdit(repo, delta, card, card if text == card.replace("\r\n", "\n") else text.replace("\n", newline))


def link(
    repo: str,
    delta: str,
    role: Role,
    *,
    create_pr: bool | None = None,
    dry_run: bool = False,
    message: str | None = None,
) -> Linked:
    """Name a delta on a model's card on the Hub: by a commit to your own repositories, by a pull request to others.

    Running it again changes nothing, and opens no second pull request. ``create_pr`` overrules the choice between the
    two, which goes by whether the token's account may write to ``repo``.

    Raises:
        RegistryError: not allowed, not reachable, or no such repository.
        OptionError, SourceError: see :func:`add_link`.
    """
    api = connect()
    get_commit(api, check_repo(delta))
    title = message or f"Name the delta {delta}"
    for _ in range(ATTEMPTS):
        head = get_commit(api, check_repo(repo))
        has_card = "README.md" in head.files
        card = fetch_small(api, repo, "README.md", head, CARD_BYTES) if has_card else b""
        try:
            edit = add_link(card.decode("utf-8"), repo, delta, role)
        except UnicodeDecodeError:
            raise SourceError("the card is not UTF-8", where=repo, remedy="save it as UTF-8 first") from None
        if not edit.diff or dry_run:
            return Linked(repo=repo, delta=delta, diff=edit.diff)
        by_pull_request = not _can_write(api, repo) if create_pr is None else create_pr
        if by_pull_request and (url := find_pull_request(api, repo, title)):
            return Linked(repo=repo, delta=delta, diff=edit.diff, pull_request=url)
        try:
            return _commit_card(api, edit, head.id, title, by_pull_request)
        except StaleError:
            continue
    raise RegistryError("others keep committing to this repository", where=repo, remedy="run the command again later")


def _commit_card(api: HfApi, edit: CardEdit, parent: str, title: str, create_pr: bool) -> Linked:
    from huggingface_hub import CommitOperationAdd

    with translate_hub_errors(edit.repo):
        made = api.create_commit(
            edit.repo,
            [CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=edit.after.encode())],
            commit_message=title,
            parent_commit=parent,
            create_pr=create_pr,
        )
    done = {"pull_request": made.pr_url} if create_pr else {"commit": made.oid}
    return Linked(repo=edit.repo, delta=edit.delta, diff=edit.diff, **done)


def _can_write(api: HfApi, repo: str) -> bool:
    """Whether the token's account is expected to have write access to the repository."""
    with translate_hub_errors("the Hub"):
        account = api.whoami()
    organizations = [org.get("name") for org in account.get("orgs") or () if org.get("roleInOrg") != "read"]
    return repo.split("/")[0] in (account.get("name"), *organizations)


def _add_key(text: str, repo: str, delta: str) -> str:
    front = _METADATA.match(text)
    if front is None:
        if text.startswith("---"):
            raise SourceError("the card's metadata block has no end", where=repo, remedy="end it with a line of ---")
        return f"---\n{LINK_KEY}:\n- {delta}\n---\n{text and chr(10)}{text}"
    block = front[1]
    found = _KEY.search(block)
    if found is None and re.search(rf"^{LINK_KEY}\b", block, re.MULTILINE):
        raise SourceError(
            f"the card's {LINK_KEY} is not a plain list", where=repo, remedy="write one name a line, as - org/name"
        )
    listed = [line.split("-", 1)[1].strip() for line in found[1].splitlines()] if found else []
    if delta in listed:
        return text
    entry = "".join(f"- {name}\n" for name in sorted({*listed, delta}))
    at, until = found.span() if found else (len(block), len(block))
    changed = f"{block[:at]}{LINK_KEY}:\n{entry}{block[until:]}"
    return text[: front.start(1)] + changed + text[front.end(1) :]


def _add_section(text: str, repo: str, delta: str, role: Role) -> str:
    begin, end = text.find(BEGIN), text.find(END)
    if (begin < 0) != (end < 0) or end < begin or text.count(BEGIN) > 1 or text.count(END) > 1:
        raise SourceError(
            "the card must hold exactly one pair of paramdelta markers, or none",
            where=repo,
            remedy=f"delete the lines {BEGIN} and {END}",
        )
    lines = text[begin:end].splitlines() if begin >= 0 else []
    items = {found[1]: line for line in lines if (found := _ITEM.match(line)) and is_repo(found[1])}
    items[delta] = (
        f"- [{delta}](https://huggingface.co/{delta}): {_DESCRIPTIONS[role]}; `pd-apply TARGET {delta} -o OUT`"
    )
    section = "\n".join([BEGIN, _HEADING, "", *(items[name] for name in sorted(items)), "", END])
    if begin >= 0:
        return text[:begin] + section + text[end + len(END) :]
    return f"{text.rstrip(chr(10))}\n\n{section}\n"
