"""`tl.denoise`: every expressed gene of a cell as the others predict it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt._keys import DENOISE
from scanpy_scgpt._types import Precision, Ties
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.model import GeneLists, Predicted
from scanpy_scgpt.tokenizer import Tokens, cell_keys, gene_draws

from ._layers import LayerRun

if TYPE_CHECKING:
    from anndata import AnnData

_FEWEST = 2  # parts


def denoise(
    adata: AnnData,
    model: str | os.PathLike[str] | Checkpoint | None = None,
    *,
    n_folds: int = 4,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_symbols: str | None = None,
    gene_table: pd.DataFrame | None = None,
    ties: Ties | None = None,
    min_genes: int = 200,
    max_tokens: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Predict every expressed gene of a cell from the other genes of the cell :cite:p:`Cui2024`.

    The expressed genes of a cell are split into `n_folds` parts by a draw that depends on the names of cell and gene
    alone. Each part is predicted in one pass from the others, whose bins are taken anew without it, so no count has a
    part in its own prediction. Zeros stay zero: the network was trained on expressed genes and cannot tell a gene that
    was missed from one that is off. The same cell gets the same values (to rounding) whatever the order, subset or
    batch.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`: in memory, backed or with dask arrays, dense or sparse (MuData: pass one
        modality).
    model
        Name out of `models.available()`, folder of a checkpoint, a checkpoint, or `None` for `settings.model`.
    n_folds
        Number of parts, at least 2; with more parts a gene is predicted from more of the others, in more time.
    layer, use_raw, gene_symbols, gene_table
        Where counts and gene names are; see :func:`scanpy_scgpt.pp.tokenize`.
    ties
        Bin of tied values: `"random"`, `"low"`, `"mid"`, `"high"`; the checkpoint's own by default.
    min_genes
        Fewest genes that must be found in the vocabulary.
    max_tokens
        Most tokens of a batch; lower it when memory is short. Does not change the result.
    device
        `"auto"` (CUDA, MPS, CPU) or a torch device.
    precision
        `"fp32"`, `"bf16"`, or `"auto"`: bf16 where a GPU has it, else fp32.
    key_added
        Name of the layer in place of `scgpt_denoised`; the standard deviations then go to `<key_added>_sd` and the
        record to `.uns["scgpt"]["denoise_<key_added>"]`.
    rng
        Seed of random ties and of the parts; the draws depend on the names of cell and gene.
    copy
        Return a copy instead of writing to `adata`.

    Returns
    -------
    `None`, or the copy if `copy=True`. Sets the fields

    `.layers["scgpt_denoised"]` : CSR :class:`numpy.float32`, shape `(n_obs, n_vars)`
        Predicted bins, 1 to `n_bins - 1`, where the counts of a gene of the vocabulary are not zero. Columns of one
        gene are summed and stand in the first of them.
    `.layers["scgpt_denoised_sd"]` : CSR :class:`numpy.float32`, shape `(n_obs, n_vars)`
        Standard deviation of the predicted distribution, in bins; only where the model has one.
    `.uns["scgpt"]["denoise"]` : :class:`dict`
        Model and its hash, settings, report of the genes, speed, and two mean squared errors over all entries against
        the bins of the counts: `error` of the prediction, and `error_gene_mean` of the mean bin of the gene in the
        other cells. The second has seen these very cells, the model need not have.

    Raises
    ------
    GeneMatchError
        When fewer than `min_genes` genes are in the vocabulary.
    ValueError
        When `n_folds` is less than 2, the matrix has NaN or negative values, or the model was not pretrained
        generatively.
    KeyError
        When `layer` or `gene_symbols` does not exist.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scanpy_scgpt as scgpt
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> scgpt.tl.denoise(adata, use_raw=True)
    """
    if not isinstance(n_folds, int | np.integer) or isinstance(n_folds, bool) or n_folds < _FEWEST:
        msg = f"n_folds={n_folds!r}: a whole number of at least {_FEWEST}, as a part is predicted from the others."
        raise ValueError(msg)
    where = {"layer": layer, "use_raw": use_raw, "gene_symbols": gene_symbols, "gene_table": gene_table}
    engine = {"device": device, "max_tokens": max_tokens, "precision": precision}
    given = {"key_added": key_added, "ties": ties, "min_genes": min_genes, "rng": rng, "copy": copy}
    run = LayerRun(adata, model, verb="denoise", keys=DENOISE, where=where, engine=engine, **given)
    errors = _Errors(len(run.checkpoint.vocab))
    for names, counts in run.blocks():
        tokens, found = _from_the_others(run, names, counts, n_folds=n_folds)
        errors.add(tokens, found.values)
        run.add(GeneLists(tokens.indptr, tokens.gene_ids), found)
    mse, mse_of_means = errors.result()
    record = {"n_folds": n_folds, "n_denoised": errors.n_entries, "error": mse, "error_gene_mean": mse_of_means}
    said = f"mean squared error {mse:.1f} of held-out bins (mean bin of the gene: {mse_of_means:.1f})"
    return run.finish(record, said=[said])


