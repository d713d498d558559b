"""The training plan: a step, however it is divided; clipping, dropout, precision."""

from __future__ import annotations

import lightning.pytorch as lp
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from scanpy_scgpt.data import GenerativeBatches
from scanpy_scgpt.module import PretrainModule, initial_weights
from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import Tokens
from scanpy_scgpt.train import NonFiniteError, PlanConfig, TrainingPlan

CONFIG = TransformerConfig(n_tokens=60, pad_id=57, d_model=16, n_heads=2, n_layers=2, d_ff=16, dropout=0.0)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
]


def _batches(**changes):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 50, size=40)
    genes = np.concatenate([rng.permutation(57)[:n] for n in lengths]).astype(np.int32)
    digits = rng.integers(1, 51, size=genes.size).astype(np.uint8)
    tokens = Tokens(np.concatenate([[0], np.cumsum(lengths)]), genes, digits)
    settings = {"batch_size": 10, "max_length": 40, "ratios": (0.5,), "seed": 0, "pad_id": 57, "cls_id": 58}
    return GenerativeBatches(tokens, np.arange(40), cls_value=-2.0, **{**settings, **changes})


def _module(config=CONFIG, **changes):
    module = PretrainModule(config, **changes)
    module.load_state_dict(initial_weights(config, seed=0))
    return module


class _Gradient(lp.Callback):
    """Gradients and losses of each step, before clipping."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, _trainer, plan, _optimizer):
        self.seen.append({name: x.grad.clone() for name, x in plan.named_parameters() if x.grad is not None})


def _train(module, batches, *, steps=1, callbacks=(), precision="32-true", **settings):
    plan = TrainingPlan(module, PlanConfig(**{"lr": 1e-3, "total_steps": 10, **settings}))
    trainer = lp.Trainer(
        accelerator="cpu", max_steps=steps, precision=precision, callbacks=list(callbacks), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(plan, DataLoader(batches, batch_size=None, sampler=range(steps)))
    return trainer


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("max_tokens", [None, 60])
def test_any_division_gives_the_gradient_of_the_whole_step(world, max_tokens):
    def gradient(parts):
        module = _module(weights={"gep": 0.3}).double()
        loss = 0
        for part in parts:
            for batch, shares in zip(*part, strict=True):
                shared = module(batch).shared(shares)
                shared.total.backward()
                loss += shared.total.item()
        return loss, {name: x.grad for name, x in module.named_parameters()}

    cut = _batches(max_tokens=max_tokens)
    expected_loss, expected = gradient([_batches()[2]])
    loss, found = gradient([cut.of_process(rank, world)[2] for rank in range(world)])
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    for name, gradient_of_one in expected.items():
        largest = gradient_of_one.abs().max().item()
        torch.testing.assert_close(found[name], gradient_of_one, rtol=0, atol=1e-10 * largest)


def test_the_plan_sums_micro_batches():
    seen, losses = [], []
    for max_tokens in (None, 60):
        callback = _Gradient()
        batches = _batches(max_tokens=max_tokens)
        trainer = _train(_module(), batches, callbacks=[callback], precision="64-true")
        seen.append(callback.seen[0])
        losses.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        assert trainer.global_step == 1
    assert len(batches[0].batches) > 2
    assert set(losses[0]) == {"train_loss", "gep_train", "gepc_train", "prompt_train"}
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # logged in single precision
    for name, expected in seen[0].items():
        torch.testing.assert_close(seen[1][name], expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@pytest.mark.parametrize("clip", [None, 0.01])
def test_the_gradient_is_clipped_as_a_whole(clip, monkeypatch):
    def norm_of(gradients):
        return torch.stack([x.norm() for x in gradients if x is not None]).norm().item()

    used = []

    def step(optimizer, closure):
        closure()
        used.append(norm_of([x.grad for group in optimizer.param_groups for x in group["params"]]))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    before = _Gradient()
    _train(_module(), _batches(max_tokens=60), callbacks=[before], clip=clip)
    whole = norm_of(before.seen[0].values())
    assert whole > 0.1
    assert used == [pytest.approx(clip or whole, rel=1e-4)]


def test_decay_and_scale_of_groups():
    plan = TrainingPlan(_module(), PlanConfig(lr=1.0, total_steps=10, lr_scale={"transformer.encoder": 0.5}))
    plan.trainer = lp.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    optimizer = plan.configure_optimizers()["optimizer"]
    assert all(group["fused"] for group in optimizer.param_groups)
    assert {(g["initial_lr"], g["weight_decay"]) for g in optimizer.param_groups} == {
        (0.5, 0.01), (0.5, 0.0), (1.0, 0.01), (1.0, 0.0)
    }  # fmt: skip
    for group in optimizer.param_groups:
        assert all((x.ndim > 1) == (group["weight_decay"] > 0) for x in group["params"])


def test_dropout_of_a_step_is_that_of_its_number():
    """A run that goes on draws what it would have drawn."""
    config = TransformerConfig(n_tokens=60, pad_id=57, d_model=16, n_heads=2, n_layers=1, d_ff=16, dropout=0.5)
    seen = []
    for start in (1, 2):
        torch.manual_seed(start)
        callback = _Gradient()
        _train(_module(config), _batches(), steps=2, callbacks=[callback], seed=7)
        seen.append(callback.seen)
    for first, again in zip(*seen, strict=True):
        assert all(torch.equal(first[name], again[name]) for name in first)
    other = _Gradient()
    _train(_module(config), _batches(), callbacks=[other], seed=8)
    name = "module.transformer.encoder.unknown"
    assert not torch.equal(other.seen[0][name], seen[0][0][name])


def test_half_precision_comes_close():
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        module = _module()
        trainer = _train(module, _batches(), steps=3, precision=precision)
        found[precision] = float(trainer.callback_metrics["train_loss"])
        assert all(x.dtype == torch.float32 for x in module.parameters())
    assert found["bf16-mixed"] == pytest.approx(found["32-true"], rel=0.02)
    assert found["bf16-mixed"] != found["32-true"]


def test_any_other_batch_is_a_step():
    """A module of another task: a plain batch, whose loss has no shares."""

    class Square(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.x = torch.nn.Parameter(torch.ones(3))

        def forward(self, batch):
            value = (batch * self.x).square().mean()
            return type("Loss", (), {"total": value, "terms": {"square": value}})

    module = Square()
    trainer = _train(module, [torch.ones(3), 2 * torch.ones(3)], steps=2)
    assert trainer.global_step == 2
    assert float(trainer.callback_metrics["square_train"]) == pytest.approx(2.5, rel=0.01)


class _Overflow(lp.Callback):
    """Make the prediction of a step infinite."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, plan, *_):
        if trainer.global_step == self.step:
            scale = torch.tensor(torch.inf)
            plan.module.expression_head.register_forward_hook(
                lambda _m, _i, out: out._replace(values=out.values * scale)
            )


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_that_is_not_finite_is_not_taken(clip):
    settings = {"lr": 1e-3, "clip": clip}
    expected, found = _module(), _module()
    _train(expected, _batches(), steps=2, **settings)
    text = (
        r"Step 3: gep=(inf|nan), prompt=(inf|nan) is not finite \(lr=0\.0009.*precision='32-true'\).*repeat it with a "
        r"lower lr, such as lr=0\.0003, or with more warmup_steps than 3; it goes on from the last checkpoint\."
    )
    with pytest.raises(NonFiniteError, match=text):
        _train(found, _batches(), steps=4, callbacks=[_Overflow(2)], **settings)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_long_warm_up_is_made_longer():
    plan = TrainingPlan(_module(), PlanConfig(lr=1e-3, total_steps=10, warmup_steps=8))
    plan._trainer = type("Trainer", (), {"precision": "32-true", "precision_plugin": None, "global_step": 5})()
    with pytest.raises(NonFiniteError, match="more warmup_steps than 8; it goes on"):
        plan._refuse_step()


