"""The plan and the callback of fine-tuning, on a network of a few numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import lightning.pytorch as lp
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from scanpy_scgpt.train import FineTuningPlan, KeepBest, NonFiniteError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
]


class _Module(nn.Module):
    """Scores of three labels; its noise shows which draws a step gets."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.body, self.head = nn.Linear(2, 4), nn.Linear(4, 3)
        self.drawn, self.factor = [], factor

    def forward(self, batch):
        self.drawn.append((self.training, torch.rand(1).item()))
        scores = self.head(self.body(batch["x"]))
        loss = nn.functional.cross_entropy(scores, batch["labels"].flatten(), ignore_index=-1) * self.factor
        terms = {"cls": loss.detach()}
        return {}, {"classes": scores}, SimpleNamespace(loss=loss, extra_metrics=terms, n_obs_minibatch=len(scores))


def _data(n=24):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    labels = (x[:, :1] > 0).long() + (x[:, 1:] > 0).long()
    labels[0] = -1
    return [{"x": x[i : i + 6], "labels": labels[i : i + 6]} for i in range(0, n, 6)]


def _fit(plan, *, epochs=1, callbacks=(), validation=None, **settings):
    trainer = lp.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **settings,
    )  # fmt: skip
    held = None if validation is None else DataLoader(validation, batch_size=None)
    trainer.fit(plan, DataLoader(_data(), batch_size=None), held)
    return trainer


