"""From what a run was given to the cells it trains on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._validate import file_paths
from scanpy_scgpt.data import GenerativeBatches
from scanpy_scgpt.disk import TokenStore, store_in
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig

from ._config import PretrainConfig
from ._corpus import Corpus
from ._prepare import prepare
from ._reader import COUNT_KEY
from ._sources import Data
from ._start import require_extension

logger = get_logger(__name__)
CORPUS = "corpus.tokens"  # folder in that of the run


def store_of(
    data: Data,
    out: Path,
    *,
    vocab: GeneVocab | None,
    parent: Checkpoint | None,
    tokenizer: TokenizerConfig,
    rng: int,
    **preparing: Any,
) -> TokenStore:
    """The token store among what was given, or the one that is made of it in `out`.

    Parameters
    ----------
    data
        A token store, or what :func:`prepare` takes.
    out
        Folder of the run.
    vocab
        Genes of the model; when None, those of the store or of the checkpoint, else those that enough cells express.
    parent
        Checkpoint that is trained on, or None.
    tokenizer
        How counts become bins.
    rng
        Seed of random ties.
    **preparing
        Passed to :func:`prepare`.

    Raises
    ------
    FileNotFoundError
        When a path is not there.
    ValueError
        When a store stands beside other data, or was made with other bins or another vocabulary, or the vocabulary
        lacks tokens of the checkpoint.
    """
    paths = file_paths(data) or []
    if missing := [path for path in paths if not path.exists()]:
        msg = f"{missing[0]}: there is no such file or token store. Check the path."
        raise FileNotFoundError(msg)
    stores = [path for path in paths if path.is_dir() and store_in(path) is not None]
    if not stores:
        if parent is not None:
            vocab = parent.vocab if vocab is None else vocab
            require_extension(vocab, parent)
        return prepare(data, out / CORPUS, vocab=vocab, tokenizer=tokenizer, rng=rng, **preparing)
    if len(paths) > 1:
        msg = f"{stores[0]} is a token store: give it alone. pretrain.prepare([...], out) puts several files into one."
        raise ValueError(msg)
    for name, default in (("filters", None), ("duplicates", "report"), ("on_error", "raise")):
        if (given := preparing.get(name, default)) != default:
            msg = f"{name}={given!r}: {stores[0]} is a token store, whose cells were chosen. Leave it out."
            raise ValueError(msg)
    store = TokenStore(stores[0])
    if parent is not None:
        require_extension(store.vocab, parent)
    if vocab is not None:
        store.require_vocab(vocab)
    there, asked = ((config.n_bins, config.ties) for config in (store.config, tokenizer))
    if there != asked:
        msg = (
            f"{stores[0]} was made with n_bins={there[0]}, ties={there[1]!r}; the run asks for n_bins={asked[0]}, "
            f"ties={asked[1]!r}. Pass n_bins={there[0]}, ties={there[1]!r} to the run, or tokenise anew."
        )
        raise ValueError(msg)
    return store


class Split(NamedTuple):
    """Positions of `training` and `validation` cells, int64, ascending.

    `repeated`: number of cells in neither because a training cell has their counts; None where that is not known.
    """

    training: np.ndarray
    validation: np.ndarray
    repeated: int | None


def split(corpus: Corpus, config: PretrainConfig, *, rng: int) -> Split:
    """Training and validation cells; there are some of both.

    A cell that would be held out while a training cell has its counts is in neither: the network has seen what it would
    be asked. Which cells train does not depend on that.
    """
    training, validation = corpus.split(
        share=config.validation_share, rng=rng, by=config.validation_by, studies=config.validation_studies
    )
    repeats = _repeats(corpus.tokens, training, validation)
    found = Split(training, validation, None)
    if repeats is not None:
        found = Split(training, validation[~repeats], int(repeats.sum()))
    _require_both(corpus, config, found)
    share = len(found.validation) / (len(training) + len(found.validation))
    logger.info(
        "pretraining: %s cells train, %s are held out (%.1f %%; validation_share=%s)",
        f"{len(training):,}", f"{len(found.validation):,}", 100 * share, config.validation_share,
    )  # fmt: skip
    if corpus.n_unused:
        text = "pretraining: %s cells have fewer than two genes of the vocabulary and are on neither side"
        logger.warning(text, f"{corpus.n_unused:,}")
    if found.repeated:
        text = "pretraining: %s cells are neither trained on nor held out: training cells have the same counts"
        logger.info(text, f"{found.repeated:,}")
    return found


def _repeats(store: TokenStore, training: np.ndarray, validation: np.ndarray) -> np.ndarray | None:
    """Which validation cells have the counts of a training cell, bool; None where a store does not tell.

    Cells of few genes, whose key is 0, may be equal by chance and do not count.
    """
    if COUNT_KEY not in store.columns:
        return None
    keys, which = np.unique(np.concatenate(list(_keys(store, validation))), return_inverse=True)
    found = np.zeros(len(keys), dtype=bool)
    for shown in _keys(store, training):
        found |= np.isin(keys, shown)
    return (found & (keys > 0))[which]


def _keys(store: TokenStore, cells: np.ndarray) -> Iterator[np.ndarray]:
    """Keys of the counts of some cells (ascending positions), of one shard after the other."""
    starts = store.shard_starts
    first = np.searchsorted(cells, starts)
    for i, keys in enumerate(store.shard_columns(COUNT_KEY)):
        yield keys[cells[first[i] : first[i + 1]] - starts[i]]


def _require_both(corpus: Corpus, config: PretrainConfig, found: Split) -> None:
    training, validation, repeated = found
    if len(training) and len(validation):
        return
    usable, part = len(training) + len(validation) + (repeated or 0), "validation" if len(training) else "training"
    equal = f" ({repeated:,} that have the counts of a training cell are in neither)" if repeated else ""
    what = (
        f"{len(corpus.tokens):,} cells in the files, {usable:,} of them with two or more genes of the vocabulary; "
        f"validation_share={config.validation_share} leaves {len(training):,} for training and {len(validation):,} for "
        f"validation{equal}: no {part} cells."
    )
    fix = (
        "Give more cells, or change validation_share or rng."
        if usable > 1
        else "Give more cells, or a vocabulary with the names of their genes (pretrain.build_vocab makes one)."
    )
    msg = f"{what} {fix}"
    raise ValueError(msg)


def require_cells(world: int, config: PretrainConfig, *, training: int, validation: int) -> None:
    """Each process needs a cell in each step of training and of validation."""
    if world > min(training, validation):
        msg = (
            f"{training:,} cells for training and {validation:,} for validation are too few for {world} processes. "
            f"Give more cells, change validation_share={config.validation_share}, or use fewer devices."
        )
        raise ValueError(msg)


def require_batch(world: int, config: PretrainConfig) -> None:
    """Each process needs a cell of a whole step."""
    if world > config.batch_size:
        msg = (
            f"batch_size={config.batch_size} is the number of cells of a step over all processes, and there are "
            f"{world} processes. Use batch_size={world} or more, or fewer devices."
        )
        raise ValueError(msg)


def steps_of(
    corpus: Corpus,
    cells: np.ndarray,
    config: PretrainConfig,
    *,
    vocab: GeneVocab,
    cls_value: float,
    seed: int,
    held_out: bool = False,
) -> GenerativeBatches:
    """Steps over some cells; those of `held_out` cells are whole, and as often as they are."""
    groups = {"balance": config.balance, "step_from": config.step_from}
    return GenerativeBatches(
        corpus.tokens,
        cells,
        batch_size=min(config.batch_size, len(cells)),
        max_length=config.max_length,
        ratios=config.ratios,
        pad_id=vocab.pad_id,
        cls_id=vocab.cls_id,
        cls_value=cls_value,
        panel_share=0.0 if held_out else config.panel_share,
        n_tokens=len(vocab),
        n_bins=config.n_bins,
        max_tokens=config.max_tokens,
        balance_power=config.balance_power,
        seed=seed,
        **{} if held_out else {name: _codes(corpus, column, cells) for name, column in groups.items()},
    )


def _codes(corpus: Corpus, column: str | None, cells: np.ndarray) -> np.ndarray | None:
    return None if column is None else getattr(corpus, column).codes[cells].astype(np.int64)
