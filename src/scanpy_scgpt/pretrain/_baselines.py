"""Predictors without a network, to compare a model with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse

from scanpy_scgpt._batch import GenerativeStep
from scanpy_scgpt.data import GenerativeBatches

_MEAN_CELLS, _RIDGE_CELLS = 100_000, 10_000  # most training cells looked at: the other processes wait meanwhile
_AT_A_TIME = 20_000  # cells
_INPUTS = 2_000  # genes, those that most cells express
_TARGETS = 1_024  # genes predicted at a time
_TENTH, _CHOOSING = 10, 256  # one in so many cells chooses the penalty, and at most so many
_PENALTIES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # times the summed variance of the inputs


class Asked(NamedTuple):
    """Digits of cells, some shown and some asked for.

    `known`: digits less the mean digit of the gene, `(n_cells, n_genes)` CSR float32. `cells`, `genes` (int64),
    `targets` (digits less the mean digit of the gene) and `weights` (float64): one entry for each digit asked for.
    """

    known: sparse.csr_matrix
    cells: np.ndarray
    genes: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    def error(self, predicted: np.ndarray | float) -> float:
        """Mean squared error of predictions (of the digits less the mean of the gene)."""
        return float((np.square(self.targets - predicted) * self.weights).sum())


class DigitMeans(NamedTuple):
    """Mean digit of all genes, and of each (that of all where it never occurs), shape `(n_genes,)`."""

    overall: float
    of_gene: np.ndarray
    n_cells: np.ndarray


def digit_means(batches: GenerativeBatches, *, rng: int) -> DigitMeans:
    """Means over training cells, of many a random part.

    Parameters
    ----------
    batches
        Training cells.
    rng
        Seed of the choice.
    """
    count, total = np.zeros(batches.n_tokens), np.zeros(batches.n_tokens)
    cells = sample(batches.order.cells, _MEAN_CELLS, rng=rng)
    for start in range(0, len(cells), _AT_A_TIME):
        seen = batches.tokens.take(cells[start : start + _AT_A_TIME])
        count += np.bincount(seen.gene_ids, minlength=len(count))
        total += np.bincount(seen.gene_ids, weights=seen.values, minlength=len(count))
    overall = float(total.sum() / count.sum())
    return DigitMeans(overall, np.where(count > 0, total / np.maximum(count, 1), overall), count)


def sample(cells: np.ndarray, most: int, *, rng: int) -> np.ndarray:
    """At most so many of the cells, in ascending order."""
    if len(cells) <= most:
        return cells
    return np.sort(np.random.default_rng(rng).choice(cells, most, replace=False))


def asked_of(batches: GenerativeBatches, n_steps: int, means: DigitMeans) -> Asked:
    """What some steps show and ask for; each step counts equally, as in the loss."""
    parts = [_step(batches[step], means, n_steps) for step in range(n_steps)]
    first = np.cumsum([0, *(part.known.shape[0] for part in parts)])
    return Asked(
        sparse.vstack([part.known for part in parts], format="csr"),
        np.concatenate([part.cells + start for part, start in zip(parts, first, strict=False)]),
        *(np.concatenate([part[i] for part in parts]) for i in (2, 3, 4)),
    )


def _step(step: GenerativeStep, means: DigitMeans, n_steps: int) -> Asked:
    rows, entries, first = [], [], 0
    for batch, shares in zip(*step, strict=True):
        ids, values = batch.known.gene_ids.numpy(), batch.known.values.numpy()
        shown = np.arange(ids.shape[1]) > 0  # <cls> comes first
        shown = (
            np.broadcast_to(shown, ids.shape) if batch.known.padding is None else shown & ~batch.known.padding.numpy()
        )
        where = np.nonzero(shown)[0], ids[shown]
        digits = (values[shown] - means.of_gene[ids[shown]]).astype(np.float32)
        rows.append(sparse.csr_matrix((digits, where), shape=(len(ids), len(means.of_gene))))
        counted = ~batch.unknown_padding.numpy()
        genes = batch.unknown_ids.numpy()[counted]
        targets = batch.targets.numpy()[counted] - means.of_gene[genes]
        weight = shares["targets"] / max(len(genes), 1) / n_steps
        entries.append((np.nonzero(counted)[0] + first, genes, targets, np.full(len(genes), weight)))
        first += len(ids)
    return Asked(sparse.vstack(rows, format="csr"), *(np.concatenate(column) for column in zip(*entries, strict=True)))


class Ridge:
    """Digits of unknown genes by ridge regression on the known ones, in closed form.

    Inputs are the digits of the genes that most cells express, less the mean digit of the gene; 0 where a gene is not
    known or not expressed. A gene is a target in some of the cells only: its products with the inputs are summed over
    these, and their covariance is taken to be that of all cells, so one decomposition serves all targets and all
    penalties. The penalty is the one with the lowest error on a tenth of the cells (of a few hundred, where there are
    more).

    Parameters
    ----------
    asked
        Training cells.
    n_inputs
        Most input genes.
    """

    def __init__(self, asked: Asked, *, n_inputs: int = _INPUTS) -> None:
        n_cells, n_genes = asked.known.shape
        often = np.bincount(asked.known.indices, minlength=n_genes)
        self.inputs = np.sort(np.argsort(-often, kind="stable")[: min(n_inputs, int((often > 0).sum()))])
        x = asked.known[:, self.inputs]
        tested = np.arange(n_cells) % max(_TENTH, n_cells // _CHOOSING) == 0
        fitted = x[~tested]
        values, vectors = linalg.eigh((fitted.T @ fitted).toarray().astype(np.float64))
        self._values = (np.maximum(values, 0) / max(fitted.shape[0], 1)).astype(np.float32)
        self._vectors = vectors.astype(np.float32)
        kept = ~tested[asked.cells]
        where = asked.cells[kept], asked.genes[kept]
        targets = sparse.csc_matrix((asked.targets[kept].astype(np.float32), where), shape=(n_cells, n_genes))
        self._x, self._targets = x.tocsc(), targets
        self._n_asked = np.bincount(asked.genes[kept], minlength=n_genes).astype(np.float32)
        chosen_by = _only(asked, tested)
        errors = [chosen_by.error(predicted) for predicted in self._predictions(chosen_by, _PENALTIES)]
        self.penalty = _PENALTIES[int(np.argmin(errors))]

    def predict(self, asked: Asked) -> np.ndarray:
        """Digits less the mean of the gene, for each digit asked for; float64."""
        return self._predictions(asked, (self.penalty,))[0]

    def _predictions(self, asked: Asked, penalties: tuple[float, ...]) -> list[np.ndarray]:
        """One row of predictions for each penalty; genes are done a block at a time."""
        rows, cells = np.unique(asked.cells, return_inverse=True)
        scores = asked.known[rows][:, self.inputs] @ self._vectors
        order = np.argsort(asked.genes, kind="stable")
        genes, cells = asked.genes[order], cells[order]
        found = [np.zeros(len(order)) for _ in penalties]
        for first in range(0, len(self._n_asked), _TARGETS):
            here = slice(*np.searchsorted(genes, [first, first + _TARGETS]))
            if here.start == here.stop:
                continue
            block = self._targets[:, first : first + _TARGETS]
            products = self._vectors.T @ (self._x.T @ block).toarray()
            strength = self._values[:, None] * self._n_asked[first : first + _TARGETS]
            for row, penalty in zip(found, penalties, strict=True):
                weights = products / (strength + np.float32(penalty * max(self._values.sum(), 1e-6)))
                row[order[here]] = (scores @ weights)[cells[here], genes[here] - first]
        return found


def _only(asked: Asked, cells: np.ndarray) -> Asked:
    """The digits asked of some cells (bool by cell)."""
    kept = cells[asked.cells]
    return asked._replace(**{name: getattr(asked, name)[kept] for name in ("cells", "genes", "targets", "weights")})


def ridge_steps(training: GenerativeBatches) -> int:
    """Steps of training cells that the regression learns from."""
    return max(min(training.order.steps, _RIDGE_CELLS // training.order.batch_size), 1)


def baseline_errors(
    training: GenerativeBatches, held: GenerativeBatches, *, n_steps: int, means: DigitMeans
) -> dict[str, float]:
    """Mean squared error of three predictors without a network on the targets of some steps.

    `mean_digit`: the mean digit of the training cells; `gene_mean`: the mean digit of each gene there; `ridge`:
    :class:`Ridge`, from the known genes.

    Parameters
    ----------
    training
        Training cells as they are shown: the cells of its first pass, at most ten thousand, train the regression.
    held
        Steps of validation.
    n_steps
        How many of them.
    means
        Mean digits of the training cells.
    """
    asked = asked_of(held, n_steps, means)
    ridge = Ridge(asked_of(training, ridge_steps(training), means))
    return {
        "mean_digit": asked.error(means.overall - means.of_gene[asked.genes]),
        "gene_mean": asked.error(0.0),
        "ridge": asked.error(ridge.predict(asked)),
    }
