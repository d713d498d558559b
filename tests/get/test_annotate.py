"""Tables of labels."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scanpy_scgpt import get


@pytest.fixture
def adata() -> ad.AnnData:
    adata = ad.AnnData(np.zeros((2, 1), dtype=np.float32))
    adata.obsm["scgpt_label_prob"] = np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    adata.obsm["scgpt_label_sets"] = np.array([[True, False], [True, True]])
    adata.uns["scgpt"] = {"annotate": {"labels": ["CD4+/CD25 T Reg", "B"]}}
    return adata


def test_labels_with_a_slash_survive_a_file(adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    adata = ad.read_h5ad(tmp_path / "cells.h5ad")
    table = get.label_probabilities(adata)
    assert list(table.columns) == ["CD4+/CD25 T Reg", "B"]
    assert list(table.index) == list(adata.obs_names)
    assert table.to_numpy().dtype == np.float32
    assert get.label_sets(adata).to_numpy().tolist() == [[True, False], [True, True]]


def test_nothing_there(adata):
    with pytest.raises(KeyError, match=r"adata.obsm has no 'x_prob'.*scgpt.tl.annotate\(.*key_added='x'\)"):
        get.label_probabilities(adata, key="x")
    adata.uns.clear()
    with pytest.raises(KeyError, match=r"adata.uns\['scgpt'\] has no record of it.*labels_key=...\)"):
        get.label_sets(adata)
