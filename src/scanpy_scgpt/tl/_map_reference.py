"""`tl.map_reference`: labels of reference cells to query cells."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from scanpy_scgpt import models
from scanpy_scgpt._keys import EMBED, UNS, MapKeys
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._types import Metric, Precision, VoteWeights
from scanpy_scgpt._validate import check_anndata, check_key, check_one_of, copied, file_paths, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.neighbours import NeighbourIndex

from ._build_index import checked_keys, index_of, summary
from ._embed_files import check_places
from ._map_files import map_to_file
from ._map_votes import Mapping
from ._vectors import MADE_BY, Cells, EmbeddedVectors, RepVectors, Vectors, cells_of, record_of

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)


def map_reference(
    data: AnnData | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    reference: AnnData | NeighbourIndex | str | os.PathLike[str],
    labels_keys: str | Sequence[str] | None = None,
    *,
    n_neighbors: int = 15,
    weights: VoteWeights = "uniform",
    correct_shares: bool = False,
    exclude_self: bool | None = None,
    model: str | os.PathLike[str] | Checkpoint | None = None,
    use_rep: str | None = None,
    metric: Metric | None = None,
    shortlist: int = 400,
    n_probe: int | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_symbols: str | None = None,
    gene_table: pd.DataFrame | None = None,
    min_genes: int = 200,
    max_tokens: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    copy: bool = False,
) -> AnnData | Path | None:
    """Give query cells the labels of their nearest reference cells, without training :cite:p:`Cui2024`.

    Query and reference are embedded by one model; the neighbours of a query cell among the reference cells vote. A vote
    share is no probability, and a label that the reference lacks cannot be given: look at the distances too.

    Query cells of a file go to a file, block after block, and a killed call goes on when it is repeated.

    Parameters
    ----------
    data
        The query: an AnnData, or the path of an `.h5ad`, `.zarr` or `.h5mu` file, or a list of paths.
    reference
        An AnnData with labels, what :func:`scanpy_scgpt.tl.build_index` gave, or the folder that it wrote.
    labels_keys
        Columns of labels; by default all of an index.
    n_neighbors
        Number of reference cells that vote.
    weights
        `"uniform"`, or `"distance"`: `exp(-d**2 / (2 h**2))` with `h` the mean distance of the cell's neighbours.
    correct_shares
        Divide the vote of each label, less 1 % of all votes, by its share of the reference, so that frequent labels do
        not win by their number: the weighted vote of the original.
    exclude_self
        Leave out reference cells of the same name as the query cell. By default only when `data` is the `reference`,
        whose cells would else be their own neighbours.
    model
        As in :func:`scanpy_scgpt.tl.embed`; by default that of the index.
    use_rep
        Name of vectors in `.obsm` that are taken in place of embedding, of query and, unless it is an index, reference.
        Without it, what :func:`scanpy_scgpt.tl.embed` left in `X_scgpt` by this very model is taken.
    metric
        `"cosine"` (default) or `"euclidean"`, when the reference is an AnnData.
    shortlist, n_probe
        See :meth:`scanpy_scgpt.neighbours.NeighbourIndex.search`.
    layer, use_raw, gene_symbols, gene_table
        Where counts and gene names are, in both; see :func:`scanpy_scgpt.pp.tokenize`. Where they differ, make the
        index apart.
    min_genes
        Fewest genes that must be found in the vocabulary.
    max_tokens
        Most tokens of a batch; lower it when memory is short. Does not change the result.
    device
        `"auto"` (CUDA, MPS, CPU) or a torch device.
    precision
        `"fp32"`, `"bf16"`, or `"auto"`: bf16 where a GPU has it, else fp32.
    key_added
        Begin of the names in place of `scgpt_map`; the record then stands in
        `.uns["scgpt"]["map_reference_<key_added>"]`.
    rng
        Seed of tokens and of what the method of an index draws.
    out, overwrite
        Of files: where the result goes, and whether it replaces what is there; see :func:`scanpy_scgpt.tl.embed`.
    copy
        Return a copy instead of writing to `data`.

    Returns
    -------
    `None`, or the copy if `copy=True`, or for files the path `out` of an AnnData file without `X` that has the columns
    of `.obs` and the vectors. Sets the fields

    `.obs["scgpt_map_<label>"]` : :class:`pandas.Categorical`, shape `(n_obs,)`
        Elected label, for each of `labels_keys`; missing where no neighbour has one, or the cell no gene of the
        vocabulary. Even votes go to the nearer label.
    `.obs["scgpt_map_<label>_share"]` : float32, shape `(n_obs,)`
        Its share of the vote.
    `.obs["scgpt_map_distance"]` : float32, shape `(n_obs,)`
        Mean distance of the neighbours.
    `.obs["scgpt_map_nearest"]` : float32, shape `(n_obs,)`
        Distance of the nearest one.
    `.uns["scgpt"]["map_reference"]` : :class:`dict`
        Reference, model and its hash, settings, numbers of labels and of cells without one.

    Raises
    ------
    KeyError
        When a column of labels or `use_rep` does not exist.
    ValueError
        When query and reference were embedded by different models or settings, or an argument does not fit.
    GeneMatchError
        When fewer than `min_genes` genes are in the vocabulary.
    FileNotFoundError
        When there is no index at `reference`.
    FileExistsError
        When `out` is something else than the result of this call, and `overwrite` is not given.
    ImportError
        When the index needs faiss and that is not installed.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scanpy_scgpt as scgpt
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> reference, query = adata[:500].copy(), adata[500:].copy()
    >>> scgpt.tl.map_reference(query, reference, "bulk_labels", use_raw=True)
    """
    paths, keys, started = file_paths(data), MapKeys.named(key_added), time.perf_counter()
    check_places(paths, out, None, verb="tl.map_reference")
    if paths is None:
        check_anndata(data, function="tl.map_reference", copy=copy)
    elif copy:
        msg = "tl.map_reference of files writes no copy. Leave copy out."
        raise ValueError(msg)
    _check_settings(n_neighbors, weights, metric, key_added)
    where = {"layer": layer, "use_raw": use_raw, "gene_symbols": gene_symbols, "gene_table": gene_table}
    where |= {"min_genes": min_genes, "seed": seed_of(rng)}
    engine = {"device": device, "max_tokens": max_tokens, "precision": precision}
    maker = _Maker(model, use_rep, where, engine)
    index = maker.index(reference, labels_keys, metric)
    chosen = _chosen(index, labels_keys)
    vectors = maker.query(cells_of(data, paths), index)
    mapping = Mapping(
        index,
        chosen,
        vectors.cells.n_obs,
        keys=keys,
        n_neighbors=int(n_neighbors),
        weights=weights,
        correct_shares=correct_shares,
        exclude_self=data is reference if exclude_self is None else bool(exclude_self),
        search={"shortlist": shortlist, "n_probe": n_probe},
    )
    if paths is not None:
        return map_to_file(vectors, mapping, Path(out).expanduser(), overwrite=overwrite)
    for rows, found, empty in vectors.blocks():
        mapping.add(rows.start, found, vectors.cells.names(rows.start, rows.stop), empty)
    adata = copied(data) if copy else data
    columns = mapping.columns()
    for name, values in columns.items():
        adata.obs[name] = values
    record = {**vectors.origin, **mapping.record(), "seed": str(where["seed"]), "version": __version__}
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), keys.uns: record}
    for text in vectors.warnings:
        logger.warning("map_reference: %s", text)
    parts = [f"{adata.n_obs:,} cells", *vectors.said, summary(index), f"{n_neighbors} neighbours", *mapping.said()]
    parts.append(f"{time.perf_counter() - started:,.1f} s")
    logger.info("map_reference: %s → %s", " · ".join(parts), ", ".join(f"obs[{name!r}]" for name in columns))
    mapping.warn()
    return adata if copy else None


def _check_settings(n_neighbors: int, weights: str, metric: str | None, key_added: str | None) -> None:
    if not isinstance(n_neighbors, int | np.integer) or isinstance(n_neighbors, bool) or n_neighbors < 1:
        msg = f"n_neighbors={n_neighbors!r}: a whole number of at least 1."
        raise ValueError(msg)
    check_one_of(weights, get_args(VoteWeights), name="weights")
    if metric is not None:
        check_one_of(metric, get_args(Metric), name="metric")
    if key_added is not None and "/" in key_added:
        msg = f"key_added={key_added!r}: a name with a slash cannot be written to a file. Leave the slash out."
        raise ValueError(msg)


def _chosen(index: NeighbourIndex, labels_keys: str | Sequence[str] | None) -> list[str]:
    """Keys of labels to vote for."""
    if not index.labels_keys:
        msg = "The index has no labels. Build one with them: scgpt.tl.build_index(reference, labels_keys=...)."
        raise ValueError(msg)
    keys = index.labels_keys if labels_keys is None else labels_keys
    keys = [keys] if isinstance(keys, str) else list(keys)
    for key in keys:
        check_key(pd.DataFrame(columns=index.labels_keys), key, where="The index")
    return keys


class _Maker:
    """Vectors of reference and query by one model.

    Parameters
    ----------
    model, use_rep
        As in :func:`map_reference`.
    where, engine
        As in :class:`EmbeddedVectors`.
    """

    def __init__(self, model: Any, use_rep: str | None, where: dict[str, Any], engine: dict[str, Any]) -> None:
        if use_rep is not None and model is not None:
            msg = f"model={model!r} and use_rep={use_rep!r} are both given: vectors are made or taken. Leave one out."
            raise ValueError(msg)
        self.model, self.use_rep, self._where, self._engine = model, use_rep, where, engine

    def index(self, reference: Any, labels_keys: Any, metric: Metric | None) -> NeighbourIndex:
        """The index that was given, loaded or made of an AnnData."""
        if isinstance(reference, str | os.PathLike):
            if Path(reference).suffix in {".h5ad", ".h5mu", ".zarr"}:
                msg = (
                    f"reference={str(reference)!r} is a file of cells. Make an index of it first: index = scgpt.tl."
                    f"build_index({str(reference)!r}, labels_keys, path={Path(reference).stem + '.index'!r})."
                )
                raise ValueError(msg)
            reference = NeighbourIndex.load(reference)
        if isinstance(reference, NeighbourIndex):
            if metric not in {None, reference.metric}:
                msg = f"metric={metric!r}, but the index was made for {reference.metric!r}. Leave metric out."
                raise ValueError(msg)
            return reference
        check_anndata(reference, function="tl.map_reference (reference)")
        if labels_keys is None:
            names = ", ".join(map(repr, reference.obs.columns)) or "none"
            msg = f"labels_keys is needed with an AnnData as reference. Columns of its obs: {names}."
            raise ValueError(msg)
        cells = Cells(reference)
        keys = checked_keys(cells, labels_keys)
        if self.use_rep is None:
            self.model = models.load(self.model)
            vectors = self._embedded(cells, self.model, {})
        else:
            vectors = RepVectors(cells, self.use_rep)
        return index_of(vectors, keys, method="auto", metric=metric or "cosine", seed=self._where["seed"])

    def query(self, cells: Cells, index: NeighbourIndex) -> Vectors:
        """Vectors of the query, made as those of the index."""
        origin = index.origin
        if self.use_rep is not None:
            vectors = RepVectors(cells, self.use_rep)
            check_origin(vectors.origin, origin)
        elif "model_hash" not in origin:
            rep = origin.get("use_rep") or "X_pca"
            msg = (
                "Nothing says which model made the vectors of the index, so the query cannot be embedded alike. Name "
                f"vectors of the query that were made in the same way: use_rep={rep!r}."
            )
            raise ValueError(msg)
        else:
            vectors = self._embedded(cells, self._checkpoint(origin), origin)
        if vectors.width != index.n_dims:
            found = f"The vectors of the query have {vectors.width} values, those of the index {index.n_dims}"
            msg = f"{found}: make both in the same way, such as by scgpt.tl.embed."
            raise ValueError(msg)
        return vectors

    def _checkpoint(self, origin: AnyMapping[str, Any]) -> Checkpoint:
        """The model of the index."""
        made = f"{origin['model']}@{origin['model_hash']}"
        try:
            checkpoint = models.load(origin["model"] if self.model is None else self.model)
        except ValueError as error:
            if self.model is not None:
                raise
            msg = f"The index was made by {made}, which is not found by its name. Name its folder: model='...'."
            raise ValueError(msg) from error
        if checkpoint.digest != origin["model_hash"]:
            msg = (
                f"The index was made by {made}, and this is {checkpoint.label}: their vectors cannot be compared. Pass "
                "the model of the index by model=, or build the index anew: scgpt.tl.build_index(reference, labels, "
                f"model={checkpoint.name!r})."
            )
            raise ValueError(msg)
        return checkpoint

    def _embedded(self, cells: Cells, checkpoint: Checkpoint, settings: AnyMapping[str, Any]) -> Vectors:
        made = EmbeddedVectors(cells, checkpoint, where=self._where, engine=self._engine, settings=settings)
        if cells.adata is not None and EMBED.obsm in cells.adata.obsm and checkpoint.digest:
            there = record_of(cells.adata.uns.get(UNS, {}), EMBED.obsm)
            if there == made.origin:
                return RepVectors(cells, EMBED.obsm)
        return made


def check_origin(query: AnyMapping[str, Any], index: AnyMapping[str, Any]) -> None:
    """Refuse vectors that were made in another way than those of an index.

    Parameters
    ----------
    query, index
        What made each, as far as it is recorded.

    Raises
    ------
    ValueError
        When both are recorded and differ.
    """
    both = [name for name in MADE_BY if name in query and name in index and name != "model"]
    other = [name for name in both if query[name] != index[name]]
    if other:
        name = other[0]
        msg = (
            f"The vectors of obsm[{query['use_rep']!r}] and of the index were made differently "
            f"({name}: {query[name]!r} and {index[name]!r}). Leave use_rep out to embed the query alike."
        )
        raise ValueError(msg)
    if ("model_hash" in query) != ("model_hash" in index):
        logger.warning(
            "map_reference: nothing says which model made the vectors of %s; they are taken for those of one model.",
            "the query" if "model_hash" in index else "the index",
        )
