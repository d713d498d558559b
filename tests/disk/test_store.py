"""Token store: what is written is what is read, whatever happens while it is written."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from scanpy_scgpt.data import GenerativeBatches
from scanpy_scgpt.disk import TokenStore, TokenStoreWriter, store_in
from scanpy_scgpt.disk import _shards as shards
from scanpy_scgpt.disk import _store as reader
from scanpy_scgpt.tokenizer import GeneVocab, Tokenizer, TokenizerConfig, Tokens, match_genes

CONFIG = TokenizerConfig(ties="mid")
ORIGIN = {"file": "pbmc.h5ad", "seed": 0}
BLOCK = 150
N = 700


@pytest.fixture
def cells(counts, vocab):
    """Tokens, names and two annotations of 700 real cells; some of them emptied."""
    empty = np.isin(np.arange(N), [0, 3, 149, 699])
    counts.X.data[np.repeat(empty, np.diff(counts.X.indptr))] = 0
    names = counts.obs_names.to_numpy()
    tokens = Tokenizer(vocab, CONFIG).bins(counts.X, match_genes(counts.var_names, vocab).ids, names)
    assert (tokens.lengths == 0).sum() >= 4
    columns = {"label": counts.obs["bulk_labels"].to_numpy(dtype=object), "mito": counts.obs["percent_mito"].to_numpy()}
    return tokens, names, columns


def write(folder, vocab, cells, *, keys=range(5), stop=None, finish=True, **options):
    """Write the cells in blocks as a caller would, skipping what is there."""
    tokens, names, columns = cells
    with TokenStoreWriter(folder, vocab, CONFIG, **{"origin": ORIGIN, **options}) as writer:
        for key in list(keys)[:stop]:
            if writer.has(f"pbmc-{key}"):
                continue
            block = slice(key * BLOCK, (key + 1) * BLOCK)
            part = {name: values[block] for name, values in columns.items()}
            writer.write(f"pbmc-{key}", tokens.take(np.arange(N)[block]), names[block], part)
        return writer.finish() if finish else writer


def same(found: Tokens, expected: Tokens) -> None:
    for name, dtype in (("indptr", np.int64), ("gene_ids", np.int32), ("values", np.uint8)):
        assert getattr(found, name).dtype == dtype
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_is_what_is_read(tmp_path, vocab, cells):
    tokens, names, columns = cells
    store = write(tmp_path / "store", vocab, cells)
    assert (len(store), store.n_tokens) == (N, tokens.gene_ids.size)
    assert (store.vocab, store.config, store.origins) == (vocab, CONFIG, [ORIGIN])
    assert repr(store) == f"TokenStore(700 cells, {store.n_tokens:,} tokens, 5 shards, hash {store.digest})"
    same(store.take(np.arange(N)), tokens)
    same(store.block(140, 320), tokens.take(np.arange(140, 320)))
    same(store.block(690, 9999), tokens.take(np.arange(690, N)))
    same(Tokens.concatenate([part for _, part in store.shards()]), tokens)
    assert [key for key, _ in store.shards()] == [f"pbmc-{i}" for i in range(5)]
    np.testing.assert_array_equal(store.shard_starts, [0, 150, 300, 450, 600, 700])
    np.testing.assert_array_equal(store.lengths, tokens.lengths)
    np.testing.assert_array_equal(store.indptr, tokens.indptr)
    np.testing.assert_array_equal(store.lengths_of(np.array([699, 4, 160])), tokens.lengths[[699, 4, 160]])
    np.testing.assert_array_equal(store.names, names)
    np.testing.assert_array_equal(store.column("label"), columns["label"])
    np.testing.assert_array_equal(store.column("mito"), columns["mito"])
    assert store.column("mito").dtype == columns["mito"].dtype
    store.verify()
    store.require_vocab(vocab)
    assert GeneVocab.read(tmp_path / "store" / "vocab.json") == vocab


@pytest.mark.parametrize("most_open", [1, 256])
def test_any_order(tmp_path, vocab, cells, monkeypatch, most_open):
    monkeypatch.setattr(reader, "_MOST_OPEN", most_open)
    store, tokens = write(tmp_path / "store", vocab, cells), cells[0]
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 64, 2000):
        chosen = rng.integers(N, size=n)  # with repeats
        same(store.take(chosen), tokens.take(chosen))
        same(store.take(chosen.astype(np.uint16).tolist()), tokens.take(chosen))
    same(store.take(np.array([699, 0, 149, 150, 3])), tokens.take(np.array([699, 0, 149, 150, 3])))
    assert len(store._open) <= most_open


def test_positions_must_be_positions(tmp_path, vocab, cells):
    store = write(tmp_path / "store", vocab, cells)
    for wrong in (-1, N):
        with pytest.raises(IndexError, match=rf"There is no cell {wrong}: positions run from 0 to 699\."):
            store.take(np.array([0, wrong]))
    with pytest.raises(TypeError, match=r"cells has the type bool; it takes positions: np\.flatnonzero\(mask\)\."):
        store.take(np.ones(N, dtype=bool))
    with pytest.raises(TypeError, match=r"cells has the type float64; it takes positions: integers\."):
        store.take(np.array([0.5]))


def leaves(value):
    """What lies in nested tuples and dictionaries."""
    if isinstance(value, tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


def test_batches_are_those_of_tokens_in_memory(tmp_path, vocab, cells):
    store, chosen = write(tmp_path / "store", vocab, cells), np.flatnonzero(cells[0].lengths > 1)
    options = {"batch_size": 32, "max_length": 60, "ratios": (0.25, 0.5), "pad_id": vocab.pad_id, "seed": 3}
    options |= {"cls_id": vocab.cls_id, "cls_value": -2.0, "panel_share": 0.5, "n_tokens": len(vocab)}
    ours, theirs = (GenerativeBatches(tokens, chosen, **options) for tokens in (store, cells[0]))
    ours = pickle.loads(pickle.dumps(ours))  # as a worker gets it
    for step in (0, 5, 30):
        a, b = list(leaves(ours[step])), list(leaves(theirs[step]))
        assert len(a) > 4
        for found, expected in zip(a, b, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_copy_opens_the_files_itself(tmp_path, vocab, cells, monkeypatch):
    write(tmp_path / "store", vocab, cells)
    monkeypatch.chdir(tmp_path)
    store = TokenStore("store")
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    monkeypatch.chdir("/")
    same(pickle.loads(sent).take(np.array([5, 600])), cells[0].take(np.array([5, 600])))
    if hasattr(os, "fork"):
        code = (
            "import os, sys; from scanpy_scgpt.disk import TokenStore; store = TokenStore(sys.argv[1])\n"
            "n = len(store.block(0, 9).gene_ids); child = os.fork()\n"
            "if not child: os._exit(len(store.block(0, 9).gene_ids) != n)\n"
            "sys.exit(os.waitpid(child, 0)[1])"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], check=True)


def test_wide_ids_empty_shards_and_no_shards(tmp_path):
    vocab = GeneVocab([f"G{i}" for i in range(70_000)])
    nothing = Tokens(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.uint8))
    high = Tokens(np.array([0, 0, 2]), np.array([69_999, 65_536], np.int32), np.array([255, 1], np.uint8))
    with TokenStoreWriter(tmp_path / "wide", vocab, CONFIG) as writer:
        for key, tokens in (("a", nothing), ("b", high), ("c", nothing), ("d", high), ("e", nothing)):
            writer.write(key, tokens, np.array([f"{key}é", ""])[: len(tokens)], {"x": np.arange(len(tokens)) > 0})
        store = writer.finish()
    same(store.take(np.arange(4)), Tokens.concatenate([high, high]))
    same(store.take(np.array([], dtype=np.int64)), nothing)
    assert store.names.tolist() == ["bé", "", "dé", ""]
    assert store.column("x").tolist() == [False, True, False, True]
    assert store._records[0].gene_ids == "<u4"
    empty = TokenStoreWriter(tmp_path / "empty", vocab, CONFIG).finish()
    assert (len(empty), empty.n_tokens, empty.names.size, empty.lengths.size) == (0, 0, 0, 0)
    same(empty.take(np.array([])), nothing)
    small = GeneVocab([f"G{i}" for i in range(10)])
    with TokenStoreWriter(tmp_path / "small", small, CONFIG) as writer:
        writer.write("a", nothing, [])
        assert writer.finish()._records[0].gene_ids == "<u2"


def test_numbers_in_keys_are_numbers(tmp_path, vocab, cells):
    with TokenStoreWriter(tmp_path / "store", vocab, CONFIG) as writer:
        for key in ("10", "9", "b-1", "1", "b-01", "a2b10", "a2b9"):
            writer.write(key, cells[0].take(np.arange(2)), np.array(["x", "y"]))
        keys = [key for key, _ in writer.finish().shards()]
    assert keys == ["1", "9", "10", "a2b9", "a2b10", "b-01", "b-1"]


def test_missing_annotations_stay_missing(tmp_path, vocab, cells):
    with TokenStoreWriter(tmp_path / "store", vocab, CONFIG) as writer:
        values = np.array(["b", None, 1, np.nan], dtype=object)
        writer.write("a", cells[0].take(np.arange(4)), np.arange(4), {"mixed": values})
        values = np.array([np.nan] * 4, dtype=object)
        writer.write("b", cells[0].take(np.arange(4)), np.arange(4), {"mixed": values})
        store = writer.finish()
    found = store.column("mixed")
    plain = shards.Column.encode(np.array(["b", "a", "b"]))
    assert plain[0].decode(plain[1]).tolist() == ["b", "a", "b"]
    assert found[[0, 2]].tolist() == ["b", "1"]
    assert all(np.isnan(found[i]) for i in (1, 3, 4, 5, 6, 7))
    assert store.names.tolist() == [*"0123", *"0123"]
    with pytest.raises(KeyError, match=r"Shard 'a' of .*store has no column 'study'\. Columns: mixed\."):
        store.column("study")


def test_an_interrupted_writing_goes_on(tmp_path, vocab, cells, monkeypatch):
    write(tmp_path / "whole", vocab, cells)
    folder = tmp_path / "store"
    write(folder, vocab, cells, stop=2, finish=False)
    with pytest.raises(ValueError, match=r"store is unfinished\. Repeat the call that writes it .*finish\(\)\."):
        TokenStore(folder)

    def killed(*_args):
        raise KeyboardInterrupt

    for broken in ("replace", "fsync"):  # while a draft is there, and no file has its final name
        with monkeypatch.context() as patch:
            patch.setattr(shards.os, broken, killed)
            with pytest.raises(KeyboardInterrupt):
                write(folder, vocab, cells)
    with monkeypatch.context() as patch:  # between the data and the record
        patch.setattr(shards, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            write(folder, vocab, cells)
    assert (folder / "shards" / "pbmc-2.tokens").exists()
    (folder / "shards" / ".pbmc-3.tokens-abc.part").write_bytes(b"half")  # of a killed process
    (folder / ".manifest.json-abc.part").write_bytes(b"half")
    assert not TokenStoreWriter(folder, vocab, CONFIG, origin=ORIGIN).has("pbmc-2")
    write(folder, vocab, cells)
    assert contents(folder) == contents(tmp_path / "whole")


SLOW_WRITER = """
import sys, time
import numpy as np
from scanpy_scgpt.disk import TokenStoreWriter
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig, Tokens

