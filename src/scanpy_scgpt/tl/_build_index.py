"""`tl.build_index`: reference cells made ready to be mapped onto."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from scanpy_scgpt import models
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._types import Metric, NeighbourMethod, Precision
from scanpy_scgpt._validate import check_anndata, check_one_of, file_paths, seed_of
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.neighbours import CellBlock, NeighbourIndex, choose_method, is_labelled

from ._vectors import Cells, EmbeddedVectors, RepVectors, Vectors, cells_of

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)


def build_index(
    data: AnnData | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    labels_keys: str | Sequence[str],
    *,
    model: str | os.PathLike[str] | Checkpoint | None = None,
    use_rep: str | None = None,
    path: str | os.PathLike[str] | None = None,
    method: NeighbourMethod = "auto",
    metric: Metric = "cosine",
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_symbols: str | None = None,
    gene_table: pd.DataFrame | None = None,
    min_genes: int = 200,
    max_tokens: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    rng: int | np.random.Generator | None = 0,
    overwrite: bool = False,
) -> NeighbourIndex:
    """Make an index of labelled reference cells, for :func:`scanpy_scgpt.tl.map_reference` :cite:p:`Cui2024`.

    Cells of files are read, embedded and written to `path` block after block, so that the memory does not grow with
    their number. Cells without a gene of the vocabulary, and cells that have none of the labels, are left out.

    Parameters
    ----------
    data
        The reference: an AnnData, or the path of an `.h5ad`, `.zarr` or `.h5mu` file, or a list of paths.
    labels_keys
        Columns of `.obs` with labels, one or several.
    model
        Name, folder or checkpoint as in :func:`scanpy_scgpt.tl.embed`.
    use_rep
        Name of vectors in `.obsm` that are taken in place of embedding; of those of :func:`scanpy_scgpt.tl.embed` the
        model is known.
    path
        Folder for the index, needed for files; by default it stays in memory.
    method, metric
        See :meth:`scanpy_scgpt.neighbours.NeighbourIndex.build`.
    layer, use_raw, gene_symbols, gene_table
        Where counts and gene names are; see :func:`scanpy_scgpt.pp.tokenize`.
    min_genes
        Fewest genes that must be found in the vocabulary.
    max_tokens
        Most tokens of a batch; lower it when memory is short. Does not change the result.
    device
        `"auto"` (CUDA, MPS, CPU) or a torch device.
    precision
        `"fp32"`, `"bf16"`, or `"auto"`: bf16 where a GPU has it, else fp32.
    rng
        Seed of tokens and of what the method draws.
    overwrite
        Replace an index at `path`, once the new one is complete.

    Returns
    -------
    The index. A build that is killed leaves nothing at `path`; embed a large reference by
    :func:`scanpy_scgpt.tl.embed` first, which goes on after a kill, and give `use_rep="X_scgpt"` here.

    Raises
    ------
    KeyError
        When a column of labels or `use_rep` does not exist.
    ValueError
        When no cell has a label, files are given without `path`, or both `model` and `use_rep`.
    GeneMatchError
        When fewer than `min_genes` genes are in the vocabulary.
    FileExistsError
        When there is something at `path`.
    ImportError
        When the method needs faiss and that is not installed.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scanpy_scgpt as scgpt
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> index = scgpt.tl.build_index(adata, "bulk_labels", use_raw=True)
    """
    paths = file_paths(data)
    if paths is None:
        check_anndata(data, function="tl.build_index")
    elif path is None:
        msg = f"tl.build_index of files needs a place for the index: path={paths[0].stem + '.index'!r}."
        raise ValueError(msg)
    where = {"layer": layer, "use_raw": use_raw, "gene_symbols": gene_symbols, "gene_table": gene_table}
    where |= {"min_genes": min_genes, "seed": seed_of(rng)}
    engine = {"device": device, "max_tokens": max_tokens, "precision": precision}
    cells, started = cells_of(data, paths), time.perf_counter()
    keys = checked_keys(cells, labels_keys)
    choose_method(method, cells.n_obs)
    check_one_of(metric, get_args(Metric), name="metric")
    if use_rep is not None and model is not None:
        msg = f"model={model!r} and use_rep={use_rep!r} are both given: vectors are made or taken. Leave one out."
        raise ValueError(msg)
    if use_rep is None:
        checkpoint = models.load(model)
        vectors: Vectors = EmbeddedVectors(cells, checkpoint, where=where, engine=engine, settings={})
    else:
        vectors = RepVectors(cells, use_rep)
    index = index_of(vectors, keys, path=path, method=method, metric=metric, seed=where["seed"], overwrite=overwrite)
    _receipt(index, vectors, keys, seconds=time.perf_counter() - started)
    return index


def checked_keys(cells: Cells, labels_keys: str | Sequence[str]) -> list[str]:
    """Columns of labels that are there and can be written under their name.

    Raises
    ------
    KeyError
        When one does not exist.
    ValueError
        When none is named, one twice, or one with a slash.
    """
    keys = [labels_keys] if isinstance(labels_keys, str) else list(labels_keys)
    if not keys or len(set(keys)) < len(keys):
        msg = f"labels_keys={labels_keys!r}: name each column of labels once, such as labels_keys='cell_type'."
        raise ValueError(msg)
    for key in keys:
        cells.check_column(key)
        if "/" in key:
            msg = f"labels_keys: {key!r} has a slash and cannot be written to a file. Rename the column of obs."
            raise ValueError(msg)
    return keys


def index_of(vectors: Vectors, keys: Sequence[str], **settings: Any) -> NeighbourIndex:
    """The index of the cells that have a label.

    Parameters
    ----------
    vectors
        Of the reference.
    keys
        Columns of labels.
    **settings
        `path`, `method`, `metric`, `seed`, `overwrite`.
    """
    cells, left_out = vectors.cells, {"no_label": 0, "no_gene": 0}

    def blocks() -> Iterator[CellBlock]:
        for rows, found, empty in vectors.blocks():
            labels = {key: cells.column(key, rows.start, rows.stop) for key in keys}
            labelled = np.any([is_labelled(values) for values in labels.values()], axis=0)
            left_out["no_label"] += int((~labelled).sum())
            left_out["no_gene"] += int((empty & labelled).sum())
            kept = labelled & ~empty
            names = cells.names(rows.start, rows.stop)[kept]
            if kept.any():
                yield CellBlock(found[kept], names, {key: values[kept] for key, values in labels.items()})

    seed = settings.pop("seed")
    index = NeighbourIndex.build(blocks(), n_cells=cells.n_obs, origin=vectors.origin, rng=seed, **settings)
    for text in vectors.warnings:
        logger.warning("build_index: %s", text)
    if any(left_out.values()):
        logger.warning(
            "build_index: %s cells without any label of %s and %s without a gene of the vocabulary are left out.",
            f"{left_out['no_label']:,}",
            ", ".join(map(repr, keys)),
            f"{left_out['no_gene']:,}",
        )
    return index


def summary(index: NeighbourIndex) -> str:
    """One phrase about an index."""
    return f"{len(index):,} reference cells ({index.method}, {index.metric})"


def labels_summary(index: NeighbourIndex, keys: Sequence[str]) -> Mapping[str, str]:
    """Number of labels, and of cells without one, by key."""
    lost = {key: len(index) - int(index.label_counts(key).sum()) for key in keys}
    return {
        key: f"{len(index.categories(key))} labels of {key!r}" + (f", {lost[key]:,} cells without" if lost[key] else "")
        for key in keys
    }


def _receipt(index: NeighbourIndex, vectors: Vectors, keys: Sequence[str], *, seconds: float) -> None:
    parts = [summary(index), *labels_summary(index, keys).values(), *vectors.said, f"{seconds:,.1f} s"]
    logger.info("build_index: %s → %s", " · ".join(parts), index.folder or "memory")
