"""Code: the attacker wants something of theirs to run, when a package is read or when its result is loaded.

Three looks at it: what may come out of a package at all, what our own sources could run, and what the interpreter says
that really happened while a hostile package was handled.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import paramdelta_hub as pd
from paramdelta_hub.errors import PackageError
from tests.attacks.outcomes import change_manifest
from tests.attacks.threats import shows
from tests.checkpoints.test_companions import NEVER
from tests.conftest import Family

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "paramdelta_hub").rglob("*.py"))
TYPES = sorted(NEVER)
SCRIPT = b"raise SystemExit"


@shows("code", f"{len(TYPES)} kinds of files that are run, unpickled or loaded as weights: none gets out of a package")
def test_files_that_no_package_hands_out(rich: Family, tmp_path: Path) -> None:
    """Listed with a digest that fits, and lying beside: refused, or left where it is."""
    original = (rich.delta / "manifest.json").read_bytes()
    refused = 0
    for name in TYPES:
        (rich.delta / "manifest.json").write_bytes(original)
        path = rich.delta / "companions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SCRIPT)
        digest = hashlib.sha256(SCRIPT).hexdigest()
        record = {"path": f"companions/{name}", "size": len(SCRIPT), "sha256": digest}
        change_manifest(rich.delta, lambda manifest, record=record: manifest["companions"].append(record))  # type: ignore[misc]
        try:
            pd.apply(rich.target, rich.delta, tmp_path / "out", overwrite=True)
        except PackageError:
            refused += 1
        found = [found for found in (tmp_path / "out").rglob("*") if found.is_file()]
        assert not [found for found in found if found.read_bytes() == SCRIPT], name
        path.unlink()
    assert refused > len(TYPES) * 0.8


MODULES = {
    "cPickle", "cloudpickle", "code", "codeop", "dill", "imp", "jinja2", "joblib", "marshal", "pickle", "pty", "runpy",
    "shelve", "subprocess", "yaml",
}  # fmt: skip
CALLS = {"__import__", "breakpoint", "compile", "eval", "exec", "execfile", "input"}
METHODS = {
    "exec_module", "load_module", "popen", "system", "unpack_archive", "from_spec", "allow_pickle", "load_state_dict",
    *(f"exec{end}" for end in ("l", "le", "lp", "v", "ve", "vp")), *(f"spawn{end}" for end in ("l", "v", "lp", "vp")),
}  # fmt: skip
KEYWORDS = {"shell", "trust_remote_code", "allow_pickle", "weights_only", "pickle_module"}


RENDERER = "paramdelta_hub/reports/pages.py"
"""The one module that renders templates: those in ``reports/templates``, and no others."""


def offences(source: str) -> list[str]:
    """Return what in a module could run, or unpickle, what somebody else wrote."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in names if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            called = text.rpartition(".")[2]
            found += [text] if text in CALLS or (called != text and called in METHODS) else []
            found += [text] if called in ("load", "loads") and text not in ("json.loads", "json.load") else []
            found += [word.arg for word in node.keywords if word.arg in KEYWORDS]
    return found


BAD = (
    "import pickle", "from subprocess import run", "import yaml", "eval(x)", "exec(x)", "__import__(x)",
    "torch.load(f)",
    "os.system(x)", "os.execv(x, y)", "os.popen(x)", "numpy.load(f, allow_pickle=True)", "np.load(f)", "shelf.load(f)",
    "run(x, shell=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)", "marshal.loads(x)",
    "import jinja2.sandbox",
    "spec.loader.exec_module(m)", "compile(x, y, z)", "shutil.unpack_archive(x)", "def f():\n    import dill",
)  # fmt: skip


@pytest.mark.parametrize("source", BAD)
def test_the_look_at_the_sources_finds(source: str) -> None:
    assert offences(source)


@shows("code", f"the sources, parsed: no pickle, `torch.load`, `eval`, process, shell or `trust_remote_code` "
       f"({len(BAD)} ways are known to be found)")  # fmt: skip
@pytest.mark.parametrize("module", SOURCES)
def test_our_own_sources(module: str) -> None:
    allowed = ["jinja2", "jinja2"] if module == RENDERER else []
    assert offences((ROOT / module).read_text(encoding="utf-8")) == allowed


