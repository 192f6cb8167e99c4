"""Inspect: what a package is, from its manifest alone; no weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramdelta_hub.format.manifest import Manifest, TensorRecord
from paramdelta_hub.format.package import open_package
from paramdelta_hub.registry.locate import locate_delta

__all__ = ["InspectReport", "inspect"]


@dataclass(frozen=True)
class InspectReport:
    """A package at a glance."""

    package: Path
    id: str
    manifest: Manifest

    @property
    def nbytes(self) -> int:
        """Size of the package without its manifest."""
        return self.manifest.nbytes

    @property
    def model_nbytes(self) -> int:
        """Size of the full model's tensors that the delta covers."""
        return self.manifest.model_nbytes

    def most_changed(self, count: int) -> Sequence[TensorRecord]:
        """Return the tensors with the largest |Δ| relative to |base|, the largest first, without unchanged ones."""
        changed = [tensor for tensor in self.manifest.tensors if tensor.delta_norm > 0]
        return sorted(changed, key=lambda tensor: (-relative_change(tensor), tensor.name))[:count]

    def to_json(self, most_changed: int = 10) -> dict[str, Any]:
        """Return the machine-readable report."""
        manifest = self.manifest
        return {
            "package": str(self.package),
            "id": self.id,
            "name": manifest.name,
            "version": manifest.version,
            "license": manifest.license,
            "created_by": manifest.created_by,
            "base": manifest.base.model_dump(mode="json"),
            "post": manifest.post.model_dump(mode="json"),
            "architecture": manifest.architecture.model_dump(mode="json"),
            "exactness": manifest.exactness.model_dump(mode="json"),
            "tensors": len(manifest.tensors),
            "unchanged_tensors": sum(not tensor.changed for tensor in manifest.tensors),
            "omissions": [omission.model_dump(mode="json") for omission in manifest.omissions],
            "companions": [file.model_dump(mode="json") for file in manifest.companions],
            "configs": {name: change.model_dump(mode="json") for name, change in manifest.configs.items()},
            "bytes": self.nbytes,
            "model_bytes": self.model_nbytes,
            "ratio": self.nbytes / self.model_nbytes if self.model_nbytes else None,
            "most_changed": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "dtype": tensor.dtype,
                    "relative_change": None if tensor.base_norm == 0 else relative_change(tensor),
                    "changed": tensor.changed / tensor.elements if tensor.elements else 0.0,
                }
                for tensor in self.most_changed(most_changed)
            ],
        }


def relative_change(tensor: TensorRecord) -> float:
    """Return |Δ| / |base|, infinite where base is zero."""
    return tensor.delta_norm / tensor.base_norm if tensor.base_norm else float("inf")


def inspect(delta: str | Path, *, registry: str | Path | None = None) -> InspectReport:
    """Describe the package ``delta``, a folder or ``org/name[@version]`` in a registry, without fetching its weights.

    A bare ``org/name`` lies in ``registry``, a folder or a bucket; by default in what PARAMDELTA_REGISTRY names, else
    on the Hub.

    Raises:
        PackageError: not a package, or a manifest that breaks the format.
        RegistryError: the delta can't be had from its registry.
    """
    package = open_package(locate_delta(delta, registry, part="manifest"))
    return InspectReport(package.path, package.digest, package.manifest)
