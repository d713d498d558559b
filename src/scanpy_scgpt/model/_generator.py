"""Iterative generation: known genes in, digits of the other genes out, the most confident ones first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.tokenizer import Tokens, gene_draws

from ._gene_lists import GeneLists, ranks
from ._generative_pass import HEAD, GenerativePass, Predicted, Seen

Order = Literal["confidence", "random"]
# Any three numbers: what is drawn for one purpose says nothing about another.
_CUT, _ORDER, _DRAW = np.uint64(0x5851F42D4C957F2D), np.uint64(0x14057B7EF767814F), np.uint64(0x2545F4914F6CDD1D)


@dataclass
class Generator:
    """A checkpoint ready to generate expression, in K steps as :cite:t:`Cui2024` describe.

    In each step all unknown genes are predicted from what is known, a Kth of each cell's genes, the most confident
    ones, become known with their predicted values, and the next step starts from there. The publication does not say
    what confidence is; here it is minus the standard deviation of the value distribution that pretraining learns, and
    the value is the mean of that distribution. Unknown genes never see each other inside a step.

    The network was trained on expressed genes alone: a value means "the digit of this gene, if the cell expresses it",
    from 1 to `n_bins - 1`. It never answers zero.

    Parameters
    ----------
    checkpoint
        A model that was pretrained generatively.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`, ...
    max_tokens
        Most tokens of a batch, known and unknown together; by default what suits the device. Does not change the
        result. A batch that does not fit into memory is halved and done again.
    precision
        `"fp32"`, `"bf16"`, or `"auto"`: bf16 where a GPU has it, else fp32.

    Raises
    ------
    ValueError
        When the model was not trained to generate, or there is no such device or precision.
    CheckpointMismatchError
        When weights are missing.
    """

    checkpoint: Checkpoint
    device: str = "auto"
    max_tokens: int | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        self._network = GenerativePass(
            self.checkpoint, device=self.device, max_tokens=self.max_tokens, precision=self.precision
        )

    @property
    def knows_spread(self) -> bool:
        """Whether the model has a value distribution: without one there is no confidence, and the spread is NaN."""
        return self._network.module.distribution_head is not None

    @property
    def most_known(self) -> int:
        """Most genes of a cell that are shown to the network."""
        return self.checkpoint.tokenizer.max_length - 1

    def generate(
        self,
        known: Tokens,
        asked: GeneLists,
        *,
        keys: np.ndarray,
        cell: np.ndarray | None = None,
        n_steps: int = 3,
        order: Order = "confidence",
        draw: bool = False,
    ) -> Predicted:
        """Expression of the genes that are asked for.

        The context holds `max_length - 1` genes besides `<cls>`: of more known genes a sample is shown that depends on
        the key of the cell and its genes alone, and generated values take the places that are left. The same cell gets
        the same result, to rounding, in any order and batch (two genes whose confidence is equal to rounding may change
        places).

        Parameters
        ----------
        known
            Genes whose digits are shown; a cell may have none.
        asked
            Genes to generate, none of them known to its cell.
        keys
            Key of each cell (:func:`scanpy_scgpt.tokenizer.cell_keys`), uint64, shape `(n_cells,)`.
        cell
            Cell prompts, float, shape `(n_cells, d_model)`: vectors at `<cls>`, not scaled to length 1, that take the
            place of the `<cls>` input.
        n_steps
            Number of steps.
        order
            Which genes become known first: those of high confidence, or random ones.
        draw
            Draw each value from its distribution (from the key of the cell and the gene) in place of taking the mean.

        Returns
        -------
        Values and spread, entry by entry as in `asked`.

        Raises
        ------
        ValueError
            When the arguments do not fit each other, a gene is both known and asked for, or the model has no value
            distribution and one is needed.
        MemoryError
            When a single cell does not fit into memory.
        """
        self.check(n_steps=n_steps, order=order, draw=draw)
        self._check_cells(known, asked, keys, cell)
        seen, found, row = self._shown(known, keys), Predicted.empty(len(asked.gene_ids)), asked.cells
        lots = gene_draws(asked.indptr, asked.gene_ids, keys ^ _ORDER)
        chance = (gene_draws(asked.indptr, asked.gene_ids, keys ^ _DRAW) / 2**32).astype(np.float32) if draw else None
        is_open, done = np.ones(len(row), dtype=bool), np.zeros(len(known), dtype=np.int64)
        for step in range(1, n_steps + 1):
            left, rest = np.flatnonzero(is_open), asked.masked(is_open)
            new = self._network.predict(seen, rest, cell, None if chance is None else chance[left])
            by = (new.spread, lots[left]) if order == "confidence" else (lots[left],)
            rank = ranks(row[left], *by)
            until = -(-asked.lengths * step // n_steps)  # rounded up
            settled = rank < (until - done)[row[left]]
            for values, predicted in zip(found, new, strict=True):
                values[left[settled]] = predicted[settled]
            shown = settled & (rank < (self.most_known - seen.genes.lengths)[row[left]])
            seen = seen.extended(rest.masked(shown), new.values[shown])
            is_open[left[settled]], done = False, until
        return found

    def check(self, *, n_steps: int, order: str, draw: bool) -> None:
        """Refuse settings that do not exist, or that the model cannot follow.

        Parameters
        ----------
        n_steps, order, draw
            As in :meth:`generate`.

        Raises
        ------
        ValueError
            With what to change.
        """
        check_one_of(order, ("confidence", "random"), name="order")
        if not isinstance(n_steps, int | np.integer) or isinstance(n_steps, bool) or n_steps < 1:
            msg = f"n_steps={n_steps!r}: a whole number of at least 1 (the publication shows 3)."
            raise ValueError(msg)
        ranked = order == "confidence" and n_steps > 1
        if self.knows_spread or not (ranked or draw):
            return
        wanted = "draw=True" if draw else f"order='confidence' in {n_steps} steps"
        other = "draw=False" if draw else "order='random' or n_steps=1"
        msg = (
            f"{wanted} needs a value distribution, and {self.checkpoint.label} has none (no tensors {HEAD}.*). "
            f"Pass {other}, or use a model of scgpt.pretrain.run(..., distribution=True)."
        )
        raise ValueError(msg)

    def _check_cells(self, known: Tokens, asked: GeneLists, keys: np.ndarray, cell: np.ndarray | None) -> None:
        """All arguments are of the same cells, and no gene is known and asked for in one cell."""
        n_cells, width = len(known), self.checkpoint.transformer.d_model
        for name, size in {"asked": len(asked.indptr) - 1, "keys": len(keys)}.items():
            if size != n_cells:
                msg = f"{name} is of {size:,} cells, known of {n_cells:,}: give one entry per cell."
                raise ValueError(msg)
        if cell is not None and (cell.shape != (n_cells, width) or not np.isfinite(cell).all()):
            kind = "NaN or infinite numbers" if cell.shape == (n_cells, width) else f"shape {cell.shape}"
            msg = f"cell has {kind}: give finite vectors of {self.checkpoint.label}, shape ({n_cells}, {width})."
            raise ValueError(msg)
        n = self.checkpoint.transformer.n_tokens
        shown = np.repeat(np.arange(n_cells), known.lengths) * n + known.gene_ids
        both = np.flatnonzero(np.isin(asked.cells * n + asked.gene_ids, shown))
        if both.size:
            gene = self.checkpoint.vocab.tokens[asked.gene_ids[both[0]]]
            msg = (
                f"{both.size:,} genes are both known and asked for, first {gene!r} of cell {asked.cells[both[0]]}. "
                "Take out of known what is to be generated."
            )
            raise ValueError(msg)

    def _shown(self, known: Tokens, keys: np.ndarray) -> Seen:
        """Known genes as the network sees them, at most as many of a cell as the context holds."""
        if known.lengths.max(initial=0) > self.most_known:
            lots = gene_draws(known.indptr, known.gene_ids, keys ^ _CUT)
            known = known.masked(ranks(np.repeat(np.arange(len(known)), known.lengths), lots) < self.most_known)
        return Seen(GeneLists(known.indptr, known.gene_ids), known.values.astype(np.float32))

    def record(self) -> dict[str, Any]:
        """How values are made, as kept in `.uns`."""
        return {
            "device": str(self._network.device),
            "precision": self._network.precision,
            "values_from": "mean of the value distribution" if self.knows_spread else "expression head",
        }
