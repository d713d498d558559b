"""The vocabulary."""

from __future__ import annotations

import json
import pickle
import time

import numpy as np
import pytest

from scanpy_scgpt.tokenizer import GeneVocab


def test_special_tokens_are_appended_once():
    vocab = GeneVocab(["A", "B"])
    assert vocab.tokens == ("A", "B", "<pad>", "<cls>", "<eoc>")
    assert (vocab.pad_id, vocab.cls_id) == (2, 3)
    assert GeneVocab(vocab.tokens) == vocab
    assert vocab.genes == ("A", "B")
    assert pickle.loads(pickle.dumps(vocab)) == vocab


def test_ids_of_unknown_tokens_are_minus_one():
    np.testing.assert_array_equal(GeneVocab(["A", "B"]).ids(["B", "x", "A"]), [1, -1, 0])


def test_round_trip_and_digest(tmp_path):
    vocab = GeneVocab(["A", "B"])
    vocab.write(tmp_path / "vocab.json")
    assert GeneVocab.read(tmp_path / "vocab.json") == vocab
    assert GeneVocab(["B", "A"]).digest != vocab.digest
    assert GeneVocab(["A", "B"]).digest == vocab.digest


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"A": 0, "B": 2}, "token 'B' has id 2; the 2 ids must be the integers 0 to 1"),
        ({"A": 0, "B": 0}, "token 'B' has id 0"),
        ({"A": 0, "B": -1}, "token 'B' has id -1"),
        ({"A": 0, "B": "1"}, "token 'B' has id '1'"),
    ],
)
def test_damaged_mappings_are_refused(mapping, text):
    with pytest.raises(ValueError, match=text):
        GeneVocab.from_mapping(mapping)


def test_a_list_is_no_vocabulary(tmp_path):
    (tmp_path / "v.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a JSON list; a vocabulary is an object"):
        GeneVocab.read(tmp_path / "v.json")


def test_repeated_tokens_are_refused():
    with pytest.raises(ValueError, match="'A' stands more than once"):
        GeneVocab(["A", "B", "A"])


def test_the_size_of_the_original_loads_in_under_a_second(tmp_path):
    names = [f"GENE{i}" for i in range(60_694)]
    mapping = {name: i for i, name in enumerate([*names, "<pad>", "<cls>", "<eoc>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(mapping))
    started = time.process_time()
    vocab = GeneVocab.read(tmp_path / "vocab.json")
    assert time.process_time() - started < 1
    assert len(vocab) == 60_697
    assert (vocab.pad_id, vocab.cls_id) == (60_694, 60_695)
