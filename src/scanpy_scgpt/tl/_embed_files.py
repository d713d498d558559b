"""`tl.embed` of files: vectors go to a file, a killed call goes on when it is repeated."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scanpy_scgpt._keys import EMBED, EmbedKeys
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._version import __version__
from scanpy_scgpt.disk import RowWriter, RunFolder, check_suffix, run_of
from scanpy_scgpt.model import BLOCK_ROWS, CellFiles, Embedder, embed_files

logger = get_logger(__name__)


def check_places(
    paths: list[Path] | None, out: str | os.PathLike[str] | None, shard: tuple[int, int] | None, *, verb: str
) -> None:
    """Refuse files without a place for the result, and a place without files.

    Raises
    ------
    ValueError
        When `out`, the input or `shard` do not fit each other.
    """
    if paths is None:
        if out is not None or shard is not None:
            msg = f"{verb}: out= and shard= are for files. Give the path of a file, or leave them out."
            raise ValueError(msg)
        return
    if out is None:
        msg = f"{verb} of a file needs a place for the result: out={paths[0].stem + '_scgpt.zarr'!r}."
        raise ValueError(msg)
    check_suffix(Path(out).expanduser())
    if Path(out).resolve() in {path.resolve() for path in paths}:
        msg = f"out={str(out)!r} is one of the input files. Name another place."
        raise ValueError(msg)
    if shard is None:
        return
    whole = isinstance(shard, tuple | list) and len(shard) == len("ab") and all(isinstance(x, int) for x in shard)
    if not whole or not 0 <= shard[0] < shard[1]:
        msg = f"shard={shard!r}: give (which, of how many), counted from 0, such as (0, 4) to (3, 4)."
        raise ValueError(msg)


def embed_to_file(
    cells: CellFiles,
    embedder: Embedder,
    out: Path,
    *,
    keys: EmbedKeys,
    normalize: bool,
    overwrite: bool,
    shard: tuple[int, int] | None,
) -> Path:
    """Embed the cells of files into `out`; see :func:`scanpy_scgpt.tl.embed`."""
    record = {**cells.record(), **embedder.record(), "normalize": normalize, "key": keys.obsm}
    decides = {name: value for name, value in record.items() if name not in {"device", "backend", "genes"}}
    block_rows = BLOCK_ROWS if embedder.on_cpu else 8 * BLOCK_ROWS  # a GPU should not wait between blocks
    identity = {"verb": "embed", "inputs": cells.fingerprints(), **decides, "block_rows": block_rows}
    identity["version"] = __version__
    run = RunFolder(out, identity, found=run_of(out, verb=keys.uns), overwrite=overwrite)
    if run.finished:
        logger.info("embed: %s is the result of this very call; nothing to do.", out)
        return out
    writer = RowWriter(run, key=keys.obsm, n_obs=cells.n_obs, width=embedder.n_latent, block_rows=block_rows)
    started, share = time.perf_counter(), shard or (0, 1)
    with run.alone("share-{}-of-{}".format(*share)) as alone:
        if not alone:
            msg = (
                f"Another process is at work on share {share} of {out} (or has just finished it). Wait for it; to work "
                "together, give each process a share of its own: shard=(0, 2) and shard=(1, 2)."
            )
            raise RuntimeError(msg)
        n_now = embed_files(cells, embedder, writer, normalize=normalize, shard=share)
    seconds = time.perf_counter() - started
    if out.exists() and not run.path.exists():
        return out  # another share was the last one
    if not writer.complete:
        logger.info("embed: share %s is done; other shares of %s are missing yet.", share, out)
        return out

    def describe() -> tuple[dict[str, Any], dict[str, Any]]:
        is_empty, n_cut = np.zeros(cells.n_obs, dtype=np.int8), 0
        for noted in map(writer.noted, range(writer.n_blocks)):
            is_empty[noted["empty"]] = 1
            n_cut += noted["n_cut"]
        record.update(n_cells=cells.n_obs, n_empty_cells=int(is_empty.sum()), n_cut_cells=n_cut)
        record.update(run=run.digest, version=__version__)
        quality = {EMBED.quality: pd.Categorical.from_codes(is_empty, ["ok", "empty"])}
        return {keys.uns: record}, quality if is_empty.any() else {}

    if writer.finish(cells.files, describe):
        _receipt(record, cells, out, n_now=n_now, rate=n_now / max(seconds, 1e-9))
    return out


def _receipt(record: dict[str, Any], cells: CellFiles, out: Path, *, n_now: int, rate: float) -> None:
    before = f", {record['n_cells'] - n_now:,} of them before this call" if n_now < record["n_cells"] else ""
    logger.info(
        "embed: %s cells of %s%s · %s · %s · %s %s · %s cells/s → %s, obsm[%r]",
        f"{record['n_cells']:,}",
        f"{len(cells.paths)} file{'s' if len(cells.paths) > 1 else ''}",
        before,
        cells.parts[0].match.summary() if len(cells.paths) == 1 else f"{len(cells.paths)} gene sets",
        cells.parts[0].checkpoint.label,
        record["device"],
        record["precision"],
        f"{rate:,.0f}",
        out,
        record["key"],
    )
    for path, part in zip(cells.paths, cells.parts, strict=True):
        if len(cells.paths) > 1:
            logger.info("embed: %s: %s", path.name, part.match.summary())
        if warning := part.match.warning():
            logger.warning("embed: %s: %s", path.name, warning)
    if record["n_empty_cells"]:
        logger.warning(
            "embed: %s cells have no gene of the vocabulary and got the vector of an empty cell; they are marked in "
            "obs[%r].",
            f"{record['n_empty_cells']:,}",
            EMBED.quality,
        )
