"""Paramdelta Hub: post-training as an artifact.

Extract Δ = Θ_post − Θ_base once into a small, verifiable package; apply it to any compatible new base
(Param∆, arXiv 2504.21023)::

    import paramdelta_hub as pd

    pd.extract("org/base", "org/base-instruct", "delta")
    pd.verify("delta", base="org/base", post="org/base-instruct")
    pd.apply("org/new-base", "delta", "new-base-instruct")
    pd.publish("delta", "org/instruct-delta")
    pd.apply("org/new-base", "org/instruct-delta@1.0.0", "new-base-instruct")
"""

from __future__ import annotations

from paramdelta_hub.__about__ import __version__
from paramdelta_hub.checkpoints.rules import Rules
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
    PublishError,
    RegistryError,
    SignatureError,
    SourceError,
    StorageError,
    UnsupportedFormatError,
    VerificationError,
)
from paramdelta_hub.format.manifest import Manifest
from paramdelta_hub.operations.apply import ApplyReport, Summand, WeightMap, apply
from paramdelta_hub.operations.catalog import CatalogReport, catalog
from paramdelta_hub.operations.execution import Crew
from paramdelta_hub.operations.extract import ExtractReport, extract
from paramdelta_hub.operations.inspect import InspectReport, compare, inspect, write_report
from paramdelta_hub.operations.preview import Preview, preview
from paramdelta_hub.operations.publish import publish
from paramdelta_hub.operations.registries import link, pull, search, versions
from paramdelta_hub.operations.relabel import RelabelReport, relabel
from paramdelta_hub.operations.requests import ApplyRequest, ExtractRequest
from paramdelta_hub.operations.results import ResultReport, verify_result
from paramdelta_hub.operations.sharing import ShareReport, commit, do_share
from paramdelta_hub.operations.tensors import tensors
from paramdelta_hub.operations.verify import VerifyReport, verify
from paramdelta_hub.registry.links import Linked
from paramdelta_hub.registry.protocol import Hit, Published, Pulled, Version
from paramdelta_hub.registry.search import Found
from paramdelta_hub.reports.agreement import Comparison
from paramdelta_hub.work.progress import Progress

__all__ = [
    "ApplyReport",
    "ApplyRequest",
    "CatalogReport",
    "CheckpointError",
    "Comparison",
    "Crew",
    "DestinationError",
    "ExtractReport",
    "ExtractRequest",
    "Found",
    "Hit",
    "InspectReport",
    "IntegrityError",
    "LineageError",
    "Linked",
    "Manifest",
    "Mismatch",
    "MismatchError",
    "NotFiniteError",
    "OptionError",
    "PackageError",
    "ParamdeltaError",
    "Preview",
    "Progress",
    "PublishError",
    "Published",
    "Pulled",
    "RegistryError",
    "RelabelReport",
    "ResultReport",
    "Rules",
    "ShareReport",
    "SignatureError",
    "SourceError",
    "StorageError",
    "Summand",
    "UnsupportedFormatError",
    "VerificationError",
    "VerifyReport",
    "Version",
    "WeightMap",
    "__version__",
    "apply",
    "catalog",
    "commit",
    "compare",
    "do_share",
    "extract",
    "inspect",
    "link",
    "preview",
    "publish",
    "pull",
    "relabel",
    "search",
    "tensors",
    "verify",
    "verify_result",
    "versions",
    "write_report",
]
