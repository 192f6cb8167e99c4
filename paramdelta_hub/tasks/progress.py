"""How work tells a caller how far it is."""

from __future__ import annotations

__all__ = ["Progress"]


class Progress:
    """Silent by default; the command line draws bars by overriding it. Methods are called from several threads."""

    def start(self, what: str, total: int) -> None:
        """A stage begins that will handle ``total`` bytes."""

    def advance(self, nbytes: int) -> None:
        """So many more bytes are done."""

    def note(self, text: str) -> None:
        """Something to know at once, in a sentence, such as where a package goes before it goes there."""

    def finish(self) -> None:
        """The stage is over, well or badly."""
