"""One call of `prepare`: what it was asked for, and the writing of its store."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._progress import track
from scanpy_scgpt.disk import TokenStore, TokenStoreWriter, store_in
from scanpy_scgpt.tokenizer import GeneVocab, Tokenizer, TokenizerConfig

from ._census import CensusQuery
from ._columns import Columns
from ._filters import QualityFilters
from ._reader import COUNT_KEY, Reader, nothing
from ._repeats import Seen, shared_names
from ._report import corpus_report, summary
from ._sources import Place, reading
from ._vocabulary import vocabulary_of

if TYPE_CHECKING:
    from scanpy_scgpt.disk import Shard

logger = get_logger(__name__)
Duplicates = Literal["report", "drop"]
OnError = Literal["raise", "skip"]
_FORMAT = 1  # of the stores: another number, and those of before are made anew
_SHARD = 2**14  # cells that a kill can cost
_SHOWN = 4  # differences to another call that are named
_REPLACE = "replace it: overwrite=True of prepare, resume=False of run"


@dataclass(frozen=True)
class Preparation:
    """A call of :func:`scanpy_scgpt.pretrain.prepare`; the attributes are its arguments."""

    places: list[Place]
    out: Path
    vocab: GeneVocab | None
    min_cells: int
    tokenizer: TokenizerConfig
    layer: str | None
    gene_symbols: str | None
    filters: QualityFilters
    study_key: str
    tissue_key: str
    duplicates: Duplicates
    on_error: OnError
    overwrite: bool
    seed: int

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What decides about the store, as JSON holds it."""
        taken = ("layer", "gene_symbols", "study_key", "tissue_key", "duplicates", "on_error")
        return {
            "verb": "prepare",
            "format": _FORMAT,
            "inputs": {place.label: place.fingerprint() for place in self.places},
            "vocab": f"of {self.min_cells} cells or more" if self.vocab is None else self.vocab.digest,
            "tokenizer": self.tokenizer.to_dict(),
            "filters": asdict(self.filters),
            "seed": str(self.seed),
            **{name: getattr(self, name) for name in taken},
        }

    def finished(self) -> TokenStore | None:
        """The store, when this very call made it.

        Raises
        ------
        ValueError
            When the store of another call is there, finished or not, and may not be replaced.
        """
        there = store_in(self.out)
        if there is None:
            return None
        differs = list(_differences(there.origin, self.origin))
        if differs and not self.overwrite:
            more = f"; and {len(differs) - _SHOWN} more" if len(differs) > _SHOWN else ""
            msg = (
                f"{self.out} holds the store of another call, which differs in {'; '.join(differs[:_SHOWN])}{more}. "
                f"Choose another folder, or {_REPLACE}."
            )
            raise ValueError(msg)
        if differs or not there.complete:
            return None
        logger.info("corpus: %s is the result of this very call; nothing to do.", self.out)
        return TokenStore(self.out)

    def write(self) -> TokenStore:
        """Write the store, or what an earlier call left undone."""
        skipped: dict[str, str] | None = {} if self.on_error == "skip" else None
        total = self._look_at_all(skipped)
        vocab = self._vocabulary(skipped)
        seen = Seen()
        with (
            TokenStoreWriter(self.out, vocab, self.tokenizer, origin=self.origin, overwrite=self.overwrite) as writer,
            track("tokenize", total=total) as advance,
        ):
            for number in range(len(self.places)):
                self._add(writer, number, seen, skipped, advance)
            self._require_cells(writer)
            store = writer.finish()
        for line in summary(corpus_report(store)):
            logger.info(line)
        for first, second, n in shared_names(store):
            logger.warning(
                "corpus: about %s cells of %s have the name of a cell of %s; are they the same cells?",
                f"{n:,}", second, first,
            )  # fmt: skip
        return store

    def _look_at_all(self, skipped: dict[str, str] | None) -> int:
        """Open every file, so that a mistake shows before hours of work; gives the number of cells."""
        total, columns = 0, Columns({"study_key": self.study_key, "tissue_key": self.tissue_key})
        for place in self.places:
            with reading(place, skipped):
                source = place.open(self.layer)
                if self.vocab is not None:
                    source.require_genes(self.vocab, self.gene_symbols)
                total += source.counts.n_obs
                if not isinstance(place.item, CensusQuery):  # it names its own
                    columns.add(place.label, source.cells.obs_columns)
                source.close()
        columns.check()
        return total

    def _vocabulary(self, skipped: dict[str, str] | None) -> GeneVocab:
        if self.vocab is not None:
            return self.vocab
        there = store_in(self.out)
        if there is not None and there.origin == self.origin:
            return there.vocab  # of the killed call
        vocab = vocabulary_of(
            self.places, min_cells=self.min_cells, layer=self.layer, gene_symbols=self.gene_symbols, skipped=skipped
        )
        if not vocab.genes:
            left = ", ".join(f"{label} was left out: {reason}" for label, reason in (skipped or {}).items())
            msg = (
                f"No gene is expressed in min_cells={self.min_cells} cells. Give more cells, or lower min_cells. {left}"
            )
            raise ValueError(msg.rstrip())
        return vocab

    def _add(
        self,
        writer: TokenStoreWriter,
        number: int,
        seen: Seen,
        skipped: dict[str, str] | None,
        advance: Callable[[int], None],
    ) -> None:
        """Write the shards of a file that are not there; take those back when it turns out to be damaged."""
        place, mark = self.places[number], f"{number}-skipped"
        if writer.has(mark):
            return
        written, reader = [], None
        if place.label not in (skipped or ()):
            with reading(place, skipped):
                reader = self._reader(place, writer.vocab)
        for start in range(0, reader.source.counts.n_obs if reader else 0, _SHARD):
            key, stop = f"{number}-{start // _SHARD}", min(start + _SHARD, reader.source.counts.n_obs)
            if writer.has(key):
                _recall(writer.written(key), reader, seen, number)
            else:
                block = None
                with reading(place, skipped):
                    block = reader.block(start, stop, seen, number, drop=self.duplicates == "drop")
                if block is None:
                    break
                writer.write(key, *block[:3], notes=block.notes)
            written.append(key)
            advance(stop - start)
        if reader and not reader.source.counts.n_obs and not writer.has(f"{number}-0"):
            block = reader.empty()
            writer.write(f"{number}-0", *block[:3], notes=block.notes)
        if place.label in (skipped or ()):
            for key in written:
                writer.remove(key)
            seen.forget(number)
            block = nothing({"file": place.label, "skipped": skipped[place.label]})
            writer.write(mark, *block[:3], notes=block.notes)
        if reader:
            reader.source.close()

    def _reader(self, place: Place, vocab: GeneVocab) -> Reader:
        source = place.open(self.layer)
        match = source.match(vocab, self.gene_symbols)
        logger.info("corpus: %s · %s cells · %s", place.label, f"{source.counts.n_obs:,}", match.summary())
        if self.vocab is not None and match.warning():
            logger.warning("corpus: %s: %s", place.label, match.warning())
        keys = place.keys(self.study_key, self.tissue_key)
        return Reader(place, source, match, Tokenizer(vocab, self.tokenizer), self.filters, keys, self.seed)

    def _require_cells(self, writer: TokenStoreWriter) -> None:
        """Refuse a store without cells; nothing of it is left."""
        records = [writer.written(key).record for key in writer.keys]
        if any(record.n_cells for record in records):
            return
        shutil.rmtree(writer.folder)
        removed = sum((Counter(record.notes.get("removed", {})) for record in records), Counter())
        why = [f"{n:,} removed by {reason}" for reason, n in removed.items()]
        why += [record.notes["skipped"] for record in records if "skipped" in record.notes]
        msg = f"No cell is left: {'; '.join(why) or 'the files are empty'}. Loosen the filters, or give other files."
        raise ValueError(msg)


def _recall(shard: Shard, reader: Reader, seen: Seen, number: int) -> None:
    """Take the cells of a shard that an earlier call wrote for seen."""
    if shard.record.notes["state"] != reader.source.state:
        msg = (
            f"{reader.place.label} has other cells than when the store was begun (an atlas release that moves on?). "
            f"Name the release (census_version='2025-01-30'), and delete the unfinished store or {_REPLACE}."
        )
        raise ValueError(msg)
    seen.first(shard.column(COUNT_KEY), number)


def _differences(there: Any, here: Any, at: str = "") -> Iterator[str]:
    """What two calls disagree about, as text."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in dict.fromkeys([*there, *here]):
            yield from _differences(there.get(name), here.get(name), f"{at}.{name}" if at else str(name))
    elif isinstance(there, Mapping) or isinstance(here, Mapping):
        yield f"{at} ({'only there' if here is None else 'only here' if there is None else 'of another kind'})"
    elif there != here:
        yield f"{at} ({there!r} there, {here!r} here)"
