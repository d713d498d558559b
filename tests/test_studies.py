"""The studies run at a tiny size and go on where they stopped; their page says what the results say."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.decomposition import PCA

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import generation  # noqa: E402
from benchmarks.studies import _common, _linear, _tables, context, few_shot, gene_table, report, scaling  # noqa: E402

pytestmark = [  # of Lightning
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]
NETWORK = {"d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8, "max_length": 60, "batch_size": 8}
QUERY = "query.h5ad"


@pytest.fixture(scope="module")
def data(_shipped_cells, tmp_path_factory):
    """Folder with two files of cells to learn from and one to evaluate, of different cells of the same blood."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "knowledge").mkdir()
    symbols = pd.DataFrame({"symbol": [*_shipped_cells.var_names, "ENSG00000000001"], "ensembl_id": "", "biotype": ""})
    with gzip.open(folder / "knowledge" / "genes_human_gencode.tsv.gz", "wt") as file:
        symbols.to_csv(file, sep="\t", index=False)
    labels = _shipped_cells.obs["bulk_labels"].astype(str).to_numpy()
    for i, name in enumerate(("one.h5ad", "two.h5ad", QUERY)):
        rows = np.arange(i * 90, i * 90 + 90)
        cells = ad.AnnData(
            sparse.csr_matrix(_shipped_cells.layers["derived"][rows]),
            obs=pd.DataFrame(
                {"cell_type": labels[rows], "batch": [f"donor {j % 4}" for j in rows]},
                index=[f"cell {j}" for j in rows],
            ),
            var=_shipped_cells.var[[]].copy(),
        )
        cells.write_h5ad(folder / name)
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Where the studies of this file keep what they share."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def setup_of(data, work, monkeypatch):
    """Function `(name, seeds)`: a study at a tiny size."""
    monkeypatch.setattr(generation, "FILES", (QUERY,))
    monkeypatch.setattr(scaling, "SIZES", (60,))
    monkeypatch.setattr(scaling, "HELD_CELLS", 40)
    monkeypatch.setattr(context, "OTHERS", ("two.h5ad",))
    monkeypatch.setattr(context, "BLOOD", ("one.h5ad",))
    monkeypatch.setattr(context, "RESOLUTIONS", (0.5, 1.0))
    for module in (context, few_shot):
        monkeypatch.setattr(module, "TARGET", QUERY)
    monkeypatch.setattr(gene_table, "TABLES", ("random", "coexpression", "both"))
    monkeypatch.setattr(few_shot, "SHARES", (50,))
    monkeypatch.setitem(few_shot.TUNING, "most_steps", 20)

    def setup(name, seeds=1):
        return _common.Setup(
            name,
            data,
            work / f"{name}.json",
            work=work,
            seeds=seeds,
            steps=10,
            corpus=("one.h5ad", "two.h5ad"),
            queries={QUERY: "cell_type"},
            query_cells=50,
            network={**_common.NETWORK, **NETWORK, "validation_share": 0.2},
        )

    return setup


@pytest.mark.slow
@pytest.mark.parametrize("name", report.STUDIES)
def test_a_study_runs_and_is_not_repeated(name, setup_of, monkeypatch):
    study = importlib.import_module(f"benchmarks.studies.{name}").study
    setup = setup_of(name)
    result = study(setup)
    written = json.loads(setup.out.read_text())
    assert written["records"] == result["records"]
    assert all(np.isfinite(list(record["values"].values())).all() for record in result["records"])
    arms = {record["arm"] for record in result["records"]}
    assert {arm for panel in result["figure"]["panels"] for arm in panel["arms"]} <= arms
    assert {arm for comparison in result["comparisons"] for arm in comparison[:2]} <= arms
    assert len(_tables.comparisons(result)) >= len(result["comparisons"])
    for title, header, rows in _tables.tables(result):
        assert rows, title
        assert all(len(row) == len(header) for row in rows)
    monkeypatch.setattr(_common.pretrain, "run", None)
    assert study(setup)["records"] == result["records"]
    assert name in report.block(written)
    report.draw(written, setup.out.with_suffix(".png"))
    assert 2_000 < setup.out.with_suffix(".png").stat().st_size < 150_000


def made_up(**changes):
    """A result of two arms and a bar, three seeds; `ours` is better by about 0.1 in both measures."""
    values = {"ours": (0.80, 0.82, 0.81), "theirs": (0.70, 0.71, 0.72), "noisy": (0.60, 0.95, 0.85)}
    records = [
        {"arm": arm, "seed": seed, "x": None, "values": {"macro F1": f1, "error at 50 %": 1 - f1}}
        for arm, row in values.items()
        for seed, f1 in enumerate(row)
    ]
    records.append({"arm": "bar", "seed": None, "x": None, "values": {"macro F1": 0.9}})
    return {
        "study": "mask",
        "cells": 15_000,
        "settings": {"steps": 300, "batch_size": 64, "seeds": 3},
        "directions": {"macro F1": "higher", "error at 50 %": "lower"},
        "tables": [{"title": "All", "measures": ["macro F1", "error at 50 %"]}],
        "comparisons": [["ours", other, "macro F1"] for other in ("theirs", "noisy", "bar")]
        + [["theirs", "ours", "error at 50 %"]],
        "figure": {"panels": [{"measure": "macro F1", "arms": ["ours", "theirs", "bar"]}]},
        "records": records,
        **changes,
    }


