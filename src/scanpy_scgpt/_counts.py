"""Which matrix of an AnnData holds the counts, and its rows as CSR. Reads the object, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from ._logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

logger = get_logger(__name__)

_SCAN = 2**22  # values looked at in one go
_SAMPLED_ROWS = 512  # rows per place that are looked at when the matrix lies on disk
_LOGGED_MAX = 30  # log1p of any sensible normalised count stays below this
SYMBOL_COLUMNS = ("gene_symbols", "gene_symbol", "symbol", "gene_name", "gene_names", "feature_name")
ENSEMBL_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "ensembl", "feature_id")


@dataclass
class _Seen:
    """What the values of a matrix look like."""

    minimum: float = 0.0
    maximum: float = 0.0
    n_bad: int = 0
    n_negative: int = 0
    n_values: int = 0
    whole: bool = True

    def add(self, values: np.ndarray) -> None:
        for start in range(0, values.size, _SCAN):
            part = values[start : start + _SCAN]
            self.n_values += part.size
            if part.dtype.kind == "f":
                finite = np.isfinite(part)
                if not finite.all():
                    self.n_bad += int(part.size - finite.sum())
                    part = part[finite]
                self.whole = self.whole and bool((part == np.floor(part)).all())
            if part.size:
                self.minimum = min(self.minimum, float(part.min()))
                self.maximum = max(self.maximum, float(part.max()))
                self.n_negative += int((part < 0).sum()) if self.minimum < 0 else 0

    @property
    def is_counts(self) -> bool:
        return self.whole and self.n_bad == 0 and self.minimum >= 0


def _refusal(text: str, **no_counts: str) -> ValueError:
    """An error about values that no counts are; its `no_counts` says `where` they are and what was `found`."""
    error = ValueError(text)
    error.no_counts = no_counts
    return error


def _is_fine(values: np.ndarray) -> bool:
    """True without NaN, infinite and negative values; two passes, nothing allocated."""
    return values.size == 0 or bool(values.min() >= 0 and values.max() < np.inf)


def by_columns_text(where: str, path: Path | None = None) -> str:
    """What is said of a matrix on disk that cannot be read by rows."""
    text = f"{where} lies on disk by columns (CSC), cells cannot be read from it one block at a time. "
    if path is not None:
        return f"{text}Rewrite it by rows: scanpy_scgpt.disk.rewrite({str(path)!r}, {path.stem + '-rows.h5ad'!r})."
    return (
        f"{text}When it is larger than the memory: scanpy_scgpt.disk.rewrite(path, out). "
        "Rewrite it by rows: a = adata.to_memory(); a.X = a.X.tocsr(); a.write_h5ad(path)."
    )


@dataclass
class CountSource:
    """One matrix of an AnnData, read by rows.

    Attributes
    ----------
    where
        Its place, such as `X`, `raw.X` or `layers['counts']`.
    matrix
        The matrix: dense, any sparse class, or on disk; shape `(n_obs, n_vars)`.
    var
        Annotation of its columns.
    """

    where: str
    matrix: Any
    var: pd.DataFrame

    def __post_init__(self) -> None:
        if getattr(self.matrix, "format", None) == "csc":
            if not sparse.issparse(self.matrix):
                raise ValueError(by_columns_text(self.where, getattr(self.matrix, "path", None)))
            self.matrix = self.matrix.tocsr()

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.matrix.shape[0]

    @property
    def on_disk(self) -> bool:
        """True when rows are read from a file."""
        return not (sparse.issparse(self.matrix) or isinstance(self.matrix, np.ndarray))

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows `start:stop` as a CSR matrix with sorted columns; refuses NaN and negative values."""
        if hasattr(self.matrix, "take_looked_at"):
            return self.take_blocks(np.array([start]), np.array([min(stop, self.n_obs)]))
        return self._checked(self._slice(start, stop))

    def take_blocks(self, starts: np.ndarray, stops: np.ndarray) -> sparse.csr_matrix:
        """Rows of several ranges, one after another in the order asked for; as :meth:`rows`.

        Parameters
        ----------
        starts, stops
            First rows, and rows after the last ones, of the ranges; int, shape `(n_ranges,)`.
        """
        if hasattr(self.matrix, "take_looked_at"):
            block, is_fine = self.matrix.take_looked_at(starts, stops)
            return self._checked(block, is_fine=is_fine)
        parts = [self.rows(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)]
        empty = sparse.csr_matrix((0, self.matrix.shape[1]), dtype=parts[0].dtype if parts else self.matrix.dtype)
        return parts[0] if len(parts) == 1 else sparse.vstack([*parts, empty], format="csr")

    def _checked(self, block: Any, *, is_fine: bool = False) -> sparse.csr_matrix:
        if block.dtype == np.float16:
            block = block.astype(np.float32)  # scipy has no sparse half precision
        block = sparse.csr_matrix(block)
        if not block.has_canonical_format:  # unsorted, or an entry in parts
            block = block.copy()  # a slice shares its values with the matrix of the user
            block.sum_duplicates()
        if self.on_disk and not is_fine and not _is_fine(block.data):
            self.check_values(block.data)
        return block

    def check_values(self, values: np.ndarray) -> None:
        """Refuse NaN, infinite and negative values among those of a block."""
        seen = _Seen()
        seen.add(values)
        self._refuse(seen)

    def _slice(self, start: int, stop: int) -> Any:
        block = self.matrix[start:stop]
        return block.compute() if hasattr(block, "compute") else block  # a dask array

    def _blocks(self) -> Iterator[np.ndarray]:
        if sparse.issparse(self.matrix):
            yield self.matrix.data
            return
        step = max(_SCAN // max(self.matrix.shape[1], 1), 1)
        starts = range(0, self.n_obs, step)
        if self.on_disk:
            step = _SAMPLED_ROWS
            starts = sorted({0, max(self.n_obs // 2 - step, 0), max(self.n_obs - step, 0)})
        for start in starts:
            block = self._slice(start, start + step)
            yield block.data if sparse.issparse(block) else np.asarray(block).ravel()

    @cached_property
    def seen(self) -> _Seen:
        """What its values look like; of a matrix on disk a sample."""
        seen = _Seen()
        for values in self._blocks():
            seen.add(values)
        return seen

    def check(self) -> None:
        """Refuse NaN and negative values among those looked at (all of a matrix in memory)."""
        self._refuse(self.seen)

    def _refuse(self, seen: _Seen) -> None:
        if seen.n_bad:
            raise _refusal(self._bad_text(seen), where=self.where, found=f"{seen.n_bad:,} NaN or infinite values")
        if seen.n_negative:
            share = seen.n_negative / max(seen.n_values, 1)
            msg = (
                f"{self.where} has negative values (minimum {seen.minimum:.3g}; {share:.0%} of the entries looked "
                "at): it looks scaled. Tokens need counts, or values whose order inside a cell is that of the counts."
            )
            raise _refusal(msg, where=self.where, found=f"negative values (minimum {seen.minimum:.3g})")

    def _bad_text(self, seen: _Seen) -> str:
        place = "one of its blocks" if self.on_disk else "it"
        first = ""
        if not self.on_disk:
            first = f" First at row {self._first_bad()}."
        target = "adata.X" if self.where == "X" else f"adata.{self.where}"
        fix = (
            f"{target}.data = np.nan_to_num({target}.data)"
            if sparse.issparse(self.matrix)
            else (f"{target} = np.nan_to_num({target})")
        )
        if self.on_disk:
            fix = "a = adata.to_memory(); a.X.data = np.nan_to_num(a.X.data); a.write_h5ad('new.h5ad')"
        return f"{self.where}: {place} holds {seen.n_bad:,} NaN or infinite values.{first} Find out why, or set: {fix}"

    def _first_bad(self) -> int:
        if sparse.issparse(self.matrix):
            at = int(np.flatnonzero(~np.isfinite(self.matrix.data))[0])
            if self.matrix.format != "csr":
                return int(self.matrix.tocoo().row[at])
            return int(np.searchsorted(self.matrix.indptr, at, side="right") - 1)
        return int(np.flatnonzero(~np.isfinite(self.matrix).all(axis=1))[0])

    def kind(self) -> str:
        """What the values are: `counts`, `log-normalised values` or `non-integer values`."""
        if self.seen.is_counts:
            return "counts"
        return "log-normalised values" if self.seen.maximum <= _LOGGED_MAX else "non-integer values"

    def gene_columns(self, gene_symbols: str | None = None) -> dict[str, pd.Series]:
        """Columns of `var` that hold names of the genes: the one asked for, or those with a usual name."""
        if gene_symbols is not None:
            if gene_symbols not in self.var:
                listed = ", ".join(map(str, self.var.columns)) or "none"
                msg = f"var of {self.where} has no column {gene_symbols!r} (gene_symbols=). Columns: {listed}."
                raise KeyError(msg)
            return {gene_symbols: self.var[gene_symbols].astype(str)}
        return {name: self.var[name].astype(str) for name in SYMBOL_COLUMNS + ENSEMBL_COLUMNS if name in self.var}


def _candidates(adata: AnnData, *, use_raw: bool | None) -> Iterator[CountSource]:
    """Where counts may be, in the order of truth; a source that is not asked for is not touched."""
    if "counts" in adata.layers:
        yield CountSource("layers['counts']", adata.layers["counts"], adata.var)
        return
    if adata.X is not None:
        yield CountSource("X", adata.X, adata.var)
    if adata.raw is not None and use_raw is not False:
        yield CountSource("raw.X", adata.raw.X, adata.raw.var)


_AS_VALUES = {"log-normalised values": "they are used as they are"}


def choose_counts(
    adata: AnnData, *, layer: str | None = None, use_raw: bool | None = None, as_values: bool = False
) -> CountSource:
    """Find the counts of an AnnData.

    Order of truth: `layer` if given; `raw.X` if `use_raw`; else `layers['counts']`, `X` if it looks like counts,
    `raw.X` if that does, `X` if it has no negative value (bins are ranks, so log-normalised values give nearly the
    same tokens). `use_raw=False` leaves `raw.X` out. `as_values`: values are used and not binned, by a function without
    `use_raw`; notes and advice say so.

    Raises
    ------
    KeyError
        When `layer` does not exist.
    ValueError
        When the matrix has NaN or negative values, or there is none.
    """
    if layer is not None and use_raw:
        msg = f"layer={layer!r} and use_raw=True exclude each other: give one of them."
        raise ValueError(msg)
    if layer is not None:
        if layer not in adata.layers:
            listed = ", ".join(map(repr, adata.layers)) or "none"
            msg = f"There is no layer {layer!r}. Layers: {listed}. Leave layer out to use X."
            raise KeyError(msg)
        chosen = CountSource(f"layers[{layer!r}]", adata.layers[layer], adata.var)
        return _accepted(chosen, [], as_values=as_values)
    if use_raw:
        if adata.raw is None:
            msg = "use_raw=True, but adata.raw is None. Leave use_raw out to use X."
            raise ValueError(msg)
        return _accepted(CountSource("raw.X", adata.raw.X, adata.raw.var), [])
    seen: list[CountSource] = []
    for source in _candidates(adata, use_raw=use_raw):
        if source.where == "layers['counts']" or source.seen.is_counts:
            return _accepted(source, [], as_values=as_values)
        seen.append(source)
    if not seen:
        msg = "adata has no matrix: X is None, and there is no layer 'counts'. Name the layer with them: layer='...'."
        raise ValueError(msg)
    others = [other for other in seen[1:] if other.seen.n_bad == 0 and other.seen.minimum >= 0]
    return _accepted(seen[0], others, as_values=as_values)


def _accepted(source: CountSource, others: list[CountSource], *, as_values: bool = False) -> CountSource:
    seen = source.seen
    try:
        source._refuse(seen)
    except ValueError as error:
        line = "adata.raw.to_adata()" if as_values else "use_raw=True"
        advice = [f"{line} ({o.where} has {o.kind()})" for o in others if o.where == "raw.X"]
        hint = f" Pass {advice[0]}." if advice else " Name a layer with counts: layer='...'."
        msg = f"{error}{hint if seen.n_negative else ''}"
        raise _refusal(msg, **error.no_counts) from None
    advice = source.matrix.layout_advice() if hasattr(source.matrix, "layout_advice") else None
    if advice:
        logger.warning(advice)
    if not source.seen.is_counts:
        logger.info(
            "note: %s holds %s; %s.",
            source.where,
            source.kind(),
            _AS_VALUES.get(source.kind(), "they are scaled to 10,000 and logged")
            if as_values
            else "bins are ranks inside a cell, so the tokens are nearly those of the counts",
        )
    return source
