"""Making a delta known where people look: a section and a metadata key on its models' cards.

Only what stands between our markers, and under our key, is ever written; all else of a card stays as it is, to the
byte. Proposing what is there already changes nothing.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from paramdelta_hub.errors import OptionError, RegistryError, SourceError
from paramdelta_hub.hub.client import connect
from paramdelta_hub.hub.errors import StaleError, translate_hub_errors
from paramdelta_hub.limits import CARD_BYTES
from paramdelta_hub.registry.hub.fetch import fetch_small, look
from paramdelta_hub.registry.hub.publishing import ATTEMPTS, open_proposal
from paramdelta_hub.registry.names import check_repo, is_repo

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["BEGIN", "END", "LINK_KEY", "Linked", "Proposal", "Role", "link", "propose"]

Role = Literal["base", "post", "result"]
"""What the model is to the delta: its base, the post-trained model it was taken of, or what applying it made."""

BEGIN, END = "<!-- paramdelta:begin -->", "<!-- paramdelta:end -->"
LINK_KEY = "paramdelta_deltas"
"""Metadata key with the delta repositories. Not the tag of deltas, by which a search would take a model for one."""

_TOLD: dict[Role, str] = {
    "base": "carries post-training over to this model and its successors",
    "post": "what post-training changed in this model, to be applied to other base models",
    "result": "this model was made by applying it",
}
_HEADING = "## Deltas (Param∆)"
_ITEM = re.compile(r"- \[([^\]]+)\]\(")
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*$\n?", re.DOTALL | re.MULTILINE)
_KEY = re.compile(rf"^{LINK_KEY}:[ \t]*\n((?:[ \t]*-[ \t]+\S+[ \t]*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Proposal:
    """A card before and after; both in full."""

    repo: str
    delta: str
    before: str
    after: str

    @property
    def diff(self) -> str:
        """The unified difference; empty where nothing changes."""
        old, new = (text.splitlines(keepends=True) for text in (self.before, self.after))
        lines = difflib.unified_diff(old, new, f"{self.repo}/README.md", f"{self.repo}/README.md")
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


@dataclass(frozen=True)
class Linked:
    """What became of a proposal."""

    repo: str
    delta: str
    diff: str
    """Empty: the card names the delta already."""
    commit: str | None = None
    """Set if the card was changed directly."""
    pull_request: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable record."""
        return {**self.__dict__, "changed": bool(self.diff)}


def propose(card: str, repo: str, delta: str, role: Role) -> Proposal:
    """Return a card with the delta in its section and its metadata; deltas that are there already stay.

    Args:
        card: the text of README.md, or nothing.
        repo: whose card it is.
        delta: the repository of the delta.
        role: what the model is to it.

    Raises:
        OptionError: a name that can't be a repository's, or the two are one.
        SourceError: the card's metadata or markers are not as we could write into them.
    """
    if check_repo(delta) == check_repo(repo):
        raise OptionError("a card can't be linked to itself", where=repo, remedy="name a model and a delta")
    newline = "\r\n" if "\r\n" in card else "\n"
    text = card.replace("\r\n", "\n")
    text = _with_section(_with_key(text, repo, delta), repo, delta, role)
    return Proposal(repo, delta, card, card if text == card.replace("\r\n", "\n") else text.replace("\n", newline))


