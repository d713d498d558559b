"""The names that `key_added` turns into."""

from __future__ import annotations

from dataclasses import astuple

from scanpy_scgpt._keys import EmbedKeys, LabelKeys


def test_slots_of_labels():
    default = LabelKeys.named()
    assert default == LabelKeys() == LabelKeys.named("scgpt_label")
    assert (default.label, default.confidence, default.unknown) == ("scgpt_label", "scgpt_confidence", "scgpt_unknown")
    assert (default.prob, default.sets, default.uns) == ("scgpt_label_prob", "scgpt_label_sets", "annotate")
    parts = ("confidence", "unknown", "prob", "sets", "rollup")
    assert astuple(LabelKeys.named("x")) == ("x", *(f"x_{part}" for part in parts), "annotate_x")


def test_two_results_share_no_slot():
    slots = [*astuple(LabelKeys.named()), *astuple(LabelKeys.named("x")), *astuple(EmbedKeys.named("y"))]
    assert len(set(slots)) == len(slots)