def cells(i):
    rng = np.random.default_rng(i)
    indptr = np.concatenate([[0], np.cumsum(rng.integers(2000, size=300))])
    n = indptr[-1]
    return Tokens(indptr, rng.integers(500, size=n).astype(np.int32), rng.integers(1, 51, n).astype(np.uint8))

keys = [int(key) for key in sys.argv[2].split(",")]
vocab = GeneVocab([f"G{i}" for i in range(500)])
with TokenStoreWriter(sys.argv[1], vocab, TokenizerConfig(), origin={"seed": 0}) as writer:
    print("begun", flush=True)
    for i in keys:
        if not writer.has(f"s-{i}"):
            writer.write(f"s-{i}", cells(i), np.array([f"c{i}-{j}" for j in range(300)]))
            print(i, flush=True)
    if "finish" in sys.argv:
        writer.finish()
"""


def _start(folder: Path, keys: range, *options: str) -> subprocess.Popen:
    listed = ",".join(map(str, keys))
    command = [sys.executable, "-c", SLOW_WRITER, str(folder), listed, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _finish(folder: Path, keys: range) -> None:
    process = _start(folder, keys, "finish")
    process.communicate()
    assert process.returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_kill_9_loses_at_most_the_shard_in_work(tmp_path):
    keys = range(40)
    _finish(tmp_path / "whole", keys)
    for delay in (0.0, 0.005, 0.012):
        process = _start(tmp_path / "store", keys)
        assert process.stdout.readline() == "begun\n"
        done = [process.stdout.readline().strip()]
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        done += process.communicate()[0].split()
        found = shards.read_records(tmp_path / "store" / "shards")
        assert {f"s-{i}" for i in done} <= found.keys()
        for key, record in found.items():
            assert shards.checksum_of(tmp_path / "store" / "shards" / f"{key}.tokens") == record.checksum
    assert len(found) < len(keys)
    _finish(tmp_path / "store", keys)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    TokenStore(tmp_path / "store").verify()


def test_two_processes_write_disjoint_shards(tmp_path):
    _finish(tmp_path / "whole", range(12))
    parts = [_start(tmp_path / "store", range(first, 12, 2)) for first in (0, 1)]
    for process in parts:
        process.communicate()
        assert process.returncode == 0
    _finish(tmp_path / "store", range(12))
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_writers_that_finish_one_after_another(tmp_path, vocab, cells):
    folder = tmp_path / "store"
    first, second = (TokenStoreWriter(folder, vocab, CONFIG, origin=ORIGIN) for _ in range(2))
    first.write("b", cells[0].take(np.arange(2)), np.array(["b1", "b2"]))
    assert second.has("b")
    first.finish()
    second.write("a", cells[0].take(np.arange(1)), np.array(["a1"]))
    assert second.finish().names.tolist() == ["a1", "b1", "b2"]


def test_one_record_is_read_for_a_shard_of_another_process(tmp_path, vocab, cells, monkeypatch):
    first, second = (TokenStoreWriter(tmp_path / "store", vocab, CONFIG, origin=ORIGIN) for _ in range(2))
    for key in "abcd":
        first.write(key, cells[0].take(np.arange(1)), np.array([key]))
    parsed = []
    from_dict = shards.Record.from_dict
    monkeypatch.setattr(shards.Record, "from_dict", lambda values: parsed.append(values["key"]) or from_dict(values))
    assert [second.has(key) for key in "cax"] == [True, True, False]
    assert parsed == ["c", "a"]
    (tmp_path / "store" / "shards" / "b.tokens").write_bytes(b"half")
    (tmp_path / "store" / "shards" / "d.json").write_text("[")
    assert not second.has("b")
    assert not second.has("d")


def test_a_reader_that_comes_in_while_a_store_is_replaced(tmp_path, vocab, cells, monkeypatch):
    folder, next_ = tmp_path / "store", tmp_path / ".store.next"
    write(folder, vocab, cells)
    real, found = os.replace, []
    reading = threading.Thread(target=lambda: found.append(TokenStore(folder)))

    def slowly(source, target):
        if Path(source) == next_:
            reading.start()
            time.sleep(0.1)
        real(source, target)

    monkeypatch.setattr(os, "replace", slowly)
    store = write(folder, vocab, cells, keys=[1, 4], overwrite=True, origin={"file": "new"})
    reading.join(10)
    assert [x.digest for x in found] == [store.digest]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_appending_keeps_positions(tmp_path, vocab, cells, monkeypatch):
    folder = tmp_path / "store"
    before = write(folder, vocab, cells, keys=[2, 3])
    with pytest.raises(ValueError, match=r"store is complete\. Pass append=True .* overwrite=True to write it anew"):
        write(folder, vocab, cells)
    more = {"append": True, "origin": {"file": "other"}}
    write(folder, vocab, cells, keys=[0], finish=False, **more)
    assert TokenStore(folder).digest == before.digest  # readers see the former store meanwhile
    with pytest.raises(ValueError, match=r"something else \(origin: file 'other' there, 'third' here\)"):
        write(folder, vocab, cells, append=True, origin={"file": "third"})
    store = write(folder, vocab, cells, keys=[0, 1], **more)
    assert [key for key, _ in store.shards()] == ["pbmc-2", "pbmc-3", "pbmc-0", "pbmc-1"]
    assert store.origins == [ORIGIN, {"file": "other"}]
    same(store.block(0, 300), before.take(np.arange(300)))
    assert store.digest != before.digest
    assert write(folder, vocab, cells, keys=[], append=True).digest == store.digest  # nothing new
    logged = []
    monkeypatch.setattr(reader.logger, "warning", lambda text, *args: logged.append(text % args))
    with TokenStoreWriter(folder, vocab, CONFIG, append=True) as writer:
        annotated = {name: values[:3] for name, values in cells[2].items()}
        writer.write("again", cells[0].take(np.arange(3)), cells[1][:3], annotated)
        assert len(writer.finish()) == 603
    assert logged == [
        f"token store: 3 of 603 cells in {folder} have the name of another. If a file was added twice, write the "
        "store anew with overwrite=True."
    ]


def test_a_store_of_something_else_is_left_alone(tmp_path, vocab, cells):
    folder = tmp_path / "store"
    write(folder, vocab, cells, stop=2, finish=False)
    before = contents(folder)
    other = GeneVocab([*vocab.tokens, "NEW"])
    for finished in (False, True):
        for given, what in (
            ((other, CONFIG), rf"vocabulary: digest '{vocab.digest}' there, '{other.digest}' here; vocabulary: size"),
            ((vocab, TokenizerConfig(ties="low")), r"tokenizer: ties 'mid' there, 'low' here"),
        ):
            text = rf"{what}.*\. Choose another folder, or pass overwrite=True\."
            with pytest.raises(ValueError, match=text):
                TokenStoreWriter(folder, *given, origin=ORIGIN, append=finished)
        if not finished:
            with pytest.raises(ValueError, match=r"origin: seed 0 there, 1 here"):
                TokenStoreWriter(folder, vocab, CONFIG, origin={**ORIGIN, "seed": 1})
            assert contents(folder) == before
            store = write(folder, vocab, cells)
    with pytest.raises(ValueError, match=rf"vocabulary {vocab.digest}, the model {other.digest} .* Tokenise the cells"):
        store.require_vocab(other)
    with pytest.raises(ValueError, match=r"overwrite=True and append=True exclude each other"):
        TokenStoreWriter(folder, vocab, CONFIG, overwrite=True, append=True)


def test_overwriting_keeps_the_former_until_the_end(tmp_path, vocab, cells, monkeypatch):
    folder, next_ = tmp_path / "store", tmp_path / ".store.next"
    old = write(folder, vocab, cells)
    anew = {"overwrite": True, "origin": {"file": "new"}}
    write(folder, vocab, cells, keys=[0], finish=False, overwrite=True, origin={"file": "given up"})
    write(folder, vocab, cells, keys=[1], finish=False, **anew)
    assert TokenStore(folder).digest == old.digest
    assert json.loads((next_ / "manifest.json").read_text())["origins"] == [{"file": "new"}]
    real = os.replace

    def killed(source, target):
        if Path(source) == next_:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(folder, vocab, cells, keys=[1, 4], **anew)
    assert not folder.exists()
    assert TokenStore(folder).digest == old.digest  # put back
    assert write(folder, vocab, cells, keys=[1, 4], **anew).origins == [{"file": "new"}]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    same(TokenStore(folder).block(0, 150), cells[0].take(np.arange(150, 300)))
    (folder / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds mine\.txt, which no token store has\. Choose another folder\."):
        TokenStoreWriter(folder, vocab, CONFIG, overwrite=True)
    with pytest.raises(ValueError, match=r"mine\.txt is no folder\. Choose another path, or remove the file\."):
        TokenStoreWriter(folder / "mine.txt", vocab, CONFIG)
    other = tmp_path / "other" / "shards"
    other.mkdir(parents=True)
    (other / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"shards holds files of something else: there is no manifest\.json\. Choose"):
        TokenStoreWriter(other.parent, vocab, CONFIG, overwrite=True)


def test_overwriting_an_unfinished_store_of_the_same_goes_on(tmp_path, vocab, cells):
    first, second = (TokenStoreWriter(tmp_path / "store", vocab, CONFIG, overwrite=True) for _ in range(2))
    for key, writer in (("a", first), ("b", second)):
        writer.write(key, cells[0].take(np.arange(1)), np.array([key]))
    assert second.finish().names.tolist() == ["a", "b"]


def test_a_full_disk_leaves_no_half_shard(tmp_path, vocab, cells, monkeypatch):
    folder = tmp_path / "store"
    write(tmp_path / "whole", vocab, cells)

    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write(folder, vocab, cells, stop=2, finish=False)
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "fsync", full)
        text = (
            r"Shard 'pbmc-2' could not be written to .*store \(No space left on device\)\. 2 shards with 300 cells are "
            r"there and stay\. Make room and repeat the same call: it goes on after them\."
        )
        with pytest.raises(OSError, match=text) as caught:
            write(folder, vocab, cells)
    assert caught.value.errno == errno.ENOSPC
    assert contents(folder) == before
    write(folder, vocab, cells)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_shard_must_fit(tmp_path, vocab, cells):
    tokens, names = cells[0].take(np.arange(5)), cells[1][:5]
    with TokenStoreWriter(tmp_path / "store", vocab, CONFIG) as writer:
        before = contents(tmp_path)
        for key in ("", ".x", "a/b", "../x", "a b", "x" * 121, 3):
            with pytest.raises(ValueError, match=r"shard_key=.*: use 1 to 120 letters, digits, '-', '_' and '\.'"):
                writer.write(key, tokens, names)
        with pytest.raises(ValueError, match=r"Shard 'a': names has shape \(4,\), the tokens have 5 cells"):
            writer.write("a", tokens, names[:4])
        with pytest.raises(ValueError, match=r"Shard 'a': column 'x' has shape \(5, 1\), the tokens have 5 cells"):
            writer.write("a", tokens, names, {"x": np.zeros((5, 1))})
        for wrong in (-1, len(vocab)):
            bad = Tokens(np.array([0, 1]), np.array([wrong], np.int32), np.ones(1, np.uint8))
            with pytest.raises(
                ValueError, match=rf"gene ids from .*{wrong}.*, the vocabulary has {len(vocab)} entries"
            ):
                writer.write("a", bad, names[:1])
        with pytest.raises(ValueError, match=r"The cell name 'a\\x00b' holds a zero character\. Take it out"):
            writer.write("a", tokens, np.array([*names[:4], "a\0b"], dtype=object))
        assert contents(tmp_path) == before
        writer.write("a", tokens, names, {"x": np.zeros(5)})
        with pytest.raises(ValueError, match=r"The shard 'a' is there\. Skip it: if not writer\.has\('a'\)"):
            writer.write("a", tokens, names, {"x": np.zeros(5)})
        with pytest.raises(ValueError, match=r"Shard 'b' has the columns none; those before have x\. Give the same"):
            writer.write("b", tokens, names)


def test_a_shard_that_was_cut_short(tmp_path, vocab, cells):
    whole = contents(write(tmp_path / "store", vocab, cells).folder)
    path = tmp_path / "store" / "shards" / "pbmc-2.tokens"
    size = path.stat().st_size
    mend = r"Delete it and repeat the call that wrote the store, with append=True: it writes what is missing\."
    with path.open("rb+") as file:
        file.truncate(size - 64)
    with pytest.raises(ValueError, match=rf"pbmc-2\.tokens should have {size:,} bytes and has {size - 64:,}\. {mend}"):
        TokenStore(tmp_path / "store")
    path.unlink()
    with pytest.raises(ValueError, match=rf"pbmc-2\.tokens is missing\. {mend}"):
        TokenStore(tmp_path / "store")
    with pytest.raises(ValueError, match=r"had the shard 'pbmc-2', which is gone or cut short\. Write it again"):
        write(tmp_path / "store", vocab, cells, keys=[], append=True)
    write(tmp_path / "store", vocab, cells, append=True)
    assert contents(tmp_path / "store") == whole


def test_changed_bytes_are_found(tmp_path, vocab, cells):
    store = write(tmp_path / "store", vocab, cells)
    store.verify()
    path = tmp_path / "store" / "shards" / "pbmc-3.tokens"
    content = bytearray(path.read_bytes())
    content[8 + 7] ^= 64  # the end of the first cell is far away
    path.write_bytes(content)
    damaged = TokenStore(tmp_path / "store")
    with pytest.raises(ValueError, match=r"pbmc-3\.tokens has the checksum [0-9a-f]{32}, not [0-9a-f]{32}\. Delete it"):
        damaged.verify()
    with pytest.raises(ValueError, match=r"pbmc-3\.tokens has a damaged row pointer\. Delete it"):
        damaged.take(np.array([450]))
    same(damaged.block(0, 450), cells[0].take(np.arange(450)))


def test_what_is_no_store(tmp_path, vocab, cells):
    with pytest.raises(FileNotFoundError, match=r"is no token store: it has no manifest\.json\. Write one with"):
        TokenStore(tmp_path / "nowhere")
    folder = write(tmp_path / "store", vocab, cells).folder
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[:-20])
    with pytest.raises(ValueError, match=r"manifest\.json is no valid JSON .* Copy the folder again, or remove it"):
        TokenStore(folder)
    for content in ({**json.loads(text), "version": 2}, []):
        manifest.write_text(json.dumps(content))
        with pytest.raises(
            ValueError, match=r"this release reads 'scanpy-scgpt token store', version 1\. A newer file"
        ):
            TokenStore(folder)
    manifest.write_text(text)
    other = GeneVocab(["A"])
    other.write(folder / "vocab.json")
    store = TokenStore(folder)
    with pytest.raises(ValueError, match=rf"vocab\.json has the hash {other.digest}, not {vocab.digest}\. Write the"):
        _ = store.vocab
    (folder / "vocab.json").unlink()
    with pytest.raises(ValueError, match=r"vocab\.json is missing\. Write the vocabulary that made the tokens: model"):
        store.verify()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_memory_holds_what_is_asked_for(tmp_path, cells, vocab):
    """A fresh process takes a few cells of 25 MB, then passes over all: what it allocates stays small."""
    many = cells[0].take(np.resize(np.arange(N), 25_000))
    with TokenStoreWriter(tmp_path / "store", vocab, CONFIG) as writer:
        for i in range(3):
            writer.write(f"s{i}", many, np.arange(25_000))
        store = writer.finish()
    size = sum(path.stat().st_size for path in (tmp_path / "store" / "shards").glob("*.tokens"))
    assert size > 25e6
    code = """
