"""One shard of a token store: a data file of sections, and a record of it in JSON."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd

from scanpy_scgpt.tokenizer import Tokens

DRAFT = ".part"
_ALIGN = 64  # bytes; each section starts at a multiple
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}")
_BETWEEN = "\0"  # stands between two names


@numba.njit(cache=True, nogil=True)
def locate(
    indptr: np.ndarray, first_cell: int, cells: np.ndarray, rows: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> bool:  # pragma: no cover - compiled
    """Start in the shard and number of tokens of `cells[rows]`; False when the row pointer is damaged."""
    end, good = indptr[-1], True
    for row in rows:
        cell = cells[row] - first_cell
        starts[row], lengths[row] = indptr[cell], indptr[cell + 1] - indptr[cell]
        good &= 0 <= indptr[cell] <= indptr[cell + 1] <= end
    return good


@numba.njit(cache=True, nogil=True)
def copy_cells(
    gene_ids: np.ndarray,
    digits: np.ndarray,
    starts: np.ndarray,
    rows: np.ndarray,
    indptr: np.ndarray,
    out_ids: np.ndarray,
    out_digits: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Copy the tokens from `starts` of a shard to the places `indptr` of the result."""
    for row in rows:
        target = slice(indptr[row], indptr[row + 1])
        source = slice(starts[row], starts[row] + indptr[row + 1] - indptr[row])
        out_ids[target], out_digits[target] = gene_ids[source], digits[source]


