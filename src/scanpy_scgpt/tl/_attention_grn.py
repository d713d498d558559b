"""`tl.attention_network`: gene networks out of attention, of all cells, of groups, and between groups."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt import models
from scanpy_scgpt._keys import UNS, AttentionKeys
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._progress import track
from scanpy_scgpt._validate import check_anndata, check_one_of, copied, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.model import AttentionRanks, CellTokens, RankTies, dealt

from ._attention_cells import Comparison, comparisons, digits_of, panel
from ._attention_tables import DIRECTIONS, ORDERS, Network, edges, influence
from ._gene_lists import chosen_genes
from ._permuted import permuted

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scgpt.model import SCGPT

logger = get_logger(__name__)
_BLOCKS, _LEAST = 16, 3  # of the cells of a group: what permutations move; cells of a block, where there are as many
_SHUFFLED = 1000  # cells of a single network whose values are exchanged


def attention_network(
    adata: AnnData,
    model: str | os.PathLike[str] | Checkpoint | SCGPT | None = None,
    *,
    groupby: str | None = None,
    control: str | None = None,
    contrast: tuple[str, str] | None = None,
    setting: Literal["difference", "perturbed", "control"] = "difference",
    genes: Sequence[str] | str | int = 1200,
    tfs: Sequence[str] | None = None,
    direction: Literal["out", "in", "both"] = "out",
    n_targets: int | None = 100,
    order: Literal["weight", "absolute", "z"] = "weight",
    attention_layer: int = -1,
    heads: Literal["mean", "max"] | int = "mean",
    rank_ties: RankTies = "average",
    n_permutations: int = 200,
    min_cells: int = 10,
    matrices: bool = True,
    legacy: bool = False,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_symbols: str | None = None,
    gene_table: pd.DataFrame | None = None,
    min_genes: int = 20,
    max_tokens: int | None = None,
    device: str = "auto",
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Gene networks out of attention, in cells, in groups of cells, and between them :cite:p:`Cui2024`.

    The network is shown the same genes of every cell, those at zero too. In each head of a layer the products of
    queries and keys are ranked for each query, then for each key, and averaged over heads and cells
    (:class:`scanpy_scgpt.model.AttentionRanks`). The weight of an edge says how high the target ranks the source among
    all genes, against other targets: the influence of the source on the target. Cells stream: memory holds a matrix for
    each of 16 blocks of a group, whatever the number of cells.

    Each difference is divided by its standard error between blocks (`z`, of Welch). What is permuted: between two
    groups, the blocks of cells change sides; of a single network, its cells are compared with up to 1,000 of them in
    which each gene's values are exchanged between cells, and the blocks of both change sides. Shares (`p`) are of the
    permuted statistics of all edges.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`; counts, or values in their order.
    model
        As in :func:`scanpy_scgpt.tl.embed`; or a trained :class:`scanpy_scgpt.model.SCGPT`.
    groupby
        Column of `.obs` with the groups; a network for each without `control` or `contrast`, one of all cells without
        a column.
    control
        Group that each other one is compared with.
    contrast
        Two groups, the second of which is the control.
    setting
        With a control: `"difference"`, or the network of the `"perturbed"` cells or of the `"control"` alone.
    genes
        Names of genes, a column of `.var` with True and False, or how many of the most variable ones.
    tfs
        Genes whose edges are wanted; up to 50 are shown to the network besides the variable genes, a longer list only
        selects among them.
    direction
        Edges from (`"out"`), to (`"in"`) these genes, or `"both"`.
    n_targets
        Edges to keep for each of them; None for all.
    order
        What makes an edge strong: its weight as in the original, the absolute weight, or absolute `z`.
    attention_layer
        Number of the layer; negative from the last.
    heads
        `"mean"` or `"max"` over heads, or the number of one.
    rank_ties
        As of :class:`scanpy_scgpt.model.AttentionRanks`.
    n_permutations
        0 leaves shares out.
    min_cells
        Groups with fewer cells are left out, or refused where they are asked for.
    matrices
        Keep the weights and `z` of all edges in the record: 8 bytes for each pair of genes and network.
    legacy
        Means as the original computes them, without the first cell of each group, equal ranks in the order of a sort;
        neither `z` nor shares.
    layer, use_raw, gene_symbols, gene_table
        Where the counts and the names of the genes are, as in :func:`scanpy_scgpt.tl.embed`.
    min_genes
        Fewest genes that must be in the vocabulary.
    max_tokens, device
        As in :func:`scanpy_scgpt.tl.embed`.
    key_added
        Name in `.uns` in place of `scgpt_grn`.
    rng
        Seed of blocks, permutations and exchanged values.
    copy
        Return a copy instead of writing to `adata`.

    Returns
    -------
    `None`, or the copy if `copy=True`. Sets the fields

    `.uns["scgpt_grn"]` : :class:`pandas.DataFrame`
        Edges: `group`, `source`, `target`, `weight`, `z`, `p`, `p_adjusted`.
    `.uns["scgpt_grn_influence"]` : :class:`pandas.DataFrame`
        A row for each gene and network: mean absolute `z` of the edges to it (`received`) and from it (`exerted`), with
        their adjusted shares.
    `.uns["scgpt"]["grn"]` : :class:`dict`
        Model, settings, genes, groups, matrices `[group, source, target]`.

    Raises
    ------
    KeyError
        When there is no such column.
    ValueError
        For a group, gene or setting that is not there, groups of few cells, a contrast of a group with itself, or
        `tfs` of which none is there.
    GeneMatchError
        When fewer than `min_genes` genes are in the vocabulary.

    Examples
    --------
    >>> scgpt.tl.attention_network(adata, groupby="perturbation", contrast=("STAT1", "control"), tfs=["STAT1"])
    >>> adata.uns["scgpt_grn"].head()
    """
    started, seed = time.perf_counter(), seed_of(rng)
    check_anndata(adata, function="tl.attention_network", copy=copy)
    _check(direction=direction, order=order, n_targets=n_targets, n_permutations=n_permutations, key_added=key_added)
    wanted = comparisons(
        adata, groupby=groupby, control=control, contrast=contrast, setting=setting, min_cells=min_cells
    )
    checkpoint = model.to_checkpoint() if hasattr(model, "to_checkpoint") else models.load(model)
    cells = CellTokens(
        adata, checkpoint, checkpoint.tokenizer, layer=layer, use_raw=use_raw, gene_symbols=gene_symbols,
        gene_table=gene_table, min_genes=min_genes, seed=seed,
    )  # fmt: skip
    if isinstance(genes, str):
        genes = list(adata.var_names[chosen_genes(adata, genes, verb="grn")])
    shown = panel(cells, genes, tfs, gene_table)
    engine = AttentionRanks(
        checkpoint, shown.ids, layer=attention_layer, heads=heads, ties=rank_ties, legacy=legacy, device=device,
        max_tokens=max_tokens,
    )  # fmt: skip
    found = list(_networks(engine, digits_of(cells, shown.ids), wanted, n_permutations=n_permutations, seed=seed))
    listed = {"n_targets": n_targets, "direction": direction, "order": order}
    record = cells.record() | listed | {"method": "attention", "setting": setting, "groupby": groupby or ""}
    record |= {"groups": [network.comparison.name for network in found], "genes": shown.names.astype(str)}
    record |= {"controls": [network.comparison.control or "" for network in found], "tf": shown.chosen}
    record |= {"layer": engine.layer, "heads": str(heads), "rank_ties": engine.ties, "legacy": legacy}
    record |= {"n_permutations": n_permutations, "min_cells": min_cells, "version": __version__}
    if matrices:
        record["weights"] = np.stack([network.weights for network in found])
        if not legacy:
            record["z"] = np.stack([network.tested.z for network in found])
    adata = copied(adata) if copy else adata
    keys = AttentionKeys.named(key_added)
    adata.uns[keys.edges] = pd.concat([edges(network, shown, **listed) for network in found], ignore_index=True)
    adata.uns[keys.influence] = pd.concat([influence(network, shown) for network in found], ignore_index=True)
    record |= {"key": keys.edges, "seconds": time.perf_counter() - started}
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), keys.uns: record}
    _receipt(wanted, record, cells, adata.uns[keys.edges])
    return adata if copy else None


