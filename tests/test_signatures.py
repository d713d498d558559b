"""What every public function and class promises: signature, annotations, docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib import import_module

import pytest

NAMESPACES = (
    "pp", "tl", "pl", "get", "baselines", "metrics", "models", "io", "pretrain", "datasets", "neighbours",
)  # fmt: skip
KEYWORD_ONLY = {
    "batch_size", "copy", "device", "gene_symbols", "inplace", "key_added", "layer", "max_tokens", "min_genes",
    "n_jobs", "overwrite", "rng", "show", "use_raw",
}  # fmt: skip
FORBIDDEN = {"seed", "random_state"}  # randomness has one name: rng
MAX_POSITIONAL = 3
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _public() -> dict[str, object]:
    found = {}
    for namespace in NAMESPACES:
        module = import_module(f"scanpy_scgpt.{namespace}")
        found.update({f"{namespace}.{name}": getattr(module, name) for name in module.__all__})
    return found


PUBLIC = _public()
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
each_class = pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)


def parameters(function: Callable) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def sections(value: object) -> dict[str, str]:
    """Numpy sections of a docstring by title; the text before the first is under `""`."""
    parts = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}\n", inspect.getdoc(value) or "", flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def named_in(section: str) -> list[str]:
    """Names that a `Parameters` or `Attributes` section describes; each needs a text."""
    names: list[str] = []
    lines = section.strip().splitlines()
    for i, line in enumerate(lines):
        if line and not line.startswith(" "):
            described = i + 1 < len(lines) and lines[i + 1].startswith("    ")
            assert described, f"{line!r} has no description"
            names += [name.strip().lstrip("*") for name in line.split(":")[0].split(",")]
    return names


def test_the_reader_of_docstrings():
    def example(a, b, *, c, **kwargs):
        """One line.

        Parameters
        ----------
        a, b
            Two numbers: both
            are needed.
        c : int
            A third.
        **kwargs
            Others.

        Returns
        -------
        Nothing.
        """

    found = sections(example)
    assert list(found) == ["", "Parameters", "Returns"]
    assert named_in(found["Parameters"]) == ["a", "b", "c", "kwargs"]
    with pytest.raises(AssertionError, match="'b' has no description"):
        named_in("a\n    Text.\nb\n")


def test_everything_public_is_seen():
    assert {"pp.tokenize", "tl.embed", "pl.embeddings", "baselines.annotate", "io.read_checkpoint"} <= set(FUNCTIONS)
    assert {"io.Checkpoint", "metrics.Agreement", "pretrain.PretrainConfig"} <= set(CLASSES)
    assert set(PUBLIC) == set(FUNCTIONS) | set(CLASSES)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_names_are_sorted_and_public(namespace: str):
    names = import_module(f"scanpy_scgpt.{namespace}").__all__
    assert names == sorted(names)
    assert [name for name in names if name.startswith("_")] == []


@each_function
def test_few_positional_parameters(function: Callable):
    positional = [p.name for p in parameters(function) if p.kind in POSITIONAL]
    assert len(positional) <= MAX_POSITIONAL
    assert [p.name for p in parameters(function) if p.kind is inspect.Parameter.VAR_POSITIONAL] == []
    assert set(positional) & KEYWORD_ONLY == set(), "these are given by name only"


@each_function
def test_no_positional_switches(function: Callable):
    switches = [
        p.name
        for p in parameters(function)
        if p.kind in POSITIONAL and (isinstance(p.default, bool) or "bool" in str(p.annotation))
    ]
    assert switches == [], "embed(adata, True) tells a reader nothing"


@each_function
def test_anndata_comes_first_and_is_called_adata(function: Callable):
    """Or `data`, where it may be a file too; a second one is `reference` or `predicted`, rivals take two."""
    takers = {p.name: str(p.annotation) for p in parameters(function) if "AnnData" in str(p.annotation)}
    if list(takers) == ["reference", "query"]:
        assert [p.name for p in parameters(function)[:2]] == ["reference", "query"]
        return
    for second in ("reference", "predicted"):
        takers.pop(second, None)
    if takers:
        ((name, annotation),) = takers.items()
        assert name == ("data" if "PathLike" in annotation else "adata")
        assert parameters(function)[0].name == name


@each_function
def test_randomness_is_called_rng(function: Callable):
    assert {p.name for p in parameters(function)} & FORBIDDEN == set()


@each_function
def test_everything_is_annotated(function: Callable):
    bare = [p.name for p in parameters(function) if p.annotation is inspect.Parameter.empty]
    assert bare == []
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty


@each_function
def test_copy_is_off_and_returns_none(function: Callable):
    given = {p.name: p.default for p in parameters(function)}
    if "copy" in given:
        assert given["copy"] is False
        takes_files = {"out"} <= given.keys()
        expected = {"AnnData | MuData | Path | None"} if takes_files else {"AnnData | None", "AnnData | MuData | None"}
        expected |= {"AnnData | Path | None"} if takes_files else {"MuData | None"}
        assert str(inspect.signature(function).return_annotation) in expected


@pytest.mark.parametrize("value", PUBLIC.values(), ids=PUBLIC)
def test_docstring_starts_with_one_sentence(value: object):
    first = (inspect.getdoc(value) or "").split("\n\n")[0]
    assert first.endswith(".")
    assert "\n" not in first, "the first paragraph is one line"


@each_function
def test_docstring_names_every_parameter(function: Callable):
    wanted = [p.name for p in parameters(function)]
    found = sections(function)
    if wanted:
        assert "Parameters" in found, f"no section Parameters; it has to describe {', '.join(wanted)}"
        assert sorted(named_in(found["Parameters"])) == sorted(wanted)
    else:
        assert "Parameters" not in found


@each_function
def test_docstring_says_what_is_returned(function: Callable):
    returned = str(inspect.signature(function).return_annotation)
    text = sections(function).get("Returns", "").strip()
    if returned == "None":
        assert text == ""
        return
    assert text, f"no section Returns; it returns {returned}"
    if "copy" in inspect.signature(function).parameters:
        slots = re.findall(r"^`\.(\w+)\[.+\]` : .+$", text, flags=re.MULTILINE)
        assert slots, "Returns names every slot that is written"
        arrays = [line for line in text.splitlines() if line.startswith("`.") and not line.startswith("`.uns")]
        assert [line for line in arrays if "shape `(" not in line] == []


@each_function
def test_docstring_names_errors_that_exist(function: Callable):
    raised = [line for line in sections(function).get("Raises", "").splitlines() if line and not line.startswith(" ")]
    known = {**vars(import_module("builtins")), **{name.split(".")[1]: value for name, value in CLASSES.items()}}
    known["GeneMatchError"] = import_module("scanpy_scgpt.tokenizer").GeneMatchError
    for name in raised:
        assert issubclass(known[name], Exception)


def _fields(cls: type) -> list[str]:
    if is_dataclass(cls):
        return [field.name for field in fields(cls)]
    if issubclass(cls, tuple):
        return list(cls._fields)
    if issubclass(cls, Exception):
        return []
    return [p.name for p in parameters(cls) if p.kind not in VARIADIC]


@each_class
def test_docstring_names_every_field(cls: type):
    wanted = _fields(cls)
    found = sections(cls)
    described = [name for title in ("Parameters", "Attributes") for name in named_in(found.get(title, ""))]
    missing = [name for name in wanted if name not in described]
    assert missing == [], "a section Parameters or Attributes describes them"
    assert [name for name in described if not hasattr(cls, name) and name not in wanted] == []


@each_class
def test_classes_follow_the_rules_of_functions(cls: type):
    if issubclass(cls, Exception):
        assert issubclass(cls, ValueError | TypeError | KeyError | ImportError)
        return
    assert set(_fields(cls)) & FORBIDDEN == set()
    methods = [value for name, value in vars(cls).items() if not name.startswith("_") and inspect.isfunction(value)]
    for method in methods:
        assert {p.name for p in parameters(method)} & FORBIDDEN == set(), f"{method.__name__}: randomness is called rng"
        assert inspect.getdoc(method), f"{method.__name__} has no docstring"
        assert inspect.signature(method).return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", ["copy", "use_raw", "gene_symbols", "gene_table", "ties", "min_genes", "rng"])
def test_tokenize_and_embed_agree(name: str):
    """A parameter of both has one meaning, one type and one default."""
    first, second = (
        inspect.signature(FUNCTIONS[function]).parameters[name] for function in ("pp.tokenize", "tl.embed")
    )
    assert (first.annotation, first.default, first.kind) == (second.annotation, second.default, second.kind)
