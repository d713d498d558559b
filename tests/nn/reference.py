"""A slow, independent transformer in plain tensor operations: what the network is tested against without any file."""

from __future__ import annotations

import math

import torch


def layer_norm(x, weight, bias, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps) * weight + bias


def encode_cell(state, gene_ids, values, *, n_layers, n_heads, allowed=None):
    """One cell without padding: `gene_ids` (length,), `values` (length,) -> (length, d_model), post-norm."""
    g = layer_norm(state["encoder.genes.embedding.weight"][gene_ids], *_norm(state, "encoder.genes.norm"))
    v = torch.relu(
        values.clamp(max=512)[:, None] @ state["encoder.values.linear1.weight"].T + state["encoder.values.linear1.bias"]
    )
    v = v @ state["encoder.values.linear2.weight"].T + state["encoder.values.linear2.bias"]
    x = g + layer_norm(v, *_norm(state, "encoder.values.norm"))
    return run_layers(state, x, n_layers=n_layers, n_heads=n_heads, allowed=allowed)


def run_layers(state, x, *, n_layers, n_heads, allowed=None):
    """Layers one query at a time; `allowed` (length, length) bool says which keys a query sees."""
    d = x.shape[1]
    for i in range(n_layers):
        p = f"layers.{i}."
        rows = x @ state[p + "attention.in_proj.weight"].T + state[p + "attention.in_proj.bias"]
        mixed = torch.zeros_like(x)
        width = d // n_heads
        for head in range(n_heads):
            q, k, w = (rows[:, j * d + head * width : j * d + (head + 1) * width] for j in range(3))
            for token in range(len(x)):
                scores = (k @ q[token]) / math.sqrt(width)
                if allowed is not None:
                    scores = scores.masked_fill(~allowed[token], -torch.inf)
                weight = torch.exp(scores - scores.max())
                mixed[token, head * width : (head + 1) * width] = (weight / weight.sum()) @ w
        mixed = mixed @ state[p + "attention.out_proj.weight"].T + state[p + "attention.out_proj.bias"]
        x = layer_norm(x + mixed, *_norm(state, p + "norm1"))
        inner = torch.relu(x @ state[p + "feed_forward.linear1.weight"].T + state[p + "feed_forward.linear1.bias"])
        inner = inner @ state[p + "feed_forward.linear2.weight"].T + state[p + "feed_forward.linear2.bias"]
        x = layer_norm(x + inner, *_norm(state, p + "norm2"))
    return x


def _norm(state, name):
    return state[f"{name}.weight"], state[f"{name}.bias"]
