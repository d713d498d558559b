"""The rules of the source tree: who imports whom, what loads when, how long files and functions may be."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import scanpy_scgpt

PACKAGE = "scanpy_scgpt"
ROOT = Path(scanpy_scgpt.__file__).parent
SOURCES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 400, 50  # lines; of a function without its docstring

# Folder -> folders that it may import. Rank 0, the files `_*.py` directly under the package, is open to all.
ALLOWED: dict[str, set[str]] = {
    "tokenizer": set(),
    "nn": set(),
    "objectives": set(),
    "metrics": set(),
    "train": set(),
    "baselines": set(),
    "datasets": set(),
    "get": set(),
    "pl": {"get", "metrics"},
    "disk": {"tokenizer"},
    "neighbours": {"disk"},  # arrays and files of arrays; what the vectors are of, tl knows
    "pp": {"tokenizer", "disk", "models"},
    "data": {"tokenizer", "disk"},
    "io": {"tokenizer", "nn"},
    "module": {"nn", "objectives"},
    "models": {"disk", "io", "module", "tokenizer"},
    "model": {"data", "datasets", "disk", "io", "metrics", "models", "module", "train", "tokenizer", "nn"},
    "tl": {"baselines", "metrics", "model", "models", "neighbours", "io", "disk", "tokenizer"},
    "pretrain": {"models", "data", "datasets", "disk", "io", "module", "nn", "train", "tokenizer"},
}
ALLOWED["cli"] = set(ALLOWED)
LATER = {("pp", "models")}  # only inside functions: these load torch
RANK_0, FACE = "_", "__init__"  # files under the package: its parts, and its `__init__.py`

# Package of others -> folders that may import it. Imports for type checkers alone are free.
THIRD_PARTY: dict[str, set[str]] = {
    "torch": {"nn", "objectives", "data", "module", "train", "io", "model", "pretrain"},
    "lightning": {"baselines", "data", "train", "pretrain"},
    "pytorch_lightning": set(),
    "scvi": {"data", "module", "train", "model", "baselines"},
    "anndata": {"get", "pp", "datasets", "data", "disk", "model", "tl", "pl", "baselines", "pretrain", "cli"},
    "mudata": {"pp", "data", "model", "tl", "pl", "baselines", "pretrain", "cli"},
    "scanpy": {"baselines", "cli", "model", "tl"},
    "matplotlib": {"pl", "cli"},
    "faiss": set(),  # by `require` alone
}


class Import(NamedTuple):
    """One imported name: `module`, the `name` taken from it or None, line, and where the statement stands."""

    module: str
    name: str | None
    line: int
    for_types: bool
    inside_function: bool


def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def folder_of(path: Path) -> str:
    if len(path.parts) > 1:
        return path.parts[0]
    return {"__init__": FACE, "__main__": "cli"}.get(path.stem, RANK_0)


def module_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join((PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports_of(path: Path, tree: ast.Module | None = None) -> list[Import]:
    """All imports of a file, relative ones resolved."""
    package = list(path.parts[:-1])
    found: list[Import] = []

    def visit(node: ast.AST, *, for_types: bool, inside: bool) -> None:
        where = (getattr(node, "lineno", 0), for_types, inside)
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, None, *where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [PACKAGE, *package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.extend(Import(module, alias.name, *where) for alias in node.names)
        if _is_type_checking(node):
            for child in node.body:
                visit(child, for_types=True, inside=inside)
            for child in node.orelse:
                visit(child, for_types=for_types, inside=inside)
            return
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, for_types=for_types, inside=inside)

    visit(tree or parse(path), for_types=False, inside=False)
    return found


def own_target(item: Import) -> list[str] | None:
    """Parts below the package of what is imported, such as `["nn", "_config", "A"]`; None for other packages."""
    parts = [*item.module.split("."), *([item.name] if item.name else [])]
    return parts[1:] if parts[0] == PACKAGE else None


def folder_of_target(target: list[str]) -> str:
    if not target or target[0] == "*":
        return FACE
    if target[0] in ALLOWED:
        return target[0]
    return RANK_0 if (ROOT / f"{target[0]}.py").is_file() and target[0].startswith("_") else FACE


def own_imports(path: Path) -> Iterator[tuple[Import, list[str], str]]:
    """Imports of our own files by a file: the import, the parts of its target, and the target's folder."""
    for item in imports_of(path):
        target = own_target(item)
        if target is not None:
            yield item, target, folder_of_target(target)


