"""`tl.embed` of a MuData: every cell by the modalities that it has, as far as the checkpoint knows their features."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt._keys import UNS, EmbedKeys, IntegrateKeys
from scanpy_scgpt._logging import get_logger, quiet
from scanpy_scgpt._modalities import Modality, check_mudata, find_modalities, patterns_of, with_guesses
from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint

from ._mudata import layers_of

if TYPE_CHECKING:
    from mudata import MuData

    from scanpy_scgpt.model import Embedder

logger = get_logger(__name__)


def embed_mudata(
    mdata: MuData,
    checkpoint: Checkpoint,
    embedder: Embedder,
    *,
    layer: Mapping[str, str] | None,
    gene_symbols: str | None,
    min_genes: int,
    normalize: bool,
    seed: int,
    keys: EmbedKeys,
    copy: bool,
) -> MuData | None:
    """Write the vectors of all cells to `mdata.obsm`; a cell without any known feature has NaN.

    Parameters
    ----------
    mdata
        Cells; modalities are what :func:`scanpy_scgpt.tl.integrate` took them as, or found as it finds them.
    checkpoint
        Whose vocabulary and bins to use: genes, and proteins and peaks if it was trained on them.
    embedder
        Makes the vectors.
    layer, gene_symbols, min_genes, normalize, seed, copy
        Of :func:`scanpy_scgpt.tl.embed`; layers by modality.
    keys
        Slots.

    Returns
    -------
    The copy if one is asked for.
    """
    from scanpy_scgpt.model import plain_cells

    check_mudata(mdata, function="tl.embed")
    started = time.perf_counter()
    mdata = mdata.copy() if copy else mdata
    where = {"layers": layers_of(mdata, layer), "gene_symbols": gene_symbols, "min_genes": min_genes, "seed": seed}
    told = _told(mdata)
    cells = plain_cells(mdata, checkpoint, modalities=told, **where)
    with quiet("scanpy_scgpt._modalities", level=logging.ERROR):
        found = find_modalities(mdata, told)
    _require_known(cells.parts, found, checkpoint)
    vectors = embedder.embed_tokens(cells.tokens)
    if normalize:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    empty = cells.tokens.lengths == 0
    vectors[empty] = np.nan
    mdata.obsm[keys.obsm] = vectors.astype(np.float32)
    codes, names = patterns_of(mdata, found)
    mdata.obs[IntegrateKeys().modalities] = pd.Categorical.from_codes(codes, categories=names)
    record: dict[str, Any] = {
        "model": checkpoint.name,
        "model_hash": checkpoint.digest,
        "vocab_hash": checkpoint.vocab.digest,
        **embedder.record(),
        "modalities": list(cells.parts),
        "n_features": {kind: len(part.measured) for kind, part in cells.parts.items()},
        "normalize": normalize,
        "n_cells": mdata.n_obs,
        "n_empty_cells": int(empty.sum()),
        "key": keys.obsm,
        "seconds": time.perf_counter() - started,
        "version": __version__,
    }
    mdata.uns[UNS] = {**mdata.uns.get(UNS, {}), keys.uns: record}
    _receipt(record, checkpoint)
    return mdata if copy else None


def _told(mdata: MuData) -> Mapping[str, str] | None:
    """What the modalities are, where `tl.integrate` was told or found it out."""
    records = [one for name, one in mdata.uns.get(UNS, {}).items() if name.startswith(IntegrateKeys().uns)]
    told = [one["modalities"] for one in records if set(one.get("modalities", ())) & set(mdata.mod)]
    if not told:
        return None
    return with_guesses(mdata, {name: str(kind) for name, kind in told[-1].items()})


def _require_known(parts: Mapping[str, Any], found: Sequence[Modality], checkpoint: Checkpoint) -> None:
    """The checkpoint must know a modality."""
    if not parts:
        listed = ", ".join(f"{one.name!r} is {one.kind}" for one in found)
        msg = (
            f"{checkpoint.label} knows nothing of these cells: {listed}. Proteins and peaks become known by training: "
            "scgpt.tl.integrate(mdata)."
        )
        raise ValueError(msg)


def _receipt(record: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    used = ", ".join(f"{n:,} features of {kind}" for kind, n in record["n_features"].items())
    text = "embed: %s cells · %s · %s · %.0f s → obsm[%r]"
    logger.info(text, f"{record['n_cells']:,}", used, checkpoint.label, record["seconds"], record["key"])
    if record["n_empty_cells"]:
        logger.warning(
            "embed: %s cells have nothing that %s knows, and NaN. Proteins and peaks become known by training: "
            "scgpt.tl.integrate(mdata).",
            f"{record['n_empty_cells']:,}",
            checkpoint.label,
        )
