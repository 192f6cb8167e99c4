"""Companions of a stranger: no code, no path outside, nothing large, nothing that was not promised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import paramdelta_hub as pd
from paramdelta_hub.application import companions
from paramdelta_hub.checkpoints import companions as module
from paramdelta_hub.errors import IntegrityError, PackageError
from tests.attacks.outcomes import apply_is_safe, change_manifest, not_vouched_for, refused_everywhere, reseal
from tests.attacks.threats import shows
from tests.checkpoints.test_companions import NEVER
from tests.conftest import Family


def carry(delta: Path, name: str, content: bytes) -> Path:
    """Put a companion into a package, with a manifest that fits."""
    path = delta / "companions" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    record = {"path": f"companions/{name}", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_manifest(delta, lambda manifest: manifest["companions"].append(record))
    return path


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "generation_config.json"]
)
@pytest.mark.parametrize(
    "value", [{"auto_map": {"AutoTokenizer": "x.X"}}, {"a": [{"auto_map": {"AutoConfig": "o/n--x.X"}}]}]
)
@shows("code", "companions and patches of configs with `auto_map`, at any depth: refused")
def test_a_companion_that_names_code(family: Family, tmp_path: Path, name: str, value: object) -> None:
    carry(family.delta, name, json.dumps(value).encode())
    refusal = apply_is_safe(family.base, family.delta, tmp_path / "out", {})
    assert isinstance(refusal, PackageError)
    assert "refers to code" in refusal.what
    with pytest.raises(PackageError, match="refers to code"):
        pd.apply(family.base, family.delta, tmp_path / "out", keep_remote_code_of_target=True)
    pd.apply(family.base, family.delta, tmp_path / "out", companions="target")
    assert not (tmp_path / "out" / name).exists()


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_patch_that_names_code(family: Family, tmp_path: Path, file: str) -> None:
    patch = {"auto_map": {"AutoModelForCausalLM": "attacker/evil--modeling.Model"}}
    change = {"patch": {"text_config": patch}, "reverse": {"text_config": None}}
    change_manifest(family.delta, lambda manifest: manifest["configs"].update({file: change}))
    refused_everywhere(family, tmp_path, PackageError, "refers to code")


def test_no_file_of_another_kind_gets_out_of_a_package(family: Family, tmp_path: Path) -> None:
    """Names that no package may list are refused, and those that no model needs are left where they are."""
    original = (family.delta / "manifest.json").read_bytes()
    refused = 0
    for name in sorted(NEVER | {"config.json", "modules.json", "1_Pooling/config.json"}):
        (family.delta / "manifest.json").write_bytes(original)
        path = carry(family.delta, name, b"{}")
        try:
            report = pd.apply(family.base, family.delta, tmp_path / "out", overwrite=True)
        except PackageError:
            refused += 1
        else:
            assert path.suffix in (".json", ".jinja")
            assert any(name in warning for warning in report.companions.warnings)
            assert "target" in {file.source for file in report.companions.files}
            for file in report.companions.files:
                assert file.source == "target"
        path.unlink()
        assert not list(tmp_path.glob("out*/**/*.py"))
    assert refused > 45


def test_a_python_file_beside_the_package_is_never_taken(family: Family, tmp_path: Path) -> None:
    (family.delta / "companions").mkdir()
    (family.delta / "companions" / "modeling_x.py").write_text("raise SystemExit")
    not_vouched_for(family.delta, "companions/modeling_x.py")
    pd.apply(family.base, family.delta, tmp_path / "out", keep_remote_code_of_target=True)
    assert not list((tmp_path / "out").rglob("*.py"))


def linked_outside(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


ATTACKS: dict[str, Callable[[Path, Path], object]] = {
    "missing": lambda path, _: path.unlink(),
    "changed": lambda path, _: path.write_bytes(b'{"b":1}'),
    "longer": lambda path, _: path.write_bytes(b'{"a":1} '),
    "a link": linked_outside,
    "a link to a device": lambda path, _: (path.unlink(), path.symlink_to("/dev/zero")),
    "its folder a link": lambda path, elsewhere: linked_outside(path.parent, elsewhere),
    "a folder": lambda path, _: (path.unlink(), path.mkdir()),
}


@shows("tampering", f"{len(ATTACKS)} ways in which a companion is not what was promised: refused")
@pytest.mark.parametrize("case", sorted(ATTACKS))
@pytest.mark.parametrize("name", ["tokenizer.json", "additional_chat_templates/x.jinja"])
def test_a_companion_that_is_not_what_was_promised(family: Family, tmp_path: Path, case: str, name: str) -> None:
    path = carry(family.delta, name, b'{"a":1}')
    ATTACKS[case](path, tmp_path / "elsewhere")
    refused_everywhere(family, tmp_path, PackageError)


def test_an_oversized_companion(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for where in (module, companions):
        monkeypatch.setattr(where, "COMPANION_BYTES", 1000)
    carry(family.delta, "tokenizer.json", b" " * 1001)
    refusal = apply_is_safe(family.base, family.delta, tmp_path / "out", {})
    assert isinstance(refusal, PackageError)
    change_manifest(family.delta, lambda manifest: manifest["companions"][0].update(size=1000))
    refusal = apply_is_safe(family.base, family.delta, tmp_path / "out", {})
    assert isinstance(refusal, PackageError)


def test_a_companion_swapped_after_it_was_checked(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = carry(family.delta, "chat_template.jinja", b"good")
    select = companions.select_companions

    def then_swap(*arguments: object, **options: object) -> companions.CompanionSelection:
        selection = select(*arguments, **options)  # type: ignore[arg-type]
        path.write_bytes(b"evil")
        return selection

    monkeypatch.setattr("paramdelta_hub.application.inputs.select_companions", then_swap)
    refusal = apply_is_safe(family.base, family.delta, tmp_path / "out", {})
    assert isinstance(refusal, IntegrityError)


@pytest.mark.parametrize("content", [b"", b"[1", b"\xff\xfe", b'{"a": NaN}', b"[" * 100 + b"]" * 100, b'{"a":1,"a":2}'])
def test_a_config_that_is_not_json(family: Family, tmp_path: Path, content: bytes) -> None:
    path = carry(family.delta, "tokenizer_config.json", content)
    reseal(family.delta)
    assert path.read_bytes() == content
    refusal = apply_is_safe(family.base, family.delta, tmp_path / "out", {})
    assert isinstance(refusal, PackageError)


def test_a_template_is_never_rendered(family: Family, tmp_path: Path) -> None:
    template = b"{{ cycler.__init__.__globals__.os.system('touch /tmp/pwned') }}{% for i in range(10**9) %}{% endfor %}"
    carry(family.delta, "chat_template.jinja", template)
    pd.apply(family.base, family.delta, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == template