def link(
    repo: str,
    delta: str,
    role: Role,
    *,
    create_pr: bool | None = None,
    dry_run: bool = False,
    message: str | None = None,
) -> Linked:
    """Name a delta on a model's card on the Hub: by a commit on one's own repositories, else by a pull request.

    Running it again changes nothing, and opens no second pull request.

    Args:
        repo: the model.
        delta: the repository of the delta, which must be there.
        role: what the model is to it.
        create_pr: True proposes always, False never; None by whether the token's account owns the model.
        dry_run: only return the difference.
        message: for the commit or the pull request.

    Raises:
        RegistryError: not allowed, not reachable, no such repository.
        OptionError, SourceError: see :func:`propose`.
    """
    api = connect()
    look(api, check_repo(delta))
    title = message or f"Name the delta {delta}"
    for _ in range(ATTEMPTS):
        head = look(api, check_repo(repo))
        has_card = "README.md" in head.files
        card = fetch_small(api, repo, "README.md", head, CARD_BYTES) if has_card else b""
        try:
            proposal = propose(card.decode("utf-8"), repo, delta, role)
        except UnicodeDecodeError:
            raise SourceError("the card is not UTF-8", where=repo, remedy="save it as UTF-8 first") from None
        if not proposal.diff or dry_run:
            return Linked(repo, delta, proposal.diff)
        proposing = not _owns(api, repo) if create_pr is None else create_pr
        if proposing and (url := open_proposal(api, repo, title)):
            return Linked(repo, delta, proposal.diff, pull_request=url)
        try:
            return _send(api, proposal, head.id, title, proposing)
        except StaleError:
            continue
    raise RegistryError("others keep committing to this repository", where=repo, remedy="run the command again later")


def _send(api: HfApi, proposal: Proposal, parent: str, title: str, proposing: bool) -> Linked:
    from huggingface_hub import CommitOperationAdd

    with translate_hub_errors(proposal.repo):
        made = api.create_commit(
            proposal.repo,
            [CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=proposal.after.encode())],
            commit_message=title,
            parent_commit=parent,
            create_pr=proposing,
        )
    if proposing:
        return Linked(proposal.repo, proposal.delta, proposal.diff, pull_request=made.pr_url)
    return Linked(proposal.repo, proposal.delta, proposal.diff, commit=made.oid)


def _owns(api: HfApi, repo: str) -> bool:
    """Whether the token's account may be expected to write to the repository."""
    with translate_hub_errors("the Hub"):
        me = api.whoami()
    organisations = [found.get("name") for found in me.get("orgs") or () if found.get("roleInOrg") != "read"]
    return repo.split("/")[0] in (me.get("name"), *organisations)


def _with_key(text: str, repo: str, delta: str) -> str:
    front = _FRONT.match(text)
    if front is None:
        if text.startswith("---"):
            raise SourceError("the card's metadata has no end", where=repo, remedy="close it with a line of ---")
        return f"---\n{LINK_KEY}:\n- {delta}\n---\n{text and chr(10)}{text}"
    block = front[1]
    found = _KEY.search(block)
    if found is None and re.search(rf"^{LINK_KEY}\b", block, re.MULTILINE):
        raise SourceError(f"the card's {LINK_KEY} is not a plain list", where=repo, remedy="write it one to a line")
    listed = [line.split("-", 1)[1].strip() for line in found[1].splitlines()] if found else []
    if delta in listed:
        return text
    entry = "".join(f"- {name}\n" for name in sorted({*listed, delta}))
    at, until = found.span() if found else (len(block), len(block))
    changed = f"{block[:at]}{LINK_KEY}:\n{entry}{block[until:]}"
    return text[: front.start(1)] + changed + text[front.end(1) :]


def _with_section(text: str, repo: str, delta: str, role: Role) -> str:
    begin, end = text.find(BEGIN), text.find(END)
    if (begin < 0) != (end < 0) or end < begin or text.count(BEGIN) > 1 or text.count(END) > 1:
        raise SourceError(
            "the card's paramdelta markers are not one pair", where=repo, remedy=f"delete the lines {BEGIN} and {END}"
        )
    lines = text[begin:end].splitlines() if begin >= 0 else []
    items = {found[1]: line for line in lines if (found := _ITEM.match(line)) and is_repo(found[1])}
    items[delta] = f"- [{delta}](https://huggingface.co/{delta}): {_TOLD[role]}; `pd-apply TARGET {delta} -o OUT`"
    section = "\n".join([BEGIN, _HEADING, "", *(items[name] for name in sorted(items)), "", END])
    if begin >= 0:
        return text[:begin] + section + text[end + len(END) :]
    return f"{text.rstrip(chr(10))}\n\n{section}\n"
