"""Vectors of cells for an index or its queries: embedded, or taken out of `.obsm`; of an AnnData or of files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt._keys import EMBED, UNS
from scanpy_scgpt._progress import track
from scanpy_scgpt._validate import check_key, naming
from scanpy_scgpt.disk import CellFile, DiskMatrix, open_cells
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.model import BLOCK_ROWS, CellFiles, CellTokens, Embedder

from ._embed import embedded

if TYPE_CHECKING:
    from anndata import AnnData

_REP_ROWS = 2**14  # rows of `.obsm` at a time
MADE_BY = ("model", "model_hash", "pooling", "normalize", "tokens_max_length", "tokens_select", "tokens_ties")
"""Entries of the record of `tl.embed` that tell whether vectors may be compared."""


class Cells:
    """Names and columns of the cells of an AnnData, or of files one after the other.

    Parameters
    ----------
    adata
        Cells in memory, or None.
    files
        Files of cells.
    """

    def __init__(self, adata: AnnData | None, files: list[CellFile] | None = None) -> None:
        self.adata, self.files = adata, files or []
        self.starts = np.cumsum([0, *(file.n_obs for file in self.files)])
        self.n_obs = int(self.starts[-1]) if adata is None else adata.n_obs

    def check_column(self, key: str) -> None:
        """There must be a column of this name.

        Raises
        ------
        KeyError
            When there is none.
        """
        if self.adata is not None:
            check_key(self.adata.obs, key, where="obs of the reference")
        for file in self.files:
            check_key(pd.DataFrame(columns=file.obs_columns), key, where=f"obs of {file.path}")

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[CellFile, int, int]]:
        for file, first, last in zip(self.files, self.starts[:-1], self.starts[1:], strict=True):
            if start < last and stop > first:
                yield file, int(max(start, first) - first), int(min(stop, last) - first)

    def names(self, start: int, stop: int) -> np.ndarray:
        """Names of the cells `start:stop`, object."""
        if self.adata is not None:
            return np.asarray(self.adata.obs_names[start:stop], dtype=object)
        parts = [file.names(first, last) for file, first, last in self._pieces(start, stop)]
        return np.concatenate(parts).astype(object)

    def column(self, key: str, start: int, stop: int) -> np.ndarray:
        """Values of a column of the cells `start:stop`, object."""
        if self.adata is not None:
            return np.asarray(self.adata.obs[key].iloc[start:stop], dtype=object)
        parts = [file.obs_texts(key, first, last) for file, first, last in self._pieces(start, stop)]
        return np.concatenate(parts).astype(object)


class RepVectors:
    """Vectors that stand in `.obsm`.

    Parameters
    ----------
    cells
        Whose vectors.
    key
        Name in `.obsm`.

    Attributes
    ----------
    origin
        What made them, as far as it is recorded.

    Raises
    ------
    KeyError
        When there is no such entry.
    """

    def __init__(self, cells: Cells, key: str) -> None:
        self.cells, self.key = cells, key
        if cells.adata is not None:
            check_key(pd.DataFrame(columns=list(cells.adata.obsm)), key, where="obsm")
            self._parts: list[Any] = [cells.adata.obsm[key]]
            records = [cells.adata.uns.get(UNS, {})]
        else:
            self._parts = [_rep_of(file, key) for file in cells.files]
            records = [_records_of(file) for file in cells.files]
        self.origin = _common([record_of(record, key) for record in records]) | {"use_rep": key}
        made = self.origin.get("model")
        self.said = [f"vectors of obsm[{key!r}]" + (f" ({made}@{self.origin['model_hash']})" if made else "")]
        self.warnings: list[str] = []

    @property
    def width(self) -> int:
        """Number of values of a vector."""
        return int(self._parts[0].shape[1])

    def take(self, start: int, stop: int) -> np.ndarray:
        """Vectors of the cells `start:stop`."""
        if self.cells.adata is not None:
            return _dense(self._parts[0][start:stop])
        pieces, starts = [], self.cells.starts
        for part, first, last in zip(self._parts, starts[:-1], starts[1:], strict=True):
            if start < last and stop > first:
                pieces.append(_dense(part[int(max(start, first) - first) : int(min(stop, last) - first)]))
        return np.concatenate(pieces)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Rows, vectors, and which cells have no gene of the vocabulary, block after block."""
        for start in range(0, self.cells.n_obs, _REP_ROWS):
            rows = slice(start, min(start + _REP_ROWS, self.cells.n_obs))
            yield rows, self.take(rows.start, rows.stop), np.zeros(rows.stop - start, dtype=bool)


