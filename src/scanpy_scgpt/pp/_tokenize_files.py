"""`pp.tokenize` of files: tokens to a token store, or to an AnnData file; a killed call goes on when it is repeated."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt._counts import CountSource, choose_counts
from scanpy_scgpt._keys import TOKENIZE
from scanpy_scgpt._modalities import own_columns
from scanpy_scgpt._progress import track
from scanpy_scgpt._validate import naming
from scanpy_scgpt._version import __version__
from scanpy_scgpt.disk import (
    CellFile,
    RunFolder,
    TokenStore,
    TokenStoreWriter,
    open_cells,
    run_of,
    write_sparse_layer,
)
from scanpy_scgpt.tokenizer import GeneMatch, GeneTable, Tokenizer, match_genes, require_enough

_SHARD = 2**14  # cells that a kill can cost
_ROWS = 4096  # cells copied at a time
STORE_SUFFIX = ".tokens"


@dataclass(frozen=True)
class FileTokens:
    """What a file of cells gives: its counts and what its genes became."""

    file: CellFile
    source: CountSource
    match: GeneMatch


def open_files(
    paths: list[Path],
    tokenizer: Tokenizer,
    *,
    layer: str | None,
    use_raw: bool | None,
    gene_symbols: str | None,
    gene_table: pd.DataFrame | None,
    min_genes: int,
) -> list[FileTokens]:
    """Open files, find counts and match genes; arguments as in :func:`scanpy_scgpt.pp.tokenize`."""
    table = None if gene_table is None else GeneTable(gene_table)
    opened = []
    for path in paths:
        file = open_cells(path)
        with naming(path):
            source = choose_counts(file, layer=layer, use_raw=use_raw)
            columns = source.gene_columns(gene_symbols)
            genes = own_columns(source.var, "rna")
            match = match_genes(source.var.index, tokenizer.vocab, columns=columns, gene_table=table, among=genes)
            require_enough(match, tokenizer.vocab, min_genes=min_genes)
        opened.append(FileTokens(file, source, match))
    return opened


def tokenize_to_file(
    files: list[FileTokens], tokenizer: Tokenizer, out: Path, record: Mapping[str, Any], *, seed: int, overwrite: bool
) -> bool:
    """Tokenise files into `out`; False when it was there already, made by this very call."""
    inputs = [{**x.file.fingerprint(), "source": x.source.where, "genes": x.match.digest} for x in files]
    settings = {"vocab": tokenizer.vocab.digest, **tokenizer.config.to_dict(), "seed": str(seed)}
    identity = {"verb": "tokenize", "inputs": inputs, **settings, "version": __version__}
    if out.suffix == STORE_SUFFIX:
        if not overwrite and _is_made(out, identity):
            return False
        _write_store(files, tokenizer, out, identity, seed=seed, overwrite=overwrite)
        return True
    run = RunFolder(out, identity, found=run_of(out, verb=TOKENIZE.uns), overwrite=overwrite)
    if run.finished:
        return False
    with run.alone() as alone:
        if not alone:
            msg = f"Another process is at work on {out} (or has just finished it). Wait for it, then repeat the call."
            raise RuntimeError(msg)
        store = _finished_store(run.path / "tokens")
        if store is None:
            store = _write_store(files, tokenizer, run.path / "tokens", identity, seed=seed)
        uns = {"scgpt": {TOKENIZE.uns: {**record, "run": run.digest}}}
        run.place(_write_layer(files, tokenizer, store, run.path / f"result{out.suffix}", uns))
    return True


def _write_layer(
    files: list[FileTokens], tokenizer: Tokenizer, store: TokenStore, path: Path, uns: Mapping[str, Any]
) -> Path:
    """Write the tokens of a store as a layer of an AnnData file."""
    var = _var_of(files, tokenizer)
    ids = var[TOKENIZE.token].to_numpy()
    columns = np.full(len(tokenizer.vocab), -1, dtype=np.int32)
    known = np.flatnonzero(ids >= 0)[::-1]
    columns[ids[known]] = known  # of several columns the first is written last
    blocks = _layer_blocks(store, columns, len(var))
    return write_sparse_layer(path, blocks, layer=TOKENIZE.layer, files=[x.file for x in files], var=var, uns=uns)


def _is_made(folder: Path, identity: Mapping[str, Any]) -> bool:
    store = _finished_store(folder)
    return store is not None and store.origins == [dict(identity)]


def _finished_store(folder: Path) -> TokenStore | None:
    try:
        return TokenStore(folder)
    except (ValueError, OSError):
        return None


def _write_store(
    files: list[FileTokens],
    tokenizer: Tokenizer,
    folder: Path,
    identity: Mapping[str, Any],
    *,
    seed: int,
    overwrite: bool = False,
) -> TokenStore:
    total = sum(x.source.n_obs for x in files)
    with (
        TokenStoreWriter(folder, tokenizer.vocab, tokenizer.config, origin=identity, overwrite=overwrite) as writer,
        track("tokenize", total=total) as advance,
    ):
        for number, x in enumerate(files):
            for start in range(0, x.source.n_obs, _SHARD):
                key, stop = f"{number}-{start // _SHARD}", min(start + _SHARD, x.source.n_obs)
                if not writer.has(key):
                    names = x.file.names(start, stop)
                    with naming(x.file.path):
                        counts = x.source.rows(start, stop)
                    tokens = tokenizer.bins(counts, x.match.ids, names, seed=seed)
                    writer.write(key, tokens, names, _columns(x.file, start, stop))
                advance(stop - start)
        return writer.finish()


def _columns(file: CellFile, start: int, stop: int) -> dict[str, np.ndarray]:
    """What a store keeps of each cell besides its name: its file, and its study (the name of the file without one)."""
    n = stop - start
    has_study = "study" in file.obs_columns
    study = file.obs_texts("study", start, stop) if has_study else np.full(n, file.path.stem, dtype=object)
    return {"file": np.full(n, file.path.name, dtype=object), "study": study}


def _var_of(files: list[FileTokens], tokenizer: Tokenizer) -> pd.DataFrame:
    """Genes of the result: those of the file, or of several files the genes of the vocabulary that any has."""
    if len(files) == 1:
        var, match = files[0].file.var.copy(), files[0].match.among(files[0].file.var.index)
        return var.assign(**{TOKENIZE.token: match.ids, TOKENIZE.match: pd.Categorical(match.how)})
    ids = np.unique(np.concatenate([x.match.ids for x in files]))
    ids = ids[ids >= 0]
    names = np.asarray(tokenizer.vocab.tokens, dtype=object)[ids]
    return pd.DataFrame({TOKENIZE.token: ids}, index=pd.Index(names))


def _layer_blocks(store: TokenStore, columns: np.ndarray, n_vars: int) -> Iterator[sparse.csr_matrix]:
    """Rows of the layer, block by block."""
    for start in range(0, len(store), _ROWS):
        tokens = store.block(start, min(start + _ROWS, len(store)))
        tokens = tokens.masked(columns[tokens.gene_ids] >= 0)
        shape = (len(tokens), n_vars)
        block = sparse.csr_matrix((tokens.values, columns[tokens.gene_ids], tokens.indptr), shape=shape)
        yield block.sorted_indices()


def check_place(out: str | os.PathLike[str] | None, paths: list[Path]) -> Path:
    """Where tokens of files go.

    Raises
    ------
    ValueError
        Without a place, or for one of another kind.
    """
    stem = paths[0].stem
    if out is None:
        msg = f"pp.tokenize of a file needs a place for the tokens: out={stem + STORE_SUFFIX!r} or {stem + '.zarr'!r}."
        raise ValueError(msg)
    out = Path(out).expanduser()
    if out.suffix not in {STORE_SUFFIX, ".zarr", ".h5ad"}:
        msg = (
            f"out={str(out)!r}: use a name that ends in {STORE_SUFFIX} (a token store, for training), .zarr or .h5ad "
            "(an AnnData file with a layer)."
        )
        raise ValueError(msg)
    if out.resolve() in {path.resolve() for path in paths}:
        msg = f"out={str(out)!r} is one of the input files. Name another place."
        raise ValueError(msg)
    return out
