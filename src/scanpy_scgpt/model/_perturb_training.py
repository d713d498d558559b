"""Training of the network of `SCGPTPerturber`: on what the anchor leaves, with a weight that left-out rows choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt._validate import nearest

from ._perturb_data import control_values, values_of
from ._perturb_network import Controls, Draw, NetworkSettings, PerturbNetwork
from ._selection import cosines, surely_positive

if TYPE_CHECKING:
    from ._screen import Conditions

_WEIGHTS = (0.25, 0.5, 1.0)
_FOLDS, _FEW = 4, 8
_DE = 100  # most changed genes of a perturbation that are always shown
_INPUTS = 8  # pools of controls that a prediction is averaged over
_LEGACY = {"lr": 1e-4, "gamma": 0.9, "batch_size": 64, "n_genes": 1536, "pool": 1, "legacy": True}


class PerturbTraining:
    """`train`, and the changes that networks predict."""

    def train(
        self,
        max_epochs: int = 5,
        *,
        n_networks: int = 1,
        device: str = "cpu",
        weight: float | None = None,
        **settings: Any,
    ) -> None:
        """Train the network on what the anchor leaves, and find its weight on perturbations that are left out.

        Parameters
        ----------
        max_epochs
            Passes over the perturbations.
        n_networks
            Networks with other seeds; their mean is used, and their spread widens the intervals.
        device
            `"cpu"`, `"cuda"`, ...
        weight
            In place of the one that is found: saves training on parts of the perturbations.
        **settings
            `lr`, `gamma`, `batch_size`, `n_genes`, `pool`, `per_epoch`, as in the reference.

        Raises
        ------
        ValueError
            For a table of effects, which has no cells, without a perturbation whose genes the network knows, or for a
            number out of range.
        TypeError
            For an unknown setting.
        """
        if self.is_table_ or self._adata is None:
            msg = "The network needs control cells, and a table of effects (or a loaded model) has none: max_epochs=0."
            raise ValueError(msg)
        _check(max_epochs, n_networks, weight, settings)
        usual = _LEGACY if self.legacy_ else {}
        given = NetworkSettings(**{**usual, **settings, "max_epochs": max_epochs, "device": device, "rng": self.rng_})
        probe = PerturbNetwork(self._checkpoint, self.screen_.genes, given)
        rows = np.array([i for i, x in enumerate(self.screen_.conditions.parts) if probe.shows(x)], dtype=int)
        if not len(rows):
            msg = (
                "None of the targets is a measured gene in the vocabulary, so the network cannot be told: max_epochs=0."
            )
            raise ValueError(msg)
        self.controls_ = self._controls()
        alone = self.anchor_ is None
        if weight is None and not alone:
            weight = self._validated(rows, given) if len(rows) >= _FEW else 0.0
        self.network_weight_ = 1.0 if alone else float(weight)
        self.networks_ = []
        if self.network_weight_:
            self.networks_ = [
                self._fitted(rows, self._residuals(), replace(given, rng=given.rng + i)) for i in range(n_networks)
            ]

    def _controls(self) -> Controls:
        values, rows = control_values(self._adata, self._read, self.source_)
        batches = np.full(len(rows), "", dtype=object)
        if self.source_.batch_key is not None:
            batches = self._adata.obs[self.source_.batch_key].astype(str).to_numpy(dtype=object)[rows]
        return Controls(values, self._read.contexts[rows], batches)

    def _residuals(self) -> np.ndarray:
        """What the anchor misses of each condition when it is left out, float32; the effects without an anchor."""
        if self.effects_ is None:
            return self.screen_.effects
        left, anchor = self.effects_.left_out_.copy(), self.effects_
        single = ~np.isin(np.arange(len(left)), anchor.pairs)
        left[single] = anchor.own.add(left, self.screen_, self.screen_.conditions)[single]
        return np.nan_to_num(self.screen_.effects - left).astype(np.float32)

    def _fitted(self, rows: np.ndarray, residuals: np.ndarray, settings: NetworkSettings) -> PerturbNetwork:
        network, conditions = PerturbNetwork(self._checkpoint, self.screen_.genes, settings), self.screen_.conditions
        always = []
        for row in rows:
            changed = np.argsort(-np.abs(self.screen_.effects[row]), kind="stable")[:_DE]
            always.append(np.union1d(changed, np.flatnonzero(network.flags(conditions.parts[row]))))
        some, cells = conditions.take(rows), None
        if self.legacy_:
            cells = [self._cells_of(i) for i in rows]
        draw = Draw(network, self.controls_, some.parts, some.contexts, residuals[rows], cells)
        network.fit(draw, len(rows), always)
        return network

    def _cells_of(self, row: int) -> tuple[Any, np.ndarray]:
        """Perturbed cells of a condition, log-normalised, and their batches."""
        found, conditions = self._read.perturbations, self.screen_.conditions
        genes = conditions.parts[row]
        own = [i for i, x in enumerate(found.targets) if (tuple(sorted(x)) or (found.conditions[i],)) == genes]
        own = own or [found.conditions.index(self.names_[genes])]
        inside = np.isin(found.codes, own) & (self._read.contexts == conditions.contexts[row])
        values, rows = values_of(self._adata, np.flatnonzero(inside), self.source_)
        batches = np.full(len(rows), "", dtype=object)
        if self.source_.batch_key is not None:
            batches = self._adata.obs[self.source_.batch_key].astype(str).to_numpy(dtype=object)[rows]
        return values, batches

    def _validated(self, rows: np.ndarray, settings: NetworkSettings) -> float:
        """Weight of the network, from networks that are trained without a part of the perturbations each."""
        residuals, conditions = self._residuals(), self.screen_.conditions
        parts = sorted({part for row in rows for part in conditions.parts[row]})
        group = dict(zip(parts, np.random.default_rng([self.rng_, 62]).permutation(len(parts)) % _FOLDS, strict=True))
        found = np.zeros((len(rows), residuals.shape[1]), dtype=np.float32)
        for fold in range(_FOLDS):
            out = np.array([any(group[part] == fold for part in conditions.parts[row]) for row in rows])
            if out.any() and not out.all():
                network = self._fitted(rows[~out], residuals, settings)
                found[out] = self._of_network([network], conditions.take(rows[out]))[0]
        truth = self.screen_.effects[rows]
        anchor = truth - residuals[rows]
        start = _correlations(anchor, truth)
        table, best = [], (0.0, 0.0)
        for weight in _WEIGHTS:
            gain = _correlations(anchor + weight * found, truth) - start
            table.append((weight, float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(len(gain)))))
            if gain.mean() > best[0] and surely_positive(gain):
                best = (float(gain.mean()), weight)
        self.validation_ = pd.DataFrame(table, columns=["weight", "gain", "error"])
        return best[1]

    def _of_network(self, networks: Sequence[PerturbNetwork], conditions: Conditions) -> np.ndarray:
        """Changes by each network, float32, shape `(n_networks, n, n_genes)`; 0 where it cannot be told."""
        n, rng = len(conditions), np.random.default_rng([self.rng_, 63])
        out = np.zeros((len(networks), n, len(self.screen_.genes)), dtype=np.float32)
        shown = [i for i in range(n) if networks and (self.legacy_ or networks[0].shows(conditions.parts[i]))]
        for i in shown:
            size = networks[0].settings.pool if not self.legacy_ else 1
            pools = [
                self.controls_.draw(conditions.contexts[i], size, rng)
                for _ in range(_INPUTS * (5 if self.legacy_ else 1))
            ]
            inputs = np.stack(pools)
            for k, network in enumerate(networks):
                after = network.predict(inputs, [conditions.parts[i]] * len(inputs))
                out[k, i] = (after - inputs if self.legacy_ else after).mean(axis=0)
        return out


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return cosines(a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True))


def _check(max_epochs: int, n_networks: int, weight: float | None, settings: Mapping[str, Any]) -> None:
    """What is refused before anything is trained."""
    for name, value in (("max_epochs", max_epochs), ("n_networks", n_networks)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            msg = f"{name}={value!r}: a whole number from 1, such as {5 if name == 'max_epochs' else 1}."
            raise ValueError(msg)
    if weight is not None and (isinstance(weight, str) or not 0 <= weight < np.inf):
        msg = f"weight={weight!r}: a number from 0, such as 0.5, or None to find it on left-out perturbations."
        raise ValueError(msg)
    known = [x.name for x in fields(NetworkSettings) if x.name not in {"max_epochs", "device", "rng"}]
    for name in settings:
        if name not in known:
            near = nearest(name, known)
            hint = f"; did you mean {near!r}" if near else ""
            msg = f"train() takes no {name!r}{hint}. Settings of the network: {', '.join(known)}."
            raise TypeError(msg)
