"""The effect of one perturbation: observed in cells, and predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt._counts import choose_counts
from scanpy_scgpt._effects import normalised_rows, pseudobulk_effects, sizes_of
from scanpy_scgpt._perturbations import Perturbations, parse_perturbations
from scanpy_scgpt._validate import check_anndata, check_key, check_one_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_BOX, _LINE = "#dbe6f1", "#1f4e79"
_MARKS = (("D", "#c0392b"), ("o", "#8a8a8a"), ("s", "#e08e0b"), ("^", "#2e8b57"), ("v", "#7d5ba6"))
_MOST = 500  # cells that the boxes are drawn from
_WHISKERS = (5, 95)


def perturb_effect(
    adata: AnnData,
    predicted: AnnData | pd.DataFrame | Mapping[str, AnnData | pd.DataFrame],
    condition: str,
    *,
    perturbation_key: str = "perturbation",
    control: str | Sequence[str] | None = None,
    targets: Mapping[str, Sequence[str]] | None = None,
    context_key: str | None = None,
    context: str | None = None,
    genes: Sequence[str] | None = None,
    n_genes: int = 20,
    layer: str | None = None,
    size_key: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw the most changed genes of a perturbation: boxes of the cells, marks of the predictions.

    A box shows the values of perturbed cells less the mean of the control cells: median, quartiles, and 5 to 95 % of
    the cells; the bar is the mean, which is what a mark should hit.

    Parameters
    ----------
    adata
        Cells, perturbed and control.
    predicted
        What :func:`scanpy_scgpt.tl.perturb` gives, or differences to the control, conditions x genes; or several such
        by name.
    condition
        Name of the condition, as :func:`scanpy_scgpt.pp.parse_perturbations` spells it.
    perturbation_key
        Column of `.obs` with the perturbations.
    control, targets
        Spelling of the control, and genes of spellings, as in :func:`scanpy_scgpt.pp.parse_perturbations`.
    context_key, context
        Column of `.obs` with the contexts, and the one to draw, where effects depend on it.
    genes
        Genes to draw; by default those with the largest absolute t of perturbed against control cells.
    n_genes
        Number of these.
    layer
        Layer with the counts, as in :func:`scanpy_scgpt.pp.tokenize`.
    size_key
        Column of `.obs` with the counts of the whole transcriptome, for cells of which only some genes are kept.
    ax
        Axes to draw into; new ones by default.
    show
        Show the figure, the default without `ax`; False returns the axes.

    Returns
    -------
    The axes, or `None` if the figure is shown.

    Raises
    ------
    KeyError
        When there is no such column, or a prediction lacks the condition or a gene.
    ValueError
        When the cells have no such condition or context, the context is not named, or there is no control.
    """
    check_anndata(adata, function="pl.perturb_effect")
    check_key(adata.obs, perturbation_key, where="adata.obs")
    tables = predicted if isinstance(predicted, Mapping) else {"predicted": predicted}
    tables = {name: _table(one, condition, context) for name, one in tables.items()}
    if context_key is not None:
        check_key(adata.obs, context_key, where="adata.obs")
        check_one_of(context, adata.obs[context_key].astype(str).unique(), name="context")
        adata = adata[adata.obs[context_key].astype(str) == context]
    given = {"control": control, "targets": targets}
    found = parse_perturbations(adata.obs[perturbation_key], genes=adata.var_names, **given)
    check_one_of(condition, found.conditions, name="condition")
    drawn, values, own = _observed(adata, found, condition, genes, n_genes, layer, size_key)
    marks = {name: _marks(table, condition, drawn, name) for name, table in tables.items()}
    drawn_into = ax is not None
    if ax is None:
        _, ax = plt.subplots(figsize=(max(0.42 * len(drawn) + 1.5, 4), 3.8), layout="constrained")
    _draw(ax, drawn, values, marks, own)
    ax.set(title=f"{condition}: {values.shape[0]:,} cells", ylabel="difference to the control")
    if show or (show is None and not drawn_into):
        plt.show()
        return None
    return ax


