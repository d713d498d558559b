"""Writing a token store: shard by shard, by one process or several, so that a killed writing goes on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig, Tokens

from ._shards import (
    DRAFT,
    Record,
    Shard,
    check_key,
    data_path,
    read_records,
    record_path,
    write_file,
    write_json,
    write_shard,
)
from ._store import FORMAT, MANIFEST, SHARDS, VERSION, VOCAB, TokenStore, beside, put_back, read_manifest

logger = get_logger(__name__)
_SMALL = 2**16


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two dictionaries disagree about, as text."""
    return [
        f"{name} {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]


class TokenStoreWriter:
    """Writes a token store, shard by shard; a killed writing goes on where it stopped.

    Several processes may write shards of different keys at a time; when all are done, one calls :meth:`finish`. The
    cells lie in the order of the keys (numbers in a key compared as numbers), whoever wrote them when.

    Parameters
    ----------
    folder
        Where the store lies. An unfinished one of the same vocabulary, settings and origin is continued.
    vocab, config
        What the tokens were made with.
    origin
        Where the cells come from, as JSON can hold it: file, size, seed and so on.
    overwrite
        Replace a complete store, or an unfinished one of something else. It stays until :meth:`finish` puts the new
        one in its place (open it again then); until then that lies beside it under a hidden name.
    append
        Add shards to a complete store, whose cells keep their positions. Readers see them after :meth:`finish`.

    Raises
    ------
    ValueError
        When the folder holds a complete store, a store of something else, or other files.
    """

    def __init__(
        self,
        folder: str | Path,
        vocab: GeneVocab,
        config: TokenizerConfig,
        *,
        origin: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        append: bool = False,
    ) -> None:
        if overwrite and append:
            msg = "overwrite=True and append=True exclude each other: give one of them."
            raise ValueError(msg)
        self.folder = self._target = Path(folder).expanduser().resolve()
        self.vocab, self.config = vocab, config
        self.origin: dict[str, Any] = json.loads(json.dumps(dict(origin or {})))
        self._gene_ids = np.dtype("<u2" if len(vocab) < _SMALL else "<u4")
        put_back(self.folder)
        if self.folder.exists():
            self._check_ours()
            reason = self._refusal(append=append)
            if reason and not overwrite:
                msg = f"The token store in {self.folder} {reason}"
                raise ValueError(msg)
            if reason:
                self.folder = beside(self.folder, "next")
                if self.folder.exists() and self._refusal(append=True):
                    shutil.rmtree(self.folder)
        self._open()

    def _header(self) -> dict[str, Any]:
        vocab = {"digest": self.vocab.digest, "size": len(self.vocab)}
        header = {"format": FORMAT, "version": VERSION, "complete": False, "vocab": vocab}
        return {**header, "tokenizer": self.config.to_dict(), "gene_ids": self._gene_ids.str, "origins": [self.origin]}

    def _open(self) -> None:
        self._shards = self.folder / SHARDS
        self._shards.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MANIFEST).exists():
            text = json.dumps({token: i for i, token in enumerate(self.vocab.tokens)}, ensure_ascii=False, indent=0)
            write_file(self.folder / VOCAB, [f"{text}\n".encode()])  # as GeneVocab.write, but whole or not at all
            write_json(self.folder / MANIFEST, self._header())
        manifest = read_manifest(self.folder)
        self._listed = {values["key"]: Record.from_dict(values) for values in manifest.get("shards", ())}
        self._part = 0
        if manifest["complete"] and self.folder == self._target:
            self._part = manifest.get("appending", {}).get("part", len(manifest["origins"]))
            write_json(self.folder / MANIFEST, {**manifest, "appending": {"part": self._part, "origin": self.origin}})
        self._records = read_records(self._shards)
        if self._records:
            logger.info("token store: %s shards are in %s and stay.", len(self._records), self.folder)

    def _check_ours(self) -> None:
        """A folder with other files in it is left alone."""
        folder = self.folder
        if not folder.is_dir():
            msg = f"{folder} is no folder. Choose another path, or remove the file."
            raise ValueError(msg)
        others = [path.name for path in folder.iterdir() if path.name not in {MANIFEST, VOCAB, SHARDS}]
        others = sorted(name for name in others if not name.endswith(DRAFT))
        if others:
            msg = f"{folder} holds {', '.join(others[:5])}, which no token store has. Choose another folder."
            raise ValueError(msg)
        filled = (folder / SHARDS).exists() and any((folder / SHARDS).iterdir())
        if filled and not (folder / MANIFEST).exists():  # asked last: another writer may just have begun
            msg = f"{folder / SHARDS} holds files of something else: there is no {MANIFEST}. Choose another folder."
            raise ValueError(msg)

    def _refusal(self, *, append: bool) -> str:
        """Why the store in the folder cannot be continued, or nothing."""
        if not (self.folder / MANIFEST).exists():
            return ""  # killed before the first shard
        manifest, header = read_manifest(self.folder), self._header()
        differs = [f"vocabulary: {text}" for text in _differences(manifest["vocab"], header["vocab"])]
        differs += [f"tokenizer: {text}" for text in _differences(manifest["tokenizer"], header["tokenizer"])]
        appended = manifest["complete"] and self.folder == self._target
        began = manifest.get("appending", {"origin": self.origin})["origin"] if appended else manifest["origins"][0]
        differs += [f"origin: {text}" for text in _differences(began, self.origin)]
        if differs:
            return f"is of something else ({'; '.join(differs)}). Choose another folder, or pass overwrite=True."
        if manifest["complete"] and not append:
            return "is complete. Pass append=True to add shards, or overwrite=True to write it anew."
        return ""

    def __enter__(self) -> TokenStoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open between two shards; what was written stays, and :meth:`finish` is never implied."""

    def has(self, shard_key: str) -> bool:
        """Whether the shard is there: then it need not be tokenised again."""
        return shard_key in self._records or self._look(shard_key)

    @property
    def keys(self) -> list[str]:
        """Keys of the shards that are there, in the order of their cells."""
        return [record.key for record in sorted(self._records.values(), key=lambda record: record.order)]

    def written(self, shard_key: str) -> Shard:
        """A shard that is there: its names, columns and notes."""
        return Shard(self._shards, self._records[shard_key])

    def remove(self, shard_key: str) -> None:
        """Take back a shard of this writing."""
        if self.has(shard_key) and shard_key not in self._listed:
            record_path(self._shards, shard_key).unlink(missing_ok=True)  # first: without it the data does not count
            data_path(self._shards, shard_key).unlink(missing_ok=True)
            del self._records[shard_key]

    def _look(self, key: str) -> bool:
        """Whether another process has written the shard meanwhile; the others are not looked at."""
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):  # as in `read_records`
            record = Record.from_dict(json.loads(record_path(self._shards, key).read_text(encoding="utf-8")))
            if record.key == key and data_path(self._shards, key).stat().st_size == record.n_bytes:
                self._records[key] = record
        return key in self._records

    def write(
        self,
        shard_key: str,
        tokens: Tokens,
        names: np.ndarray,
        columns: Mapping[str, np.ndarray] | None = None,
        *,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one shard; it is there wholly or not at all.

        Parameters
        ----------
        shard_key
            Its name, fit for a file name; decides where its cells lie.
        tokens
            Its cells; some 10 to 100 thousand are a good size.
        names
            Their names, shape `(n_cells,)`.
        columns
            Annotations, each of shape `(n_cells,)`; numbers, truth values or text. The same names in every shard.
        notes
            What to keep about the shard, as JSON can hold it; :attr:`TokenStore.notes` gives it back.

        Raises
        ------
        ValueError
            When the shard is there, lengths differ, gene ids are not of the vocabulary, or columns are others than
            those of the shards before.
        OSError
            When the disk is full; no part of the shard is left, and the shards before are safe.
        """
        columns = dict(columns or {})
        self._check(shard_key, tokens, np.asarray(names, dtype=object), columns)
        part = self._listed[shard_key].part if shard_key in self._listed else self._part
        try:
            record = write_shard(
                self._shards, shard_key, tokens, names, columns, gene_ids=self._gene_ids, part=part, notes=notes
            )
        except OSError as error:
            cells = sum(record.n_cells for record in self._records.values())
            msg = (
                f"Shard {shard_key!r} could not be written to {self.folder} ({error.strerror or error}). "
                f"{len(self._records)} shards with {cells:,} cells are there and stay. Make room and repeat the same "
                "call: it goes on after them."
            )
            raise OSError(error.errno, msg) from error
        self._records[shard_key] = record

    def _check(self, key: str, tokens: Tokens, names: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        check_key(key)
        if self.has(key):
            msg = f"The shard {key!r} is there. Skip it: if not writer.has({key!r}): ..."
            raise ValueError(msg)
        sizes = {"names": names.shape, **{f"column {name!r}": np.shape(values) for name, values in columns.items()}}
        for name, shape in sizes.items():
            if shape != (len(tokens),):
                msg = f"Shard {key!r}: {name} has shape {shape}, the tokens have {len(tokens):,} cells. Give one each."
                raise ValueError(msg)
        lowest, highest = tokens.gene_ids.min(initial=0), tokens.gene_ids.max(initial=0)
        if lowest < 0 or highest >= len(self.vocab):
            msg = (
                f"Shard {key!r} has gene ids from {lowest} to {highest}, the vocabulary has {len(self.vocab):,} "
                "entries. Tokenise with the vocabulary of the store."
            )
            raise ValueError(msg)
        for record in list(self._records.values())[:1]:
            if list(record.columns) != list(columns):
                there, here = (", ".join(names) or "none" for names in (record.columns, columns))
                msg = f"Shard {key!r} has the columns {here}; those before have {there}. Give the same in that order."
                raise ValueError(msg)

    def finish(self) -> TokenStore:
        """Make the store complete and open it; all writers must be done. Removes what killed writers left.

        Raises
        ------
        ValueError
            When a shard that the store had before is missing.
        """
        records = read_records(self._shards)
        lost = sorted(self._listed.keys() - records.keys())
        if lost:
            msg = f"{self.folder} had the shard {lost[0]!r}, which is gone or cut short. Write it again, then finish."
            raise ValueError(msg)
        ordered = sorted(records.values(), key=lambda record: record.order)
        manifest = read_manifest(self.folder)
        appended = any(record.part == self._part for record in ordered)
        origins = [*manifest["origins"][: self._part], self.origin] if appended else manifest["origins"]
        self._sweep(records)
        listing = {
            "n_cells": sum(record.n_cells for record in ordered),
            "n_tokens": sum(record.n_tokens for record in ordered),
            "shards": [record.to_dict() for record in ordered],
        }
        manifest = {key: value for key, value in manifest.items() if key != "appending"}
        write_json(self.folder / MANIFEST, {**manifest, "complete": True, "origins": origins, **listing})
        self._swap()
        store = TokenStore(self.folder)
        if self._part:
            store.warn_of_repeated_names()
        return store

    def _sweep(self, records: Mapping[str, Record]) -> None:
        kept = {find(self._shards, key) for key in records for find in (data_path, record_path)}
        stray = [path for path in self._shards.iterdir() if path not in kept]
        stray += [path for path in self.folder.iterdir() if path.name.endswith(DRAFT)]
        for path in stray:
            path.unlink(missing_ok=True)

    def _swap(self) -> None:
        """Put a store that was written beside another in its place; the former one is removed last."""
        if self.folder == self._target:
            return
        old = beside(self._target, "old")
        if old.exists():
            shutil.rmtree(old)
        if self._target.exists():
            os.replace(self._target, old)
        try:
            os.replace(self.folder, self._target)
        except OSError:
            put_back(self._target)
            raise
        self.folder, self._shards = self._target, self._target / SHARDS
        if old.exists():
            shutil.rmtree(old)