def _module(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return _Module(**changes)


def test_logs_have_the_names_of_scvi_tools():
    trainer = _fit(FineTuningPlan(_module()), validation=_data())
    assert set(trainer.callback_metrics) == {
        "train_loss", "cls_train", "validation_loss", "cls_validation", "accuracy_validation", "macro_f1_validation"
    }  # fmt: skip


def test_measures_are_those_of_all_cells_of_the_epoch():
    from sklearn.metrics import accuracy_score, f1_score

    module, data = _module(), _data()
    trainer = _fit(FineTuningPlan(module, lr=0.0), validation=data)
    truth = torch.cat([batch["labels"].flatten() for batch in data])
    with torch.no_grad():
        predicted = module.head(module.body(torch.cat([batch["x"] for batch in data]))).argmax(dim=1)
    truth, predicted = truth[1:], predicted[1:]  # the first has no label
    found = trainer.callback_metrics
    assert found["accuracy_validation"].item() == pytest.approx(accuracy_score(truth, predicted))
    labels = truth.unique()
    expected = f1_score(truth, predicted, average="macro", labels=labels, zero_division=0)
    assert found["macro_f1_validation"].item() == pytest.approx(expected)


def test_validation_cells_without_labels_have_no_measure():
    data = [{**batch, "labels": torch.full_like(batch["labels"], -1)} for batch in _data()]
    trainer = _fit(FineTuningPlan(_module()), validation=data)
    assert "accuracy_validation" not in trainer.callback_metrics


def test_draws_follow_from_the_seed_alone():
    def drawn(**changes):
        module = _module()
        _fit(FineTuningPlan(module, **changes), epochs=2, validation=_data())
        return module.drawn

    first = drawn(seed=3)
    torch.rand(7)
    assert drawn(seed=3) == first
    assert drawn(seed=4) != first
    training = [x for mode, x in first if mode]
    assert len(set(training)) == len(training) == 8
    held = [x for mode, x in first if not mode]
    assert held[:4] == held[4:]  # the same hidden genes at each epoch
    assert len(set(held)) == 4


def test_batches_of_an_accumulated_step_have_draws_of_their_own():
    module = _module()
    _fit(FineTuningPlan(module), accumulate_grad_batches=4)
    assert len(set(module.drawn)) == 4


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    plan = FineTuningPlan(_module())
    plan._trainer = SimpleNamespace(global_rank=0)
    with plan._draws(1):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_rates_by_the_start_of_a_name():
    module = _module()
    plan = FineTuningPlan(module, lr=0.1, weight_decay=0.5, rates={"body.weight": 0.0, "body": 0.25})
    plan._trainer = SimpleNamespace(estimated_stepping_batches=10, max_epochs=1)
    assert not module.body.weight.requires_grad
    groups = plan.configure_optimizers()["optimizer"].param_groups
    found = {id(p): (g["initial_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        id(module.body.bias): (0.025, 0.0),
        id(module.head.weight): (0.1, 0.5),
        id(module.head.bias): (0.1, 0.0),
    }


def test_nothing_left_to_train():
    plan = FineTuningPlan(_module(), rates={"body": 0.0, "head": 0.0})
    with pytest.raises(ValueError, match="Nothing is left to train: every part is frozen. Name fewer parts in freeze."):
        plan.configure_optimizers()


@pytest.mark.parametrize(("total", "epochs"), [(100, 10), (7, 7), (1, 1)])
def test_schedules(total, epochs):
    def factors(**settings):
        plan = FineTuningPlan(_module(), **settings)
        plan._trainer = SimpleNamespace(estimated_stepping_batches=total, max_epochs=epochs)
        return [plan._factor(step) for step in range(total)]

    warm = [min(1.0, (step + 1) / max(0.1 * total, 1)) for step in range(total)]
    cosine = [0.5 * (1 + math.cos(math.pi * step / total)) for step in range(total)]
    assert factors() == pytest.approx([a * b for a, b in zip(warm, cosine, strict=True)])
    assert factors(schedule="constant", warmup=0) == [1.0] * total
    stepped = [0.9 ** (step // (total // epochs)) for step in range(total)]
    assert factors(schedule="step", warmup=0) == pytest.approx(stepped)


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_a_stream_without_an_end_is_trained(schedule):
    plan = FineTuningPlan(_module(), schedule=schedule)
    plan._trainer = SimpleNamespace(estimated_stepping_batches=math.inf, max_epochs=1)
    assert plan._factor(0) == plan._factor(1000) == 1.0


def test_a_schedule_that_is_none():
    with pytest.raises(ValueError, match="schedule='cosin': use one of 'cosine', 'step', 'constant'; did you mean"):
        FineTuningPlan(_module(), schedule="cosin")


def test_a_loss_that_is_no_number():
    text = r"Step 1: the loss is not finite \(cls=inf; lr=0.0003, precision='32-true'\). Train again with a lower rate"
    with pytest.raises(NonFiniteError, match=text):
        _fit(FineTuningPlan(_module(factor=float("inf")), lr=3e-4))


def test_batches_are_prepared():
    seen = []

    def prepare(batch):
        seen.append(len(batch["x"]))
        return batch

    _fit(FineTuningPlan(_module(), prepare=prepare), validation=_data())
    assert seen == [6] * 8


class _Values(lp.Callback):
    """Sets the value that is watched, and notes the weights."""

    def __init__(self, values):
        self.values, self.weights = values, []

    def on_validation_epoch_end(self, trainer, plan):
        self.weights.append(plan.module.head.weight.detach().clone())
        plan.log("watched", self.values[trainer.current_epoch])


@pytest.mark.parametrize(
    ("values", "mode", "start", "best"),
    [
        ([0.3, 0.9, 0.5], "max", None, 1),
        ([0.3, 0.9, 0.5], "min", None, 0),
        ([0.3, 0.9, 0.5], "max", 0.95, None),
        ([0.3, 0.9, 0.5], "min", 0.4, 0),
        ([float("nan"), 0.1, 0.05], "max", None, 1),
    ],
)
def test_the_best_weights_come_back(values, mode, start, best):
    module, watched = _module(), _Values(values)
    before = module.head.weight.detach().clone()
    callback = KeepBest("watched", mode, start=start)
    _fit(FineTuningPlan(module, lr=0.1), epochs=3, callbacks=[watched, callback], validation=_data())
    expected = before if best is None else watched.weights[best]
    assert torch.equal(module.head.weight, expected)
    assert callback.best_epoch == best
    assert callback.best == pytest.approx(start if best is None else values[best])


def test_without_a_value_the_last_weights_stay():
    module = _module()
    before = module.head.weight.detach().clone()
    callback = KeepBest("nothing", "min")
    _fit(FineTuningPlan(module, lr=0.1), callbacks=[callback], validation=_data())
    assert callback.best is None
    assert not torch.equal(module.head.weight, before)
