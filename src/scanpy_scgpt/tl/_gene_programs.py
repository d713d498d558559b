"""`tl.gene_programs`: groups of genes whose vectors are alike."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scanpy_scgpt._counts import choose_counts
from scanpy_scgpt._keys import UNS, GrnKeys, ProgramKeys, center_of
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._validate import check_anndata, copied, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.disk import as_cells
from scanpy_scgpt.io import Checkpoint

from ._gene_lists import chosen_genes
from ._gene_vectors import matched, network_of, table_vectors
from ._leiden import GeneGraph, as_table, programs_of
from ._program_scores import program_scores

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scgpt.model import SCGPT

logger = get_logger(__name__)


def gene_programs(
    adata: AnnData,
    model: str | os.PathLike[str] | Checkpoint | SCGPT | None = None,
    *,
    resolutions: float | Sequence[float] = 40.0,
    genes: Sequence[str] | str | None = None,
    n_neighbors: int = 15,
    min_size: int = 5,
    use_varm: str | None = None,
    scores: bool = True,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_symbols: str | None = None,
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Find programs: groups of genes whose vectors are alike :cite:p:`Cui2024`.

    Nearest neighbours of the vectors (Euclidean), Leiden at one or several resolutions, clusters of at least
    `min_size` genes. A cell's score for a program is the mean log-normalised expression of its genes less that of
    random genes expressed about as much (as `scanpy.tl.score_genes`); all programs take one pass over the cells.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`.
    model
        Whose gene table to use, as in :func:`grn`.
    resolutions
        Of Leiden; the higher, the smaller the programs. 40 is that of the paper for 1,200 genes.
    genes
        Genes to group, as in :func:`grn`: `.var["highly_variable"]` by default where there is one.
    n_neighbors
        Neighbours of each gene.
    min_size
        Fewest genes of a program.
    use_varm
        Key of other vectors in `.varm` in place of those of `model`, such as `scgpt_genes_<group>` or your own.
    scores
        Score the cells.
    layer, use_raw, gene_symbols
        Where counts and gene names are; see :func:`scanpy_scgpt.pp.tokenize`.
    key_added
        Name in `.uns` and `.obsm` in place of `scgpt_programs`.
    rng
        Seed of the graph, of Leiden, and of the genes to compare with.
    copy
        Return a copy instead of writing to `adata`.

    Returns
    -------
    `None`, or the copy if `copy=True`. Sets the fields

    `.uns["scgpt_programs"]` : :class:`pandas.DataFrame`
        A row for each gene of each program: `program` (such as `r40_p0`, the largest of a resolution first),
        `resolution`, `gene`. Read it with :func:`scanpy_scgpt.get.gene_programs`.
    `.obsm["scgpt_programs"]` : :class:`numpy.ndarray` of float32, shape `(n_obs, n_programs)`
        Scores. With names, or by groups of cells: :func:`scanpy_scgpt.get.program_scores`.
    `.varm["scgpt_genes"]` : float32, shape `(n_vars, d_model)`
        Without `use_varm`: vector of each gene, NaN where it is not in the vocabulary.
    `.uns["scgpt"]["gene_programs"]` : :class:`dict`
        Names of the programs in the order of the scores, the genes that were grouped, settings.

    Raises
    ------
    KeyError
        When there is no such column or key.
    ValueError
        When there are not more genes than neighbours, or a setting is out of range.
    GeneMatchError
        When no gene is in the vocabulary.

    Examples
    --------
    >>> scgpt.tl.gene_programs(adata, resolutions=[5, 20, 40])
    >>> scgpt.tl.enrich(adata, "reactome.gmt")
    >>> scgpt.pl.gene_programs(adata, groupby="cell_type", resolution=20)
    """
    started, seed = time.perf_counter(), seed_of(rng)
    check_anndata(adata, function="tl.gene_programs", copy=copy)
    levels = _checked(resolutions, n_neighbors, min_size, key_added)
    keys = ProgramKeys.named(key_added)
    vectors, named = _vectors(adata, model, use_varm, gene_symbols)
    at = chosen_genes(adata, genes, verb="gene_programs", gene_symbols=gene_symbols)
    at = at[~np.isnan(vectors[at]).any(axis=1)]
    if len(at) <= n_neighbors:
        msg = f"{len(at)} genes have a vector, not more than n_neighbors={n_neighbors}. Name more, or lower it."
        raise ValueError(msg)
    universe = adata.var_names[at].astype(str).to_numpy(dtype=object)
    graph = GeneGraph(vectors[at], universe, n_neighbors=n_neighbors, seed=seed)
    programs, of, sizes = programs_of(graph, levels, min_size=min_size)
    source = choose_counts(as_cells(adata), layer=layer, use_raw=use_raw) if scores else None
    found = program_scores(source, programs, seed=seed) if scores and programs else None
    adata = copied(adata) if copy else adata
    if use_varm is None:
        adata.varm[GrnKeys.varm] = vectors
    adata.uns[keys.table] = as_table(programs, of)
    for slot in (keys.tests, keys.hits):
        adata.uns.pop(slot, None)  # of former programs
    if found is not None:
        adata.obsm[keys.scores] = found
    elif keys.scores in adata.obsm:
        del adata.obsm[keys.scores]  # of a former call
    record = {"programs": list(programs), "resolutions": list(map(float, levels)), "genes": universe, "model": named}
    record |= {"n_neighbors": n_neighbors, "min_size": min_size, "scored": found is not None, "key": keys.table}
    record |= {"source": "" if source is None else source.where, "use_varm": use_varm or "", "seed": str(seed)}
    record |= {"version": __version__, "seconds": time.perf_counter() - started}
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), keys.uns: record}
    _receipt(record, of, sizes)
    return adata if copy else None


