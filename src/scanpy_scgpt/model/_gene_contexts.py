"""Vectors of genes in the context of cells: what the last layer gives for a gene, averaged over groups of cells."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.tokenizer import Tokens

from ._engines import TorchEngine
from ._inference import Embedder

_TOKENS_AT_ONCE = 2**15  # of a batch on a GPU: all their vectors are held


class GeneContexts:
    """Sums over cells of what the last layer gives for genes, group by group; one pass, no cells x genes x d_model.

    Parameters
    ----------
    checkpoint
        The network.
    ids
        Vocabulary ids of the genes asked for, shape `(n_genes,)`, each once.
    n_groups
        Number of groups.
    device
        `"auto"`, or a torch device.
    max_tokens
        Most tokens of a batch; does not change the result.

    Attributes
    ----------
    counts
        Number of cells of each group in which each gene was seen, int64, shape `(n_groups, n_genes)`.
    n_tokens
        Number of tokens of each group, of whatever gene, int64, shape `(n_groups,)`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        ids: np.ndarray,
        n_groups: int,
        *,
        device: str = "auto",
        max_tokens: int | None = None,
    ) -> None:
        settings = {"device": device, "precision": "fp32", "backend": "torch"}
        embedder = Embedder(checkpoint, max_tokens=max_tokens, **settings)
        self._engine: TorchEngine = embedder.engines[0]
        self._most = min(embedder.max_tokens, _TOKENS_AT_ONCE)
        self.n_groups, self.n_genes, d_model = n_groups, len(ids), embedder.n_latent
        place = torch.full((len(checkpoint.vocab),), -1, dtype=torch.int64)
        place[torch.as_tensor(np.asarray(ids, dtype=np.int64))] = torch.arange(len(ids))
        self._place = place.to(self._engine.device)
        self._sums = torch.zeros(n_groups * len(ids), d_model, device=self._engine.device)
        self._all = torch.zeros(n_groups, d_model, device=self._engine.device)
        self._cls = checkpoint.vocab.cls_id
        self.counts = np.zeros((n_groups, len(ids)), dtype=np.int64)
        self.n_tokens = np.zeros(n_groups, dtype=np.int64)

    def _batches(self, lengths: np.ndarray, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Positions of cells of similar length that fit together; those without genes or a group are left out."""
        order = np.argsort(lengths, kind="stable")
        order = order[(lengths[order] > 0) & (codes[order] >= 0)]
        sizes = lengths[order] + 1  # with <cls>
        start = 0
        while start < len(order):
            padded = np.arange(1, len(order) - start + 1) * sizes[start:]
            stop = start + max(int(np.searchsorted(padded, self._most, side="right")), 1)
            yield order[start:stop]
            start = stop

    def add(self, tokens: Tokens, codes: np.ndarray) -> None:
        """Add cells.

        Parameters
        ----------
        tokens
            Of the cells.
        codes
            Number of the group of each cell, shape `(n_cells,)`; -1 for a cell that does not count.
        """
        for cells in self._batches(tokens.lengths, codes):
            gene_ids, vectors, cell = self._vectors(tokens, cells)
            group = torch.as_tensor(codes[cells].astype(np.int64), device=self._engine.device)[cell]
            is_gene = gene_ids != self._cls
            self._all.index_add_(0, group[is_gene], vectors[is_gene])
            self.n_tokens += torch.bincount(group[is_gene], minlength=self.n_groups).cpu().numpy()
            place = self._place[gene_ids.long()]
            known = place >= 0
            at = group[known] * self.n_genes + place[known]
            self._sums.index_add_(0, at, vectors[known])
            seen = torch.bincount(at, minlength=self.counts.size).cpu().numpy()
            self.counts += seen.reshape(self.counts.shape)

    def _vectors(self, tokens: Tokens, cells: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, vectors, and number of the cell in the batch, of the tokens of a batch; `<cls>` is among them."""
        engine = self._engine
        batch = [x.to(engine.device) if isinstance(x, torch.Tensor) else x for x in engine.collate(tokens, cells)]
        if engine.packed:
            vectors = engine.encoder.packed_tokens(*batch)
            starts = batch[2].long()
            return batch[0], vectors, torch.repeat_interleave(torch.arange(len(cells)).to(starts), starts.diff())
        vectors = engine.encoder.tokens(*batch)
        shown = torch.ones_like(batch[0], dtype=torch.bool) if batch[2] is None else ~batch[2]
        number = torch.arange(len(cells), device=engine.device)[:, None].expand_as(batch[0])
        return batch[0][shown], vectors[shown], number[shown]

    def centers(self) -> np.ndarray:
        """Mean vectors over all tokens of the groups, float32, shape `(n_groups, d_model)`: what all genes share."""
        return self._all.cpu().numpy() / np.maximum(self.n_tokens, 1)[:, None].astype(np.float32)

    def means(self, *, min_cells: int = 1) -> np.ndarray:
        """Mean vectors, float32, shape `(n_groups, n_genes, d_model)`; NaN where fewer cells have the gene."""
        counts = self.counts.reshape(-1, 1)
        means = self._sums.cpu().numpy() / np.maximum(counts, 1).astype(np.float32)
        means[counts[:, 0] < max(min_cells, 1)] = np.nan
        return means.reshape(self.n_groups, self.n_genes, -1)
