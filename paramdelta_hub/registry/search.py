"""SIGNATURES ONLY, being written.

Judgement = Literal["same base", "kin", "fits", "does not fit", "unknown"]
class Wanted(NamedTuple): name: str | None; fingerprint: str | None; relatives: frozenset[str]
def describe_base(model: str | Path) -> Wanted      # folder or org/name[@revision]; headers only
def judge(hit: Hit, wanted: Wanted) -> Verdict       # Verdict(judgement, reason)
def find(registry: Registry, query, base: str | None) -> Iterator[Found]   # Found(hit, judgement, reason).to_json()
"""
