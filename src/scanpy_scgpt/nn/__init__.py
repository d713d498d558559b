"""The network: tensors in, tensors out."""

from ._attention import SelfAttention, generative_attention
from ._config import TransformerConfig
from ._embeddings import CategoryValueEncoder
from ._heads import CellToGeneHead, ClassHead, Expression, ExpressionHead, ValueDistributionHead
from ._layers import EncoderLayer, FeedForward
from ._linear import Linear
from ._packed import Segments, has_packed_kernel, packed_attention
from ._pooling import POOLINGS, CellPool, pool
from ._transformer import CellTransformer, watch_nothing

__all__ = [
    "POOLINGS",
    "CategoryValueEncoder",
    "CellPool",
    "CellToGeneHead",
    "CellTransformer",
    "ClassHead",
    "EncoderLayer",
    "Expression",
    "ExpressionHead",
    "FeedForward",
    "Linear",
    "Segments",
    "SelfAttention",
    "TransformerConfig",
    "ValueDistributionHead",
    "generative_attention",
    "has_packed_kernel",
    "packed_attention",
    "pool",
    "watch_nothing",
]
