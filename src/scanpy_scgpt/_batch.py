"""CellBatch: the one contract between data and network."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class CellBatch(NamedTuple):
    """Padded cells, `<cls>` first.

    `gene_ids` (batch, length) int64; `values` (batch, length) float32; `padding` (batch, length) bool, True where
    padded, or None when no cell is padded.
    """

    gene_ids: Tensor
    values: Tensor
    padding: Tensor | None


class GenerativeBatch(NamedTuple):
    """Cells split into genes whose value is shown and genes whose value is to be predicted.

    `known` holds `<cls>` and the shown genes; `unknown_ids` (batch, n_unknown) int64, `targets` (batch, n_unknown)
    float32, `unknown_padding` (batch, n_unknown) bool, True where padded.
    """

    known: CellBatch
    unknown_ids: Tensor
    targets: Tensor
    unknown_padding: Tensor


class GenerativeStep(NamedTuple):
    """What one process computes in one step of the optimiser.

    `batches` are the micro-batches. `shares` says for each of them which part of all that the processes count in this
    step it holds: `"targets"` (genes to be predicted) and `"cells"`. Over all micro-batches of all processes the shares
    of targets add up to 1, and so do those of cells; a mean over the step is the sum of the means over the
    micro-batches, each times its share.
    """

    batches: tuple[GenerativeBatch, ...]
    shares: tuple[dict[str, float], ...]
