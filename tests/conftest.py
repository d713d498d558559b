"""Shared fixtures: real cells, a tiny checkpoint with random weights, and a fingerprint of everything in an AnnData."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scanpy_scgpt import io, settings
from scanpy_scgpt.module import initial_weights
from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig

FIXTURES_VARIABLE = "SCANPY_SCGPT_FIXTURES"
FIXTURES_DEFAULT = Path(__file__).parents[2] / "shared" / "fixtures"
DATA_VARIABLE = "SCANPY_SCGPT_DATA"
DATA_DEFAULT = Path(__file__).parents[2] / "shared" / "data"
# Genes that the cells do not have. XK has the former name "NA", which stands for "no name" in many files.
OTHER_GENES = ("INS", "GCG", "ALB", "APOA1", "MYH7", "TTN", "GFAP", "SNAP25", "PAX6", "SOX2", "XK")

# Files, the longest first: begun last, one of them would keep a single worker busy at the end. None loads JAX, whose
# threads the tests with forked processes after it would meet.
LONGEST = (
    "tests/test_notebooks.py",
    "tests/tl/test_annotate.py",
    "tests/test_docs.py",
    "tests/tl/test_integrate.py",
    "tests/pretrain/test_distributed.py",
    "tests/pretrain/test_kill.py",
    "tests/test_studies.py",
    "tests/tl/test_gene_programs.py",
    "tests/tl/test_perturb.py",
    "tests/tl/test_mudata.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are tiny: more threads only wait for each other
    with settings.override(progress_bar=False):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Folder with numbers recorded from the original implementation; skips where there is none."""
    folder = Path(os.environ.get(FIXTURES_VARIABLE, FIXTURES_DEFAULT))
    if not folder.is_dir():
        pytest.skip(f"no folder with recorded numbers; set {FIXTURES_VARIABLE} to its path")
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with files of real cells; skips where there is none."""
    folder = Path(os.environ.get(DATA_VARIABLE, DATA_DEFAULT))
    if not folder.is_dir():
        pytest.skip(f"no folder with files of cells; set {DATA_VARIABLE} to its path")
    return folder


@pytest.fixture(scope="session")
def _shipped_cells() -> ad.AnnData:
    """The 700 PBMC that scanpy ships, log-normalised values in X; integer counts derived from them in a layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is older than the format of today
        import scanpy as sc

        shipped = sc.datasets.pbmc68k_reduced()
    logged = sparse.csr_matrix(shipped.raw.X, dtype=np.float32).sorted_indices()
    counts = logged.copy()
    counts.data = np.rint(np.expm1(logged.data))
    return ad.AnnData(
        logged,
        obs=shipped.obs[["bulk_labels", "percent_mito"]].copy(),
        var=shipped.var[["means"]].copy(),
        obsm={"X_pca": shipped.obsm["X_pca"].copy()},
        varm={"PCs": shipped.varm["PCs"].copy()},
        obsp={"distances": shipped.obsp["distances"].copy()},
        uns={"bulk_labels_colors": np.array(shipped.uns["bulk_labels_colors"]), "pca": {"zero_center": True}},
        layers={"derived": counts.astype(np.int64)},
    )


@pytest.fixture
def pbmc(_shipped_cells: ad.AnnData) -> ad.AnnData:
    """700 real cells, 765 genes, log-normalised values in X; a copy for each test."""
    adata = _shipped_cells.copy()
    del adata.layers["derived"]
    return adata


@pytest.fixture
def counts(_shipped_cells: ad.AnnData) -> ad.AnnData:
    """The same cells with integers in X (CSR, int64); a copy for each test."""
    adata = _shipped_cells.copy()
    adata.X = adata.layers["derived"].copy()
    del adata.layers["derived"]
    return adata


@pytest.fixture(scope="session")
def write_cells() -> Callable[[ad.AnnData, Path], Path]:
    """Function: write an AnnData to `.h5ad` or `.zarr` (format 3)."""

    def write(adata: ad.AnnData, path: Path) -> Path:
        with warnings.catch_warnings(), ad.settings.override(zarr_write_format=3):
            warnings.simplefilter("ignore")  # about defaults of the next release of anndata
            adata.write_h5ad(path) if path.suffix == ".h5ad" else adata.write_zarr(path)
        return path

    return write


@pytest.fixture(scope="session")
def vocab(_shipped_cells: ad.AnnData) -> GeneVocab:
    """Two of three genes of the cells, and some that they do not have."""
    names = [name for i, name in enumerate(_shipped_cells.var_names) if i % 3 < 2]
    return GeneVocab([*names, *OTHER_GENES])


@pytest.fixture(scope="session")
def checkpoint(vocab: GeneVocab) -> io.Checkpoint:
    """A network of two layers with random weights."""
    config = TransformerConfig(
        n_tokens=len(vocab), pad_id=vocab.pad_id, d_model=16, n_heads=2, n_layers=2, d_ff=16, dropout=0.0
    )
    weights = initial_weights(config, seed=0)
    return io.Checkpoint("tiny", config, TokenizerConfig(), vocab, weights)


@pytest.fixture(scope="session")
def checkpoint_folder(checkpoint: io.Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint on disk; not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    io.write_checkpoint(checkpoint, folder)
    return folder


@pytest.fixture(scope="session")
def fingerprint() -> Callable[[ad.AnnData], dict[str, str]]:
    """Function: a hash for each slot of an AnnData, such as `X`, `obs/label`, `uns/scgpt/embed/model`."""
    return _fingerprint


def _fingerprint(adata: ad.AnnData) -> dict[str, str]:
    slots: dict[str, object] = {"X": adata.X}
    for axis in ("obs", "var"):
        _add_frame(slots, axis, getattr(adata, axis))
    for name in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
        _add_mapping(slots, name, getattr(adata, name))
    if adata.raw is not None:
        slots["raw/X"] = adata.raw.X
        _add_frame(slots, "raw/var", adata.raw.var)
        _add_mapping(slots, "raw/varm", adata.raw.varm)
    return {slot: _hash(value) for slot, value in slots.items()}


def _add_frame(slots: dict[str, object], path: str, frame: pd.DataFrame) -> None:
    slots[f"{path}_names"] = frame.index
    slots.update({f"{path}/{column}": frame[column] for column in frame})


def _add_mapping(slots: dict[str, object], path: str, mapping: Mapping[str, object]) -> None:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            _add_mapping(slots, f"{path}/{key}", value)
        else:
            slots[f"{path}/{key}"] = value


def _hash(value: object) -> str:
    hashed = hashlib.sha256()
    for part in _parts(value):
        hashed.update(part)
    return hashed.hexdigest()


def _parts(value: object) -> Iterator[bytes]:
    """Bytes that tell a value from any other: class, type of the numbers, order of the entries, and the entries."""
    yield type(value).__name__.encode()
    if hasattr(value, "to_memory") and not isinstance(value, ad.AnnData):  # a sparse matrix on disk
        value = value.to_memory()
    if sparse.issparse(value):
        yield from _parts([value.shape, value.data, value.indices, value.indptr])
    elif isinstance(value, pd.Series | pd.Index) and isinstance(value.dtype, pd.CategoricalDtype):
        categorical = pd.Categorical(value)
        yield from _parts([categorical.codes, categorical.categories, categorical.ordered])
    elif isinstance(value, pd.DataFrame):
        yield from _parts([value.index, *(value[column] for column in value)])
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _parts(entry)
    elif hasattr(value, "__array__"):
        array = np.asarray(value)
        yield f"{array.dtype} {array.shape}".encode()
        yield repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
    else:
        yield repr(value).encode()
