"""Objectives on the class of a cell."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def classification(scores: Tensor, labels: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of classes (CLS); cells whose label is below 0 do not count.

    A batch without any label gives 0, whose gradient is 0.

    Shapes: `scores` (batch, n_classes), `labels` (batch,) int64, `weights` (n_classes,) or None -> scalar.
    """
    if not bool((labels >= 0).any()):
        return scores.sum() * 0
    known = torch.where(labels >= 0, labels, -100)
    return F.cross_entropy(scores, known, weight=weights, ignore_index=-100, label_smoothing=smoothing)
