"""Batches of counts, as the data modules of others give them, to batches of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scanpy_scgpt._counts import CountSource
from scanpy_scgpt.data import LabelledCells
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.tokenizer import Tokenizer, Tokens, match_genes, require_enough, with_zeros


class CountBatches:
    """Turns `{"X": counts (n, n_vars), "labels": ..., "batch": ...}` into tensors of tokens.

    A batch that has `gene_ids` already stays as it is. Random ties and cuts depend on the position in the batch, since
    such a batch does not name its cells.

    Parameters
    ----------
    var_names
        Names of the genes of `X`, shape `(n_vars,)`.
    checkpoint
        Whose vocabulary and bins to use.
    max_length
        Longest sequence with `<cls>`.
    panel
        Vocabulary ids of the genes that enter with value 0 where they are not expressed, or None for none.
    """

    def __init__(
        self, var_names: Sequence[str], checkpoint: Checkpoint, *, max_length: int, panel: Sequence[int] | None = None
    ) -> None:
        self.panel, self.max_genes = None if panel is None else np.asarray(panel), max_length - 1
        self.vocab, self.cls_value = checkpoint.vocab, checkpoint.tokenizer.cls_value
        self.tokenizer = Tokenizer(checkpoint.vocab, checkpoint.tokenizer.updated(max_length=max_length))
        match = match_genes(np.asarray(var_names), checkpoint.vocab)
        require_enough(match, checkpoint.vocab, min_genes=1)
        self.ids = match.ids
        known = np.flatnonzero(self.ids >= 0)
        ones = np.ones(len(known), dtype=np.float32)
        self._into = sparse.csr_matrix((ones, (known, self.ids[known])), shape=(len(self.ids), len(checkpoint.vocab)))

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Tokens of a batch."""
        if "gene_ids" in batch:
            return batch
        counts = _rows(batch["X"])
        names = np.arange(counts.shape[0]).astype(str)
        tokens = self.tokenizer.encode(counts, self.ids, names)
        if self.panel is not None:
            tokens = with_zeros(tokens, self.panel, max_genes=self.max_genes)
        given = {name: torch.as_tensor(batch[name]) for name in ("labels", "batch") if batch.get(name) is not None}
        codes = {name: codes.cpu().numpy().reshape(-1).astype(np.int64) for name, codes in given.items()}
        cells = LabelledCells(tokens, codes, self.vocab.pad_id, self.vocab.cls_id, self.cls_value)
        return cells.batch(np.arange(len(tokens)))

    def expression(self, batch: Mapping[str, Any]) -> sparse.csr_matrix | None:
        """Counts, or a multiple of them, by vocabulary id, CSR float32, `(n, n_ids)`; None of a batch of tokens."""
        if "X" not in batch:
            return None
        counts = _rows(batch["X"]).astype(np.float32)
        if CountSource("X", counts, None).kind() == "log-normalised values":
            counts = counts.expm1()
        return sparse.csr_matrix(counts @ self._into)


def _rows(counts: Any) -> sparse.csr_matrix:
    """Counts of a batch as CSR: a tensor of any layout, an array or a sparse matrix."""
    if isinstance(counts, Tensor):
        counts = counts.to_dense().cpu().numpy() if counts.layout != torch.strided else counts.cpu().numpy()
    return sparse.csr_matrix(counts)


def tokens_of(batch: Mapping[str, Tensor]) -> Tokens:
    """The genes of a batch of tokens, without `<cls>` and padding."""
    kept = ~batch["padding"].cpu().numpy()
    kept[:, 0] = False
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    gene_ids, values = batch["gene_ids"].cpu().numpy()[kept], batch["values"].cpu().numpy()[kept]
    return Tokens(indptr, gene_ids.astype(np.int32), values.astype(np.uint8))