def _checked(resolutions: Any, n_neighbors: Any, min_size: Any, key_added: str | None) -> list[float]:
    """Resolutions, each once; what is out of range is refused."""
    levels = list(dict.fromkeys(np.atleast_1d(np.asarray(resolutions, dtype=np.float64)).tolist()))
    if not levels or not all(np.isfinite(level) and level > 0 for level in levels):
        msg = f"resolutions={resolutions!r}: one or several numbers above 0, such as [5, 20, 40]."
        raise ValueError(msg)
    for name, value, least in (("n_neighbors", n_neighbors, 2), ("min_size", min_size, 1)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            msg = f"{name}={value!r}: a whole number of at least {least}."
            raise ValueError(msg)
    if key_added is not None and (not key_added or key_added == UNS or "/" in key_added):
        msg = f"key_added={key_added!r}: a name other than {UNS!r}, without a slash, which cannot be written to a file."
        raise ValueError(msg)
    return levels


def _vectors(adata: AnnData, model: Any, use_varm: str | None, gene_symbols: str | None) -> tuple[np.ndarray, str]:
    """Vectors of all genes, and what they are of."""
    if use_varm is None:
        checkpoint = network_of(model)
        match = matched(adata, checkpoint, gene_symbols=gene_symbols, min_genes=1)
        return table_vectors(checkpoint, match), checkpoint.label
    if model is not None:
        msg = f"model={model!r} does not go with use_varm={use_varm!r}, which has vectors already. Leave one out."
        raise ValueError(msg)
    if use_varm not in adata.varm:
        listed = ", ".join(map(repr, adata.varm)) or "none"
        msg = f"adata.varm has no {use_varm!r}. Found: {listed}. Get the vectors of genes: scgpt.tl.grn(adata)."
        raise KeyError(msg)
    return np.asarray(adata.varm[use_varm], dtype=np.float32) - center_of(adata.uns, use_varm), use_varm


def _receipt(record: Mapping[str, Any], of: Mapping[str, float], sizes: Mapping[float, list[int]]) -> None:
    levels = list(of.values())
    told = [
        f"resolution {level:g}: {levels.count(level)} programs of {len(sizes[level])} clusters"
        for level in record["resolutions"]
    ]
    parts = [f"{len(record['genes']):,} genes", record["model"], *told[:8], f"{record['seconds']:.1f} s"]
    logger.info("gene_programs: %s → uns[%r]", " · ".join(parts), record["key"])
    if bare := [level for level in record["resolutions"] if level not in levels]:
        logger.warning(
            "gene_programs: no cluster has min_size=%s genes at resolution %s. Take a lower one.",
            record["min_size"],
            ", ".join(f"{level:g}" for level in bare),
        )
