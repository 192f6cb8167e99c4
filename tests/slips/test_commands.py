"""Slips on the command line: what is printed, how it ends, and that nothing is lost that was there before."""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

import pytest

from tests.slips.conftest import Home, digests
from tests.slips.table import AREAS, Row, slips

OVERWRITE, WEIGHTS, RULES, REGISTRIES, MODELS, NAMES = AREAS


class Slip(NamedTuple):
    """A command that is not what was meant, and how it ends."""

    area: str
    what: str
    happens: str
    command: str
    code: int
    says: str
    """A regular expression, found in what is printed."""

    @property
    def row(self) -> Row:
        """The slip's row of the table."""
        return Row(self.area, self.what, self.happens)


def overwrite(what: str, happens: str, command: str, says: str, code: int = 6) -> Slip:
    return Slip(OVERWRITE, what, happens, f"{command} --overwrite", code, says)


SLIPS = (
    overwrite("extract to the working folder, `-o .`", "refused", "extract base post -o .", "is the working folder"),
    overwrite(
        "to its parent, `-o ..`",
        "refused: it contains the working folder",
        "extract base post -o ..",
        "contains the working folder",
    ),
    overwrite(
        "to the home folder", "refused", "extract base post -o '~'", "contains the working folder|is the home folder"
    ),
    overwrite("over the base model", "refused", "extract base post -o base", "is the base model"),
    overwrite("over the post model", "refused", "extract base post -o post", "is the post model"),
    overwrite(
        "over an older package inside the base model",
        "refused",
        "extract base post -o base/inner-delta",
        "lies inside the base model",
    ),
    overwrite(
        "over a folder of other things",
        "refused, first files named",
        "extract base post -o thesis",
        r"not a delta package.*chapter\.tex",
    ),
    overwrite(
        "over a link to such a folder",
        "followed, and refused",
        "extract base post -o link-to-thesis",
        r"not a delta package.*chapter\.tex",
    ),
    overwrite(
        "a delta over a model that an apply made",
        "refused: another kind",
        "extract base post -o old-result",
        "not a delta package",
    ),
    overwrite(
        "over a package with a file of one's own",
        "refused, the file named",
        "extract base post -o annotated-delta",
        r"notes\.txt",
    ),
    overwrite(
        "over a package with a card written by hand",
        "refused, the card named",
        "extract base post -o carded-delta",
        r"README\.md",
    ),
    overwrite(
        "over a package whose weights were changed",
        "refused, the file named",
        "extract base post -o changed-delta",
        r"delta-00001-of-00001\.safetensors",
    ),
    overwrite("over a registry", "refused", "extract base post -o registry", "not a delta package"),
    overwrite(
        "over a published version",
        "refused: it is never replaced",
        "extract base post -o registry/org/delta/1.0.0",
        "a published version",
    ),
    overwrite("apply over the target", "refused", "apply target delta -o target", "is the target"),
    overwrite("over the delta", "refused", "apply target delta -o delta", "is a delta"),
    overwrite(
        "over the model that the delta came from",
        "refused: an apply did not make it",
        "apply target delta -o base",
        "not a model that pd-apply made",
    ),
    overwrite(
        "over the registry that the delta comes from",
        "refused",
        "apply target ./registry/org/delta -o registry",
        "is a registry|contains",
    ),
    overwrite(
        "over a single weight file",
        "refused",
        "apply target delta -o model.safetensors",
        "only a folder can be replaced",
    ),
    overwrite(
        "over a result whose card was edited",
        "refused, the card named",
        "apply target delta -o edited-result",
        r"README\.md",
    ),
    overwrite(
        "over a result whose config was edited",
        "refused, the config named",
        "apply target delta -o configured-result",
        r"config\.json",
    ),
    overwrite(
        "over a result that was trained further",
        "refused, the weights named",
        "apply target delta -o trained-result",
        r"model\.safetensors",
    ),
    overwrite("over a result with a git history", "refused", "apply target delta -o tracked-result", r"\.git/HEAD"),
    overwrite("a catalog over the registry it lists", "refused", "catalog registry -o registry", "is a registry"),
    overwrite(
        "a catalog over one with a page of one's own",
        "refused, the page named",
        "catalog registry -o edited-site",
        r"about\.html",
    ),
    overwrite(
        "a report over a text", "refused", "inspect delta --html thesis/chapter.tex", "not a report by paramdelta"
    ),
    overwrite(
        "a report over one that was edited", "refused", "inspect delta --html edited-report.html", "or was edited"
    ),
    overwrite(
        "a statement over a text",
        "refused",
        "verify new-model --statement thesis/chapter.tex",
        "not a report by paramdelta",
    ),
    overwrite(
        "relabel onto the package itself",
        "refused",
        "relabel delta -o delta --version 2.0.0",
        "is the package that is relabeled",
    ),
    overwrite(
        "over such a result whose times were set back",
        "refused, the weights named",
        "apply target delta -o timed-result",
        r"model\.safetensors",
    ),
    overwrite(
        "over a result with a cache of one's own in it",
        "refused, first files named",
        "apply target delta -o cached-result",
        r"\.cache/huggingface/token",
    ),
    overwrite(
        "a report over the card of a result",
        "refused: it would spoil the result",
        "inspect delta --html old-result/README.md",
        "lies inside a model that pd-apply made",
    ),
    Slip(
        OVERWRITE,
        "a new output inside a package",
        "refused: it would spoil the package",
        "apply target delta -o delta/out",
        6,
        "lies inside a delta package",
    ),
    Slip(
        OVERWRITE,
        "a new output inside a result",
        "refused: it would spoil the result",
        "extract base post -o old-result/delta",
        6,
        "lies inside a model that pd-apply made",
    ),
    Slip(
        OVERWRITE,
        "extract into a registry, past pd-publish",
        "refused",
        "extract base post -o registry/org/delta/1.1.0",
        6,
        "lies inside a registry",
    ),
    Slip(
        OVERWRITE,
        "a statement over a text, without `--overwrite`",
        "refused",
        "verify new-model --statement thesis/chapter.tex",
        6,
        "exists already",
    ),
    Slip(
        OVERWRITE,
        "an output beside a `….partial` of another program",
        "refused, its files named",
        "extract base post -o download",
        6,
        r"weights\.part",
    ),
    Slip(
        WEIGHTS,
        "`DELTA=0_5`, which Python reads as five",
        "refused",
        "apply target delta=0_5 -o out",
        2,
        "'0_5' is not a number",
    ),
    Slip(
        WEIGHTS,
        "a weight map's rule before `.*`, which overrides it",
        "refused: it has no effect",
        "apply target delta -o out --weight-map mlp=1 --weight-map '.*=0.5'",
        2,
        "--weight-map 'mlp' has no effect",
    ),
    Slip(
        WEIGHTS,
        "`DELTA=0`",
        "the report says that nothing was added",
        "apply target delta=0 -o out",
        0,
        "nothing was added",
    ),
    Slip(
        WEIGHTS,
        "`DELTA=50` for one half",
        "refused: the limit is ±10",
        "apply target delta=50 -o out",
        2,
        "limit is ±10.*0.5, not 50",
    ),
    Slip(WEIGHTS, "`DELTA=nan`, `DELTA=inf`", "refused", "apply target delta=nan -o out", 2, "not finite"),
    Slip(WEIGHTS, "`DELTA=half`", "refused", "apply target delta=half -o out", 2, "'half' is not a number"),
    Slip(
        WEIGHTS,
        "`--weight-map 'mlp=70'`",
        "refused",
        "apply target delta -o out --weight-map mlp=70",
        2,
        "limit is ±10",
    ),
    Slip(
        WEIGHTS,
        "`--weight-map` of names that no delta has",
        "refused, nearest names told",
        "apply target delta -o out --weight-map self_attention=0",
        2,
        "--weight-map 'self_attention' has no effect.*the nearest are",
    ),
    Slip(
        RULES,
        "extract `--skip` of a misspelled name",
        "refused, nearest names told",
        "extract base post -o out --skip 'embed_token\\.'",
        2,
        r"--skip .* (matches no tensor|renames no tensor); the nearest are model\.embed_tokens\.weight",
    ),
    Slip(
        RULES,
        "apply `--skip` of a misspelled name",
        "refused, nearest names told",
        "apply target delta -o out --skip mpl",
        2,
        "--skip 'mpl' (matches no tensor|renames no tensor); the nearest are",
    ),
    Slip(
        RULES,
        "`--rename` of a prefix that no tensor has",
        "refused, nearest names told",
        "extract base post -o out --rename '^modle\\.='",
        2,
        r"--rename .* (matches no tensor|renames no tensor); the nearest are",
    ),
    Slip(
        RULES,
        "`--carry` of what base has, too",
        "refused",
        "extract base classifier -o out --carry embed --skip score",
        2,
        "--carry 'embed' matches no tensor that only post has",
    ),
    Slip(
        RULES,
        "`--skip` of a pattern that is wider than it was meant to be",
        "the report counts what it hit, and names what training had changed there",
        "extract base post -o out --skip 'bias$'",
        0,
        r"--skip 'bias\$' matched \d+ tensors?, \d+ of them changed by training: model\.layers",
    ),
    Slip(
        MODELS,
        "base and post are one path",
        "refused",
        "extract base base -o out",
        2,
        "BASE and POST are the same model",
    ),
    Slip(
        MODELS,
        "base and post are copies of one model",
        "refused: no difference",
        "extract base twin -o out",
        4,
        "same values as base in all",
    ),
    Slip(
        MODELS,
        "base and post swapped in extract",
        "the report's first lines say what is subtracted from what",
        "extract post base -o out",
        0,
        "Δ +base − post",
    ),
    Slip(
        MODELS,
        "base and post swapped in verify",
        "told as such, not tensor by tensor",
        "verify delta --base post --post base",
        4,
        "base and post are swapped",
    ),
    Slip(
        MODELS,
        "another model as base in verify",
        "equal lines are counted",
        "verify delta --base stranger",
        4,
        r"\d+ times: its values differ from the digest in the manifest",
    ),
    Slip(
        MODELS,
        "the same delta twice, under two names or versions",
        "refused without `--force`: labels are no part of a delta",
        "apply target delta old-delta -o out",
        2,
        "is given 2 times, also as post-delta 0.9.0",
    ),
    Slip(
        MODELS,
        "a relabeled delta onto a model that has it",
        "refused without `--force`",
        "apply new-model old-delta -o out",
        4,
        "the target has this delta already",
    ),
    Slip(
        RULES,
        "`carry` in the rules of an apply",
        "refused: it is for extract",
        "apply target delta -o out --rules carry.txt",
        2,
        "carry rules are for pd-extract",
    ),
    Slip(
        RULES,
        "`--skip '.*'`",
        "refused: no tensor is left",
        "extract base post -o out --skip .*",
        4,
        "the skip rules leave no tensor",
    ),
    Slip(
        MODELS,
        "the same delta twice",
        "refused without `--force`",
        "apply target delta delta -o out",
        2,
        "is given 2 times",
    ),
    Slip(
        MODELS,
        "a delta onto a model that has it",
        "refused without `--force`",
        "apply new-model delta -o out",
        4,
        "the target has this delta already",
    ),
    Slip(
        MODELS,
        "a delta onto its own post",
        "refused without `--force`",
        "apply post delta -o out",
        4,
        "compared tensors of the target have the values of post",
    ),
    Slip(
        MODELS,
        "a delta onto a model of other ancestry",
        "refused without `--force`",
        "apply stranger delta -o out",
        4,
        "not kin to the delta's base",
    ),
    Slip(
        REGISTRIES,
        "search in a registry that is not there",
        "exit 8, the place named",
        "search --registry regisrty",
        8,
        "regisrty",
    ),
    Slip(
        REGISTRIES,
        "versions in one that is not there",
        "exit 8",
        "versions org/delta --registry regisrty",
        8,
        "regisrty",
    ),
    Slip(REGISTRIES, "pull from one that is not there", "exit 8", "pull org/delta --registry regisrty", 8, "regisrty"),
    Slip(
        REGISTRIES,
        "a catalog of one that is not there",
        "exit 8, no empty site",
        "catalog regisrty -o out",
        8,
        "regisrty",
    ),
    Slip(
        REGISTRIES,
        "publish to `registry/math` beside a folder `registry`",
        "refused, not sent to the public Hub",
        "publish delta registry/math",
        2,
        r"did you mean \./registry/ORG/math",
    ),
    Slip(
        REGISTRIES,
        "publish other content as a version that is there",
        "refused: a version is never replaced",
        "publish other-delta org/delta --registry registry",
        8,
        "never replaced|published already",
    ),
    Slip(
        NAMES,
        "`--version 1.0`",
        "refused: did you mean 1.0.0?",
        "extract base post -o out --version 1.0",
        2,
        r"1\.0\.0",
    ),
    Slip(
        NAMES,
        "`--license apach-2.0`",
        "refused, nearest names told",
        "extract base post -o out --license apach-2.0",
        2,
        "apache-2.0",
    ),
    Slip(
        NAMES,
        "`--license bsd3`",
        "refused, those of the family told",
        "extract base post -o out --license bsd3",
        2,
        "did you mean bsd-3-clause or bsd-2-clause",
    ),
    Slip(
        NAMES,
        "`--license mit,apache-2.0`",
        "refused, told how two licenses are written",
        "extract base post -o out --license mit,apache-2.0",
        2,
        "'MIT OR Apache-2.0'.*'MIT AND Apache-2.0'",
    ),
    Slip(NAMES, "`--name ' '`", "refused", "extract base post -o out --name ' '", 2, "the name ' ' can't be used"),
    Slip(
        REGISTRIES,
        "`--publish` of another version than `--version`",
        "refused before the work",
        "extract base post -o out --publish registry/org/delta@3.0.0",
        2,
        r"--publish names version 3\.0\.0, but the delta is version 1\.0\.0",
    ),
    Slip(
        REGISTRIES,
        "`--publish` of a version that is there under another name or license",
        "refused before the work",
        "extract base post -o out --license mit --publish registry/org/delta",
        8,
        "published already",
    ),
    Slip(
        REGISTRIES,
        "`--private` without `--publish`, or for a registry that is a folder",
        "refused before the work",
        "extract base post -o out --private",
        2,
        "need --publish",
    ),
    Slip(
        NAMES,
        "relabel to the same labels",
        "refused: nothing would change",
        "relabel delta -o out --version 1.0.0",
        2,
        "no label would change",
    ),
    Slip(NAMES, "a model's path misspelled", "told as such, with what to give", "extract bsae post -o out", 3, "bsae"),
    Slip(
        NAMES,
        "`--rules` of a file that is not there",
        "refused",
        "extract base post -o out --rules rules.txt",
        3,
        "rules.txt",
    ),
)


@slips(*(slip.row for slip in SLIPS))
@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.what)
def test_a_slip_of_the_hand(home: Home, slip: Slip) -> None:
    """It ends as the table says, and every file that was there is there, unchanged."""
    before = digests(home.root)
    code, text = home.run(*shlex.split(slip.command))
    assert code == slip.code, text
    assert re.search(slip.says, text, re.DOTALL), text
    after = digests(home.root)
    assert {name: after.get(name) for name in before} == before
    assert (home.work / "out").exists() == (code == 0)
    assert not (home.work / "out.partial").exists()


def test_no_less_than_forty() -> None:
    assert len({slip.what for slip in SLIPS}) == len(SLIPS) >= 40
