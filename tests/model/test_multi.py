"""Several modalities in one model: mosaics, new tokens, queries, gaps."""

from __future__ import annotations

import warnings

import mudata
import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt import metrics, model, models
from scanpy_scgpt._modalities import Modality
from scanpy_scgpt.data.modal_fields import _require_shared
from scanpy_scgpt.model import _extend
from scanpy_scgpt.tokenizer import kinds_of_tokens

pytestmark = [
    pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning"),  # of mudata, of its next release
    pytest.mark.filterwarnings("ignore:.*var_names:UserWarning"),  # genes and proteins share names
]

SETTINGS = {"min_genes": 100, "max_length": 80, "n_components": 12, "n_top_genes": 300}


def read(path, n, modalities, seed=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about defaults of the next release of mudata
        whole = mudata.read_h5mu(path)
    rows = np.sort(np.random.default_rng(seed).permutation(whole.n_obs)[:n])
    return {name: whole.mod[name][rows].copy() for name in modalities}


def together(parts):
    with mudata.set_options(pull_on_update=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # genes and proteins share names
        return mudata.MuData(parts)


@pytest.fixture(scope="module")
def cite(data_dir):
    """160 blood cells with RNA and 14 proteins."""
    return read(data_dir / "cite_pbmc10k_10x.h5mu", 160, ("rna", "prot"))


@pytest.fixture(scope="module")
def mosaic(cite):
    """The same: 60 cells with both, 60 with RNA alone, 40 with proteins alone."""
    rna, prot = cite["rna"][:120].copy(), cite["prot"][60:].copy()
    rna.obs["donor"], prot.obs["donor"] = "d1", "d1"
    return together({"rna": rna, "prot": prot})


def made(mdata, *, epochs=0, setup=None, **settings):
    model.SCGPTMulti.setup_mudata(mdata, **(setup or {}))
    found = model.SCGPTMulti(mdata, **{**SETTINGS, **settings})
    found.train(max_epochs=epochs, accelerator="cpu", batch_size=16)
    return found


@pytest.fixture(scope="module")
def trained(mosaic):
    """After one epoch on the mosaic; not to be changed."""
    return made(mosaic, epochs=1)


def test_no_cell_is_dropped(trained, mosaic):
    vectors = trained.get_latent_representation()
    assert vectors.shape[0] == mosaic.n_obs == 160
    assert np.isfinite(vectors).all()
    assert set(trained.joint.blocks) == {"rna", "protein", "network"}
    codes, names = trained.patterns()
    counted = dict(zip(names, np.bincount(codes), strict=True))
    assert counted == {"rna": 60, "rna+protein": 60, "protein": 40}


def test_missing_is_missing(trained, mosaic):
    cells = trained._cells()
    kinds = kinds_of_tokens(trained._checkpoint.vocab.tokens)[cells.tokens.gene_ids]
    cell = np.repeat(np.arange(len(cells)), cells.tokens.lengths)
    for code, (kind, name) in enumerate((("rna", "rna"), ("protein", "prot"))):
        there = mosaic.obs_names.isin(mosaic.mod[name].obs_names)
        np.testing.assert_array_equal(np.bincount(cell[kinds == code], minlength=160) > 0, there)
        np.testing.assert_array_equal(cells.parts[kind].there, there)
    assert cells.tokens.lengths.max() <= 79


def test_pretrained_vectors_stay_and_new_ones_start_at_partners(mosaic):
    mini = models.load("mini")
    found = made(mosaic)
    table = found.module.transformer.encoder.genes.embedding.weight.detach().numpy()
    np.testing.assert_array_equal(table[: len(mini.vocab)], mini.weights[_extend._GENES].numpy())
    vocab = found._checkpoint.vocab
    assert vocab.tokens[: len(mini.vocab)] == mini.vocab.tokens
    assert set(found.features_["protein"]) <= set(vocab.tokens)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    near = unit[vocab.ids(["CD79A", "MS4A1", "CD3D", "CD3E"])] @ unit[vocab.ids(["p_CD19", "p_CD3"])].T
    assert near[:2, 0].min() > near[2:, 0].max()  # the protein of B cells is near genes of B cells
    assert near[2:, 1].min() > near[:2, 1].max()


def test_saved_read_and_the_same(trained, mosaic, tmp_path):
    trained.save(tmp_path / "model")
    back = model.SCGPTMulti.load(tmp_path / "model", mosaic.copy(), accelerator="cpu")
    np.testing.assert_allclose(back.get_latent_representation(), trained.get_latent_representation(), atol=1e-5)
    assert back.features_ == trained.features_
    assert back.weights_of_ == trained.weights_of_


def test_part_of_the_cells_and_another_order(trained, mosaic):
    some = np.random.default_rng(1).permutation(160)[:50]
    other = mosaic[some].copy()  # in an order of mudata's own
    place = mosaic.obs_names.get_indexer(other.obs_names)
    assert not np.array_equal(place, np.sort(place))
    vectors = trained.get_latent_representation()
    np.testing.assert_allclose(trained.get_latent_representation(other), vectors[place], atol=1e-5)
    np.testing.assert_allclose(trained.get_latent_representation(indices=some), vectors[some], atol=1e-5)


def test_a_query_with_one_modality_lands_beside_its_other_half(cite):
    taught = made(together({name: part[:120].copy() for name, part in cite.items()}))
    halves = []
    for name in ("rna", "prot"):
        query = together({name: cite[name][120:].copy()})
        halves.append(model.SCGPTMulti.load_query_data(query, taught).get_latent_representation())
    assert metrics.foscttm(*halves) < 0.25  # 0.5 is chance


def test_a_query_with_other_names_and_no_known_protein(trained, cite):
    query = together({"GEX": cite["rna"][:20].copy(), "ADT": cite["prot"][:20].copy()})
    first = model.SCGPTMulti.load_query_data(query, trained).get_latent_representation()
    assert np.isfinite(first).all()
    others = cite["prot"][:20].copy()
    others.var_names = [f"other{i}" for i in range(others.n_vars)]
    with pytest.raises(
        ValueError, match=r"None of the 14 proteins of mdata.mod\['prot'\] is among the 14 of the model"
    ):
        model.SCGPTMulti.load_query_data(together({"rna": cite["rna"][:20].copy(), "prot": others}), trained)


def test_peaks_of_another_build_are_refused(data_dir):
    parts = read(data_dir / "multiome_a549_scicar2018.h5mu", 60, ("rna", "atac"))
    found = made(together(parts), setup={"n_top_peaks": 200}, start="mean")
    assert len(found.features_["atac"]) == 200
    assert set(found.joint.blocks) == {"rna", "atac", "network"}
    moved = parts["atac"].copy()
    shifted = [token.split("-") for token in moved.var_names]
    moved.var_names = [f"{c}-{int(a) + 10**8}-{int(b) + 10**8}" for c, a, b in shifted]
    with pytest.raises(ValueError, match="other genome builds"):
        model.SCGPTMulti.load_query_data(together({"rna": parts["rna"].copy(), "atac": moved}), found)
    named = parts["atac"].copy()
    named.var_names = [f"region{i}" for i in range(named.n_vars)]
    with pytest.raises(ValueError, match="its features are no peaks"):
        model.SCGPTMulti.setup_mudata(together({"rna": parts["rna"].copy(), "atac": named}))


def test_batches_are_laid_over_one_another_and_gaps_filled(cite):
    rna, prot = cite["rna"].copy(), cite["prot"][:80].copy()
    rna.obs["donor"] = np.where(np.arange(160) % 2, "d1", "d2")
    mdata = together({"rna": rna, "prot": prot})
    found = made(mdata, setup={"batch_key": "donor"}, correct=True)
    assert found.batches_ == ["d1", "d2"]
    vectors = found.get_latent_representation()
    assert metrics.modality_mixing(vectors, found.patterns()[0]) > 0.7
    assert ("rna", "protein") in found.joint.bridges


def test_imputed_values_beat_the_mean_and_say_how_sure_they_are(cite):
    mdata = together({"rna": cite["rna"].copy(), "prot": cite["prot"][:110].copy()})
    found = made(mdata).impute("protein")
    truth = np.log1p(cite["prot"].X.toarray())
    table = metrics.imputation(truth[110:], found.mean[110:], lower=found.lower[110:], upper=found.upper[110:])
    assert table["pearson"].mean() > 0.5
    assert 0.75 < table["coverage"].mean() < 0.98
    assert sum(found.weights.values()) == pytest.approx(1)
    assert found.measured.tolist() == [True] * 110 + [False] * 50
    inside = metrics.imputation(truth[:110], found.mean[:110])["pearson"]
    np.testing.assert_allclose(inside, found.table["correlation"], atol=1e-4)  # of cells that were left out


def test_what_cannot_be_imputed(trained, cite):
    with pytest.raises(ValueError, match=r"to='atac': the cells have 'rna', 'protein'"):
        trained.impute("atac")
    with pytest.raises(ValueError, match="level=2: a share between 0 and 1"):
        trained.impute("protein", level=2)
    with pytest.raises(ValueError, match="is the only modality"):
        made(together({"rna": cite["rna"][:30].copy()})).impute("rna")
    few = together({"rna": cite["rna"][:60].copy(), "prot": cite["prot"][50:].copy()})
    with pytest.raises(ValueError, match="10 cells have both modalities"):
        made(few).impute("protein")


def test_a_whole_modality_is_hidden_while_training(trained):
    module, cells = trained.module, trained._cells()
    batch = cells.batch(np.arange(60, 120))
    ids, padding = batch["gene_ids"], batch["padding"]
    share = module.hide_modality
    try:
        module.hide_modality = 1.0
        hidden = module._hidden_modality(ids, padding).numpy()
    finally:
        module.hide_modality = share
    kinds = module.token_kinds[ids].numpy()
    counted = ~padding.numpy()
    counted[:, 0] = False
    for row in range(60):
        per_kind = [hidden[row][counted[row] & (kinds[row] == kind)] for kind in (0, 1)]
        assert {tuple(np.unique(x)) for x in per_kind} == {(False,), (True,)}  # one hidden whole, the other not at all
    assert not hidden[~counted].any()


def test_cells_without_any_modality_take_no_part(cite):
    mdata = together({"rna": cite["rna"][:60].copy(), "prot": cite["prot"][:40].copy()})
    mdata.mod["rna"] = mdata.mod["rna"][:50].copy()
    found = made(mdata, epochs=1, correct=True)
    vectors = found.get_latent_representation()
    assert np.isnan(vectors[50:]).all()
    assert np.isfinite(vectors[:50]).all()
    split = found._data_splitter_cls(found._cells(), **found._split(None, None))
    assert sorted([*split.train_idx, *split.val_idx]) == list(range(50))
    assert (found._batches_of(found._cells())[50:] == -1).all()


def test_arguments_that_do_not_fit(mosaic, cite):
    with pytest.raises(TypeError, match="takes a MuData, this is AnnData"):
        model.SCGPTMulti.setup_mudata(cite["rna"].copy())
    with pytest.raises(TypeError, match="For one AnnData there is SCGPTIntegrator"):
        model.SCGPTMulti.setup_anndata(cite["rna"].copy())
    with pytest.raises(ValueError, match=r"Register them first: SCGPTMulti.setup_mudata\(mdata\)"):
        model.SCGPTMulti(mosaic.copy(), **SETTINGS)
    model.SCGPTMulti.setup_mudata(mosaic)
    for given, text in (
        ({"start": "zero"}, "start"),
        ({"weights_of": {"adt": 1}}, "a modality in weights_of"),
        ({"budgets": {"adt": 1}}, "a modality in budgets"),
        ({"include_zeros": True}, "include_zeros is not offered"),
        ({"hide_modality": 1.5}, "hide_modality=1.5: a share of the cells from 0 to 1"),
        ({"weights_of": {"protein": -1}}, r"weights_of=\{'protein': -1\}: a number from 0"),
        ({"budgets": {"protein": 0.5}}, r"budgets=\{'protein': 0.5\}: a whole number of tokens"),
    ):
        with pytest.raises(ValueError, match=text):
            model.SCGPTMulti(mosaic, **SETTINGS, **given)
    tight = model.SCGPTMulti(mosaic, **SETTINGS, budgets={"rna": 5000})
    with pytest.raises(ValueError, match=r"budgets=\{'rna': 5000\} take 5,000 tokens of the .*, protein need some too"):
        tight.train(max_epochs=0, accelerator="cpu")
    with pytest.raises(KeyError, match="no layer 'raw'"):
        model.SCGPTMulti.setup_mudata(mosaic, layers={"rna": "raw"})
    with pytest.raises(KeyError, match="Did you mean 'donor'"):
        model.SCGPTMulti.setup_mudata(mosaic, batch_key="donr")


def test_vectors_of_peaks_from_genes_nearby():
    import pandas as pd

    mini = models.load("mini")
    genes = ["CD3E", "CD79A", "MS4A1"]
    var = pd.DataFrame({"interval": ["chr11:1000-2000", "chr11:50000-60000", "chr2:5-9"]}, index=genes)
    ids = mini.vocab.ids(genes)
    table = mini.weights[_extend._GENES].numpy()
    found = _extend.from_neighbours(mini, var, ids, ["chr11:20000-20100", "chr2:900000-900010", "chr3:1-2"])
    np.testing.assert_allclose(found[0], table[ids[:2]].mean(axis=0), rtol=1e-4, atol=1e-5)
    assert np.isnan(found[1:]).all()
    assert _extend.from_neighbours(mini, pd.DataFrame(index=genes), ids, ["chr2:1-2"]) is None


def test_peaks_of_another_build_are_told_from_chance():
    rng = np.random.default_rng(0)
    starts = np.sort(rng.choice(200_000_000, size=40_000, replace=False))
    here, there = ([f"chr1:{a}-{a + 500}" for a in x] for x in (starts[::2], starts[1::2] + 900))
    one = Modality("atac", "atac", "")
    with pytest.raises(ValueError, match=r"overlap those of the model \(.* would by chance\): .* other genome builds"):
        _require_shared(one, pd.Index(there), list(here))
    _require_shared(one, pd.Index([f"chr1:{a + 100}-{a + 600}" for a in starts[::2]]), list(here))
    tiles = [f"chr1:{a}-{a + 5000}" for a in range(0, 100_000_000, 5000)]
    _require_shared(one, pd.Index(tiles), tiles)
