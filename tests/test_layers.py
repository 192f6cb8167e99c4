"""The house's rules, read from the sources: imports point downward, no code is run, what is public is documented."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Family

PACKAGE = Path(__file__).parent.parent / "paramdelta_hub"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
LAYERS = (
    "errors",
    "limits",
    "environment",
    "fileio",
    "numerics",
    "codecs",
    "package",
    "hub",
    "checkpoints",
    "transforms",
    "tasks",
    "registry",
    "outputs",
    "extraction",
    "application",
    "verification",
    "reports",
    "ranks",
    "cli",
)
"""From the bottom up; a module imports from its own layer and those below."""
ANYWHERE = {"__about__"}
TOP = {"__init__", "__main__"}
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "jinja2",
    "runpy",
    "code",
    "codeop",
}
ALLOWED = {("reports/pages.py", "jinja2")}
"""Our own pages are rendered from our own templates; a model's chat template never is."""
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"), module)


def layer(module: str) -> str:
    """Return the layer of a module, given by file (``codecs/raw.py``) or by name (``codecs.raw``)."""
    return re.split(r"[./]", module.removesuffix(".py"))[0]


def imports(module: str) -> list[tuple[int, str]]:
    """Return every import, also those inside functions: (line, absolute name)."""
    found = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
            if node.module == "paramdelta_hub":
                found += [(node.lineno, f"paramdelta_hub.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, node.module or ""))
    return found


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 25
    assert {layer(module) for module in MODULES} - TOP - ANYWHERE <= set(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module: str) -> None:
    own = layer(module)
    for line, name in imports(module):
        if not name.startswith("paramdelta_hub."):
            assert name != "paramdelta_hub" or own in TOP | {"cli"}, f"{module}:{line}"
            continue
        other = layer(name.removeprefix("paramdelta_hub."))
        if own in TOP or other in ANYWHERE:
            continue
        assert own not in ANYWHERE, f"{module}:{line}: __about__ imports nothing"
        assert other in LAYERS, f"{module}:{line}: {name}"
        assert LAYERS.index(other) <= LAYERS.index(own), f"{module}:{line}: {own} must not import {other}"
        if own == other and "/" not in module:
            pytest.fail(f"{module}:{line}: imports itself")


def test_no_cycles_within_a_layer() -> None:
    edges = {
        module.removesuffix(".py").removesuffix("/__init__").replace("/", "."): {
            name.removeprefix("paramdelta_hub.") for _, name in imports(module) if name.startswith("paramdelta_hub.")
        }
        for module in MODULES
        if layer(module) not in TOP
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for other in edges.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    # A package's __init__ may gather what its modules define: that is the one cycle Python sorts out by itself.
    for name in edges:
        edges[name] = {other for other in edges[name] if not name.startswith(f"{other}.")}
    for name in edges:
        visit(name, ())


@pytest.mark.parametrize("module", MODULES)
def test_no_code_is_run(module: str) -> None:
    """No pickles, no torch.load, no eval, no remote code, no templates: a package is data and stays data."""
    for line, name in imports(module):
        top = name.split(".")[0]
        assert top not in FORBIDDEN_MODULES or (module, top) in ALLOWED, f"{module}:{line}: {name}"
    for node in ast.walk(tree(module)):
        where = f"{module}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                assert node.func.id not in FORBIDDEN_CALLS, where
            if isinstance(node.func, ast.Attribute):
                assert node.func.attr not in {"system", "popen", "load_module", "exec_module", "loads_pickle"}, where
                if node.func.attr in {"load", "loads"} and isinstance(node.func.value, ast.Name):
                    assert node.func.value.id == "json", f"{where}: {ast.unparse(node.func)}"
            for keyword in node.keywords:
                assert keyword.arg != "shell", where
        if isinstance(node, ast.keyword):
            assert node.arg != "trust_remote_code", where
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in {"torch.load", "subprocess.run"}:
            pytest.fail(where)


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module: str) -> None:
    root = tree(module)
    assert ast.get_docstring(root), f"{module} says nothing about itself"

    def check(body: list[ast.stmt], inside: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            ):
                assert ast.get_docstring(node), f"{module}:{node.lineno}: {inside}{node.name} has no docstring"
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                check(node.body, f"{node.name}.")

    check(root.body, "")


@pytest.mark.parametrize("module", MODULES)
def test_all_names_what_is_there(module: str) -> None:
    """``__all__`` is sorted the way ruff sorts it, and lists only what the module has."""
    root = tree(module)
    lists = [
        ast.literal_eval(node.value)
        for node in root.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    ]
    if not lists:
        exempt = module.endswith(("__init__.py", "__main__.py")) or layer(module) in {"cli", "limits"}
        assert exempt, f"{module} has no __all__"
        return
    bound = {
        name.asname or name.name
        for node in (ast.walk(root) if module == "__init__.py" else root.body)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    for node in root.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        bound |= {target.id for target in targets if isinstance(target, ast.Name)}
        bound |= {
            item.id
            for target in targets
            if isinstance(target, ast.Tuple)
            for item in target.elts
            if isinstance(item, ast.Name)
        }
    assert set(lists[0]) <= bound
    assert len(set(lists[0])) == len(lists[0])


_LIGHT = """
import sys, json
import paramdelta_hub as pd
loaded = set(sys.modules)
pd.verify(sys.argv[1])
pd.inspect(sys.argv[1]).to_json()
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def test_verify_and_inspect_do_without_torch(shared_family: Family) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIGHT, str(shared_family.delta)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "numpy" in loaded
    assert not loaded & {"torch", "transformers", "safetensors", "huggingface_hub", "jinja2", "pickle5", "tqdm"}