@dataclass(frozen=True)
class Column:
    """How an annotation of cells lies in a shard: numbers of `dtype`, or codes of `categories` (-1: missing)."""

    dtype: str
    categories: tuple[str, ...] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Column:
        """From JSON."""
        categories = values["categories"]
        return cls(values["dtype"], None if categories is None else tuple(categories))

    @classmethod
    def encode(cls, values: np.ndarray) -> tuple[Column, np.ndarray]:
        """The column and the numbers that are stored; what is no number or truth value becomes text."""
        values = np.asarray(values)
        if values.dtype.kind in "biuf":
            stored = values.astype(values.dtype.newbyteorder("<"))
            return cls(stored.dtype.str), stored
        codes, found = pd.factorize(values)
        texts = np.array([str(value) for value in found], dtype=object)  # few: one for each category
        categories, place = np.unique(texts, return_inverse=True) if len(texts) else (texts, np.zeros(0, np.int64))
        codes = np.append(place, -1)[codes].astype("<i4")
        return cls(codes.dtype.str, tuple(categories.tolist())), codes

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Values of the cells: numbers, or texts (object; NaN where missing)."""
        if self.categories is None:
            return stored.copy()
        return np.array([*self.categories, np.nan], dtype=object)[stored]


@dataclass(frozen=True)
class Record:
    """What is known of a shard without reading it.

    Attributes
    ----------
    key
        Its name.
    part
        0 for the shards of the first writing, 1 for those of the first appending, and so on.
    n_cells, n_tokens
        Cells and tokens in it.
    gene_ids
        Type of the ids, such as `<u2`.
    names_bytes
        Length of the section with the names.
    n_bytes, checksum
        Size and BLAKE2b of the data file.
    columns
        Annotations of its cells, in the order of their sections.
    notes
        What the writer says of it, as JSON holds it.
    """

    key: str
    part: int
    n_cells: int
    n_tokens: int
    gene_ids: str
    names_bytes: int
    n_bytes: int
    checksum: str
    columns: dict[str, Column] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """From JSON."""
        columns = {name: Column.from_dict(column) for name, column in values["columns"].items()}
        return cls(**{**values, "columns": columns})

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def order(self) -> tuple[Any, ...]:
        """Shards lie in this order: by part, then by key, numbers in it compared as numbers."""
        texts = re.split(r"([0-9]+)", self.key)
        texts[1::2] = map(int, texts[1::2])
        return self.part, texts, self.key

    def sections(self) -> dict[str, tuple[np.dtype, int]]:
        """Type and length of each section of the data file, in order."""
        columns = {f"column {name}": (np.dtype(column.dtype), self.n_cells) for name, column in self.columns.items()}
        return {
            "indptr": (np.dtype("<i8"), self.n_cells + 1),
            "gene_ids": (np.dtype(self.gene_ids), self.n_tokens),
            "digits": (np.dtype("u1"), self.n_tokens),
            **columns,
            "names": (np.dtype("u1"), self.names_bytes),
        }


def data_path(folder: Path, key: str) -> Path:
    """Data file of a shard."""
    return folder / f"{key}.tokens"


def record_path(folder: Path, key: str) -> Path:
    """Record of a shard."""
    return folder / f"{key}.json"


def check_key(key: str) -> None:
    """A key must be fit for a file name."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        msg = (
            f"shard_key={key!r}: use 1 to 120 letters, digits, '-', '_' and '.' (not first), "
            "such as f'{path.stem}-{block}'."
        )
        raise ValueError(msg)


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file under a draft name, bring it to disk, rename it: under its name there is never a part of one."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", suffix=DRAFT, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).chmod(0o644)
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    if os.name == "posix":
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems cannot
                os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as :func:`write_file` does."""
    write_file(path, [(json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()])


def _encode_names(names: np.ndarray) -> np.ndarray:
    listed = [str(name) for name in np.asarray(names, dtype=object).tolist()]
    text = _BETWEEN.join(listed)
    if text.count(_BETWEEN) != max(len(listed) - 1, 0):
        bad = next(name for name in listed if _BETWEEN in name)
        msg = f"The cell name {bad!r} holds a zero character. Take it out: name.replace('\\0', '')."
        raise ValueError(msg)
    return np.frombuffer(text.encode(), dtype="u1")


def write_shard(
    folder: Path,
    key: str,
    tokens: Tokens,
    names: np.ndarray,
    columns: Mapping[str, np.ndarray],
    *,
    gene_ids: np.dtype,
    part: int,
    notes: Mapping[str, Any] | None = None,
) -> Record:
    """Write the data file of a shard, then its record: a shard without a record does not count.

    Parameters
    ----------
    folder
        Where both files go.
    key
        Name of the shard.
    tokens, names, columns
        Cells, their names `(n_cells,)`, and annotations `(n_cells,)`.
    gene_ids
        Type of the ids in the file.
    part, notes
        See :class:`Record`.
    """
    encoded = {name: Column.encode(values) for name, values in columns.items()}
    arrays = [
        tokens.indptr.astype("<i8"),
        tokens.gene_ids.astype(gene_ids),
        tokens.values.astype("u1"),
        *(stored for _, stored in encoded.values()),
        _encode_names(names),
    ]
    parts: list[memoryview | bytes] = []
    for array in arrays:
        parts += [
            memoryview(np.ascontiguousarray(array)).cast("B") if array.size else b"",
            bytes(-array.nbytes % _ALIGN),
        ]
    checksum = hashlib.blake2b(digest_size=16)
    for piece in parts:
        checksum.update(piece)
    record = Record(
        key=key,
        part=part,
        n_cells=len(tokens),
        n_tokens=tokens.gene_ids.size,
        gene_ids=gene_ids.str,
        names_bytes=arrays[-1].size,
        n_bytes=sum(len(piece) for piece in parts),
        checksum=checksum.hexdigest(),
        columns={name: column for name, (column, _) in encoded.items()},
        notes=dict(notes or {}),
    )
    write_file(data_path(folder, key), parts)
    write_json(record_path(folder, key), record.to_dict())
    return record


def read_records(folder: Path) -> dict[str, Record]:
    """Records of the shards whose data file has its whole size; of others nothing is known."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):  # such a shard is written again
            record = Record.from_dict(json.loads(path.read_text(encoding="utf-8")))
            if record.key == path.stem and data_path(folder, record.key).stat().st_size == record.n_bytes:
                found[record.key] = record
    return found


def checksum_of(path: Path) -> str:
    """BLAKE2b of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class Shard:
    """The sections of a data file, memory-mapped and read-only.

    Parameters
    ----------
    folder
        Where the shards lie.
    record
        What is known of this one; the file must have the size that it states.
    """

    def __init__(self, folder: Path, record: Record) -> None:
        self.record, self._sections = record, {}
        whole = np.memmap(data_path(folder, record.key), dtype="u1", mode="r").view(np.ndarray)
        start = 0
        for name, (dtype, size) in record.sections().items():
            stop = start + size * dtype.itemsize
            self._sections[name] = whole[start:stop].view(dtype)
            start = stop + -stop % _ALIGN
        self.indptr, self.gene_ids, self.digits = (self._sections[name] for name in ("indptr", "gene_ids", "digits"))

    def names(self) -> np.ndarray:
        """Names of the cells, object, shape `(n_cells,)`."""
        if not self.record.n_cells:
            return np.zeros(0, dtype=object)
        return np.array(self._sections["names"].tobytes().decode().split(_BETWEEN), dtype=object)

    def column(self, name: str) -> np.ndarray:
        """Values of an annotation, shape `(n_cells,)`."""
        return self.record.columns[name].decode(self._sections[f"column {name}"])
