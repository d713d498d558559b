"""What a model gives: cell vectors, gene vectors, attention."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.data import InOrder, LabelledCells, batch_loader
from scanpy_scgpt.io import Checkpoint

from ._count_batches import CountBatches
from ._inference import Embedder
from ._registry import gene_names
from ._weights import as_checkpoint

if TYPE_CHECKING:
    from anndata import AnnData
    from torch.utils.data import DataLoader


class LatentMixin:
    """`get_latent_representation`, `get_gene_embeddings`, `get_attention`."""

    def to_checkpoint(self, name: str | None = None) -> Checkpoint:
        """The network as it is now, as a checkpoint that every function of the package takes: a copy of its weights."""
        live = self._live_checkpoint(name)
        return replace(live, weights={key: tensor.detach().cpu().clone() for key, tensor in live.weights.items()})

    def _live_checkpoint(self, name: str | None = None) -> Checkpoint:
        """As :meth:`to_checkpoint`, sharing the weights."""
        name = name or type(self).__name__
        checkpoint = as_checkpoint(self.module, self._checkpoint, name=name, pooling=self.pooling_)
        return replace(checkpoint, tokenizer=checkpoint.tokenizer.updated(max_length=self.max_length_))

    def _make_data_loader(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        shuffle: bool = False,  # noqa: FBT001, FBT002 - the signature of scvi-tools
        **loader_kwargs: Any,
    ) -> DataLoader:
        """Batches of tokens in the order of the cells."""
        cells = self._cells(adata)
        positions = positions_of(cells, indices)
        if shuffle:
            positions = np.random.default_rng(self.rng_).permutation(positions)
        return batch_loader(cells, InOrder(positions, batch_size=batch_size or 128), **loader_kwargs)

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        *,
        dataloader: Iterable[Mapping[str, Tensor]] | None = None,
        normalize: bool = True,
    ) -> np.ndarray:
        """Vectors of cells.

        Parameters
        ----------
        adata
            Cells, registered or with other genes in any order; those of the model by default.
        indices
            Positions, or True for each cell that counts.
        batch_size
            Most cells of a batch; does not change the result.
        dataloader
            In place of `adata`: batches of tokens or of counts.
        normalize
            Scale each vector to length 1.

        Returns
        -------
        Array of float32, shape `(n_cells, d_model)`, in the order asked for.
        """
        if dataloader is None:
            cells = self._cells(adata)
            vectors = self._vectors(cells, positions_of(cells, indices), batch_size=batch_size)
        else:
            check_alone(adata, indices)
            vectors = self._vectors_of_batches(dataloader)
        if normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return vectors

    def _vectors(
        self, cells: LabelledCells, positions: np.ndarray, *, batch_size: int | None = None, start: bool = False
    ) -> np.ndarray:
        """Vectors of cells that are not scaled; `start`: of the network before it was trained."""
        tokens = cells.tokens.take(positions)
        most = None if batch_size is None else batch_size * (int(tokens.lengths.max(initial=0)) + 1)
        settings = {"pooling": self.pooling_, "device": str(self.device), "max_tokens": most}
        settings |= {"precision": "fp32", "backend": "torch"}  # as in training and on batches of tokens
        return Embedder(self._checkpoint if start else self._live_checkpoint(), **settings).embed_tokens(tokens)

    def _count_batches(self) -> CountBatches:
        """What makes tokens of batches of counts."""
        if self.include_zeros_ and self.panel_ is None:
            msg = (
                "include_zeros needs cells to choose the genes from, and batches of counts do not give them all: make "
                "the model from cells, or leave include_zeros out."
            )
            raise ValueError(msg)
        settings = {"max_length": self.max_length_, "panel": self.panel_}
        return CountBatches(gene_names(self.registry_), self._checkpoint, **settings)

    @torch.inference_mode()
    def _vectors_of_batches(self, batches: Iterable[Mapping[str, Any]]) -> np.ndarray:
        self.module.eval()
        vectors = []
        for batch in map(self._count_batches(), batches):
            inputs = (batch["gene_ids"], batch["values"], batch.get("padding"))
            vectors.append(self.module.inference(*inputs)["cell"].float().cpu().numpy())
        return np.concatenate(vectors)

    @torch.no_grad()
    def get_gene_embeddings(self, genes: Sequence[str] | None = None) -> pd.DataFrame:
        """Vectors of genes.

        Parameters
        ----------
        genes
            Symbols; by default every gene of the vocabulary.

        Returns
        -------
        Table of float32, genes x `d_model`; a gene that is not in the vocabulary has NaN.
        """
        vocab = self._checkpoint.vocab
        names = list(vocab.genes if genes is None else genes)
        ids = vocab.ids(names)
        encoder = self.module.transformer.encoder.genes
        vectors = encoder(torch.as_tensor(np.maximum(ids, 0), device=encoder.embedding.weight.device)).cpu().numpy()
        vectors[ids < 0] = np.nan
        return pd.DataFrame(vectors, index=pd.Index(names, name="gene"))

    @torch.inference_mode()
    def get_attention(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        *,
        genes: Sequence[str],
        layer: int = -1,
        head: int | None = None,
    ) -> pd.DataFrame:
        """Mean attention between genes, over the cells that express both.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        genes
            Symbols, all in the vocabulary; one that is named twice has one row.
        layer
            Number of the layer; negative from the last.
        head
            Number of the head; the mean over heads by default.

        Returns
        -------
        Table of float32, genes x genes: row attends to column; NaN where no cell expresses both.

        Raises
        ------
        ValueError
            For a gene that is not in the vocabulary, or a layer or head that is not there.
        """
        genes = list(dict.fromkeys(genes))
        ids = self._checkpoint.vocab.ids(genes)
        if (ids < 0).any():
            lost = [gene for gene, i in zip(genes, ids, strict=True) if i < 0]
            msg = f"{', '.join(lost[:5])}: not in the vocabulary of {self._checkpoint.label}. Leave them out."
            raise ValueError(msg)
        layers = self.module.transformer.layers
        check_one_of(layer, range(-len(layers), len(layers)), name="layer")
        attention = layers[layer].attention
        check_one_of(head, (None, *range(attention.n_heads)), name="head")
        place = torch.full((len(self._checkpoint.vocab),), len(ids), dtype=torch.int64)
        place[torch.as_tensor(ids)] = torch.arange(len(ids))
        total, n = torch.zeros(len(ids) + 1, len(ids) + 1), torch.zeros(len(ids) + 1, len(ids) + 1)
        self.module.eval()
        for batch in self._make_data_loader(adata, indices, batch_size or 8):
            weights = self._weights_of(batch, range(len(layers))[layer], attention)
            weights = weights.mean(dim=1) if head is None else weights[:, head]
            at = place[batch["gene_ids"]]
            at[batch["padding"]] = len(ids)
            rows, columns = at[:, :, None].expand_as(weights), at[:, None, :].expand_as(weights)
            total.index_put_((rows, columns), weights.cpu(), accumulate=True)
            n.index_put_((rows, columns), torch.ones_like(weights, device="cpu"), accumulate=True)
        mean = (total / n)[:-1, :-1].numpy()
        return pd.DataFrame(mean, index=pd.Index(genes, name="gene"), columns=pd.Index(genes, name="gene"))

    def _weights_of(self, batch: Mapping[str, Tensor], number: int, attention: nn.Module) -> Tensor:
        """Attention weights of a layer, (batch, heads, length, length)."""
        entered: list[Tensor] = []
        values = self.module._marks(batch["values"])
        inputs = (x.to(self.device) for x in (batch["gene_ids"], values, batch["padding"]))
        self.module.transformer(*inputs, watch=entered.append)
        x = entered[number]
        scheme = self.module.transformer.config.norm_scheme
        x = x if scheme == "post" else self.module.transformer.layers[number].norm1(x)
        q, k, _ = attention.in_proj(x).unflatten(-1, (3, attention.n_heads, -1)).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        return scores.masked_fill(batch["padding"].to(self.device)[:, None, None, :], -torch.inf).softmax(dim=-1)


def check_alone(adata: AnnData | None, indices: Sequence[int] | None) -> None:
    """Batches exclude cells."""
    if adata is not None or indices is not None:
        msg = "dataloader excludes adata and indices: it names the cells itself. Give one of them."
        raise ValueError(msg)


def positions_of(cells: LabelledCells, indices: Sequence[int] | None) -> np.ndarray:
    """Positions of cells, int64: all, those named, or those where True."""
    if indices is None:
        return np.arange(len(cells))
    indices = np.asarray(indices)
    if indices.dtype == bool:
        if indices.shape != (len(cells),):
            msg = f"indices has {len(indices):,} entries of True and False, and there are {len(cells):,} cells."
            raise IndexError(msg)
        return np.flatnonzero(indices)
    if indices.size and (indices.max() >= len(cells) or indices.min() < -len(cells)):
        msg = f"indices go up to {int(np.abs(indices).max()):,}, and there are {len(cells):,} cells."
        raise IndexError(msg)
    return np.arange(len(cells))[indices.astype(np.int64)]
