"""Choices that more than one folder names."""

from __future__ import annotations

from typing import Literal

Ties = Literal["random", "low", "mid", "high"]
"""Which digit of a tie range a value gets."""
Select = Literal["random", "top"]
"""Which genes of a cell enter when it has more than the context holds."""
Pooling = Literal["cls", "mean", "weighted", "layers"]
"""How token vectors become a cell vector."""
Precision = Literal["auto", "fp32", "bf16"]
"""Number type of the network's products."""
Backend = Literal["auto", "torch", "openvino"]
"""What runs the network."""
NeighbourMethod = Literal["auto", "exact", "hnsw", "ivf", "pq"]
"""How nearest neighbours are found."""
Metric = Literal["cosine", "euclidean"]
"""What vectors are compared by."""
VoteWeights = Literal["uniform", "distance"]
"""What the vote of a neighbour counts."""
