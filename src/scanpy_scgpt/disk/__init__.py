"""Cells, tokens and results on disk, in blocks of rows."""

from ._annbatch import AnnbatchCells, AnnotatedTokens
from ._blocks import Pool, block_order, shard_sizes
from ._cells import CellFile, as_cells, open_cells
from ._lock import alone_with
from ._matrix import DiskMatrix, rows_of
from ._obs import write_obs
from ._rewrite import rewrite
from ._row_batches import RowBatch, read_ahead, row_batches
from ._rows import RowWriter, check_suffix, run_of
from ._run_folder import RunFolder
from ._shards import Column, Record, Shard, write_file
from ._sparse import write_sparse_layer
from ._store import Beginnings, TokenStore, store_in
from ._store_writer import TokenStoreWriter

__all__ = [
    "AnnbatchCells",
    "AnnotatedTokens",
    "Beginnings",
    "CellFile",
    "Column",
    "DiskMatrix",
    "Pool",
    "Record",
    "RowBatch",
    "RowWriter",
    "RunFolder",
    "Shard",
    "TokenStore",
    "TokenStoreWriter",
    "alone_with",
    "as_cells",
    "block_order",
    "check_suffix",
    "open_cells",
    "read_ahead",
    "rewrite",
    "row_batches",
    "rows_of",
    "run_of",
    "shard_sizes",
    "store_in",
    "write_file",
    "write_obs",
    "write_sparse_layer",
]