class EmbeddedVectors:
    """Vectors that a model makes now.

    Parameters
    ----------
    cells
        What to embed.
    checkpoint
        The model.
    where
        Where counts and gene names are, `min_genes`, `seed`.
    engine
        `device`, `max_tokens`, `precision`.
    settings
        Pooling and token settings by the names of a record of `tl.embed`; those of the checkpoint where none are named.

    Attributes
    ----------
    origin
        Model and settings.
    tokens, embedder
        Its parts.
    """

    def __init__(
        self,
        cells: Cells,
        checkpoint: Checkpoint,
        *,
        where: Mapping[str, Any],
        engine: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> None:
        self.cells, self.checkpoint, self._engine = cells, checkpoint, dict(engine)
        named = {name: settings.get(f"tokens_{name}") for name in ("max_length", "select", "ties")}
        config = checkpoint.tokenizer.updated(**named)
        self.pooling = settings.get("pooling") or checkpoint.info.get("pooling", "cls")
        if cells.adata is not None:
            self.tokens: CellTokens | CellFiles = CellTokens(cells.adata, checkpoint, config, **where)
        else:
            self.tokens = CellFiles([file.path for file in cells.files], checkpoint, config, **where)
        self.embedder = Embedder(checkpoint, pooling=self.pooling, backend="auto", **engine)
        self.record = {**self.tokens.record(), **self.embedder.record(), "normalize": True, "key": EMBED.obsm}
        self.origin = {name: self.record[name] for name in MADE_BY}
        matches = [self.tokens] if cells.adata is not None else self.tokens.parts
        genes = matches[0].match.summary() if len(matches) == 1 else f"{len(matches)} gene sets"
        self.said = [genes, f"{checkpoint.label} · {self.record['device']} {self.record['precision']}"]
        self.warnings = [text for part in matches if (text := part.match.warning())]

    @property
    def width(self) -> int:
        """Number of values of a vector."""
        return self.embedder.n_latent

    def blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Rows, vectors of length 1, and which cells have no gene of the vocabulary, block after block."""
        if self.cells.adata is not None:
            given = {**self._engine, "backend": "auto", "pooling": self.pooling}
            _, vectors = embedded(self.tokens, self.embedder, given, normalize=True)
            yield slice(0, len(vectors)), vectors, self.tokens.empty
            return
        self.embedder.expect(self.cells.n_obs)
        with track("embed", total=self.cells.n_obs) as advance:
            for start in range(0, self.cells.n_obs, BLOCK_ROWS):
                rows = slice(start, min(start + BLOCK_ROWS, self.cells.n_obs))
                tokens, _ = self.tokens.encode(rows.start, rows.stop)
                vectors = self.embedder.embed_tokens(tokens)
                vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
                yield rows, vectors, tokens.lengths == 0
                advance(len(tokens))


Vectors = RepVectors | EmbeddedVectors


def cells_of(data: Any, paths: list[Path] | None) -> Cells:
    """The cells of an AnnData, or of files."""
    return Cells(data) if paths is None else Cells(None, [open_cells(path) for path in paths])


def record_of(records: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What made the vectors at `obsm[key]`, out of `.uns["scgpt"]`; empty where nothing is recorded."""
    for record in records.values():
        if isinstance(record, Mapping) and str(record.get("key", "")) == key and "model_hash" in record:
            return {name: _plain(record[name]) for name in MADE_BY if name in record}
    return {}


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return value.decode() if isinstance(value, bytes) else value


def _common(origins: list[dict[str, Any]]) -> dict[str, Any]:
    """What made the vectors of several files, which must be the same."""
    other = next((origin for origin in origins if origin != origins[0]), None)
    if other is not None:
        made = [origin.get("model_hash", "something else") for origin in (origins[0], other)]
        msg = f"The vectors of the files were made by {made[0]} and {made[1]}: embed all files by one model."
        raise ValueError(msg)
    return dict(origins[0])


def _records_of(file: CellFile) -> dict[str, Any]:
    try:
        return dict(file.read(f"uns/{UNS}"))
    except KeyError:
        return {}


def _rep_of(file: CellFile, key: str) -> DiskMatrix:
    with naming(file.path):
        try:
            return DiskMatrix(file.path, file.place(f"obsm/{key}"))
        except KeyError as error:
            msg = f"there is no obsm[{key!r}]. Embed it first: scgpt.tl.embed({os.fspath(file.path)!r}, out=...)."
            raise KeyError(msg) from error


def _dense(values: Any) -> np.ndarray:
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float32)