_WATCHED = """
import os, sys
sys.path[:0] = [sys.argv[1]]
import paramdelta_hub as pd
from paramdelta_hub.registry.stores.registry import StoreRegistry
model, post, honest, hostile, out = sys.argv[2:]

def handle(delta, out):
    told = []
    registry = StoreRegistry(out + "/registry")
    for run in (
        lambda: pd.inspect(delta).to_json(),
        lambda: pd.verify(delta, base=model, threads=1),
        lambda: registry.publish(delta, "org/name", "1.0.0"),
        lambda: list(registry.search(None, None, None)),
        lambda: registry.pull("org/name", None, out + "/copy"),
        lambda: pd.apply(model, delta, out + "/result", threads=1),
    ):
        try: run(); told.append("done")
        except pd.ParamdeltaError as error: told.append(error.kind)
    return told

os.makedirs(out + "/0"); os.makedirs(out + "/1"); os.makedirs(out + "/2")
honestly = handle(honest, out + "/0")
handle(post, out + "/1")   # no package: loads what only errors need
watching, seen = False, []
RUNNING = (
    "exec", "compile", "import", "pickle", "marshal", "code.", "ctypes", "subprocess", "socket", "urllib", "ftplib",
    "http",
    "webbrowser", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.putenv", "pty",
    "sys.settrace", "sys.setprofile", "cpython", "function", "signal",
)
WRITING = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "shutil",
)

def hook(event, arguments):
    if not watching: return
    if event.startswith(RUNNING): seen.append((event, repr(arguments)[:200]))
    paths = [os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
    writes = event.startswith(WRITING) or (event == "open" and isinstance(arguments[2], int) and arguments[2] & (
        os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if writes and any(os.path.isabs(path) and not path.startswith(out) for path in paths): seen.append((event, paths))

sys.addaudithook(hook)
watching = True
told = handle(hostile, out + "/2")
watching = False
assert not seen, seen[:5]
watching = True   # and it would have seen
eval("1"); open(os.path.dirname(out) + "/alarm", "w").close()
watching = False
assert {event for event, _ in seen} >= {"compile", "exec", "open"}, seen
assert honestly == ["done"] * 6, honestly
print(*told)
"""


def trapped(delta: Path, flag: Path) -> None:
    """Put everything into a package that somebody's program could run, all of it allowed or beside."""
    evil = f"import os; open({str(flag)!r}, 'w')".encode()
    companions = {
        "chat_template.jinja": b"{{ cycler.__init__.__globals__.os.system('touch %s') }}" % str(flag).encode(),
        "additional_chat_templates/x.jinja": b"{% include '/etc/passwd' %}",
        "tokenizer_config.json": b'{"tokenizer_class": "os.system", "chat_template": "{{ self.__init__ }}"}',
        "special_tokens_map.json": b'{"eos_token": "$(touch %s)"}' % str(flag).encode(),
    }
    for name, content in companions.items():
        (delta / "companions" / name).parent.mkdir(exist_ok=True)
        (delta / "companions" / name).write_bytes(content)

    def listed(manifest: dict) -> None:  # type: ignore[type-arg]
        manifest["companions"] = [file for file in manifest["companions"] if not file["path"].endswith(".jinja")]
        manifest["companions"] += [
            {"path": f"companions/{name}", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in companions.items()
        ]
        manifest["renames"] = [{"pattern": "(a+)+$", "replacement": "\\\\g<0>"}]
        manifest["name"] = "`touch x` $(touch x) {{7*7}} %n %s ${jndi:ldap://x}"

    change_manifest(delta, listed)
    (delta / ".git" / "hooks").mkdir(parents=True)
    (delta / ".cache").mkdir()
    for place in (".git/hooks/post-checkout", ".cache/sitecustomize.py", ".git/numpy.py"):
        (delta / place).write_bytes(evil)
    (delta / "README.md").write_bytes(b"---\nlicense: !!python/object/apply:os.system ['touch x']\n---\n")


@shows("code", "inspect, verify, publish, search, pull and apply of a package full of traps, under an audit "
       "hook: nothing compiled, imported, unpickled, started or connected, and no file outside written")  # fmt: skip
@pytest.mark.parametrize("beside", ["nothing", "modules", "a script in the manifest"])
def test_what_the_interpreter_saw(rich: Family, tmp_path: Path, beside: str) -> None:
    hostile, flag = tmp_path / "hostile", tmp_path / "flag"
    shutil.copytree(rich.delta, hostile)
    trapped(hostile, flag)
    if beside == "modules":
        for name in ("numpy", "json", "conftest", "sitecustomize", "zstandard"):
            (hostile / f"{name}.py").write_text(f"open({str(flag)!r}, 'w')")
    elif beside == "a script in the manifest":
        record = {"path": "companions/x.py", "size": 1, "sha256": "0" * 64}
        change_manifest(hostile, lambda manifest: manifest["companions"].append(record))
    paths = [str(path) for path in (ROOT, rich.base, rich.post, rich.delta, hostile, tmp_path / "watched")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", _WATCHED, *paths], capture_output=True, text=True, timeout=120, check=False,
        cwd=hostile,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = done.stdout.split()
    whole = beside != "a script in the manifest"  # what lies beside a package is not read
    assert told == (["done"] * 6 if whole else told)
    assert whole or "integrity" in told or "package" in told
    assert not flag.exists()
    result = tmp_path / "watched" / "2" / "result"
    if whole:  # as bytes, and as nothing else
        template = (hostile / "companions" / "chat_template.jinja").read_bytes()
        assert (result / "chat_template.jinja").read_bytes() == template
        assert json.loads((result / "tokenizer_config.json").read_bytes())["tokenizer_class"] == "os.system"
        assert not list(result.rglob("*.py"))
