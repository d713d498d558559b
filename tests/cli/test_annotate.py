"""`scanpy-scgpt annotate`."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc

from scanpy_scgpt import cli


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    adata = ad.AnnData(adata.X, obs=adata.obs[["bulk_labels"]], var=adata.var[[]])
    adata[:150].copy().write_h5ad(folder / "reference.h5ad")
    adata[150:180].copy().write_h5ad(folder / "query.h5ad")
    return folder


def test_a_file_is_named_and_the_annotator_kept(files, tmp_path, capsys):
    out, folder = tmp_path / "named.h5ad", tmp_path / "annotator"
    common = ["--min-genes", "100", "--max-epochs", "0", "--device", "cpu"]
    call = ["annotate", str(files / "query.h5ad"), "--reference", str(files / "reference.h5ad"), "--out", str(out)]
    assert cli.main([*call, "--labels-key", "bulk_labels", "--save", str(folder), *common]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    found = ad.read_h5ad(out)
    assert (found.obs["scgpt_label"].astype(str) == found.obs["bulk_labels"].astype(str)).mean() > 0.5
    assert "scgpt_label" not in ad.read_h5ad(files / "query.h5ad").obs
    again = ["annotate", str(files / "query.h5ad"), "--reference", str(folder), "--out", str(tmp_path / "again.h5ad")]
    assert cli.main([*again, "--min-genes", "100"]) == 0
    same = ad.read_h5ad(tmp_path / "again.h5ad").obsm["scgpt_label_prob"]
    np.testing.assert_allclose(same, found.obsm["scgpt_label_prob"], atol=1e-5)
    assert cli.main([*again, "--min-genes", "100"]) == 1
    assert "exists. Choose another name, or pass overwrite=True to replace it. On the command line: --overwrite" in (
        capsys.readouterr().err
    )


def test_errors_name_the_arguments(files, tmp_path, capsys):
    call = ["annotate", str(files / "query.h5ad"), "--reference", str(files / "reference.h5ad")]
    assert cli.main([*call, "--out", str(tmp_path / "x.h5ad")]) == 1
    assert "labels_key: name the column of reference.obs" in capsys.readouterr().err
    assert cli.main([*call, "--out", str(tmp_path / "x.csv"), "--labels-key", "bulk_labels"]) == 1
    assert "x.csv: here the name of a file ends in .h5ad." in capsys.readouterr().err
