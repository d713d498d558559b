"""Files of cells to a file of vectors, block by block; a killed run goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from scanpy_scgpt._progress import track
from scanpy_scgpt._validate import naming
from scanpy_scgpt.disk import RowWriter, open_cells
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.tokenizer import TokenizerConfig, Tokens

from ._cells import CellTokens
from ._inference import Embedder

BLOCK_ROWS = 1024  # cells of a block on CPU: a kill costs those of two blocks


class CellFiles:
    """The tokens of the cells of files with different genes, the files one after the other.

    Parameters
    ----------
    paths
        `.h5ad`, `.zarr` or `.h5mu` files, cells by rows.
    checkpoint
        Whose vocabulary to use.
    config
        How counts become tokens.
    **settings
        As in :class:`CellTokens`.

    Attributes
    ----------
    parts
        The tokens of each file.
    starts
        Number of cells before each file, and of all; shape `(n_files + 1,)`.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        checkpoint: Checkpoint,
        config: TokenizerConfig,
        **settings: Any,
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self.files = [open_cells(path) for path in self.paths]
        self.parts = []
        for path, file in zip(self.paths, self.files, strict=True):
            with naming(path):
                self.parts.append(CellTokens(file, checkpoint, config, **settings))
        self.starts = np.cumsum([0, *(part.source.n_obs for part in self.parts)])

    @property
    def n_obs(self) -> int:
        """Number of all cells."""
        return int(self.starts[-1])

    def encode(self, start: int, stop: int) -> tuple[Tokens, np.ndarray]:
        """Tokens of the cells `start:stop`, and the number of genes of each before the cut."""
        pieces = []
        for path, part, first, last in zip(self.paths, self.parts, self.starts[:-1], self.starts[1:], strict=True):
            if start < last and stop > first:
                with naming(path):
                    pieces.append(part.encode(max(start, first) - first, min(stop, last) - first))
        return Tokens.concatenate([tokens for tokens, _ in pieces]), np.concatenate([whole for _, whole in pieces])

    def fingerprints(self) -> list[dict[str, Any]]:
        """What tells the files from others, and which of their values are read."""
        return [
            {**file.fingerprint(), "source": part.source.where, "genes": part.match.digest}
            for file, part in zip(self.files, self.parts, strict=True)
        ]

    def record(self) -> dict[str, Any]:
        """Where the tokens come from, as kept in `.uns`; of several files the genes of each by name."""
        record = self.parts[0].record()
        if len(self.parts) > 1:
            for key in ("source", "values"):
                record[key] = ", ".join(dict.fromkeys(part.record()[key] for part in self.parts))
            record["genes"] = {f"{i}_{path.name}": part.record()["genes"] for i, (path, part) in self._numbered()}
        return {**record, "files": [path.name for path in self.paths]}

    def _numbered(self) -> Iterator[tuple[int, tuple[Path, CellTokens]]]:
        return enumerate(zip(self.paths, self.parts, strict=True))


def embed_files(
    cells: CellFiles, embedder: Embedder, writer: RowWriter, *, normalize: bool, shard: tuple[int, int] = (0, 1)
) -> int:
    """Embed the blocks of a shard that are not written yet.

    While a block is encoded, the next one is read and the one before is written.

    Parameters
    ----------
    cells
        What to embed.
    embedder
        The model.
    writer
        Where vectors go.
    normalize
        Scale each vector to length 1.
    shard
        Which share of the blocks, of how many.

    Returns
    -------
    Number of cells that were embedded now.
    """
    todo = writer.todo(shard)
    total, n_now = sum(stop - start for start, stop in map(writer.bounds, todo)), 0
    embedder.expect(total)
    with track("embed", total=total) as advance, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as scribe:
        ahead = reader.submit(cells.encode, *writer.bounds(todo[0])) if todo else None
        written = None
        for block, after in zip_longest(todo, todo[1:]):
            tokens, whole = ahead.result()
            if after is not None:
                ahead = reader.submit(cells.encode, *writer.bounds(after))
            vectors = embedder.embed_tokens(tokens)
            if normalize:
                vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
            empty = np.flatnonzero(tokens.lengths == 0) + writer.bounds(block)[0]
            if written is not None:
                written.result()
            notes = {"empty": empty.tolist(), "n_cut": int((tokens.lengths < whole).sum())}
            written = scribe.submit(writer.write, block, vectors, **notes)
            n_now += len(tokens)
            advance(len(tokens))
        if written is not None:
            written.result()
    return n_now
