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
