"""Registered cells of a MuData as tokens in memory: every modality its own bins and its own share of the sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scanpy_scgpt._modalities import KINDS, Kind, Modality, rows_of, values_of
from scanpy_scgpt.data import LabelledCells, Part
from scanpy_scgpt.data.fields import CategoryField
from scanpy_scgpt.data.modal_fields import ModalitiesField, columns_among, note_other_columns
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.tokenizer import Tokenizer, Tokens, kinds_of_tokens

from ._cells import CellTokens
from ._tokenized import _expression, _with_others

if TYPE_CHECKING:
    from mudata import MuData
    from scvi.data import AnnDataManager

Features = Mapping[str, Sequence[str]]
_PROTEINS = 4  # at most a fourth of the sequence


def budgets_for(kinds: Sequence[Kind], max_length: int, n_proteins: int) -> dict[Kind, int]:
    """Most tokens of each modality: of the proteins all (up to a fourth), the rest for genes and peaks in halves."""
    room = max_length - 1
    out: dict[Kind, int] = {}
    if "protein" in kinds:
        out["protein"] = room if len(kinds) == 1 else max(min(n_proteins, room // _PROTEINS), 1)
        room -= out["protein"]
    others = [kind for kind in kinds if kind != "protein"]
    return {**out, **dict.fromkeys(others, max(room // max(len(others), 1), 1))}


def _rooms(kinds: Sequence[Kind], max_length: int, n_proteins: int, given: Mapping[str, int]) -> dict[str, int]:
    """Most tokens of each modality: as given, and what is left for the others."""
    given = {kind: given[kind] for kind in kinds if kind in given}
    others = [kind for kind in kinds if kind not in given]
    left = max_length - sum(given.values())
    if given and left - 1 < len(others):
        msg = (
            f"budgets={given} take {max_length - left:,} tokens of the {max_length - 1:,} that max_length={max_length} "
            f"has room for{', ' + ' and '.join(others) + ' need some too' if others else ''}. Lower them."
        )
        raise ValueError(msg)
    return {**given, **budgets_for(others, left, n_proteins)}


def modal_cells(manager: AnnDataManager, checkpoint: Checkpoint, features: Features, **settings: Any) -> LabelledCells:
    """Tokens, codes and counts of all cells of a MuData that was registered.

    Parameters
    ----------
    manager
        With the fields of `setup_mudata`.
    checkpoint, features, **settings
        Of :func:`cells_of`.
    """
    field = next(x for x in manager.fields if isinstance(x, ModalitiesField))
    named = manager.registry["field_registries"]["X"]["state_registry"]["modalities"]
    found = [Modality(name, kind, "") for name, kind in named.items()]
    codes = {
        x.registry_key: manager.adata.obs[x.attr_key].to_numpy()
        for x in manager.fields
        if isinstance(x, CategoryField) and not x.is_empty
    }
    return cells_of(manager.adata, field, found, checkpoint, features, codes=codes, **settings)


def cells_of(
    mdata: MuData,
    field: ModalitiesField,
    found: Sequence[Modality],
    checkpoint: Checkpoint,
    features: Features,
    *,
    min_genes: int,
    max_length: int,
    budgets: Mapping[str, int] | None = None,
    others: Sequence[str] | None = (),
    codes: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> LabelledCells:
    """Tokens and counts of all cells of a MuData; a cell without a modality has no tokens of it.

    Parameters
    ----------
    mdata
        Cells.
    field
        How they are read.
    found
        Modalities; one without features that the model knows takes no part.
    checkpoint
        Whose vocabulary and bins to use; it has the tokens of `features`.
    features
        Tokens of proteins and peaks by the kind of the modality: the columns of the counts.
    min_genes
        Fewest genes that must be found.
    max_length
        Longest sequence with `<cls>`.
    budgets
        Most tokens of a modality by its kind.
    others
        Genes outside the vocabulary whose counts are kept too; None for all that there are.
    codes
        Of :class:`LabelledCells`.
    seed
        Of random ties, and of the choice of features in long cells.
    """
    found = [one for one in found if one.kind == "rna" or len(features.get(one.kind, ()))]
    found.sort(key=lambda one: KINDS.index(one.kind))
    n_proteins = len(features.get("protein", ()))
    room = _rooms([one.kind for one in found], max_length, n_proteins, budgets or {})
    parts: dict[str, Part] = {}
    tokens = [Tokens(np.zeros(mdata.n_obs + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.uint8))]
    for one in found:
        rows = rows_of(mdata, one.name)
        if one.kind == "rna":
            settings = {"min_genes": min_genes, "others": others, "seed": seed}
            made, own, others = _genes(mdata, field, one, checkpoint, room["rna"], **settings)
        else:
            made, own = _features(mdata, field, one, checkpoint, room[one.kind], features[one.kind], seed)
        tokens.append(_spread(made, rows))
        parts[one.kind] = Part(_spread_rows(own.counts, rows), rows >= 0, own.measured)
    vocab = checkpoint.vocab
    special = (vocab.pad_id, vocab.cls_id, checkpoint.tokenizer.cls_value)
    return LabelledCells(_side_by_side(tokens), codes or {}, *special, others=tuple(others or ()), parts=parts)


def plain_cells(
    mdata: MuData,
    checkpoint: Checkpoint,
    *,
    modalities: Mapping[str, str] | None = None,
    layers: Mapping[str, str] | None = None,
    gene_symbols: str | None = None,
    min_genes: int = 200,
    seed: int = 0,
) -> LabelledCells:
    """Cells of a MuData for a checkpoint as it is: genes, and the proteins and peaks that it knows.

    Parameters
    ----------
    mdata
        Cells, as they are.
    checkpoint
        Whose vocabulary and bins to use.
    modalities, layers, gene_symbols
        Of :meth:`scanpy_scgpt.model.SCGPTMulti.setup_mudata`.
    min_genes
        Fewest genes that must be found.
    seed
        Of random ties, and of the choice of features in long cells.
    """
    field = ModalitiesField(modalities, layers=layers, gene_symbols=gene_symbols)
    field.validate_field(mdata)
    tokens = np.asarray(checkpoint.vocab.tokens, dtype=object)
    kinds = kinds_of_tokens(checkpoint.vocab.tokens)
    features = {kind: tokens[kinds == i].tolist() for i, kind in enumerate(KINDS) if kind != "rna"}
    settings = {"min_genes": min_genes, "max_length": checkpoint.tokenizer.max_length, "seed": seed}
    found = field.found(mdata)
    note_other_columns(mdata, found)
    return cells_of(mdata, field, found, checkpoint, features, **settings)


def _genes(
    mdata: MuData,
    field: ModalitiesField,
    one: Modality,
    checkpoint: Checkpoint,
    room: int,
    *,
    min_genes: int,
    others: Sequence[str] | None,
    seed: int,
) -> tuple[Tokens, Part, Sequence[str]]:
    config = checkpoint.tokenizer.updated(max_length=room + 1)
    where = {"layer": field.layer_of(mdata, one), "gene_symbols": field.gene_symbols, "min_genes": min_genes}
    cells = CellTokens(field.part(mdata, one), checkpoint, config, **where, seed=seed)
    tokens = Tokens.concatenate(list(cells))
    ids, others = _with_others(cells, len(checkpoint.vocab), others)
    counts = _expression(cells, ids, len(checkpoint.vocab) + len(others))
    return tokens, Part(counts, np.ones(len(tokens), dtype=bool), np.unique(ids[ids >= 0])), others


def _features(
    mdata: MuData,
    field: ModalitiesField,
    one: Modality,
    checkpoint: Checkpoint,
    room: int,
    features: Sequence[str],
    seed: int,
) -> tuple[Tokens, Part]:
    adata = field.part(mdata, one)
    values, _ = values_of(adata, one.kind, field.layer_of(mdata, one))
    columns = columns_among(one.kind, adata.var_names, list(features))
    known = np.flatnonzero(columns >= 0)
    ones = np.ones(len(known), dtype=np.float32)
    counts = sparse.csr_matrix(
        values @ sparse.csr_matrix((ones, (known, columns[known])), (len(columns), len(features)))
    )
    counts.sort_indices()
    tokenizer = Tokenizer(checkpoint.vocab, checkpoint.tokenizer.updated(max_length=room + 1))
    tokens = tokenizer.encode(counts, checkpoint.vocab.ids(list(features)), np.asarray(adata.obs_names), seed=seed)
    return tokens, Part(counts, np.ones(len(tokens), dtype=bool), np.unique(columns[known]))


def _spread(tokens: Tokens, rows: np.ndarray) -> Tokens:
    """Tokens of the cells of a modality for all cells: none for a cell that it lacks (row -1)."""
    with_none = Tokens(np.append(tokens.indptr, tokens.indptr[-1]), tokens.gene_ids, tokens.values)
    return with_none.take(np.where(rows < 0, len(tokens), rows))


def _spread_rows(counts: sparse.csr_matrix, rows: np.ndarray) -> sparse.csr_matrix:
    empty = sparse.csr_matrix((1, counts.shape[1]), dtype=counts.dtype)
    return sparse.vstack([counts, empty], format="csr")[np.where(rows < 0, counts.shape[0], rows)]


def _side_by_side(parts: list[Tokens]) -> Tokens:
    """The tokens of each cell in all parts, one part after the other."""
    cell = np.concatenate([np.repeat(np.arange(len(part)), part.lengths) for part in parts])
    order = np.argsort(cell, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(sum(part.lengths for part in parts))])
    gene_ids, values = (np.concatenate([getattr(part, x) for part in parts]) for x in ("gene_ids", "values"))
    return Tokens(indptr, gene_ids[order], values[order])
