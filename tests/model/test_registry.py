"""Registries as plain values: nothing is lost on the way through JSON."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt.model._registry import categories_of, from_plain, state_of, to_plain


@pytest.mark.parametrize(
    "value",
    [
        np.array(["a", "b"], dtype=object),
        np.array(["a", "bcd"]),
        np.array([1, 2, 3]),
        np.array([[0.1, np.nan], [1e300, -0.0]], dtype=np.float64),
        np.array([0.1], dtype=np.float32),
        np.array([True, False]),
        np.zeros((0, 3), dtype=np.int32),
    ],
)
def test_arrays_come_back(value):
    back = from_plain(json.loads(json.dumps(to_plain(value))))
    assert back.dtype == value.dtype
    np.testing.assert_array_equal(back, value)


def test_tables_come_back():
    table = pd.DataFrame({"train_loss": [1.5, np.nan]}, index=pd.RangeIndex(2, name="epoch"))
    back = from_plain(json.loads(json.dumps(to_plain(table))))
    pd.testing.assert_frame_equal(back, table, check_index_type=False)


def test_all_else_comes_back():
    value = {"a": {"b": [1, "x", None, 2.5, True]}, "n": np.int64(3), "f": np.float32(0.5), "t": (1, (2, 3))}
    back = from_plain(json.loads(json.dumps(to_plain(value))))
    assert back == {"a": {"b": [1, "x", None, 2.5, True]}, "n": 3, "f": 0.5, "t": [1, [2, 3]]}


def test_what_was_not_registered_is_empty():
    registry = {"field_registries": {"labels": {"state_registry": {"categorical_mapping": np.array(["x", 2], object)}}}}
    assert categories_of(registry, "labels") == ["x", "2"]
    assert categories_of(registry, "batch") == []
    assert state_of(registry, "batch") == {}