def ids(values: list[Path]) -> list[str]:
    return [value.as_posix() for value in values]


each_source = pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))


def test_the_tree_is_seen():
    assert len(SOURCES) > 40
    assert {folder_of(path) for path in SOURCES} == {*ALLOWED, RANK_0, FACE}, "a folder has no rule, or none is left"
    stray = [path.as_posix() for path in SOURCES if len(path.parts) == 1 and not path.stem.startswith("_")]
    assert stray == [], "files directly under the package start with `_`"


def test_the_reader_of_imports():
    """The reader understands every spelling; else the rules below would hold of nothing."""
    text = """
import torch.nn as nn, numpy
from ..nn._config import A
from . import _other
from .. import tl
from scanpy_scgpt import models
if TYPE_CHECKING:
    from anndata import AnnData
else:
    import mudata
def f():
    from scanpy_scgpt.io import x
"""
    found = imports_of(Path("tl/_embed.py"), ast.parse(text))
    assert [(item.module, item.name, item.for_types, item.inside_function) for item in found] == [
        ("torch.nn", None, False, False),
        ("numpy", None, False, False),
        ("scanpy_scgpt.nn._config", "A", False, False),
        ("scanpy_scgpt.tl", "_other", False, False),
        ("scanpy_scgpt", "tl", False, False),
        ("scanpy_scgpt", "models", False, False),
        ("anndata", "AnnData", True, False),
        ("mudata", None, False, False),
        ("scanpy_scgpt.io", "x", False, True),
    ]
    targets = [own_target(item) for item in found]
    assert targets[0] is None
    assert targets[2] == ["nn", "_config", "A"]
    assert [folder_of_target(target) for target in targets if target] == ["nn", "tl", "tl", "models", "io"]
    assert folder_of_target(["_keys", "EMBED"]) == RANK_0
    assert folder_of_target([]) == folder_of_target(["__version__"]) == folder_of_target(["settings"]) == FACE


def test_the_rules_have_no_circle():
    order = list(graphlib.TopologicalSorter(ALLOWED).static_order())
    assert order[-1] == "cli"


@each_source
def test_imports_go_down(path: Path):
    folder = folder_of(path)
    for item, _, target in own_imports(path):
        here = f"{path}:{item.line}"
        if target in {folder, RANK_0}:
            continue
        if folder == FACE:
            assert item.for_types, f"{here}: the package loads {target} when it is asked for, not at once"
            continue
        assert target != FACE, f"{here}: import the file that defines a name, not the package itself"
        assert folder != RANK_0, f"{here}: rank 0 may not import {target}"
        assert target in ALLOWED[folder], f"{here}: {folder} may not import {target}"
        if (folder, target) in LATER:
            assert item.inside_function, f"{here}: import {target} inside the function that needs it"


@each_source
def test_files_of_other_folders_are_private(path: Path):
    for item, target, folder in own_imports(path):
        if folder in {folder_of(path), FACE}:
            continue
        inner = target[1:]
        private = [part for part in inner if part.startswith("_") and not part.startswith("__")]
        assert private == [], f"{path}:{item.line}: take the public name from {folder}, not {'.'.join(target)}"


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_files_import_without_a_circle():
    """No circle among the files of rank 0, of a folder, or of the whole package; imports inside functions count."""
    modules = {module_of(path) for path in SOURCES}
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        edges = graph.setdefault(module_of(path), set())
        for item, target, _ in own_imports(path):
            if folder_of(path) == FACE and item.for_types:
                continue
            names = [".".join((PACKAGE, *target[:n])) for n in range(len(target), 0, -1)]
            edges.update([name for name in names if name in modules][:1])
    assert len(graph[f"{PACKAGE}.tl._embed"]) > 5
    assert cycle_of(graph) == []
    assert cycle_of({**graph, f"{PACKAGE}._types": {f"{PACKAGE}.tl._embed"}}) != []


@each_source
def test_third_party_packages_stay_in_their_folders(path: Path):
    folder = folder_of(path)
    for item in imports_of(path):
        package = item.module.split(".")[0]
        if package in THIRD_PARTY and not item.for_types:
            assert folder in THIRD_PARTY[package], f"{path}:{item.line}: {folder} may not import {package}"


@each_source
def test_imports_are_not_hidden(path: Path):
    """Rules about imports hold only where imports are statements; the face and `require` alone load by name."""
    hidden = {"import_module", "importlib.import_module", "__import__"}
    lines = [node.lineno for node, name in calls_of(path) if name in hidden]
    by_name = folder_of(path) == FACE or path.name == "_optional.py"
    assert lines == [] or by_name, f"{path}: hidden imports in lines {lines}"


