"""SIGNATURES ONLY, being written.

Role = Literal["base", "post", "result"]
class Proposal: repo, delta, before, after, diff (str; "" when nothing changes), changed (property)
class Linked: repo, delta, diff, changed: bool, commit: str | None, pull_request: str | None ; to_json()
def propose(card: str, repo: str, delta: str, role: Role) -> Proposal
def link(repo: str, delta: str, role: Role, *, create_pr: bool | None = None, dry_run: bool = False,
         message: str | None = None) -> Linked      # create_pr None: directly where the token's owner owns the repo
"""
