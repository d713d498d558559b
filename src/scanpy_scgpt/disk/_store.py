"""Token store: the tokens of many cells, written once and memory-mapped for repeated epochs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig, Tokens, cell_keys

from ._shards import Record, Shard, checksum_of, copy_cells, data_path, locate

logger = get_logger(__name__)
FORMAT, VERSION = "scanpy-scgpt token store", 1
MANIFEST, VOCAB, SHARDS = "manifest.json", "vocab.json", "shards"
_SWAP = 0.5  # seconds; a replacement takes two renames
_MOST_OPEN = 256  # shards that are mapped at a time; each holds a file handle


def beside(folder: Path, role: str) -> Path:
    """Where a folder lies while it is replaced: `next` the new one, `old` the former."""
    return folder.with_name(f".{folder.name}.{role}")


def put_back(folder: Path) -> None:
    """Undo a replacement that was killed half-way. For writers: a reader may have come into one that goes on."""
    if _is_replaced(folder):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.replace(beside(folder, "old"), folder)


def _is_replaced(folder: Path) -> bool:
    return not folder.exists() and (beside(folder, "old") / MANIFEST).is_file()


def _await_replacement(folder: Path) -> None:
    """Let a replacement that is under way come to its end; what is half-way then was killed, and is undone."""
    if _is_replaced(folder):
        time.sleep(_SWAP)
        put_back(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"{folder} is no token store: it has no {MANIFEST}. Write one with TokenStoreWriter, or check the path."
        raise FileNotFoundError(msg) from None
    except ValueError as error:
        msg = f"{path} is no valid JSON ({error}). Copy the folder again, or remove it and write the store anew."
        raise ValueError(msg) from error
    found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else (None, None)
    if found != (FORMAT, VERSION):
        msg = (
            f"{path} has format {found[0]!r}, version {found[1]!r}; this release reads {FORMAT!r}, version {VERSION}. "
            "A newer file needs a newer release: pip install -U scanpy-scgpt."
        )
        raise ValueError(msg)
    return manifest


class Beginnings(NamedTuple):
    """What stands in the folder of a store: the `origin` of its first writing, its `vocab`, and `complete`."""

    origin: dict[str, Any]
    vocab: GeneVocab
    complete: bool


def store_in(folder: str | Path) -> Beginnings | None:
    """What was begun or finished in a folder, None where no token store is."""
    folder = Path(folder).expanduser().resolve()
    _await_replacement(folder)
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    return Beginnings(manifest["origins"][0], GeneVocab.read(folder / VOCAB), manifest["complete"])


class TokenStore:
    """The tokens of many cells on disk, memory-mapped; its `take`, `lengths` and `indptr` are those of `Tokens`.

    Opening reads the manifest and compares file sizes; nothing else is read before it is asked for. May be pickled and
    forked: the copy opens the files itself.

    Parameters
    ----------
    folder
        What :class:`TokenStoreWriter` has written and finished.

    Attributes
    ----------
    config
        Settings that the tokens were made with.
    n_tokens
        Number of tokens of all cells.
    origins
        Where the cells come from: what was said at the first writing, then of each appending.
    digest
        First 12 hexadecimal digits of the SHA-256 of vocabulary, settings and the checksums of all shards.

    Raises
    ------
    FileNotFoundError
        When there is no store in the folder.
    ValueError
        When the store is unfinished, of another format, or a file is missing or cut short.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().resolve()
        _await_replacement(self.folder)
        manifest = read_manifest(self.folder)
        if not manifest["complete"]:
            msg = (
                f"The token store in {self.folder} is unfinished. Repeat the call that writes it (it goes on where it "
                "stopped), up to TokenStoreWriter.finish()."
            )
            raise ValueError(msg)
        self.config = TokenizerConfig(**manifest["tokenizer"])
        self.origins: list[dict[str, Any]] = manifest["origins"]
        self.n_tokens: int = manifest["n_tokens"]
        self._vocab_digest: str = manifest["vocab"]["digest"]
        self._records = [Record.from_dict(values) for values in manifest["shards"]]
        self._starts = np.cumsum([0, *(record.n_cells for record in self._records)])
        self._open: dict[int, Shard] = {}  # the longest unused first
        for record in self._records:
            self._check_size(record)
        listed = [manifest["vocab"], manifest["tokenizer"], [(record.key, record.checksum) for record in self._records]]
        self.digest = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:12]

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path]]:
        return type(self), (self.folder,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return (
            f"TokenStore({len(self):,} cells, {self.n_tokens:,} tokens, {len(self._records):,} shards, "
            f"hash {self.digest})"
        )

    def _damaged(self, record: Record, what: str) -> ValueError:
        path = data_path(self.folder / SHARDS, record.key)
        return ValueError(
            f"{path} {what}. Delete it and repeat the call that wrote the store, with append=True: it writes what is "
            "missing."
        )

    def _check_size(self, record: Record) -> None:
        try:
            found = data_path(self.folder / SHARDS, record.key).stat().st_size
        except FileNotFoundError:
            raise self._damaged(record, "is missing") from None
        if found != record.n_bytes:
            raise self._damaged(record, f"should have {record.n_bytes:,} bytes and has {found:,}")

    @cached_property
    def vocab(self) -> GeneVocab:
        """Vocabulary of the gene ids."""
        return self._read_vocab()

    def _read_vocab(self) -> GeneVocab:
        path = self.folder / VOCAB
        found = GeneVocab.read(path) if path.is_file() else None
        if found is None or found.digest != self._vocab_digest:
            there = "is missing" if found is None else f"has the hash {found.digest}, not {self._vocab_digest}"
            msg = f"{path} {there}. Write the vocabulary that made the tokens: model.vocab.write({str(path)!r})."
            raise ValueError(msg)
        return found

    def require_vocab(self, vocab: GeneVocab) -> None:
        """Refuse a vocabulary that is not the one of the gene ids."""
        if vocab.digest != self._vocab_digest:
            msg = (
                f"The token store in {self.folder} has the vocabulary {self._vocab_digest}, the model {vocab.digest} "
                f"({len(vocab):,} entries): its gene ids mean other genes. Tokenise the cells anew with the vocabulary "
                "of the model, or train one with store.vocab."
            )
            raise ValueError(msg)

    def _shard(self, i: int) -> Shard:
        shard = self._open.pop(i, None) or Shard(self.folder / SHARDS, self._records[i])
        self._open[i] = shard
        while len(self._open) > _MOST_OPEN:
            self._open.pop(next(iter(self._open)), None)
        return shard

    @property
    def columns(self) -> list[str]:
        """Names of the annotations of the cells."""
        return list(self._records[0].columns) if self._records else []

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What the writer said of each shard."""
        return [dict(record.notes) for record in self._records]

    def _gathered(self, parts: Iterable[np.ndarray], dtype: DTypeLike) -> np.ndarray:
        listed = list(parts)
        return np.concatenate(listed) if listed else np.zeros(0, dtype)

    @property
    def shard_starts(self) -> np.ndarray:
        """Position of the first cell of each shard, and the number of cells; shape `(n_shards + 1,)`, int64."""
        return self._starts.copy()

    @cached_property
    def indptr(self) -> np.ndarray:
        """Cell `i` owns the tokens `indptr[i]:indptr[i + 1]`; shape `(n_cells + 1,)`, int64; read at first use."""
        firsts = np.cumsum([0, *(record.n_tokens for record in self._records)])
        parts = (self._shard(i).indptr[1:] + firsts[i] for i in range(len(self._records)))
        return np.concatenate([np.zeros(1, dtype=np.int64), *parts])

    @property
    def lengths(self) -> np.ndarray:
        """Number of genes of each cell, shape `(n_cells,)`, int64; of some cells: :meth:`lengths_of`."""
        return np.diff(self.indptr)

    @cached_property
    def names(self) -> np.ndarray:
        """Names of the cells, object, shape `(n_cells,)`; read at first use."""
        return self._gathered((self._shard(i).names() for i in range(len(self._records))), object)

    def column(self, name: str) -> np.ndarray:
        """An annotation of the cells, shape `(n_cells,)`: numbers, or text (object; NaN where missing)."""
        for record in self._records:
            if name not in record.columns:
                listed = ", ".join(record.columns) or "none"
                msg = f"Shard {record.key!r} of {self.folder} has no column {name!r}. Columns: {listed}."
                raise KeyError(msg)
        return self._gathered((self._shard(i).column(name) for i in range(len(self._records))), object)

    def lengths_of(self, cells: np.ndarray) -> np.ndarray:
        """Number of genes of the cells at these positions, shape `(n,)`, int64; reads no others."""
        return self._located(self._positions(cells))[2]

    def _located(self, cells: np.ndarray) -> tuple[list[tuple[int, np.ndarray]], np.ndarray, np.ndarray]:
        """Which of the cells each shard has, in ascending order; start in its shard and length of each cell."""
        order = np.argsort(cells, kind="stable")
        found = np.searchsorted(self._starts, cells[order], side="right") - 1
        touched, first = np.unique(found, return_index=True)
        groups = list(zip(touched.tolist(), np.split(order, first[1:]), strict=True)) if cells.size else []
        starts, lengths = np.empty_like(cells), np.empty_like(cells)
        for i, rows in groups:
            if not locate(self._shard(i).indptr, self._starts[i], cells, rows, starts, lengths):
                raise self._damaged(self._records[i], "has a damaged row pointer")
        return groups, starts, lengths

    def take(self, cells: np.ndarray) -> Tokens:
        """Tokens of the cells at these positions (int, shape `(n,)`), in that order, in memory."""
        cells = self._positions(cells)
        groups, starts, lengths = self._located(cells)
        indptr = np.zeros(cells.size + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        gene_ids, digits = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.uint8)
        for i, rows in groups:
            shard = self._shard(i)
            copy_cells(shard.gene_ids, shard.digits, starts, rows, indptr, gene_ids, digits)
        return Tokens(indptr, gene_ids, digits)

    def _positions(self, cells: np.ndarray) -> np.ndarray:
        cells = np.asarray(cells)
        if cells.ndim != 1:
            msg = f"cells has the shape {cells.shape}; it takes a row of positions, such as np.arange(0, 3)."
            raise TypeError(msg)
        if cells.size and cells.dtype.kind not in "iu":
            fix = "np.flatnonzero(mask)" if cells.dtype.kind == "b" else "integers"
            msg = f"cells has the type {cells.dtype}; it takes positions: {fix}."
            raise TypeError(msg)
        outside = (cells < 0) | (cells >= len(self))
        if outside.any():
            msg = f"There is no cell {cells[outside][0]}: positions run from 0 to {len(self) - 1:,}."
            raise IndexError(msg)
        return np.ascontiguousarray(cells, dtype=np.int64)

    def block(self, start: int, stop: int) -> Tokens:
        """Tokens of the cells `start:stop`; what lies beyond the last is left out."""
        return self.take(np.arange(start, min(stop, len(self))))

    def shards(self) -> Iterator[tuple[str, Tokens]]:
        """Key and tokens of each shard, in the order of the cells."""
        for i, record in enumerate(self._records):
            yield record.key, self.block(int(self._starts[i]), int(self._starts[i + 1]))

    def shard_names(self) -> Iterator[np.ndarray]:
        """Names of the cells of each shard; nothing stays in memory."""
        for i in range(len(self._records)):
            yield self._shard(i).names()

    def shard_columns(self, name: str) -> Iterator[np.ndarray]:
        """Values of an annotation of the cells of each shard; nothing stays in memory."""
        for i in range(len(self._records)):
            yield self._shard(i).column(name)

    def verify(self) -> None:
        """Read everything and compare checksums.

        Raises
        ------
        ValueError
            When a shard or the vocabulary is damaged; names it.
        """
        for record in self._records:
            self._check_size(record)
            found = checksum_of(data_path(self.folder / SHARDS, record.key))
            if found != record.checksum:
                raise self._damaged(record, f"has the checksum {found}, not {record.checksum}")
        self._read_vocab()

    def warn_of_repeated_names(self) -> None:
        """Log a warning when two cells have one name: they would share every random choice."""
        shards = (self._shard(i) for i in range(len(self._records)))
        keys = self._gathered((cell_keys(shard.names(), seed=0) for shard in shards), np.uint64)
        repeated = keys.size - np.unique(keys).size
        if repeated:
            logger.warning(
                "token store: %s of %s cells in %s have the name of another. If a file was added twice, write the "
                "store anew with overwrite=True.",
                f"{repeated:,}",
                f"{keys.size:,}",
                self.folder,
            )
