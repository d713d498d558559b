"""Files of raw counts to one corpus of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals
from scipy import sparse

from scanpy_scgpt._counts import CountSource, choose_counts
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt.disk import TokenStore
from scanpy_scgpt.tokenizer import GeneVocab, Tokenizer, Tokens, cell_keys, match_genes

logger = get_logger(__name__)
_BLOCK = 4096
_POINTERS = 2**16  # cells whose lengths are looked at together


@dataclass(frozen=True)
class Corpus:
    """Tokens of all cells of a corpus.

    Attributes
    ----------
    tokens
        Uncut tokens, in memory or in a token store.
    names
        Name of each cell, file included, shape `(n_cells,)`; or something that gives such arrays, one after the other,
        each time it is iterated.
    study
        Study of each cell, shape `(n_cells,)`.
    """

    tokens: Tokens | TokenStore
    names: np.ndarray | Iterable[np.ndarray]
    study: pd.Categorical

    def split(self, *, share: float, rng: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of training and validation cells; a cell's side depends on its name and the seed alone."""
        blocks = [self.names] if isinstance(self.names, np.ndarray) else self.names
        bound = np.uint64(int(share * 2**64))
        held = np.concatenate([cell_keys(names, seed=rng, purpose="validation") < bound for names in blocks])
        enough = np.empty(len(self.tokens), dtype=bool)
        for start in range(0, len(enough), _POINTERS):
            stop = min(start + _POINTERS, len(enough))
            enough[start:stop] = self.tokens.lengths_of(np.arange(start, stop)) > 1
        return np.flatnonzero(~held & enough), np.flatnonzero(held & enough)


@dataclass(frozen=True)
class StoreNames:
    """Names of the cells of a token store, file included; iterating gives those of one shard after the other.

    Nothing stays in memory afterwards.
    """

    store: TokenStore

    def __iter__(self) -> Iterator[np.ndarray]:
        for names, files in zip(self.store.shard_names(), self.store.shard_columns("file"), strict=True):
            file = pd.Categorical(files)
            stems = np.array([f"{Path(name).stem}/" for name in file.categories], dtype=object)
            yield stems[file.codes] + names if len(names) else names


def store_corpus(store: TokenStore) -> Corpus:
    """The cells of a token store; what stays in memory of each is the number of its study."""
    parts = [pd.Categorical(values) for values in store.shard_columns("study")] or [pd.Categorical([])]
    return Corpus(store, StoreNames(store), union_categoricals(parts, sort_categories=True))


def _read(path: Path) -> ad.AnnData:
    if path.suffix != ".h5mu":
        return ad.read_h5ad(path)
    from mudata import read_h5ad

    try:
        return read_h5ad(path, "rna")
    except KeyError as error:
        msg = f"{path} has no modality 'rna' ({error}). Write its counts to an .h5ad file and give that."
        raise ValueError(msg) from error


def _counts_of(path: Path) -> tuple[ad.AnnData, CountSource]:
    adata = _read(path)
    source = choose_counts(adata)
    if not source.seen.is_counts:
        msg = f"{path}: {source.where} holds {source.kind()}; pretraining needs raw counts. Leave the file out."
        raise ValueError(msg)
    return adata, source


def build_vocab(files: Iterable[Path], names: Sequence[str], *, min_cells: int) -> GeneVocab:
    """Vocabulary of the genes that enough cells of a corpus express.

    Parameters
    ----------
    files
        Files of raw counts.
    names
        Names that may enter, in the order of their ids.
    min_cells
        Fewest cells with a count above zero; a cell counts once for a gene, however many columns the gene has.

    Returns
    -------
    The genes that are left, with special tokens.
    """
    everything = GeneVocab(dict.fromkeys(names))
    expressed = np.zeros(len(everything), dtype=np.int64)
    for path in files:
        _, source = _counts_of(path)
        ids = match_genes(source.var.index, everything, columns=source.gene_columns()).ids
        for start in range(0, source.n_obs, _BLOCK):
            cells, columns = source.rows(start, start + _BLOCK).nonzero()
            known = ids[columns] >= 0
            where = cells[known], ids[columns[known]]
            seen = sparse.csr_matrix((np.ones(known.sum(), bool), where), shape=(_BLOCK, len(everything)))
            expressed += np.bincount(seen.indices, minlength=len(everything))
    return GeneVocab(gene for gene in everything.genes if expressed[everything[gene]] >= min_cells)


def build_corpus(files: Sequence[Path], tokenizer: Tokenizer, *, rng: int) -> Corpus:
    """Tokenise files of raw counts (`.h5ad`, or the modality `rna` of `.h5mu`).

    The study of a cell is `obs["study"]`, else the name of its file.

    Parameters
    ----------
    files
        Files of raw counts.
    tokenizer
        Vocabulary and rule of the bins.
    rng
        Seed of random ties.

    Returns
    -------
    Tokens, names and studies of all cells, in the order of the files.

    Raises
    ------
    ValueError
        When a file does not hold raw counts.
    """
    tokens, names, studies = [], [], []
    for path in files:
        adata, source = _counts_of(path)
        match = match_genes(source.var.index, tokenizer.vocab, columns=source.gene_columns())
        named = np.array([f"{path.stem}/{name}" for name in adata.obs_names], dtype=object)
        for start in range(0, source.n_obs, _BLOCK):
            block = slice(start, start + _BLOCK)
            tokens.append(tokenizer.bins(source.rows(block.start, block.stop), match.ids, named[block], seed=rng))
        names.append(named)
        studies.append(adata.obs["study"].astype(str).to_numpy() if "study" in adata.obs else [path.stem] * adata.n_obs)
        logger.info("corpus: %s · %s cells · %s", path.name, f"{adata.n_obs:,}", match.summary())
    return Corpus(Tokens.concatenate(tokens), np.concatenate(names), pd.Categorical(np.concatenate(studies)))
