"""Where the cells of a corpus come from: files, annbatch collections and atlas queries behind one face."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scanpy_scgpt._counts import CountSource, choose_counts
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._validate import file_paths, naming
from scanpy_scgpt.disk import CellFile, open_cells, store_in
from scanpy_scgpt.tokenizer import GeneMatch, GeneVocab, match_genes, require_enough

from ._census import CensusCells, CensusQuery

if TYPE_CHECKING:
    import pandas as pd

logger = get_logger(__name__)
_Item = str | os.PathLike[str] | CensusQuery
Data = _Item | Sequence[_Item]
UNKNOWN = "unknown"
_GENES = 200  # that a file of whole transcriptomes has in a vocabulary at least
_OTHER_VOCAB = (
    "Else leave the file out, or use a vocabulary that has its genes: pretrain.build_vocab(files, extend=vocab)."
)
_MISSING = ("nan", "None", "<NA>", "")


@dataclass(frozen=True)
class Source:
    """Cells that are open: their counts, names and groups, read by rows.

    Attributes
    ----------
    label
        Name in reports and in the column `file` of a store.
    cells
        The file, or what looks like one.
    counts
        Their matrix of counts.
    """

    label: str
    cells: CellFile | CensusCells
    counts: CountSource

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Counts of the cells `start:stop`; refuses what are no whole numbers."""
        with naming(Path(self.label)), _raw_counts(self.label):
            block = self.counts.rows(start, stop)
        if block.data.dtype.kind == "f" and not (block.data == np.floor(block.data)).all():
            raise ValueError(no_counts(self.label, self.counts.where, "non-integer values"))
        return block

    def match(self, vocab: GeneVocab, gene_symbols: str | None = None) -> GeneMatch:
        """What the genes became.

        Raises
        ------
        ValueError
            When none is in the vocabulary; names the file and its first genes.
        """
        match = match_genes(self.counts.var.index, vocab, columns=self.gene_columns(gene_symbols))
        if match.n_matched:
            return match
        first, known = (", ".join(map(repr, list(names)[:3])) for names in (match.names, vocab.genes))
        msg = (
            f"{self.label}: none of its {len(match.names):,} genes is in the vocabulary of {match.vocab_size:,} genes. "
            f"First names in the file: {first}; in the vocabulary: {known}. Name the column of var with the names of "
            "the vocabulary (gene_symbols='<column>'), leave the file out, or use a vocabulary that has its genes: "
            "pretrain.build_vocab(files, extend=vocab)."
        )
        raise ValueError(msg)

    def gene_columns(self, gene_symbols: str | None) -> dict[str, pd.Series]:
        """Columns of `var` with names of the genes; an error about them names the file."""
        with naming(Path(self.label)):
            return self.counts.gene_columns(gene_symbols)

    def require_genes(self, vocab: GeneVocab, gene_symbols: str | None = None) -> None:
        """Genes of a vocabulary that somebody chose are in the file: 200, or half of those of the smaller of the two.

        Raises
        ------
        GeneMatchError
            When fewer are; names the file and says what the names look like.
        """
        match = match_genes(self.counts.var.index, vocab, columns=self.gene_columns(gene_symbols))
        least = min(_GENES, len(match.names) // 2, len(vocab.genes) // 2)
        with naming(Path(self.label)):
            require_enough(match, vocab, min_genes=least, else_=_OTHER_VOCAB)

    def group(self, key: str, start: int, stop: int, *, otherwise: str) -> np.ndarray:
        """Values of a column of `obs` for the cells `start:stop`, object; `otherwise` where there is none."""
        if key not in self.cells.obs_columns:
            return np.full(stop - start, otherwise, dtype=object)
        values = self.cells.obs_texts(key, start, stop).astype(object)
        values[np.isin(values.astype(str), _MISSING)] = otherwise
        return values

    @property
    def state(self) -> str:
        """Short hash of which cells these are where an address may give others tomorrow; of a file nothing."""
        return getattr(self.cells, "digest", "")

    def close(self) -> None:
        """Let the file go."""
        self.cells.close()


@dataclass
class Place:
    """Cells that are not open yet: a path or a query, and the label that tells them from the others.

    `study` is that of the cells that have none: the file or the whole collection, without the kind of file.
    """

    label: str
    item: Path | CensusQuery
    study: str
    _where: str | None = field(default=None, repr=False)  # are the counts, once they were found

    def fingerprint(self) -> dict[str, Any]:
        """What tells these cells from others, without reading them; the query itself for an atlas."""
        if isinstance(self.item, CensusQuery):
            return self.item.to_dict()
        try:
            found = open_cells(self.item).fingerprint()
        except (OSError, ValueError, KeyError):  # reported when the cells are read
            found = {"size": self.item.stat().st_size if self.item.is_file() else None}
        return {key: value for key, value in found.items() if key != "path"}

    def keys(self, study_key: str, tissue_key: str) -> tuple[str, str]:
        """Columns of `obs` with study and tissue: those asked for, of an atlas its own."""
        if isinstance(self.item, CensusQuery):
            return self.item.study_key, self.item.tissue_key
        return study_key, tissue_key

    @cached_property
    def _queried(self) -> CensusCells:
        return CensusCells(self.item)

    def open(self, layer: str | None = None) -> Source:
        """Open the cells and find their counts.

        Raises
        ------
        ValueError
            When they hold no raw counts, or the file is none of cells.
        OSError
            When the file is damaged.
        KeyError
            When there is no such layer or modality.
        """
        if isinstance(self.item, CensusQuery):
            with _raw_counts(self.label):
                return Source(self.label, self._queried, choose_counts(self._queried))
        cells = open_cells(self.item)
        if self._where is not None:
            return Source(self.label, cells, self._again(cells, layer))
        with naming(Path(self.label)), _raw_counts(self.label):
            counts = choose_counts(cells, layer=layer)
        if not counts.seen.is_counts:
            raise ValueError(no_counts(self.label, counts.where, counts.kind()))
        self._where = counts.where
        return Source(self.label, cells, counts)

    def _again(self, cells: CellFile, layer: str | None) -> CountSource:
        """The counts where they were found before."""
        if self._where == "raw.X":
            return CountSource(self._where, cells.raw.X, cells.raw.var)
        return CountSource(self._where, cells.X if self._where == "X" else cells.layers[layer or "counts"], cells.var)


@contextmanager
def reading(place: Place, skipped: dict[str, str] | None) -> Iterator[None]:
    """Note in `skipped` why a file cannot be read, and go on; without it, and for an atlas, the error is raised."""
    if skipped is None or isinstance(place.item, CensusQuery):
        yield
        return
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        skipped[place.label] = str(error.args[0] if isinstance(error, KeyError) else error)
        logger.warning("pretrain: %s is left out: %s", place.label, skipped[place.label])


def readable(places: Sequence[Place], skipped: dict[str, str] | None) -> Iterator[Place]:
    """The places that are not noted in `skipped`."""
    return (place for place in places if place.label not in (skipped or ()))


def no_counts(label: str, where: str, kind: str) -> str:
    """What is said of a file without counts."""
    return f"{label}: {where} holds {kind}; pretraining needs raw counts. Leave the file out."


@contextmanager
def _raw_counts(label: str) -> Iterator[None]:
    """Say of values that no counts are what pretraining needs."""
    try:
        yield
    except ValueError as error:
        if (found := getattr(error, "no_counts", None)) is None:
            raise
        raise ValueError(no_counts(label, found["where"], found["found"])) from error


def places_of(data: Data) -> list[Place]:
    """Files, the parts of annbatch collections, and queries, each with a label of its own.

    Raises
    ------
    FileNotFoundError
        When a path is not there.
    TypeError
        When something is neither path nor query.
    ValueError
        When nothing or something twice is given, or a token store.
    """
    items = list(data) if isinstance(data, list | tuple) else [data]
    others = [x for x in items if not isinstance(x, str | os.PathLike | CensusQuery)]
    if others:
        msg = (
            f"Cells are read from files (.h5ad, .zarr, .h5mu), annbatch collections or a CensusQuery; this is a "
            f"{type(others[0]).__name__}. Write an AnnData first: adata.write_h5ad('cells.h5ad')."
        )
        raise TypeError(msg)
    queries = list(dict.fromkeys(x for x in items if isinstance(x, CensusQuery)))
    given = [x for x in items if not isinstance(x, CensusQuery)]
    wholes = file_paths(given) or [] if given or not queries else []
    parts = [_parts(path) for path in wholes]
    stems = [str(Path(name).with_suffix("")) for name in _labels(wholes)]
    studies = [stem for stem, inside in zip(stems, parts, strict=True) for _ in inside]
    paths = [path for inside in parts for path in inside]
    places = [Place(*each) for each in zip(_labels(paths), paths, studies, strict=True)]
    names = [f"census-{n}" if n else "census" for n in range(len(queries))]
    return places + [Place(name, query, name) for name, query in zip(names, queries, strict=True)]


def _parts(path: Path) -> list[Path]:
    """The path, or the files of cells inside an annbatch collection."""
    if not path.exists():
        msg = f"{path}: there is no such file. Check the path."
        raise FileNotFoundError(msg)
    if not path.is_dir():
        return [path]
    if store_in(path) is not None:
        msg = f"{path} is a token store, which is prepared already. Give it to pretrain.run alone."
        raise ValueError(msg)
    inside = [part for part in path.glob("dataset_*") if part.name.removeprefix("dataset_").isdecimal()]
    return sorted(inside, key=lambda part: int(part.name.removeprefix("dataset_"))) or [path]


def _labels(paths: list[Path]) -> list[str]:
    """For each path its last parts, as many as tell it from the others."""
    whole = [path.resolve().parts for path in paths]
    labels, n = [path.name for path in paths], 1
    while len(set(labels)) < len(labels) and n < max(map(len, whole)):
        n += 1
        twice = {label for label, times in Counter(labels).items() if times > 1}
        labels = ["/".join(parts[-n:]) if label in twice else label for label, parts in zip(labels, whole, strict=True)]
    return labels