def _table(predicted: AnnData | pd.DataFrame, condition: str, context: str | None) -> pd.DataFrame:
    """Predicted differences, conditions x genes; of what `tl.perturb` gives those of the context."""
    if isinstance(predicted, pd.DataFrame):
        return predicted
    own = predicted.obs["condition"] == condition
    if context is None and own.sum() > 1:
        listed = ", ".join(map(repr, predicted.obs.loc[own, "context"]))
        msg = f"{condition!r} is predicted in the contexts {listed}. Name one: context=..., context_key=..."
        raise ValueError(msg)
    rows = np.ones(predicted.n_obs, dtype=bool) if context is None else (predicted.obs["context"] == context).to_numpy()
    part = predicted[rows]
    return part.to_df("delta").set_axis(pd.Index(part.obs["condition"].astype(str)), axis=0)


def _observed(
    adata: AnnData, found: Perturbations, condition: str, genes: Sequence[str] | None, n: int, layer: str | None,
    size_key: str | None,
) -> tuple[list[str], np.ndarray, tuple[str, ...]]:  # fmt: skip
    """Genes, differences of the perturbed cells to the mean of the control `(n_cells, n_genes)`, and the targets."""
    code = found.conditions.index(condition)
    rows = np.flatnonzero(np.isin(found.codes, [-1, code]))
    part = adata[rows]
    part = part.to_memory() if part.isbacked else part.copy()
    few = found.take(rows)
    effects = pseudobulk_effects(part, few, layer=layer, size_key=size_key)
    drawn = [*(effects.de_genes(n)[condition] if genes is None else genes)]
    places = effects.control.index.get_indexer(drawn)
    if (places < 0).any():
        msg = (
            f"genes: {drawn[int(np.argmax(places < 0))]!r} is none of the genes of adata. Choose from adata.var_names."
        )
        raise KeyError(msg)
    source = choose_counts(part, layer=layer, as_values=True)
    sizes = sizes_of(part, size_key)
    logged = normalised_rows(source, 0, part.n_obs, sizes)[few.codes == code]
    cells = np.random.default_rng(0).permutation(logged.shape[0])[:_MOST]
    values = sparse.csc_matrix(logged[np.sort(cells)])[:, places].toarray()
    return drawn, values - effects.control.to_numpy()[places], found.targets[code]


def _marks(table: pd.DataFrame, condition: str, genes: list[str], name: str) -> np.ndarray:
    for what, wanted, there in (("condition", [condition], table.index), ("gene", genes, table.columns)):
        lacking = [one for one in wanted if one not in there]
        if lacking:
            msg = f"{name} has no {what} {lacking[0]!r}; it must be a table of conditions x genes. Predict it first."
            raise KeyError(msg)
    return table.loc[condition, genes].to_numpy(dtype=np.float64)


def _draw(
    ax: Axes, genes: list[str], values: np.ndarray, marks: Mapping[str, np.ndarray], targets: tuple[str, ...]
) -> None:
    place = np.arange(len(genes))
    line = {"color": _LINE, "linewidth": 0.8}
    ax.boxplot(
        values, positions=place, widths=0.6, whis=_WHISKERS, showfliers=False, patch_artist=True, manage_ticks=False,
        boxprops={"facecolor": _BOX, "edgecolor": _LINE, "linewidth": 0.8}, whiskerprops=line, capprops=line,
        medianprops=line,
    )  # fmt: skip
    ax.hlines(values.mean(axis=0), place - 0.3, place + 0.3, color=_LINE, linewidth=2, label="mean of the cells")
    for i, (name, heights) in enumerate(marks.items()):
        shape, color = _MARKS[i % len(_MARKS)]
        shift = 0.12 * (i - (len(marks) - 1) / 2)
        ax.scatter(place + shift, heights, marker=shape, s=26, color=color, zorder=3, label=name)
    ax.axhline(0, color="#8a8a8a", linewidth=0.8, zorder=0)
    ax.set_xticks(place, [f"{gene} (target)" if gene in targets else gene for gene in genes], rotation=90)
    ax.set_xlim(-0.7, len(genes) - 0.3)
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