def test_what_needs_no_gradient_stays():
    module = _module(task="pcpt")
    before = module.transformer.encoder.unknown.clone()
    assert torch.equal(before, initial_weights(CONFIG, seed=0)["transformer.encoder.unknown"])
    trainer = _train(module, _batches(), lr=0.1)
    (optimizer,) = trainer.optimizers
    trained = {id(x) for group in optimizer.param_groups for x in group["params"]}
    named = {name for name, x in module.named_parameters() if id(x) not in trained}
    assert named == {"transformer.encoder.unknown"}
    assert torch.equal(module.transformer.encoder.unknown, before)


@pytest.mark.parametrize("changes", [{}, {"lr": 1e-5}, {"warmup_steps": 100}])
def test_a_plan_that_goes_on_has_its_own_rate(tmp_path, changes):
    """From the first step on; that of a frozen or slow part stays in proportion."""
    rates = []

    class Rates(lp.Callback):
        def on_before_optimizer_step(self, _trainer, plan, optimizer):
            rates.append((plan.learning_rate, {(g["lr"], g["initial_lr"]) for g in optimizer.param_groups}))

    settings = {"lr": 1e-3, "total_steps": 10, "warmup_steps": 2, "lr_scale": {"transformer.encoder": 0.5}}
    for steps, given in ((3, settings), (6, {**settings, **changes})):
        plan = TrainingPlan(_module(), PlanConfig(**given))
        trainer = lp.Trainer(
            accelerator="cpu", max_steps=steps, callbacks=[Rates()], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        last = tmp_path / "last.ckpt"
        data = DataLoader(_batches(), batch_size=None, sampler=range(3))
        trainer.fit(plan, data, ckpt_path=last if last.exists() else None)
        trainer.save_checkpoint(last)
    assert len(rates) == 6
    for rate, used in rates:
        assert sorted(whole for whole, _ in used) == pytest.approx([rate / 2, rate])
        assert {first for _, first in used} == {1.0, 0.5}
    warm, lr = {**settings, **changes}["warmup_steps"], {**settings, **changes}["lr"]
    assert rates[3][0] == pytest.approx(lr * min(1, 4 / warm) * 0.5 * (1 + np.cos(np.pi * 0.3)))


def test_half_precision_may_overflow_now_and_then():
    """The scaler of gradients leaves a step out; only when its scale has become tiny, something is wrong."""
    plan = TrainingPlan(_module(), PlanConfig(lr=1e-3, total_steps=10))
    scaler = type("Scaler", (), {"get_scale": lambda _self: scale})()
    plan._trainer = type("Trainer", (), {"precision": "16-mixed", "global_step": 5})()
    plan._trainer.precision_plugin = type("Plugin", (), {"scaler": scaler})()
    scale = 2.0
    plan._refuse_step()
    scale = 1e-4
    with pytest.raises(NonFiniteError, match=r'the gradient is not finite .* or with precision="32-true"; it goes'):
        plan._refuse_step()