import sys
import numpy as np
from scanpy_scgpt.disk import TokenStore
def resident(part):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[part].split()[0]) * 1024
store = TokenStore(sys.argv[1])
store.take(np.array([0]))
before = resident("VmRSS"), resident("RssAnon")
store.take(np.array([5, 30_000, 60_000]))
print(resident("VmRSS") - before[0])
for start in range(0, len(store), 500):
    store.block(start, start + 500)
print(resident("RssAnon") - before[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.folder)], check=True, stdout=subprocess.PIPE, text=True
    )
    few, passed = map(int, done.stdout.split())
    assert few < size / 5
    assert passed < size / 5


def test_resuming_says_so(tmp_path, vocab, cells, caplog):
    write(tmp_path / "store", vocab, cells, stop=3, finish=False)
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        write(tmp_path / "store", vocab, cells)
    assert f"token store: 3 shards are in {tmp_path / 'store'} and stay." in caplog.text


def test_notes_stay_and_shards_can_be_taken_back(tmp_path, vocab, cells):
    tokens, names, columns = cells
    assert store_in(tmp_path / "store") is None
    with TokenStoreWriter(tmp_path / "store", vocab, CONFIG, origin=ORIGIN) as writer:
        for key in (1, 0, 2):
            block = slice(key * BLOCK, (key + 1) * BLOCK)
            part = {name: values[block] for name, values in columns.items()}
            writer.write(f"{key}", tokens.take(np.arange(N)[block]), names[block], part, notes={"key": key})
    assert store_in(tmp_path / "store") == (ORIGIN, vocab, False)
    writer = TokenStoreWriter(tmp_path / "store", vocab, CONFIG, origin=ORIGIN)
    assert writer.keys == ["0", "1", "2"]
    assert writer.written("1").names().tolist() == names[BLOCK : 2 * BLOCK].tolist()
    writer.remove("1")
    writer.remove("never there")
    assert not writer.has("1")
    store = writer.finish()
    assert store_in(tmp_path / "store") == (ORIGIN, vocab, True)
    assert store.notes == [{"key": 0}, {"key": 2}]
    assert store.columns == ["label", "mito"]
    assert store.names.tolist() == [*names[:BLOCK], *names[2 * BLOCK : 3 * BLOCK]]
    with TokenStoreWriter(tmp_path / "store", vocab, CONFIG, origin=ORIGIN, append=True) as writer:
        writer.remove("0")
        assert len(writer.finish()) == 2 * BLOCK, "a shard of a complete store stays"
