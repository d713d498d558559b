"""How well effects of perturbations are predicted: the published measures, method by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._validate import check_one_of

from ._perturb_measures import Case, measures_of, variance_ratio
from ._truth import check_confidence, check_whole

logger = get_logger(__name__)

CEILING = "half-split ceiling"
_COLLAPSED = 0.2  # ratio of variances under which predictions are nearly the same for all perturbations
_SAME_FOR_ALL = ("no_change", "mean", "informed_mean")
_FEWEST = 2
_CORRELATIONS = ("pearson_delta", "pearson_delta_de", "pearson_perturbed", "de_spearman")
LOWER_IS_BETTER = ("l2", "mae")


@dataclass(frozen=True, eq=False)
class PerturbationScores:
    """Scores of several methods on the same perturbations.

    Attributes
    ----------
    table
        Mean over the perturbations, methods x measures; `variance_ratio` is one number per method.
    low, high
        Bootstrap interval of `table` over perturbations; none for `variance_ratio`.
    per_condition
        Every measure of every perturbation; index method, condition.
    collapsed
        Methods whose predictions vary between perturbations less than a fifth of what the truth does.
    n_boot
        Draws of the bootstrap.
    confidence
        Level of the intervals.
    """

    table: pd.DataFrame
    low: pd.DataFrame
    high: pd.DataFrame
    per_condition: pd.DataFrame
    collapsed: tuple[str, ...]
    n_boot: int
    confidence: float

    def difference(self, method: str, rival: str, *, rng: int = 0) -> pd.DataFrame:
        """Mean of `method - rival` over perturbations by measure, with its paired bootstrap interval.

        Parameters
        ----------
        method, rival
            Names of two rows of `table`.
        rng
            Seed of the bootstrap.

        Returns
        -------
        Measures x `difference`, `low`, `high`, `n`, `n_above`, `n_below`.
        """
        for name in (method, rival):
            check_one_of(name, self.table.index, name="a method")
        gap = self.per_condition.loc[method] - self.per_condition.loc[rival]
        mean, low, high = _bootstrap(gap.to_numpy(), self.n_boot, self.confidence, rng)
        columns = {
            "difference": mean, "low": low, "high": high, "n": gap.notna().sum().to_numpy(),
            "n_above": (gap > 0).sum().to_numpy(), "n_below": (gap < 0).sum().to_numpy(),
        }  # fmt: skip
        return pd.DataFrame(columns, index=gap.columns)

    @property
    def corrected_ceiling(self) -> pd.Series:
        """Correlations of two half samples brought to all cells, `2 r / (1 + r)`; NaN for other measures or without."""
        found = pd.Series(np.nan, index=self.table.columns, name=CEILING)
        if CEILING in self.table.index:
            r = self.table.loc[CEILING, list(_CORRELATIONS)]
            found[list(_CORRELATIONS)] = (2 * r / (1 + r)).where(r > 0)
        return found

    @staticmethod
    def combined(scores: Sequence[PerturbationScores], *, rng: int = 0) -> PerturbationScores:
        """Scores of several splits as one; a condition that was held out in several counts once, with its mean.

        Parameters
        ----------
        scores
            Scores of each split, of the same methods and measures.
        rng
            Seed of the bootstrap.

        Returns
        -------
        Scores over all conditions.
        """
        together = pd.concat([one.per_condition for one in scores])
        methods = scores[0].table.index
        averaged = together.groupby(level=["method", "condition"], sort=False).mean().loc[list(methods)]
        ratios = pd.concat([one.table["variance_ratio"] for one in scores], axis=1).mean(axis=1)
        return _summary(averaged, ratios.loc[methods].to_dict(), scores[0].n_boot, scores[0].confidence, rng)

    def best(self, measure: str, *, among: Sequence[str] | None = None) -> str:
        """Name of the best method in one measure, the ceiling left out.

        Parameters
        ----------
        measure
            Column of `table`.
        among
            Methods to choose from; all by default.

        Returns
        -------
        The name.
        """
        check_one_of(measure, self.table, name="measure")
        rows = [name for name in self.table.index if name != CEILING and (among is None or name in among)]
        column = self.table.loc[rows, measure].fillna(-np.inf if measure not in LOWER_IS_BETTER else np.inf)
        return str(column.idxmin() if measure in LOWER_IS_BETTER else column.idxmax())


def perturbation(
    truth: pd.DataFrame,
    predicted: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    control: pd.Series | None = None,
    reference: pd.Series | None = None,
    targets: Mapping[str, Sequence[str]] | None = None,
    de_genes: Mapping[str, Sequence[str]] | None = None,
    ceiling: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    non_zero: bool = False,
    n_top: int = 1000,
    n_de: int = 20,
    n_boot: int = 2000,
    confidence: float = 0.95,
    rng: int = 0,
) -> PerturbationScores:
    """Score predicted effects of perturbations.

    A prediction without any difference between genes has a correlation of 0, and predictions that are the same for all
    perturbations have a discrimination of one half. Discrimination is among the rows of `truth`: score the held-out
    perturbations of each split by themselves and bring them together with :meth:`PerturbationScores.combined`.

    Parameters
    ----------
    truth
        Differences to the control, conditions x genes, such as the `deltas` of
        :func:`scanpy_scgpt.baselines.pseudobulk_effects`.
    predicted
        The same from one method, or from each of several by name.
    control
        Mean expression of the control cells by gene: tells which genes are expressed most, and adds the correlations
        of expression itself, which no change at all passes too.
    reference
        Mean effect of the perturbations that were used for training, by gene; the mean of `truth` by default, which a
        prediction by the mean of other perturbations never hits.
    targets
        Genes of each condition, left out of its changed genes and of the discrimination: that a knocked-out gene falls
        is no prediction.
    de_genes
        Changed genes of each condition; by default the `n_de` with the largest change, its targets left out.
    ceiling
        Effects of the same conditions from two halves of the cells: the first is scored as a prediction of the second,
        whose own most changed genes are its changed genes.
    non_zero
        Leave genes out of the correlations over all genes whose mean in the perturbed cells is 0; needs `control`.
    n_top
        Number of genes, those most expressed in the control, that `l2` is taken over.
    n_de
        Number of changed genes.
    n_boot
        Draws of the bootstrap over perturbations.
    confidence
        Level of the intervals.
    rng
        Seed of the bootstrap.

    Returns
    -------
    Scores; docs/perturbation_measures.md defines the columns of `table`.

    Raises
    ------
    KeyError
        When a prediction lacks a condition or a gene of the truth.
    ValueError
        When values are NaN, or there is no condition, or fewer than two genes.
    """
    check_confidence(confidence)
    check_whole(n_boot, name="n_boot")
    _check_truth(truth)
    methods = predicted if isinstance(predicted, Mapping) else {"predicted": predicted}
    shared = {"targets": targets, "de_genes": de_genes, "n_top": n_top, "n_de": n_de, "non_zero": non_zero}
    case = Case.of(truth, control=control, reference=reference, **shared)
    rows, ratios = {}, {}
    for name, table in methods.items():
        values = _aligned(table, truth, name=name)
        rows[name] = measures_of(values, case)
        ratios[name] = variance_ratio(values, case.truth)
    if ceiling is not None:
        first, second = (_aligned(half, truth, name=f"ceiling[{i}]") for i, half in enumerate(ceiling))
        half = pd.DataFrame(second, truth.index, truth.columns)
        own = Case.of(half, control=control, reference=reference, **{**shared, "de_genes": None})
        rows[CEILING] = measures_of(first, own)
        ratios[CEILING] = variance_ratio(first, second)
    return _summary(pd.concat(rows, names=["method", "condition"]), ratios, n_boot, confidence, rng)


def _summary(
    per_condition: pd.DataFrame, ratios: Mapping[str, float], n_boot: int, confidence: float, rng: int
) -> PerturbationScores:
    """Means and intervals over the conditions of each method."""
    names = list(per_condition.index.unique("method"))
    found = [_bootstrap(per_condition.loc[name].to_numpy(), n_boot, confidence, rng) for name in names]
    mean, low, high = (
        pd.DataFrame([one[i] for one in found], names, per_condition.columns).rename_axis("method") for i in range(3)
    )
    mean["variance_ratio"] = pd.Series(ratios)
    return PerturbationScores(mean, low, high, per_condition, _warn(ratios), n_boot, confidence)


def _check_truth(truth: pd.DataFrame) -> None:
    if truth.shape[0] == 0 or truth.shape[1] < _FEWEST:
        msg = f"truth has the shape {truth.shape}; scores need at least one condition (row) and two genes (columns)."
        raise ValueError(msg)
    for what, index in (("condition", truth.index), ("gene", truth.columns)):
        if not index.is_unique:
            msg = f"truth has the {what} {index[index.duplicated()][0]!r} twice. Keep one of each, or their mean."
            raise ValueError(msg)


def _aligned(table: pd.DataFrame, truth: pd.DataFrame, *, name: str) -> np.ndarray:
    """Values of a prediction in the order of the truth, float64."""
    for what, have, want in (("condition", table.index, truth.index), ("gene", table.columns, truth.columns)):
        lacking = want[~want.isin(have)]
        if len(lacking):
            msg = (
                f"{name} lacks {len(lacking):,} {what}s of truth, first {lacking[0]!r}. Predict them or leave them out."
            )
            raise KeyError(msg)
    values = table.loc[truth.index, truth.columns].to_numpy(dtype=np.float64)
    for what, given in ((name, values), ("truth", truth.to_numpy(dtype=np.float64))):
        bad = int((~np.isfinite(given)).sum())
        if bad:
            msg = (
                f"{what} has {bad:,} NaN or infinite values. Leave these genes or conditions out: table.dropna(axis=1)."
            )
            raise ValueError(msg)
    return values


def _warn(ratios: Mapping[str, float]) -> tuple[str, ...]:
    collapsed = tuple(name for name, ratio in ratios.items() if ratio < _COLLAPSED)
    surprising = [name for name in collapsed if name not in _SAME_FOR_ALL]
    if surprising:
        logger.info(
            "note: predictions of %s are almost the same for all perturbations (under %.0f %% of the variance of the "
            "truth); compare them with the mean effect.",
            ", ".join(surprising),
            100 * _COLLAPSED,
        )
    return collapsed


def _bootstrap(
    values: np.ndarray, n_boot: int, confidence: float, rng: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the rows, NaN left out, and its percentile interval by columns."""
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    draws = np.random.default_rng(rng).multinomial(len(values), np.full(len(values), 1 / len(values)), size=n_boot)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(axis=0) / known.sum(axis=0)
        spread = (draws @ filled) / (draws @ known)
    tail = (1 - confidence) / 2
    low, high = np.full((2, values.shape[1]), np.nan)
    usable = np.isfinite(spread).any(axis=0)
    low[usable], high[usable] = np.nanquantile(spread[:, usable], [tail, 1 - tail], axis=0)
    return mean, low, high
