"""Columns of perturbations in all their spellings."""

from __future__ import annotations

import logging
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt.pp import Perturbations, parse_perturbations

GENES = ["STAT1", "IRF1", "HLA-A", "NKX2-1", "KLF1", "CD3E"]
MANY = ["control"] * 25


def parse(values, **kwargs) -> Perturbations:
    return parse_perturbations(pd.Series(values), **{"genes": GENES, **kwargs})


@pytest.mark.parametrize(
    ("spelling", "targets"),
    [
        ("STAT1", "STAT1"),
        ("STAT1+ctrl", "STAT1"),
        ("ctrl+STAT1", "STAT1"),
        ("STAT1+control", "STAT1"),
        ("STAT1_control", "STAT1"),
        ("STAT1_NegCtrl0__STAT1_NegCtrl0", "STAT1"),
        ("A549_STAT1+ctrl_1+1", "STAT1"),
        ("sgSTAT1-1", "STAT1"),
        ("STAT1_g2", "STAT1"),
        ("STAT1g2", "STAT1"),
        ("STAT1-1", "STAT1"),
        ("STAT1_2", "STAT1"),
        ("STAT1_sg3", "STAT1"),
        ("STAT1_ACGTACGTACGTACGTACGT", "STAT1"),
        ("STAT1_+_191875.23-P1P2", "STAT1"),
        ("STAT1 KO", "STAT1"),
        ("STAT1_CRISPRi", "STAT1"),
        ("CRISPRa-STAT1", "STAT1"),
        ("stat1", "STAT1"),
        ("HLA-A", "HLA-A"),
        ("NKX2-1", "NKX2-1"),
        ("STAT1+IRF1", "IRF1+STAT1"),
        ("IRF1+STAT1", "IRF1+STAT1"),
        ("IRF1,STAT1", "IRF1+STAT1"),
        ("IRF1_STAT1", "IRF1+STAT1"),
        ("IRF1-STAT1", "IRF1+STAT1"),
        ("A549_IRF1+STAT1_1+1", "IRF1+STAT1"),
        ("STAT1+IRF1+KLF1", "IRF1+KLF1+STAT1"),
        ("CAV1", "CAV1"),
        ("CAV1g4", "CAV1"),
    ],
)
def test_spellings_of_genes(spelling: str, targets: str):
    found = parse([*MANY, spelling])
    assert found.conditions == (targets,)
    assert found.targets == (tuple(targets.split("+")),)
    assert found.codes.tolist() == [-1] * 25 + [0]


@pytest.mark.parametrize(
    "spelling",
    [
        "ctrl", "control", "Control", "non-targeting", "non_targeting_00012", "NT", "NTC", "NTg7", "sgNT-1",
        "NegCtrl10_NegCtrl0__NegCtrl10_NegCtrl0", "negative control", "scrambled", "AAVS1", "safe-targeting",
        "ctrl+ctrl", "A549_ctrl_1", "control_3", "untreated", "DMSO", "none",
    ],
)  # fmt: skip
def test_spellings_of_the_control(spelling: str):
    found = parse([spelling] * 25 + ["STAT1"])
    assert found.control == "control"
    assert found.n_control == 25
    assert found.conditions == ("STAT1",)


def test_a_quiet_name_is_a_control_only_without_another():
    found = parse([*MANY, "DMSO", "STAT1"])
    assert found.conditions == ("DMSO", "STAT1")
    assert found.spellings.set_index("spelling").loc["DMSO", "note"] == "could be a control: name it in control="
    both = parse([*MANY, "DMSO", "STAT1"], control=["control", "DMSO"])
    assert both.conditions == ("STAT1",)
    assert both.n_control == 26


def test_a_given_control_is_the_only_one():
    found = parse(["untouched"] * 25 + ["control", "STAT1"], control="untouched")
    assert found.n_control == 25
    assert found.conditions == ("STAT1", "control (condition)")
    assert found.targets == (("STAT1",), ())


def test_two_names_are_two_genes_only_when_both_are():
    assert parse([*MANY, "STAT1_CAV1"]).targets == ((),)
    alone = parse([*MANY, "STAT1_CAV1", "CAV1"])
    assert alone.conditions == ("CAV1", "CAV1+STAT1")


def test_stems_with_several_numbers_are_guides():
    assert parse([*MANY, "CAV1-1", "CAV1-2"]).conditions == ("CAV1",)
    assert parse([*MANY, "NKX3-1", "NKX3-2"]).conditions == ("NKX3-1", "NKX3-2")


def test_modes_stay_apart_where_both_are_there():
    found = parse([*MANY, "STAT1_CRISPRi", "STAT1_CRISPRa", "IRF1_CRISPRi"])
    assert found.conditions == ("IRF1", "STAT1 CRISPRa", "STAT1 CRISPRi")
    assert found.modes == ("CRISPRi", "CRISPRa", "CRISPRi")
    assert found.targets == (("IRF1",), ("STAT1",), ("STAT1",))


