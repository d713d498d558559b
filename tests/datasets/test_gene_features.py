"""The gene features of the package, and the script that makes them."""

from __future__ import annotations

import gzip
import importlib.util
import time
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scanpy_scgpt.datasets import gene_features

SCRIPT = Path(__file__).parents[2] / "scripts/build_gene_features.py"
PROGRAMS = {
    "ribosome": ["RPL3", "RPL4", "RPL5", "RPS3", "RPS6", "RPS8"],
    "cell cycle": ["CCNB1", "CDK1", "BUB1", "BUB1B", "CENPE", "PLK1"],
    "synapse": ["SYT1", "STX1A", "SNAP25", "RIMS1", "UNC13A", "CPLX1"],
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_gene_features", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_shipped():
    features = gene_features()
    assert features.shape == (features.attrs["n_genes"], 64)
    assert len(features) > 15_000
    assert (features.dtypes == np.float32).all()
    assert np.isfinite(features.to_numpy()).all()
    assert features.index.is_unique
    assert features.index.is_monotonic_increasing
    assert {"TP53", "CD3D", "SEPTIN7"} <= set(features.index)  # current symbols
    assert "SEPT7" not in features.index
    assert np.square(features.to_numpy()).mean() == pytest.approx(1, abs=1e-3)
    energy = np.square(features.to_numpy()).mean(axis=0)
    assert (np.diff(energy) < 1e-3).all()  # the columns fall in strength


def test_source_and_licence_travel_along():
    about = gene_features().attrs
    assert "CC BY 4.0" in about["licence"]
    for name in ("Gene Ontology", "Reactome", "MSigDB"):
        assert any(name in source for source in about["sources"])
    folder = resources.files("scanpy_scgpt.datasets")
    card = (folder / "gene_features.md").read_text(encoding="utf-8")
    for text in (*about["sources"], *about["sha256"].values(), about["licence"], f"{about['n_genes']:,}"):
        assert text in card
    assert len((folder / "gene_features.npz").read_bytes()) < 3e6


def test_genes_of_one_program_lie_together():
    features = gene_features()
    unit = features.div(np.linalg.norm(features, axis=1), axis=0)
    for name, genes in PROGRAMS.items():
        others = [gene for other, listed in PROGRAMS.items() if other != name for gene in listed]
        own = unit.loc[genes] @ unit.loc[genes].T
        assert own.to_numpy().min() > 0.3 > (unit.loc[genes] @ unit.loc[others].T).to_numpy().max()


def test_reading_is_quick_and_gives_a_table_of_its_own():
    seconds = []
    for _ in range(3):
        start = time.process_time()
        features = gene_features()
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.3
    features.iloc[:] = 0
    assert gene_features().to_numpy().any()


def test_sets_become_a_matrix_of_current_symbols(script: ModuleType, tmp_path: Path):
    path = tmp_path / "sets.gmt.gz"
    lines = ["first\tS:1\tCD3D\tSEPT7\tMS4A1\tNKG7\tLYZ\tno such gene", "second\tS:2\tLYZ\tNKG7\tCD3D\tCD8A\tGNLY\tLYZ",
             "small\tS:3\tCD3D\tLYZ"]  # fmt: skip
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    sets = script.read_sets(path)
    assert [len(genes) for genes in sets.values()] == [6, 6, 2]
    symbols = pd.read_csv(script.GENES, sep="\t", dtype=str, na_filter=False)["symbol"]
    genes, matrix = script.membership(sets, symbols)
    assert list(genes) == ["CD3D", "CD8A", "GNLY", "LYZ", "MS4A1", "NKG7", "SEPTIN7"]
    np.testing.assert_array_equal(matrix.toarray().T, [[1, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 0]])


def test_features_are_the_components_of_the_weighted_membership(script: ModuleType):
    rng = np.random.default_rng(0)
    dense = (rng.random((60, 25)) < 0.3).astype(float)
    dense = dense[dense.any(axis=1)]
    features, explained = script.factorise(sparse.csr_matrix(dense), 4)

    weighted = dense * np.log(len(dense) / dense.sum(axis=0))
    weighted /= np.linalg.norm(weighted, axis=1, keepdims=True)
    weighted -= weighted.mean(axis=0)
    left, strength, _ = np.linalg.svd(weighted, full_matrices=False)
    expected = left[:, :4] * strength[:4]
    expected /= np.sqrt(np.square(expected).mean())
    np.testing.assert_allclose(features @ features.T, expected @ expected.T, atol=1e-8)
    np.testing.assert_allclose(np.abs(features), np.abs(expected), atol=1e-8)
    assert (features[np.abs(features).argmax(axis=0), range(4)] > 0).all()  # one sign, so the same bytes
    assert explained == pytest.approx(np.square(strength[:4]).sum() / np.square(strength).sum())


def test_the_same_input_gives_the_same_bytes(script: ModuleType, tmp_path: Path):
    rng = np.random.default_rng(1)
    matrix = sparse.random(80, 30, density=0.2, random_state=rng, data_rvs=np.ones).tocsr()
    matrix = matrix[matrix.getnnz(axis=1) > 0]
    genes = np.array([f"G{i}" for i in range(matrix.shape[0])])
    files = [tmp_path / name for name in ("a.npz", "b.npz")]
    for file in files:
        features, explained = script.factorise(matrix, 5)
        script.write_features(file, genes, features, {"explained_variance": explained})
    assert files[0].read_bytes() == files[1].read_bytes()
    with np.load(files[0], allow_pickle=False) as stored:
        assert stored["features"].dtype == np.float16
        assert list(stored["genes"].astype(str)) == list(genes)
        np.testing.assert_allclose(stored["features"], features, rtol=1e-3, atol=1e-6)
