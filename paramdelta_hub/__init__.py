"""Paramdelta Hub: post-training as an artifact.

Extract Δ = Θ_post − Θ_base once into a small, verifiable package; apply it to any compatible new base
(Param∆, arXiv 2504.21023)::

    import paramdelta_hub as pd

    pd.extract("org/base", "org/base-instruct", "delta")
    pd.verify("delta", base="org/base", post="org/base-instruct")
    pd.apply("org/new-base", "delta", "new-base-instruct")
    pd.publish("delta", "org/instruct-delta")
    pd.apply("org/new-base", "org/instruct-delta@1.0.0", "new-base-instruct")

Arguments with the same meaning everywhere:

``registry``
    Where a bare ``org/name`` is: a folder, a bucket, or the Hub. The default is PARAMDELTA_REGISTRY, else the Hub.
``overwrite``
    Replace an older output of the same kind. Nothing else is ever replaced (:mod:`.outputs.replacing`).
``executor``, ``threads``, ``memory``
    See :class:`ExecutorConfig`.
``progress``
    Is told how far the work is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from paramdelta_hub.__about__ import __version__
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

if TYPE_CHECKING:
    from paramdelta_hub.application.apply import ApplyReport, WeightedDelta, WeightMap, apply
    from paramdelta_hub.application.preview import Preview, preview
    from paramdelta_hub.application.request import ApplyRequest
    from paramdelta_hub.application.tensors import tensors
    from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
    from paramdelta_hub.extraction.extract import ExtractReport, extract
    from paramdelta_hub.extraction.relabel import RelabelReport, relabel
    from paramdelta_hub.extraction.request import ExtractRequest
    from paramdelta_hub.outputs.applied_model import ResultReport, verify_result
    from paramdelta_hub.package.manifest import Manifest
    from paramdelta_hub.ranks import RankReport, commit, run_rank
    from paramdelta_hub.registry.api import link, pull, search, versions
    from paramdelta_hub.registry.hub.links import Linked
    from paramdelta_hub.registry.protocol import Hit, Published, Pulled, Version
    from paramdelta_hub.registry.publish import publish, yank
    from paramdelta_hub.registry.search import Found
    from paramdelta_hub.reports.agreement import Comparison
    from paramdelta_hub.reports.catalog import CatalogReport, catalog
    from paramdelta_hub.reports.inspect import InspectReport, compare, inspect, write_report
    from paramdelta_hub.tasks.progress import Progress
    from paramdelta_hub.tasks.runner import ExecutorConfig
    from paramdelta_hub.verification.package import VerifyReport, verify

__all__ = [
    "ApplyReport",
    "ApplyRequest",
    "CatalogReport",
    "CheckpointError",
    "Comparison",
    "DestinationError",
    "ExecutorConfig",
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
    "RankReport",
    "RegistryError",
    "RelabelReport",
    "ResultReport",
    "Rules",
    "SignatureError",
    "SourceError",
    "StorageError",
    "UnsupportedFormatError",
    "VerificationError",
    "VerifyReport",
    "Version",
    "WeightMap",
    "WeightedDelta",
    "__version__",
    "apply",
    "catalog",
    "commit",
    "compare",
    "extract",
    "inspect",
    "link",
    "preview",
    "publish",
    "pull",
    "relabel",
    "run_rank",
    "search",
    "tensors",
    "verify",
    "verify_result",
    "versions",
    "write_report",
    "yank",
]

_LAZY = {
    name: module
    for module, names in {
        "application.apply": "ApplyReport WeightMap WeightedDelta apply",
        "application.preview": "Preview preview",
        "application.request": "ApplyRequest",
        "application.tensors": "tensors",
        "checkpoints.rules.tensor_rules": "Rules",
        "extraction.extract": "ExtractReport extract",
        "extraction.relabel": "RelabelReport relabel",
        "extraction.request": "ExtractRequest",
        "outputs.applied_model": "ResultReport verify_result",
        "package.manifest": "Manifest",
        "ranks": "RankReport commit run_rank",
        "registry.api": "link pull search versions",
        "registry.hub.links": "Linked",
        "registry.protocol": "Hit Published Pulled Version",
        "registry.publish": "publish yank",
        "registry.search": "Found",
        "reports.agreement": "Comparison",
        "reports.catalog": "CatalogReport catalog",
        "reports.inspect": "InspectReport compare inspect write_report",
        "tasks.progress": "Progress",
        "tasks.runner": "ExecutorConfig",
        "verification.package": "VerifyReport verify",
    }.items()
    for name in names.split()
}
"""Where each public name lives: it is imported when it is first asked for, so that no command waits for another's."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