def test_cells_without_a_label():
    found = parse([*MANY, "STAT1", None, np.nan, "unassigned", "STAT1 NP"])
    assert found.codes.tolist() == [-1] * 25 + [0, -2, -2, -2, -2]
    assert found.labels().isna().sum() == 4
    assert list(found.labels()[24:26]) == ["control", "STAT1"]
    assert found.n_cells.to_dict() == {"STAT1": 1}


def test_stimuli_have_no_target():
    found = parse([*MANY, "LPS", "dexamethasone 3h", "IFN-beta"])
    assert found.conditions == ("IFN-beta", "LPS", "dexamethasone 3h")
    assert found.targets == ((), (), ())
    assert set(found.spellings["kind"]) == {"control", "stimulus"}
    assert parse([*MANY, "STAT1"], targets={"STAT1": ()}).targets == ((),)
    assert parse([*MANY, "drug"], targets={"drug": ["IRF1", "STAT1"]}).targets == (("IRF1", "STAT1"),)


def test_the_preview_shows_what_is_unclear(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        found = parse([*MANY, "STAT1", "IRF1", "KLF1", "stta1x", "IRF1+??", "CAV1"])
    table = found.spellings.set_index("spelling")
    assert table.loc["stta1x", "kind"] == table.loc["IRF1+??", "kind"] == "unclear"
    assert table.loc["IRF1+??", "targets"] == "IRF1"
    assert table.loc["CAV1", "note"] == "target not among the genes"
    assert "unclear spellings, kept without what is no gene: 'stta1x', 'IRF1+??'." in caplog.text
    assert "target not among the genes: 'CAV1'" in found.describe()
    assert found.describe().startswith("6 conditions (4 single, 2 unclear), 25 control cells, 0 cells without a label")


def test_near_genes_are_named():
    found = parse([*MANY, "STAT1", "IRF1", "KLF1", "kfl1"])
    assert found.spellings.set_index("spelling").loc["kfl1", "note"].endswith("near KLF1")


def test_no_control():
    with pytest.raises(ValueError, match=re.escape("There is no control: looked for names such as 'control', 'ctrl'")):
        parse(["STAT1", "IRF1"])
    with pytest.raises(ValueError, match=r"control='contrl': no cell has this name. Near: 'control'. The column has"):
        parse([*MANY, "STAT1"], control="contrl")
    assert parse(["STAT1", "IRF1"], needs_control=False).conditions == ("IRF1", "STAT1")


def test_no_condition_and_unknown_targets():
    with pytest.raises(ValueError, match="There is no condition beside the control: the column has 'control'"):
        parse(MANY)
    with pytest.raises(ValueError, match="targets: no cell has the name 'drug'"):
        parse([*MANY, "STAT1"], targets={"drug": ()})


def test_few_controls(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        parse(["control"] * 19 + ["STAT1"])
    assert "19 control cells" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        parse(["control"] * 20 + ["STAT1"])
    assert caplog.text == ""


@pytest.mark.parametrize(("file", "n"), [("perturb_papalexi2021_thp1", 25), ("perturb_datlinger2021_jurkat", 20)])
def test_real_screens_by_target_and_by_guide(data_dir, file: str, n: int):
    cells = ad.read_h5ad(data_dir / f"{file}.h5ad", backed="r")
    by_target, by_guide = (
        parse_perturbations(cells.obs[key], genes=cells.var_names) for key in ("perturbation", "grna")
    )
    assert len(by_target.conditions) == n
    assert by_guide.conditions == by_target.conditions
    np.testing.assert_array_equal(by_guide.codes, by_target.codes)
    unmeasured = (by_target.spellings["note"] == "target not among the genes").sum()
    assert unmeasured == {25: 16, 20: 14}[n]
    cells.file.close()


def test_real_stimuli_and_tables(data_dir):
    blood = ad.read_h5ad(data_dir / "pbmc_ifnb_kang2018_2k.h5ad", backed="r")
    found = parse_perturbations(blood.obs["condition"], genes=blood.var_names)
    assert (found.conditions, found.targets, found.n_control) == (("stim",), ((),), 1000)
    blood.file.close()
    table = ad.read_h5ad(data_dir / "perturb_table_macrophage_wang2025.h5ad", backed="r")
    modes = parse_perturbations(pd.Series(table.obs_names), genes=table.var_names, needs_control=False)
    assert len(modes.conditions) == 307
    assert modes.conditions[:2] == ("ACTB CRISPRa", "ACTB CRISPRi")
    table.file.close()


def test_controls_in_capitals_and_numbers_are_no_genes():
    found = parse_perturbations(pd.Series(["non-targeting", "WT", "STAT1"]), genes=["STAT1", "STAT2"])
    assert found.spellings.set_index("spelling").loc["WT", "kind"] == "stimulus"
    assert "control=" in found.spellings.set_index("spelling").loc["WT", "note"]
    for name in ("NO-TARGET", "EGFP", "ROSA26", "mCherry"):
        assert parse_perturbations(pd.Series([name, "STAT1"]), genes=["STAT1"]).conditions == ("STAT1",)
    assert parse_perturbations(pd.Series([0, 1, 2]), control=0).conditions == ("1", "2")
    assert parse_perturbations(pd.Series([0.0, 1.5]), control=0).conditions == ("1.5",)
