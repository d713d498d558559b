"""Shape of the network: the only place with its defaults."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

ValueEncoding = Literal["continuous", "category", "scaling"]
NormScheme = Literal["post", "pre", "legacy_pre"]


@dataclass(frozen=True)
class TransformerConfig:
    """Configuration of :class:`CellTransformer`.

    Attributes
    ----------
    n_tokens
        Size of the gene table, special tokens included.
    pad_id
        Id of `<pad>`.
    d_model, n_heads, n_layers, d_ff
        Width, attention heads, layers, width of the feed-forward part.
    dropout
        Dropout on values, residuals and inside the feed-forward part while training.
    attention_dropout
        Dropout on attention weights while training; anything but 0 rules out the fast kernels on CPU.
    value_encoding
        How a value enters: `"continuous"` (a small network), `"category"` (a table of bins), `"scaling"` (it
        multiplies the gene vector).
    n_bins
        Number of bins, for `"category"` only.
    norm_scheme
        `"post"` (the original), `"pre"`, or `"legacy_pre"` (the original's own pre-norm, whose residual starts from
        the normalised value).
    """

    n_tokens: int
    pad_id: int
    d_model: int = 512
    n_heads: int = 8
    n_layers: int = 12
    d_ff: int = 512
    dropout: float = 0.2
    attention_dropout: float = 0.0
    value_encoding: ValueEncoding = "continuous"
    n_bins: int = 51
    norm_scheme: NormScheme = "post"

    def __post_init__(self) -> None:
        for name in ("n_tokens", "pad_id", "d_model", "n_heads", "n_layers", "d_ff", "n_bins"):
            if not isinstance(getattr(self, name), int):
                msg = f"{name}={getattr(self, name)!r}: must be an integer."
                raise TypeError(msg)
        for name in ("n_tokens", "d_model", "n_heads", "n_layers", "d_ff"):
            if getattr(self, name) < 1:
                msg = f"{name}={getattr(self, name)}: must be at least 1."
                raise ValueError(msg)
        if self.d_model % self.n_heads:
            msg = f"d_model={self.d_model} is no multiple of n_heads={self.n_heads}."
            raise ValueError(msg)
        if not 0 <= self.pad_id < self.n_tokens:
            msg = f"pad_id={self.pad_id} is outside the gene table of {self.n_tokens} tokens."
            raise ValueError(msg)
        for name, choices in (("value_encoding", get_args(ValueEncoding)), ("norm_scheme", get_args(NormScheme))):
            if getattr(self, name) not in choices:
                msg = f"{name}={getattr(self, name)!r}: use one of {', '.join(map(repr, choices))}."
                raise ValueError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransformerConfig:
        """Configuration from plain values; a key that it does not know is an error."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            msg = (
                f"Unknown setting {sorted(unknown)[0]!r} of the network; the file was written by a newer version of "
                f"scanpy-scgpt, or is damaged. Known: {', '.join(field.name for field in fields(cls))}."
            )
            raise ValueError(msg)
        return cls(**values)
