"""Paramdelta Hub: post-training as an artifact.

Extract Δ = Θ_post − Θ_base once into a small, verifiable package; apply it to any compatible new base
(Param∆, arXiv 2504.21023)::

    import paramdelta_hub as pd

    pd.extract("org/base", "org/base-instruct", "delta")
    pd.verify("delta", base="org/base", post="org/base-instruct")
    pd.apply("org/new-base", "delta", "new-base-instruct")
    pd.inspect("delta").summary()
"""

from __future__ import annotations

from paramdelta_hub.__about__ import __version__
from paramdelta_hub.checkpoints.pairing import Rules
from paramdelta_hub.errors import (
    CheckpointError,
    DestinationError,
    IntegrityError,
    LineageError,
    Mismatch,
    MismatchError,
    NotFiniteError,
    OptionError,
    PackageError,
    ParamdeltaError,
    SourceError,
    StorageError,
    UnsupportedFormatError,
    VerificationError,
)
from paramdelta_hub.format.manifest import Manifest
from paramdelta_hub.operations.apply import ApplyReport, Summand, WeightMap, apply
from paramdelta_hub.operations.extract import ExtractReport, extract
from paramdelta_hub.operations.inspect import InspectReport, inspect
from paramdelta_hub.operations.tensors import tensors
from paramdelta_hub.operations.verify import VerifyReport, verify
from paramdelta_hub.work.progress import Progress

__all__ = [
    "ApplyReport",
    "CheckpointError",
    "DestinationError",
    "ExtractReport",
    "InspectReport",
    "IntegrityError",
    "LineageError",
    "Manifest",
    "Mismatch",
    "MismatchError",
    "NotFiniteError",
    "OptionError",
    "PackageError",
    "ParamdeltaError",
    "Progress",
    "Rules",
    "SourceError",
    "StorageError",
    "Summand",
    "UnsupportedFormatError",
    "VerificationError",
    "VerifyReport",
    "WeightMap",
    "__version__",
    "apply",
    "extract",
    "inspect",
    "tensors",
    "verify",
]
