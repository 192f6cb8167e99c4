"""Verify: is the package whole, does it decode, is it a delta of these models, and is base ⊕ Δ really post?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paramdelta_hub.checkpoints.checkpoint import Checkpoint, open_checkpoint
from paramdelta_hub.checkpoints.lineage import unpack_samples
from paramdelta_hub.checkpoints.pairing import Rules, match, Entry
from paramdelta_hub.errors import CheckpointError, Mismatch, MismatchError, PackageError, VerificationError
from paramdelta_hub.format.durable import read_exactly
from paramdelta_hub.format.package import Package, open_package
from paramdelta_hub.limits import DEFAULT_MEMORY
from paramdelta_hub.operations.adding import ChunkAdder
from paramdelta_hub.operations.descriptors import Descriptors
from paramdelta_hub.work.progress import Progress

__all__ = ["VerifyReport", "verify"]