def test_verdicts_come_from_paired_intervals():
    found = {(row.arm, row.reference): row for row in _tables.comparisons(made_up())}
    assert {pair: row.verdict for pair, row in found.items()} == {
        ("ours", "theirs"): "win",
        ("ours", "noisy"): "tie",
        ("ours", "bar"): "loss",
        ("theirs", "ours"): "loss",
    }
    mean, half, n = found["ours", "theirs"].difference
    assert mean == pytest.approx(0.1)
    assert half == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)  # t of 2 degrees, sd 0.01
    assert n == 3


def test_one_seed_decides_nothing():
    result = made_up()
    result["records"] = [record for record in result["records"] if record["seed"] in (0, None)]
    assert {row.verdict for row in _tables.comparisons(result)} == {"open"}
    assert "±" not in report.block(result)


def test_slopes_are_for_ten_times_the_cells():
    records = [
        {"arm": "network", "seed": seed, "x": x, "values": {"macro F1": 0.5 + 0.1 * i + 0.001 * seed}}
        for i, x in enumerate((100, 1000, 10_000))
        for seed in range(2)
    ]
    result = made_up(records=records, axis="{:,} cells", slopes=[["network", "macro F1"]], comparisons=[])
    assert _tables.slope(result, "network", "macro F1").mean == pytest.approx(0.1)
    assert _tables.slope_rows(result)[0][-1] == "gets better"
    assert "network, 10,000 cells" in report.block(result)


def test_the_page_is_made_from_the_results():
    results = report.read_results(_common.RESULTS)
    text = report.PAGE.read_text(encoding="utf-8")
    assert report.page(text, results) == text, "run python -m benchmarks.studies.report"
    for study in results:
        figure = report.FIGURES / f"{study}.png"
        assert figure.stat().st_size < 150_000


def test_only_the_blocks_of_the_page_change():
    text = report.PAGE.read_text(encoding="utf-8")
    changed = report.page(text, {"mask": made_up()})
    assert "| ours, less theirs | macro F1 | +0.100 ± 0.025 | 3 | win |" in changed
    assert "- *ours* against *theirs*: 1 win\n" in changed
    assert report.page(changed, report.read_results(_common.RESULTS)) == text
    with pytest.raises(ValueError, match="lacks the markers of scaling: put <!-- scaling: begin -->"):
        report.page(text.replace("<!-- scaling: end -->", ""), {})


def test_the_command_of_the_page(tmp_path, monkeypatch, capsys):
    (tmp_path / "mask.json").write_text(json.dumps(made_up()))
    page = tmp_path / "studies.md"
    page.write_text(report.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    arguments = ["--results", str(tmp_path), "--page", str(page), "--figures", str(tmp_path / "figures")]
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    assert report.main() == 0
    assert "+0.100 ± 0.025" in page.read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "mask.png").is_file()
    assert "with mask" in capsys.readouterr().out


def test_projected_components_are_those_of_dense_pca(counts):
    counts = sparse.csr_matrix(counts.X, dtype=np.float32)
    fitted = _linear.components(counts[:400], n_genes=300, n_components=5)
    logged = np.log1p(counts.toarray() / counts.sum(axis=1) * 1e4)
    dense = np.asarray(logged)[:, fitted.genes]
    scaled = (dense - dense[:400].mean(axis=0)) / dense[:400].std(axis=0)
    reference = PCA(5, svd_solver="full").fit(scaled[:400]).transform(scaled[400:])
    found = fitted.project(counts[400:], np.ones(counts.shape[1], bool))
    found = found[:, np.argsort(-found.var(axis=0))]
    reference = reference[:, np.argsort(-reference.var(axis=0))]
    agreement = np.abs(np.corrcoef(found.T, reference.T)[:5, 5:].diagonal())
    assert agreement.min() > 0.999
    nothing = fitted.project(counts[400:], np.zeros(counts.shape[1], bool))
    assert np.abs(nothing).max() == 0  # a gene that is not measured counts as its mean


def test_a_run_that_was_cut_short_is_repeated(setup_of):
    kept = _common.Kept(setup_of("cut"))
    kept.once("run", lambda: {"arm": {"macro F1": 0.5}}, seed=0)
    with kept.path.open("a") as file:
        file.write('\n{"key": "run", "seed": 1, "x": nu')
    again = _common.Kept(setup_of("cut"))
    assert again.once("run", lambda: pytest.fail("it was there"), seed=0) == {"arm": {"macro F1": 0.5}}
    again.once("run", lambda: {"arm": {"macro F1": 0.7}}, seed=1)
    last = _common.Kept(setup_of("cut"))
    assert [line["seed"] for line in last.runs] == [0, 1]


def test_test_donors_are_not_learned_from(data):
    adata = ad.read_h5ad(data / QUERY)
    donors = adata.obs["batch"].to_numpy()
    half, test = few_shot.split(adata, share=50, seed=3)
    whole, same = few_shot.split(adata, share=100, seed=3)
    assert set(donors[test]).isdisjoint(donors[whole])
    assert len(set(donors[test])) == few_shot.TEST_DONORS
    assert len(whole) + len(test) == adata.n_obs
    assert set(half) < set(whole)
    assert np.array_equal(test, same)


def test_integration_scores_see_structure():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 40)
    donors = np.tile(["x", "y"], 60)
    apart = np.repeat(np.eye(3), 40, axis=0) + 0.02 * rng.standard_normal((120, 3))
    good = context.integration(apart, labels, donors)
    assert good["NMI"] > 0.95
    assert good["AvgBATCH"] > 0.95
    split = np.column_stack([apart, np.where(donors == "x", 3.0, -3.0)])
    assert context.integration(split, labels, donors)["AvgBATCH"] < 0.8
    shuffled = context.integration(rng.permutation(apart), labels, donors)
    assert shuffled["AvgBIO"] < 0.5 < good["AvgBIO"]