@each_source
def test_files_are_short(path: Path):
    n_lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_FILE, f"{path} has {n_lines} lines; split it"


def body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement after the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_the_ruler_of_functions():
    function = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n\n    return a\n').body[0]
    assert body_length(function) == 3
    assert body_length(ast.parse('def f():\n    """Only text."""\n').body[0]) == 0
    assert body_length(ast.parse("def f():\n    return (\n        1\n    )\n").body[0]) == 3


@each_source
def test_functions_are_short(path: Path):
    functions = [node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: body_length(node) for node in functions if body_length(node) > MAX_FUNCTION}
    assert long == {}, f"{path}: functions of more than {MAX_FUNCTION} lines; split them"


def calls_of(path: Path) -> list[tuple[ast.Call, str]]:
    """Every call of a file and the name that is called, such as `np.random.seed`."""
    return [(node, ast.unparse(node.func)) for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]


@each_source
def test_only_the_command_line_prints(path: Path):
    lines = [node.lineno for node, name in calls_of(path) if name in {"print", "pprint", "pprint.pprint"}]
    assert lines == [] or folder_of(path) == "cli", f"{path}: print in lines {lines}; use the logger of the package"


@each_source
def test_nothing_is_unpickled(path: Path):
    """A file that was downloaded may hold code; only tensors are read from it."""
    unpicklers = {"load", "loads", "Unpickler"}
    for node, name in calls_of(path):
        here = f"{path}:{node.lineno}"
        package, _, function = name.rpartition(".")
        pickled = package in {"pickle", "cPickle", "cloudpickle", "dill", "joblib"} and function in unpicklers
        assert not pickled, f"{here}: {name} can run code"
        assert function != "read_pickle", f"{here}: {name} can run code"
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("allow_pickle", "False") == "False", f"{here}: allow_pickle can run code"
        if name == "torch.load":
            assert given.get("weights_only") == "True", f"{here}: torch.load needs weights_only=True"
    taken = [item.name for item in imports_of(path) if item.module in {"pickle", "joblib"} and item.name in unpicklers]
    assert taken == []


@each_source
def test_global_random_state_is_left_alone(path: Path):
    tree = parse(path)
    own_generators = {"default_rng", "Generator", "SeedSequence", "BitGenerator", "PCG64", "Philox"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"np.random", "numpy.random"}:
            assert node.attr in own_generators, f"{path}:{node.lineno}: np.random.{node.attr} uses the global state"
    forked = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and any("fork_rng" in ast.unparse(item) for item in node.items)
        for child in ast.walk(node)
    }
    for node, name in calls_of(path):
        assert name not in {"random.seed", "seed_everything", "lp.seed_everything"}, f"{path}:{node.lineno}: {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("manual_seed"):
            assert node in forked, f"{path}:{node.lineno}: a seed of torch belongs under torch.random.fork_rng"
    imported = {(item.module, item.name) for item in imports_of(path)}
    assert ("random", None) not in imported
    assert ("numpy.random", "seed") not in imported


def run_python(code: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SCANPY_SCGPT_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_pp_loads_no_heavy_package():
    heavy = ["torch", "scanpy", "lightning", "anndata", "mudata", "matplotlib", "sklearn"]
    code = f"import sys, scanpy_scgpt; scanpy_scgpt.pp; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code) == "[]"


def test_importing_the_package_takes_no_time():
    code = "import time; t = time.process_time(); import scanpy_scgpt; print(time.process_time() - t)"
    assert float(run_python(code)) < 1.0


def test_importing_the_package_loads_none_of_its_folders():
    code = "import sys, scanpy_scgpt; print(sorted(name for name in sys.modules if name.startswith('scanpy_scgpt.')))"
    files = ["_logging", "_settings", "_version"]
    assert run_python(code) == str([f"scanpy_scgpt.{name}" for name in files])


def test_importing_configures_no_logging():
    code = "import logging, scanpy_scgpt; scanpy_scgpt.pp; print(logging.getLogger().handlers)"
    assert run_python(code) == "[]"


@pytest.mark.parametrize("name", scanpy_scgpt.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(scanpy_scgpt, name) is not None
    assert name in dir(scanpy_scgpt)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'scanpy_scgpt' has no attribute 'tools'"):
        _ = scanpy_scgpt.tools
