"""Statements about an applied model for other tools: in-toto, and a CycloneDX bill of materials.

Both are made from a verification's report, so they state only what was just checked. They contain no time, so equal
models give equal files. They are not signed; sign them with cosign or in-toto's tools.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from paramdelta_hub.errors import OptionError, SourceError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.outputs.applied_model import ResultReport
from paramdelta_hub.package.provenance import Delta, Model

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

__all__ = ["bill_of_materials", "is_bill_of_materials", "is_statement", "statement"]

_HOME = "https://pypi.org/project/paramdelta-hub/"
_TOOL = "paramdelta-hub"


def statement(report: ResultReport) -> bytes:
    """Return an in-toto Statement v1, JSON: these files are target + Σ weight · delta, by SLSA provenance v1.

    Its subjects are the model's files. A model or delta is among ``resolvedDependencies`` if something pins it: a
    commit on the Hub, a package's id. A target that was a local folder is named, and no more is known of it.

    Raises:
        OptionError: in-toto-attestation is not installed.
    """
    with _optional_packages():
        from google.protobuf import json_format
        from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
        from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
        from in_toto_attestation.v1.statement import Statement
    provenance = report.provenance
    parameters = provenance.model_dump(mode="json", include={"target", "weight_map", "layouts", "renames", "skips"})
    deltas = [{"name": d.name, "version": d.version, "id": d.id, "weight": d.weight} for d in provenance.deltas]
    pinned = [*_pinned(provenance.target)]
    for delta in provenance.deltas:
        pinned.append({"name": f"{delta.name} {delta.version}", "digest": {"sha256": delta.id}})
        pinned += [*_pinned(delta.base), *_pinned(delta.post)]
    predicate = {
        "buildDefinition": {
            "buildType": f"{_HOME}#apply-v1",
            "externalParameters": {**parameters, "deltas": deltas, "companions": provenance.companions.mode},
            "resolvedDependencies": [resource for n, resource in enumerate(pinned) if resource not in pinned[:n]],
        },
        "runDetails": {"builder": {"id": _HOME, "version": {_TOOL: provenance.created_by}}},
    }
    # By way of the message, which takes no field that the predicate's own definition has not.
    checked = json_format.MessageToDict(json_format.ParseDict(predicate, provenance_pb2.Provenance()))
    subjects = [ResourceDescriptor(name=file.path, digest={"sha256": file.sha256}).pb for file in report.files]
    document = Statement(subjects, "https://slsa.dev/provenance/v1", checked)
    document.validate()
    return str(json_format.MessageToJson(document.pb, indent=2)).encode() + b"\n"


def bill_of_materials(report: ResultReport) -> bytes:
    """Return a CycloneDX 1.6 bill of materials, JSON: the model, its files, the target and the deltas it depends on.

    Raises:
        OptionError: cyclonedx-python-lib is not installed.
    """
    with _optional_packages():
        from cyclonedx.model import Property
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType, Pedigree
        from cyclonedx.model.tool import ToolRepository
        from cyclonedx.output import make_outputter
        from cyclonedx.schema import OutputFormat, SchemaVersion
    provenance = report.provenance
    name = report.path.resolve().name
    models = [provenance.target, *(delta.post for delta in provenance.deltas)]
    ancestors = [_model(model, f"ancestor-{n}") for n, model in enumerate(dict.fromkeys(models), start=1)]
    files = [
        Component(name=file.path, type=ComponentType.FILE, bom_ref=f"file-{n}", hashes=_sha256(file.sha256))
        for n, file in enumerate(report.files, start=1)
    ]
    result = Component(
        name=name or "model",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="result",
        description=f"{provenance.target.name} with {len(provenance.deltas)} delta(s) added to its weights",
        pedigree=Pedigree(ancestors=ancestors),
        components=files,
    )
    target = _model(provenance.target, "target")
    deltas = [
        Component(
            name=delta.name,
            version=delta.version,
            type=ComponentType.DATA,
            bom_ref=f"delta-{n}",
            hashes=_sha256(delta.id),
            properties=[Property(name=key, value=value) for key, value in _properties(delta)],
        )
        for n, delta in enumerate(provenance.deltas, start=1)
    ]
    tool = Component(name=_TOOL, type=ComponentType.APPLICATION, bom_ref="tool", description=provenance.created_by)
    about = BomMetaData(component=result, tools=ToolRepository(components=[tool]))
    no_time: Any = None  # the library would put the present one
    about.timestamp = no_time
    files_digest = hashlib.sha256("\n".join(f"{file.sha256} {file.path}" for file in report.files).encode()).hexdigest()
    bom = Bom(components=[target, *deltas], metadata=about, serial_number=uuid.uuid5(uuid.NAMESPACE_URL, files_digest))
    bom.register_dependency(result, [target, *deltas])
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)
    return text.encode() + b"\n"


def is_statement(content: bytes) -> bool:
    """Whether a file holds a statement that :func:`statement` made, of whatever model."""
    run = _at(content, "predicate", "runDetails", "builder", "id")
    return bool(run == _HOME)


def is_bill_of_materials(content: bytes) -> bool:
    """Whether a file holds what :func:`bill_of_materials` made, of whatever model."""
    tools = _at(content, "metadata", "tools", "components")
    return isinstance(tools, list) and any(isinstance(tool, dict) and tool.get("name") == _TOOL for tool in tools)


def _at(content: bytes, *keys: str) -> Any:
    """Return what lies at a path of keys in a JSON text; None where there is no such thing."""
    try:
        value: Any = strict_json.parse(content)
    except SourceError:
        return None
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _pinned(model: Model) -> Iterator[dict[str, Any]]:
    """Yield a model as in-toto describes a resource, if its commit is known."""
    if model.commit:
        yield {"name": model.name, "uri": _package_url(model), "digest": {"gitCommit": model.commit}}


def _package_url(model: Model) -> str:
    return f"pkg:huggingface/{quote(model.name, safe='/')}@{model.commit}"


def _properties(delta: Delta) -> Iterator[tuple[str, str]]:
    yield "paramdelta:weight", repr(delta.weight)
    for side, model in (("base", delta.base), ("post", delta.post)):
        yield f"paramdelta:{side}", _package_url(model) if model.commit else model.name


def _model(model: Model, reference: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    package_url = PackageURL.from_string(_package_url(model)) if model.commit else None
    return Component(name=model.name, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref=reference, purl=package_url)


def _sha256(digest: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType

    return [HashType(alg=HashAlgorithm.SHA_256, content=digest)]


@contextmanager
def _optional_packages() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise OptionError(
            f"this needs a package that is not installed ({error})", remedy="pip install 'paramdelta-hub[attest]'"
        ) from None
