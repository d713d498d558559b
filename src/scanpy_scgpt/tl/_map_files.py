"""`tl.map_reference` of files: vectors, labels and shares go to a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from scanpy_scgpt._keys import EMBED
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._version import __version__
from scanpy_scgpt.disk import RowWriter, RunFolder, run_of
from scanpy_scgpt.model import BLOCK_ROWS, embed_files

from ._build_index import summary
from ._map_votes import Mapping
from ._vectors import RepVectors, Vectors

logger = get_logger(__name__)
_NOT_DECISIVE = {"device", "backend", "genes", "ignored_tensors"}


def map_to_file(vectors: Vectors, mapping: Mapping, out: Path, *, overwrite: bool) -> Path:
    """Map the cells of files into `out`; see :func:`scanpy_scgpt.tl.map_reference`.

    Parameters
    ----------
    vectors
        Of the query.
    mapping
        What takes the votes.
    out
        Place of the result.
    overwrite
        Replace what stands there.

    Returns
    -------
    `out`.

    Raises
    ------
    FileExistsError
        When `out` is something else.
    RuntimeError
        When another process is at work on it.
    """
    keys, cells, started = mapping.keys, vectors.cells, time.perf_counter()
    is_rep = isinstance(vectors, RepVectors)
    made = dict(vectors.origin) if is_rep else vectors.record
    inputs = [file.fingerprint() for file in cells.files] if is_rep else vectors.tokens.fingerprints()
    settled = {**mapping.record(), **mapping.search}
    identity = {
        "verb": "map_reference",
        "inputs": inputs,
        "made": {name: _plain(value) for name, value in made.items() if name not in _NOT_DECISIVE},
        "index": mapping.index.digest,
        "votes": {name: _plain(value) for name, value in settled.items() if not name.startswith("n_unmapped")},
        "prefix": keys.prefix,
        "version": __version__,
    }
    run = RunFolder(out, identity, found=run_of(out, verb=keys.uns), overwrite=overwrite)
    if run.finished:
        logger.info("map_reference: %s is the result of this very call; nothing to do.", out)
        return out
    obsm = vectors.key if is_rep else EMBED.obsm
    writer = RowWriter(run, key=obsm, n_obs=cells.n_obs, width=vectors.width, block_rows=BLOCK_ROWS)
    with run.alone("share-0-of-1") as alone:
        if not alone:
            msg = f"Another process is at work on {out} (or has just finished it). Wait for it, or name another place."
            raise RuntimeError(msg)
        if is_rep:
            for block in writer.todo():
                writer.write(block, vectors.take(*writer.bounds(block)), empty=[], n_cut=0)
        else:
            embed_files(vectors.tokens, vectors.embedder, writer, normalize=True)

    def describe() -> tuple[dict[str, Any], dict[str, Any]]:
        for block in range(writer.n_blocks):
            start, stop = writer.bounds(block)
            empty = np.zeros(stop - start, dtype=bool)
            empty[np.asarray(writer.noted(block)["empty"], dtype=np.int64) - start] = True
            mapping.add(start, writer.read(block), cells.names(start, stop), empty)
        record = {**vectors.origin, **mapping.record(), "n_cells": cells.n_obs}
        uns = {keys.uns: {**record, "run": run.digest, "version": __version__}}
        return uns if is_rep else {EMBED.uns: made, **uns}, mapping.columns()

    if writer.finish(cells.files, describe):
        for text in vectors.warnings:
            logger.warning("map_reference: %s", text)
        parts = [f"{cells.n_obs:,} cells of {len(cells.files)} file{'s' if len(cells.files) > 1 else ''}"]
        parts += [*vectors.said, summary(mapping.index), f"{mapping.n_neighbors} neighbours", *mapping.said()]
        logger.info("map_reference: %s · %.1f s → %s", " · ".join(parts), time.perf_counter() - started, out)
        mapping.warn()
    return out


def _plain(value: Any) -> Any:
    """A value as JSON holds it."""
    return value.tolist() if hasattr(value, "tolist") else value
