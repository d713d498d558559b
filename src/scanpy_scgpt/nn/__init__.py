"""The network: tensors in, tensors out."""

from ._attention import SelfAttention, generative_attention
from ._config import TransformerConfig
from ._domains import CategoryEncoder, DomainNorm
from ._embeddings import CategoryValueEncoder
from ._heads import (
    AdversaryHead,
    AffineHead,
    CellToGeneHead,
    ClassHead,
    Expression,
    ExpressionHead,
    ValueDistributionHead,
)
from ._layers import EncoderLayer, FeedForward
from ._linear import Linear, scores
from ._lora import add_low_rank, merge_low_rank
from ._packed import Segments, has_packed_kernel, packed_attention
from ._pooling import POOLINGS, CellPool, pool
from ._transformer import CellTransformer, watch_nothing

__all__ = [
    "POOLINGS",
    "AdversaryHead",
    "AffineHead",
    "CategoryEncoder",
    "CategoryValueEncoder",
    "CellPool",
    "CellToGeneHead",
    "CellTransformer",
    "ClassHead",
    "DomainNorm",
    "EncoderLayer",
    "Expression",
    "ExpressionHead",
    "FeedForward",
    "Linear",
    "Segments",
    "SelfAttention",
    "TransformerConfig",
    "ValueDistributionHead",
    "add_low_rank",
    "generative_attention",
    "has_packed_kernel",
    "merge_low_rank",
    "packed_attention",
    "pool",
    "scores",
    "watch_nothing",
]
