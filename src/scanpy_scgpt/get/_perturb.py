"""Predicted effects as cells, for packages that compare cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scanpy_scgpt._counts import choose_counts
from scanpy_scgpt._effects import normalised_rows, sizes_of
from scanpy_scgpt._perturbations import parse_perturbations
from scanpy_scgpt._validate import check_anndata, check_key, seed_of

_STRETCH = 5.0  # times that the values of a gene may be raised; beyond, or above the largest value, all get the mean
_LARGEST = 14.0  # cell-eval takes values from 15 on for counts
_COLUMN, _CONTROL = "target", "non-targeting"  # as cell-eval expects them


def cell_eval_pair(
    adata: AnnData,
    predicted: pd.DataFrame,
    *,
    perturbation_key: str = "perturbation",
    control: str | Sequence[str] | None = None,
    n_cells: int = 200,
    layer: str | None = None,
    size_key: str | None = None,
    rng: int = 0,
) -> tuple[AnnData, AnnData]:
    """Predicted and real cells in the form that the package cell-eval takes.

    `cell_eval.MetricsEvaluator(*cell_eval_pair(adata, predicted)).compute()` then runs as it is. A predicted cell is a
    real control cell whose values are stretched gene by gene until the mean of the cells is that of the control plus
    the predicted difference (at least 0): the means are the prediction, the spread is that of the control.

    Parameters
    ----------
    adata
        Perturbed and control cells.
    predicted
        Predicted differences to the control, conditions x genes; conditions without real cells are left out.
    perturbation_key
        Column of `.obs` with the perturbations.
    control
        Spelling of the control, as in :func:`scanpy_scgpt.pp.parse_perturbations`.
    n_cells
        Predicted cells of each condition; no more than there are real ones.
    layer
        Layer with the counts, as in :func:`scanpy_scgpt.pp.tokenize`.
    size_key
        Column of `.obs` with the counts of the whole transcriptome, for cells of which only some genes are kept.
    rng
        Seed of the choice of control cells.

    Returns
    -------
    Predicted cells and real cells, log-normalised (CSR), with the genes of `predicted`; `.obs["target"]` holds the
    condition, `non-targeting` the same control cells in both.

    Raises
    ------
    KeyError
        When there is no such column, or a gene of `predicted` is not there.
    ValueError
        Without a control, or when no condition of `predicted` has cells.
    """
    check_anndata(adata, function="get.cell_eval_pair")
    check_key(adata.obs, perturbation_key, where="adata.obs")
    found = parse_perturbations(adata.obs[perturbation_key], control=control, genes=adata.var_names)
    names = [name for name in predicted.index if name in found.conditions]
    if not names:
        first = ", ".join(map(repr, list(predicted.index)[:3]))
        msg = (
            f"No condition of predicted ({first}, ...) has cells. Name them as pp.parse_perturbations(...).conditions."
        )
        raise ValueError(msg)
    source = choose_counts(adata, layer=layer, as_values=True)
    places = pd.Index(source.var.index.astype(str)).get_indexer(predicted.columns)
    if (places < 0).any():
        msg = f"predicted has the gene {predicted.columns[int(np.argmax(places < 0))]!r}, which is none of adata."
        raise KeyError(msg)
    sizes = sizes_of(adata, size_key)
    values = normalised_rows(source, 0, adata.n_obs, sizes)[:, places].tocsr()
    base = values[found.codes == -1]
    mean = np.asarray(base.mean(axis=0)).ravel()
    generator = np.random.default_rng([seed_of(rng), 41])
    real, made = [base], [base]
    for name in names:
        own = values[found.codes == found.conditions.index(name)]
        drawn = base[generator.integers(base.shape[0], size=min(n_cells, own.shape[0]))]
        real.append(own)
        made.append(_stretched(drawn, np.maximum(mean + predicted.loc[name].to_numpy(dtype=np.float64), 0)))
    return tuple(_labelled(parts, [_CONTROL, *names], predicted.columns) for parts in (made, real))


def _stretched(cells: sparse.csr_matrix, mean: np.ndarray) -> sparse.csr_matrix:
    """Cells whose mean is `mean` in each gene."""
    now = np.asarray(cells.mean(axis=0)).ravel()
    top = np.asarray(cells.max(axis=0).todense()).ravel()
    close = (now * _STRETCH >= mean) & (top * mean <= _LARGEST * now)
    factor = np.divide(mean, now, out=np.zeros_like(mean), where=close & (now > 0))
    flat = np.flatnonzero(~close)
    constant = sparse.csr_matrix(np.tile(mean[flat], (cells.shape[0], 1)))
    spread = sparse.csr_matrix((np.ones(len(flat)), (np.arange(len(flat)), flat)), shape=(len(flat), len(mean)))
    return sparse.csr_matrix(cells @ sparse.diags(factor) + constant @ spread)


def _labelled(parts: list[sparse.csr_matrix], names: list[str], genes: pd.Index) -> AnnData:
    labels = np.repeat(names, [part.shape[0] for part in parts])
    obs = pd.DataFrame({_COLUMN: pd.Categorical(labels)}, index=[f"cell_{i}" for i in range(len(labels))])
    matrix = sparse.csr_matrix(sparse.vstack(parts), dtype=np.float32)
    return AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(genes.astype(str), name=None)))