def _check(*, direction: str, order: str, n_targets: int | None, n_permutations: int, key_added: str | None) -> None:
    check_one_of(direction, DIRECTIONS, name="direction")
    check_one_of(order, ORDERS, name="order")
    for name, value, least in (("n_targets", n_targets, 1), ("n_permutations", n_permutations, 0)):
        if value is not None and (not isinstance(value, int | np.integer) or value < least):
            msg = f"{name}={value!r}: a whole number of at least {least}."
            raise ValueError(msg)
    if key_added is not None and "/" in key_added:
        msg = f"key_added={key_added!r}: a name with a slash cannot be written to a file. Leave the slash out."
        raise ValueError(msg)


def _networks(
    engine: AttentionRanks,
    digits: sparse.csr_matrix,
    wanted: Sequence[Comparison],
    *,
    n_permutations: int,
    seed: int,
) -> Iterator[Network]:
    """One network after another; the blocks of a control are made once."""
    rng = np.random.default_rng(seed)
    n_blocks = 1 if engine.legacy else _BLOCKS
    kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    with track("grn", total=_n_cells(wanted, shuffled=not engine.legacy)) as advance:

        def blocks(values: sparse.csr_matrix, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Networks of blocks, without `<cls>`, and the number of cells of each."""
            few = min(n_blocks, max(len(cells) // _LEAST, 2))
            parts = [cells[part] for part in dealt(len(cells), few, rng)]
            return engine.mean_ranks(values, parts, advance=advance)[:, 1:, 1:], np.array([len(x) for x in parts])

        for one in wanted:
            own, sizes = blocks(digits, one.cells)
            weights = np.average(own, axis=0, weights=sizes).astype(np.float32)
            if one.control is not None:
                if one.control not in kept:
                    kept[one.control] = blocks(digits, one.control_cells)
                other, others = kept[one.control]
                weights -= np.average(other, axis=0, weights=others).astype(np.float32)
            elif not engine.legacy:
                exchanged = _exchanged(digits, one.cells, rng)
                other, others = blocks(exchanged, np.arange(exchanged.shape[0]))
            tested = None
            if not engine.legacy:
                tested = permuted(own, other, sizes=(sizes, others), n_permutations=n_permutations, rng=rng)
            yield Network(one, weights, tested)


def _n_cells(wanted: Sequence[Comparison], *, shuffled: bool) -> int:
    controls = {one.control: len(one.control_cells) for one in wanted if one.control is not None}
    single = sum(min(len(one.cells), _SHUFFLED) for one in wanted if one.control is None)
    return sum(len(one.cells) for one in wanted) + sum(controls.values()) + single * shuffled


def _exchanged(digits: sparse.csr_matrix, cells: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """Some of the cells, each gene's values dealt among them anew: what goes along with what is lost."""
    some = cells[rng.permutation(len(cells))[:_SHUFFLED]]
    return sparse.csr_matrix(rng.permuted(digits[some].toarray(), axis=0))


def _receipt(wanted: Sequence[Comparison], record: Mapping[str, Any], cells: CellTokens, table: pd.DataFrame) -> None:
    """One line on what was done."""
    names = [one.name if one.control is None else f"{one.name} - {one.control}" for one in wanted]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004 - names in a line
    parts = [f"{', '.join(names[:3])}{more}", f"{len(record['genes']):,} genes", cells.match.summary()]
    parts += [cells.source.where, cells.checkpoint.label, f"layer {record['layer']}", f"{len(table):,} edges"]
    if "p_adjusted" in table and record["n_permutations"]:
        parts.append(f"{int((table['p_adjusted'] <= 0.05).sum()):,} of them at 5 % false discoveries")  # noqa: PLR2004
    logger.info("grn: %s · %.0f s → uns[%r]", " · ".join(parts), record["seconds"], record["key"])
    if warning := cells.match.warning():
        logger.warning("grn: %s", warning)
