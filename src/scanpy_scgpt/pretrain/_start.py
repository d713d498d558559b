"""What a run starts from: a new network, or one that was trained before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt.io import Checkpoint, load_component
from scanpy_scgpt.module import PretrainModule
from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import GeneVocab, Tokens

from ._config import PretrainConfig
from ._corpus import Corpus
from ._gene_table import coexpression_table, start_table

logger = get_logger(__name__)
_TABLE_CELLS = 50_000  # looked at for the first gene table
_TABLE = "transformer.encoder.genes.embedding.weight"
_OPTIONAL = frozenset({"encoder.unknown"})  # checkpoints that were trained for other tasks lack it
_SHAPE = ("d_model", "n_heads", "n_layers", "d_ff", "n_bins")
CLS_VALUE = -2.0  # of a new model


def shape_from(parent: Checkpoint, config: PretrainConfig, given: Mapping[str, Any]) -> PretrainConfig:
    """The settings with the shape and the bins of the checkpoint that is trained on.

    Parameters
    ----------
    parent
        The checkpoint.
    config
        Settings of the run; the default of a field counts as not given.
    given
        Fields that were given by name.

    Raises
    ------
    ValueError
        When a setting contradicts the checkpoint, or its values are a table of bins.
    """
    if parent.transformer.value_encoding == "category":
        msg = (
            f"continue_from={parent.label!r} looks its values up in a table of bins (value_encoding='category'), which "
            "pretraining does not do. Continue from a checkpoint with continuous values."
        )
        raise ValueError(msg)
    there = {name: getattr(parent.transformer, name) for name in _SHAPE}
    there |= {"n_bins": parent.tokenizer.n_bins, "ties": parent.tokenizer.ties}
    defaults = {item.name: item.default for item in fields(PretrainConfig)}
    for name, value in there.items():
        asked = getattr(config, name)
        if asked != value and (name in given or asked != defaults[name]):
            msg = (
                f"{name}={asked!r}, but continue_from={parent.label!r} was trained with {name}={value!r}. Leave {name} "
                "out: it comes from the checkpoint."
            )
            raise ValueError(msg)
    return replace(config, **there)


def require_extension(vocab: GeneVocab, parent: Checkpoint) -> None:
    """A vocabulary to train on with has all tokens of the checkpoint.

    Raises
    ------
    ValueError
        When some are missing.
    """
    ids = vocab.ids(parent.vocab.tokens)
    if (missing := int((ids < 0).sum())) > 0:
        first = [token for token, i in zip(parent.vocab.tokens, ids, strict=True) if i < 0][:3]
        msg = (
            f"The vocabulary lacks {missing:,} of {len(ids):,} tokens of continue_from={parent.label!r}, such as "
            f"{', '.join(first)}. Extend that of the checkpoint: "
            "pretrain.build_vocab(files, extend=scgpt.models.load(...).vocab), and tokenise with it."
        )
        raise ValueError(msg)


def network(
    corpus: Corpus,
    training: np.ndarray,
    vocab: GeneVocab,
    config: PretrainConfig,
    *,
    parent: Checkpoint | None,
    seed: int,
) -> PretrainModule:
    """The network of a run before its first step; global random state is left as it was.

    Parameters
    ----------
    corpus, training
        Cells, and positions of those that train; of many a part is looked at.
    vocab
        Genes of the model.
    config
        Settings.
    parent
        Checkpoint to train on, or None for a new network. One of the original release keeps its form of attention
        for unknown genes.
    seed
        Seed of weights and of the gene table.
    """
    shape = TransformerConfig(n_tokens=len(vocab), pad_id=vocab.pad_id, dropout=config.dropout, **_shape_of(config))
    if parent is not None:
        shape = replace(parent.transformer, n_tokens=len(vocab), pad_id=vocab.pad_id, dropout=config.dropout)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: the weights are drawn there
        module = PretrainModule(
            shape,
            task=config.task,
            contrast=config.contrast,
            positives=config.positives,
            pooling=config.pooling,
            distribution=config.distribution,
            weights=config.weights,
            legacy_generation=parent is not None and bool(parent.info.get("legacy_generation")),
        )
    cells = _Sample(corpus, training, np.random.default_rng(seed))
    if parent is None:
        table = start_table(
            config.gene_table, cells.tokens, cells.studies, vocab, d_model=config.d_model, rng=cells.rng
        )
        module.start_from(torch.from_numpy(table), mean_digit=config.n_bins / 2, quiet=config.quiet_start)
    else:
        _fill(module, parent, _extended(parent, vocab, cells), mean_digit=config.n_bins / 2)
    return module


def _shape_of(config: PretrainConfig) -> dict[str, int]:
    return {name: getattr(config, name) for name in _SHAPE}


class _Sample:
    """Training cells that the gene table is made of; read when they are asked for."""

    def __init__(self, corpus: Corpus, training: np.ndarray, rng: np.random.Generator) -> None:
        if len(training) > _TABLE_CELLS:
            training = np.sort(rng.choice(training, _TABLE_CELLS, replace=False))
        self.corpus, self.cells, self.rng = corpus, training, rng

    @cached_property
    def tokens(self) -> Tokens:
        """Their tokens."""
        return self.corpus.tokens.take(self.cells)

    @property
    def studies(self) -> np.ndarray:
        """Number of the study of each, int64, shape `(n_cells,)`."""
        return np.unique(self.corpus.study.codes[self.cells], return_inverse=True)[1]


def _extended(parent: Checkpoint, vocab: GeneVocab, cells: _Sample) -> Tensor:
    """Gene table of a checkpoint for a vocabulary with more tokens, `(len(vocab), d_model)`.

    A new gene starts where its co-expression with the known genes puts it: the co-expression of the cells is mapped
    linearly to the table (least squares over the genes that both have); a gene that never occurs, from the mean of the
    table.
    """
    table = parent.weights[_TABLE].numpy()
    if vocab.digest == parent.vocab.digest:
        return parent.weights[_TABLE]
    new = np.ones(len(vocab), dtype=bool)
    old = vocab.ids(parent.vocab.tokens)
    new[old] = False
    mean = table[parent.vocab.ids(parent.vocab.genes)].mean(axis=0)
    out = np.empty((len(vocab), table.shape[1]), dtype=np.float32)
    out[old], out[new] = table, mean
    seen = np.bincount(cells.tokens.gene_ids, minlength=len(vocab)) > 0
    shared, target = seen & ~new, seen & new
    if target.any() and shared.sum() > table.shape[1]:
        found = coexpression_table(
            cells.tokens, cells.studies, n_tokens=len(vocab), d_model=table.shape[1], rng=cells.rng
        )
        map_ = np.linalg.lstsq(found[shared], out[shared] - mean, rcond=1e-3)[0]
        out[target] = mean + found[target] @ map_
    logger.info(
        "pretraining: %s new genes, %s of them started from co-expression", f"{new.sum():,}", f"{target.sum():,}"
    )
    return torch.from_numpy(out)


def _fill(module: PretrainModule, parent: Checkpoint, table: Tensor, *, mean_digit: float) -> None:
    """Weights of a checkpoint into the network, strictly; a head that it lacks stays new."""
    source = replace(parent, weights={**parent.weights, _TABLE: table})
    new = []
    for name, part in module.named_children():
        if name == "transformer" or any(key.startswith(f"{name}.") for key in parent.weights):
            load_component(part, source, name, optional=_OPTIONAL)
        else:
            new.append(name)
    if "expression_head" in new:
        torch.nn.init.constant_(module.expression_head.network[-1].bias, mean_digit)
    lost = [name for name in {key.split(".")[0] for key in parent.weights} if getattr(module, name, None) is None]
    logger.info(
        "pretraining: goes on from %s; new heads: %s; left out: %s",
        parent.label,
        ", ".join(new) or "none",
        ", ".join(sorted(lost)) or "nothing",
    )
