"""A Hub on loopback: real HTTP over real sockets, for the real client in a process of its own. A test part, no product.

``repositories`` holds what a Hub keeps, ``server`` speaks the protocol, ``faults`` breaks it on schedule, and
``client`` runs this package's registry calls in a child process.
"""

from __future__ import annotations

from tests.support.hub.faults import Fault
from tests.support.hub.repositories import Account, Repository
from tests.support.hub.server import LoopbackHub

__all__ = ["Account", "Fault", "LoopbackHub", "Repository"]
