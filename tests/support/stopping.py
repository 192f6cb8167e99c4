"""A progress that ends the work, as an error in its middle would."""

from __future__ import annotations

import time

import paramdelta_hub as pd
from paramdelta_hub.errors import StorageError


class StopsAt(pd.Progress):
    """Raises StorageError("enough") at the given call of ``advance``."""

    def __init__(self, call: int) -> None:
        self._left = call

    def advance(self, nbytes: int) -> None:
        """Count down, and stop."""
        self._left -= 1
        if self._left == 0:
            time.sleep(0.3)  # so that the receipts of what was done before are kept
            raise StorageError("enough")
