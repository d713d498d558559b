"""Splits of perturbations: nothing that is asked for is known, and everything is asked for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt.pp import parse_perturbations, perturbation_splits

GENES = [f"G{i}" for i in range(12)]


def parsed(conditions, n=3):
    return parse_perturbations(pd.Series(["control"] * 20 + list(conditions) * n), genes=GENES)


@pytest.fixture
def combinations():
    pairs = [f"{a}+{b}" for i, a in enumerate(GENES) for b in GENES[i + 1 :]]
    return parsed([*GENES, *pairs[::2]])


def test_singles_are_each_held_out_once():
    splits = perturbation_splits(parsed(GENES))
    assert len(splits) == 5
    assert sorted(name for split in splits for name in split.test) == sorted(GENES)
    for split in splits:
        assert set(split.train) | set(split.valid) | set(split.test) == set(GENES)
        assert len(split.train) + len(split.valid) + len(split.test) == len(GENES)
        assert len(split.valid) == 1
        assert set(split.grade.values()) == {"unseen"}


def test_the_order_of_cells_does_not_matter_and_the_seed_does():
    column = pd.Series(["control"] * 20 + GENES * 3)
    one, other = (parse_perturbations(c, genes=GENES) for c in (column, column.sample(frac=1, random_state=1)))
    assert perturbation_splits(one) == perturbation_splits(other)
    assert perturbation_splits(one, rng=1) != perturbation_splits(one)


def test_two_modes_of_a_gene_stay_together():
    found = parsed([f"{gene}_{mode}" for gene in GENES for mode in ("CRISPRi", "CRISPRa")])
    table = found.target_table
    for split in perturbation_splits(found):
        known = {gene for name in (*split.train, *split.valid) for gene in table[name]}
        assert not known & {gene for name in split.test for gene in table[name]}


def test_grades_of_combinations(combinations):
    table, grades = combinations.target_table, set()
    for split in perturbation_splits(combinations, kind="double"):
        seen = {gene for name in (*split.train, *split.valid) for gene in table[name]}
        for name in split.test:
            n = sum(gene in seen for gene in table[name])
            assert split.grade[name] == ("unseen" if len(table[name]) == 1 else f"{n}/2 seen")
        grades |= set(split.grade.values())
        assert not set(split.test) & (set(split.train) | set(split.valid))
    assert grades == {"unseen", "0/2 seen", "1/2 seen", "2/2 seen"}


def test_few_are_left_out_one_by_one(caplog):
    with caplog.at_level("INFO", logger="scanpy_scgpt"):
        splits = perturbation_splits(parsed(GENES[:3]))
    assert "3 perturbations are too few for 5 parts (10 or more are needed): each is left out once." in caplog.text
    assert [split.test for split in splits] == [("G0",), ("G1",), ("G2",)]
    assert [split.name for split in splits] == ["without G0", "without G1", "without G2"]


def test_a_level_is_held_out_with_its_cells():
    found = parsed(GENES)
    level = np.resize(["x", "y", "z"], len(found.codes))
    splits = perturbation_splits(found, kind="covariate", covariate=level)
    assert [split.level for split in splits] == ["x", "y", "z"]
    for split in splits:
        train, test = (split.cells(found, part, covariate=level) for part in ("train", "test"))
        assert set(level[test]) == {split.level}
        assert split.level not in set(level[train])
        assert (found.codes[test] == -1).any()
    with pytest.raises(ValueError, match="holds a level out: pass the level of each cell"):
        splits[0].cells(found, "train")


def test_cells_of_a_part(combinations):
    split = perturbation_splits(combinations, kind="double")[0]
    masks = {part: split.cells(combinations, part) for part in ("train", "valid", "test")}
    control = combinations.codes == -1
    assert all(mask[control].all() for mask in masks.values())
    assert (sum(mask[~control].astype(int) for mask in masks.values()) == 1).all()


def test_bad_input():
    with pytest.raises(ValueError, match="no condition changes two genes"):
        perturbation_splits(parsed(GENES), kind="double")
    with pytest.raises(ValueError, match="kind='doubles': use one of 'single', 'double'.*did you mean 'double'"):
        perturbation_splits(parsed(GENES), kind="doubles")
    with pytest.raises(ValueError, match="1 condition can be held out"):
        perturbation_splits(parsed(GENES[:1]))
    with pytest.raises(ValueError, match="needs the level of each cell"):
        perturbation_splits(parsed(GENES), kind="covariate")
    with pytest.raises(ValueError, match="covariate has 2 entries, perturbations 56"):
        perturbation_splits(parsed(GENES), kind="covariate", covariate=["a", "b"])
    with pytest.raises(ValueError, match="covariate has one level, 'a'"):
        perturbation_splits(parsed(GENES), kind="covariate", covariate=["a"] * 56)


def test_impossible_numbers_are_refused():
    for given, text in (({"n_splits": 1}, "n_splits=1"), ({"valid_share": 1.5}, "valid_share=1.5")):
        with pytest.raises(ValueError, match=text):
            perturbation_splits(parsed(GENES), **given)
