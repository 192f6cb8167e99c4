"""A document's blocks are replaced, all of them, and nothing else."""

from __future__ import annotations

import pytest

from scripts.tools.blocks import fill

PAGE = "above\n<!-- sun: made by a -->\nold\n<!-- end -->\nbetween\n<!-- moon: made by b -->\n<!-- end -->\nbelow\n"


def test_blocks_are_replaced_and_the_rest_stays() -> None:
    filled = fill(PAGE, {"moon": "1\n", "sun": r"\1" + "\n"})
    assert filled == PAGE.replace("old", r"\1").replace("made by b -->\n", "made by b -->\n1\n")
    assert fill(filled, {"moon": "", "sun": "old\n"}) == PAGE


@pytest.mark.parametrize("given", [(), ("sun",), ("sun", "moon", "mars")])
def test_a_block_that_is_not_filled_or_not_there_is_an_error(given: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="moon"):
        fill(PAGE, dict.fromkeys(given, ""))
