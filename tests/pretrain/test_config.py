"""Settings of a run: every value is checked."""

from __future__ import annotations

import pytest

from scanpy_scgpt.pretrain import PretrainConfig


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ratios": (0.5, 1.0)}, r"ratios=\(0\.5, 1\.0\): shares of unknown genes lie between 0 and 1"),
        ({"ratios": ()}, r"ratios=\(\)"),
        ({"validation_share": 0}, "validation_share=0: use a share between 0 and 1"),
        ({"max_tokens": 0}, "max_tokens=0: use a number of tokens, such as 40_000, or None for no limit"),
        ({"task": "gene"}, "task='gene': use one of 'gen', 'pcpt', 'both'; did you mean 'gen'"),
        ({"balance": "organ"}, "balance='organ': use one of 'tissue', 'study', None"),
        ({"step_from": "batch"}, "step_from='batch': use one of 'tissue', 'study', None"),
        ({"balance_power": 1.5}, r"balance_power=1\.5: use a share from 0 to 1"),
        ({"gene_table": "none"}, "gene_table='none': use one of 'random', 'coexpression', 'knowledge', 'both'"),
        ({"batch_size": 0}, "batch_size=0: use a whole number above 0"),
        ({"batch_size": True}, "batch_size=True: use a whole number above 0"),
        ({"max_steps": 1.5}, r"max_steps=1\.5: use a whole number above 0"),
        ({"epoch_steps": 0}, "epoch_steps=0"),
        ({"n_bins": 2}, "n_bins=2: use a whole number above 2"),
        ({"max_length": 1}, "max_length=1: use a whole number above 2"),
        ({"warmup_steps": -1}, "warmup_steps=-1: use a number of steps, 0 for no warm-up"),
        ({"prompt_after": -1}, "prompt_after=-1: use a number of steps, or None for no pass"),
        ({"lr": 0}, "lr=0: use a number above 0, such as 1e-4"),
        ({"lr": "1e-4"}, "lr='1e-4': use a number above 0"),
        ({"gene_lr_scale": -1.0}, r"gene_lr_scale=-1\.0: use 0 for a frozen table"),
        ({"dropout": 1.0}, r"dropout=1\.0: use a share from 0 to below 1"),
        ({"panel_share": 2}, "panel_share=2: use a share from 0 to 1"),
        ({"d_model": 100}, "d_model=100 is no multiple of n_heads=8: use d_model=96"),
        ({"ties": "middle"}, "ties='middle': use one of"),
        ({"precision": "bf16"}, "precision='bf16': use one of .* did you mean 'bf16-true'"),
        ({"distribution": 2}, "distribution=2: use one of True, False"),
        ({"weights": {"mvc": 1.0}}, "a key of weights='mvc': use one of 'gep'"),
        ({"weights": {"gep": -1.0}}, r"weights=\{'gep': -1\.0\}: use a number, 0 or above"),
        ({"contrast": True, "positives": "alike"}, "positives='alike': use one of 'self', 'similar'"),
        ({"positives": "similar"}, "positives='similar' is about the contrastive term. Pass contrast=True with it"),
        ({"pooling": "layer"}, "pooling='layer': use one of .* did you mean 'layers'"),
        ({"validation_by": "file"}, "validation_by='file': use one of 'cell', 'study'"),
        ({"validation_studies": ("a",)}, "validation_studies=.* Pass validation_by='study' with it"),
    ],
)
def test_settings_are_checked(changes, text):
    with pytest.raises(ValueError, match=text):
        PretrainConfig(**changes)


def test_lists_and_single_values_become_tuples():
    config = PretrainConfig(ratios=0.4, validation_by="study", validation_studies=["a", "b"])
    assert config.ratios == (0.4,)
    assert config.validation_studies == ("a", "b")
    assert PretrainConfig(validation_by="study", validation_studies="a").validation_studies == ("a",)