def _from_the_others(
    run: LayerRun, names: np.ndarray, counts: sparse.csr_matrix, *, n_folds: int
) -> tuple[Tokens, Predicted]:
    """The bins of a block of cells, and what the other genes predict for each of them."""
    ids, tokenizer = run.cells.match.ids, run.cells.tokenizer
    keys = cell_keys(names, seed=run.seed, purpose="folds")
    tokens = tokenizer.bins(counts, ids, names, seed=run.seed)
    part = gene_draws(tokens.indptr, tokens.gene_ids, keys) % n_folds
    part_of_count = gene_draws(counts.indptr, ids[counts.indices], keys) % n_folds
    lists, found = GeneLists(tokens.indptr, tokens.gene_ids), Predicted.empty(len(tokens.gene_ids))
    for fold in range(n_folds):
        others = np.where(part_of_count == fold, 0, counts.data)
        others = sparse.csr_matrix((others, counts.indices, counts.indptr), shape=counts.shape)
        known = tokenizer.encode(others, ids, names, seed=run.seed)
        hidden = part == fold
        new = run.generator.generate(known, lists.masked(hidden), keys=keys, n_steps=1)
        found.values[hidden], found.spread[hidden] = new
    return tokens, found


class _Errors:
    """Squared errors of predictions, and of the mean bin of each gene in the other cells, block after block.

    With the sum `S` and the sum of squares `Q` of the `n` bins of a gene, the mean of the others misses bin `x` by
    `(n x - S) / (n - 1)`; squared and summed over the cells this is `n (n Q - S^2) / (n - 1)^2`.
    """

    def __init__(self, n_tokens: int) -> None:
        self.squared = 0.0
        self.n, self.sums, self.squares = (np.zeros(n_tokens) for _ in range(3))

    @property
    def n_entries(self) -> int:
        """Number of bins that were predicted."""
        return int(self.n.sum())

    def add(self, tokens: Tokens, predicted: np.ndarray) -> None:
        """Take predictions (n_tokens,) for the bins of some cells in."""
        bins = tokens.values.astype(np.float64)
        self.squared += float(np.square(bins - predicted).sum())
        n_tokens = len(self.n)
        self.n += np.bincount(tokens.gene_ids, minlength=n_tokens)
        self.sums += np.bincount(tokens.gene_ids, weights=bins, minlength=n_tokens)
        self.squares += np.bincount(tokens.gene_ids, weights=bins**2, minlength=n_tokens)

    def result(self) -> tuple[float, float]:
        """Mean squared error of the predictions and of the means; a gene of one cell gets the mean of all bins."""
        n, several = self.n, self.n > 1
        overall = self.sums.sum() / max(n.sum(), 1)
        alone = np.square(self.sums - overall)[n == 1].sum()
        n, sums, squares = n[several], self.sums[several], self.squares[several]
        total = (n * (n * squares - sums**2) / (n - 1) ** 2).sum() + alone
        return self.squared / max(self.n_entries, 1), float(total) / max(self.n_entries, 1)
