"""The network of perturbation: against recorded numbers, and what the flags and the start do."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from scanpy_scgpt.io._legacy import renamed
from scanpy_scgpt.module.perturb import PerturbModule
from scanpy_scgpt.nn import TransformerConfig

SHAPE = TransformerConfig(n_tokens=103, pad_id=100, d_model=32, n_heads=4, n_layers=2, d_ff=48)
NAMES = {
    r"^pert_encoder\.": "flags.",
    r"^decoder\.coeff_decoder\.fc\.": "head.scale.network.",
    r"^decoder\.coeff_decoder\.zero_logit\.": "head.scale.nonzero.",
    r"^decoder\.bias_decoder\.fc\.": "head.shift.",
}


def _recorded(fixtures_dir, variant):
    numbers = np.load(fixtures_dir / "heads.npz")
    state = torch.load(fixtures_dir / "heads.state.pt", weights_only=True)
    state = {k.removeprefix(f"{variant}/"): v for k, v in state.items() if k.startswith(f"{variant}/")}
    weights, ignored = renamed(state)
    for name in ignored:
        for old, new in NAMES.items():
            if re.match(old, name):
                weights[re.sub(old, new, name)] = state[name]
    prefix = f"{variant}/"
    values = {k.removeprefix(prefix): torch.from_numpy(numbers[k]) for k in numbers.files if k.startswith(prefix)}
    return weights, values


def _loaded(weights, **settings):
    module = PerturbModule(SHAPE, legacy=True, **settings).eval()
    own = {name: tensor for name, tensor in weights.items() if name in module.state_dict()}
    lacking = module.load_state_dict(own, strict=False)
    assert set(lacking.missing_keys) == {"transformer.encoder.unknown"}
    return module


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("perturb", {}),
        ("perturb_adaptive_bias", {"adaptive_bias": True, "positive": True}),
        ("perturb_zero_prob", {"explicit_zeros": True}),
    ],
)
def test_the_predictions_of_the_original_are_reproduced(fixtures_dir, variant, settings):
    weights, values = _recorded(fixtures_dir, variant)
    module = _loaded(weights, **settings)
    given = values["in/gene_ids"], values["in/values"], values["in/flags"]
    with torch.no_grad():
        found = module(*given)
    if found.nonzero is None:
        torch.testing.assert_close(found.values, values["out_seed3/grad/mlm_output"], atol=1e-5, rtol=1e-5)
        for mode, expressed_only in (("all", False), ("batch-wise", True)):
            got = module.predict(*given, expressed_only=expressed_only)
            torch.testing.assert_close(got, values[f"pred_perturb_seed3/{mode}"], atol=1e-5, rtol=1e-5)
        return
    torch.testing.assert_close(found.nonzero, values["out_seed3/grad/mlm_zero_probs"], atol=1e-5, rtol=1e-5)
    drawn = values["out_seed3/grad/mlm_output"]
    kept = drawn != 0
    assert 0.1 < kept.float().mean() < 0.9
    torch.testing.assert_close(found.values[kept], drawn[kept], atol=1e-5, rtol=1e-5)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        again = module.predict(*given)
    assert 0 < (again != 0).float().mean() < 1


def test_the_flag_of_an_untouched_gene_is_nothing_and_never_learned():
    module = PerturbModule(SHAPE)
    flags = torch.zeros(2, 5, dtype=torch.long)
    flags[1, 2] = 1
    module(torch.arange(5), torch.rand(2, 5), flags).values.sum().backward()
    assert (module.flags.weight[0] == 0).all()
    assert (module.flags.weight.grad[0] == 0).all()
    assert (module.flags.weight.grad[1] != 0).any()


def test_an_untrained_network_changes_next_to_nothing_and_that_of_the_original_does():
    torch.manual_seed(0)
    given = torch.arange(40), torch.rand(3, 40), torch.zeros(3, 40, dtype=torch.long)
    new, original = (PerturbModule(SHAPE, legacy=legacy).eval().predict(*given) for legacy in (False, True))
    assert float(new.abs().max()) < 0.05 < float(original.abs().max())
