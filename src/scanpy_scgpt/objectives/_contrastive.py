"""Objectives on the similarity of cells."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def elastic_similarity(cells: Tensor, *, threshold: float = 0.3) -> Tensor:
    """Elastic cell similarity (ECS): `mean of 1 - (s - threshold)^2` over all pairs, `s` the cosine above 0.

    The diagonal is set to 0, and pairs below the threshold are pushed apart: both as in the original.

    Shapes: `cells` (batch, d_model) -> scalar.
    """
    unit = F.normalize(cells, dim=1)
    similarity = F.relu((unit @ unit.T).fill_diagonal_(0))
    return (1 - (similarity - threshold).square()).mean()


def contrastive_cells(first: Tensor, second: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Contrastive cell embedding (CCE): two views of a cell belong together, views of two cells do not.

    Shapes: `first`, `second` (batch, d_model), row `i` of both from cell `i` -> scalar.
    """
    similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature
    return F.cross_entropy(similarity, torch.arange(len(first), device=first.device))


def similar_cells(first: Tensor, second: Tensor, whole: Tensor, *, temperature: float, sharpness: float) -> Tensor:
    """Two views of cells, each from a part of the genes, find the cells that are alike when all genes are seen.

    A cross entropy. Targets are the softmax of `cosine / sharpness` of the `whole` vectors, less their mean over the
    batch, and take no gradient; predictions the softmax of `cosine / temperature` between the views. Mean over both
    directions.

    Shapes: `first`, `second` (batch, d_model), `whole` (batch, d), row `i` of all from cell `i` -> scalar.
    """
    with torch.autocast(whole.device.type, enabled=False):  # half precision would blur the targets
        unit = F.normalize(whole.detach().float(), dim=1)
        unit = F.normalize(unit - unit.mean(dim=0), dim=1)
        targets = (unit @ unit.T / sharpness).softmax(dim=1)  # cosines are symmetric: the same in both directions
    similarity = (F.normalize(first, dim=1) @ F.normalize(second, dim=1).T).float() / temperature
    return (F.cross_entropy(similarity, targets) + F.cross_entropy(similarity.T, targets)) / 2
