"""What the network adds to the anchor: training on pools of control cells, and prediction gene block by gene block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt.io import Checkpoint, load_component
from scanpy_scgpt.module.perturb import PerturbModule

logger = get_logger(__name__)
CLIP = 1.0


@dataclass(frozen=True)
class NetworkSettings:
    """How the network is trained.

    Attributes
    ----------
    max_epochs, lr, gamma, batch_size
        Passes over the perturbations, rate, its factor after each pass, sequences of a step.
    n_genes
        Genes of a sequence: targets and the genes that change most, then others at random.
    pool
        Control cells whose mean is one input; the original has single cells.
    per_epoch
        Inputs of each perturbation in a pass.
    legacy
        The original recipe: single cells, targets that are cells, expression in place of its change, all genes at
        random, so that the target may be missing.
    device
        Where.
    rng
        Seed.
    """

    max_epochs: int = 5
    lr: float = 1e-4
    gamma: float = 0.9
    batch_size: int = 32
    n_genes: int = 512
    pool: int = 20
    per_epoch: int = 16
    legacy: bool = False
    device: str = "cpu"
    rng: int = 0


def _has_half(device: str) -> bool:
    """Whether bfloat16 is the faster one to train in."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and bool(torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported())


class Controls:
    """Control cells by context, and means of random pools of them.

    Parameters
    ----------
    values
        Log-normalised, CSR, shape `(n_cells, n_genes)`.
    contexts, batches
        Of each cell.
    """

    def __init__(self, values: sparse.csr_matrix, contexts: np.ndarray, batches: np.ndarray) -> None:
        self.values = values
        self.groups = {
            (context, batch): np.flatnonzero((contexts == context) & (batches == batch))
            for context, batch in {*zip(contexts.tolist(), batches.tolist(), strict=True)}
        }
        self.rows = {context: np.flatnonzero(contexts == context) for context in np.unique(contexts)}

    def draw(self, context: str, size: int, rng: np.random.Generator, *, batch: str | None = None) -> np.ndarray:
        """Mean of random cells of a context (and batch, where it has controls), float32, shape `(n_genes,)`."""
        rows = self.groups.get((context, batch))
        rows = self.rows.get(context) if rows is None else rows
        rows = np.concatenate(list(self.rows.values())) if rows is None else rows
        return np.asarray(self.values[rng.choice(rows, size=size)].mean(axis=0)).ravel().astype(np.float32)


class PerturbNetwork:
    """A cell transformer that predicts changes, or expression in the original recipe.

    Parameters
    ----------
    checkpoint
        Where weights start.
    genes
        Names of the genes.
    settings
        Of the training.
    """

    def __init__(self, checkpoint: Checkpoint, genes: Sequence[str], settings: NetworkSettings) -> None:
        self.settings, self.genes = settings, list(genes)
        vocab = checkpoint.vocab
        ids = np.array([vocab[x] if x in vocab else -1 for x in genes], dtype=np.int64)  # noqa: SIM401
        self.known = np.flatnonzero(ids >= 0)
        self.ids = torch.from_numpy(np.where(ids >= 0, ids, checkpoint.transformer.pad_id))
        self.place = {gene: i for i, gene in enumerate(genes)}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.rng)
            self.module = PerturbModule(checkpoint.transformer, legacy=settings.legacy)
        load_component(self.module.transformer, checkpoint, "transformer", optional=frozenset({"encoder.unknown"}))
        self.module.transformer.encoder.unknown.requires_grad_(requires_grad=False)
        self.module.to(settings.device).eval()
        self.history: list[float] = []
        self.half = not settings.legacy and _has_half(settings.device)

    def flags(self, parts: Sequence[str]) -> np.ndarray:
        """1 for the genes of a perturbation, int64, shape `(n_genes,)`."""
        out = np.zeros(len(self.genes), dtype=np.int64)
        out[[self.place[part] for part in parts if part in self.place]] = 1
        return out

    def shows(self, parts: Sequence[str]) -> bool:
        """Whether the network can be told of every part."""
        return all(part in self.place and self.place[part] in self.known for part in parts)

    def columns(self, always: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Genes of one step: those that must be there, then others at random."""
        pool = np.arange(len(self.genes)) if self.settings.legacy else self.known
        if len(pool) <= self.settings.n_genes:
            return pool
        if self.settings.legacy:
            return np.sort(rng.permutation(pool)[: self.settings.n_genes])
        must = np.intersect1d(always, pool)[: self.settings.n_genes]
        rest = np.setdiff1d(pool, must)
        return np.sort(np.concatenate([must, rng.permutation(rest)[: self.settings.n_genes - len(must)]]))

    def fit(
        self, draw: Draw, n_conditions: int, always: Sequence[np.ndarray], *, weights: np.ndarray | None = None
    ) -> None:
        """Train.

        Parameters
        ----------
        draw
            Makes an input and its target out of the number of a condition and a generator.
        n_conditions
            Number of conditions.
        always
            Columns that must be shown, for each condition.
        weights
            Of the conditions in the loss.
        """
        given, rng = self.settings, np.random.default_rng([self.settings.rng, 61])
        chosen = [x for x in self.module.parameters() if x.requires_grad]
        optimiser = torch.optim.Adam(chosen, lr=given.lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, 1, gamma=given.gamma)
        self.module.train()
        for _ in range(given.max_epochs):
            order = rng.permutation(np.repeat(np.arange(n_conditions), given.per_epoch))
            losses = []
            for start in range(0, len(order), given.batch_size):
                rows = order[start : start + given.batch_size]
                columns = self.columns(np.unique(np.concatenate([always[row] for row in rows])), rng)
                inputs, flags, targets = (
                    torch.from_numpy(np.stack(x)[:, columns]).to(given.device)
                    for x in zip(*(draw(int(row), rng) for row in rows), strict=True)
                )
                with torch.autocast(given.device.partition(":")[0], torch.bfloat16, enabled=self.half):
                    found = self.module(self.ids[columns].to(given.device), inputs, flags).values
                error = (found.float() - targets) ** 2
                if weights is not None:
                    error = error * torch.from_numpy(weights[rows]).to(error)[:, None]
                loss = error.mean()
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(chosen, CLIP)
                optimiser.step()
                losses.append(float(loss.detach()))
            schedule.step()
            self.history.append(float(np.mean(losses)))
        self.module.eval()

    @torch.inference_mode()
    def predict(self, inputs: np.ndarray, parts: Sequence[Sequence[str]]) -> np.ndarray:
        """Of each input and perturbation, float32, shape `(n, n_genes)`; genes go in blocks, targets in each.

        Parameters
        ----------
        inputs
            Expression, float32, shape `(n, n_genes)`.
        parts
            Genes of each perturbation.
        """
        given = self.settings
        out = np.zeros(inputs.shape, dtype=np.float32)
        pool = np.arange(len(self.genes)) if given.legacy else self.known
        n_blocks = max(1, math.ceil(len(pool) / max(given.n_genes, 1)))
        for start in range(0, len(inputs), given.batch_size):
            rows = slice(start, start + given.batch_size)
            flags = np.stack([self.flags(x) for x in parts[rows]])
            targets = np.flatnonzero(flags.any(axis=0))
            for block in np.array_split(pool, n_blocks):
                columns = np.union1d(block, np.intersect1d(targets, pool))
                shown = (torch.from_numpy(x[:, columns]).to(given.device) for x in (inputs[rows], flags))
                found: Tensor = self.module(self.ids[columns].to(given.device), *shown).values
                own = np.isin(columns, block)
                out[rows, columns[own]] = found.float().cpu().numpy()[:, own]
        return out


class Draw:
    """Inputs and targets of conditions: pools of controls and the change, or single cells and a perturbed cell.

    Parameters
    ----------
    network
        Whose flags and settings to use.
    controls
        Control cells.
    parts, contexts
        Of the conditions.
    changes
        Change to learn of each condition, float32, shape `(n, n_genes)`.
    cells
        For the original recipe: perturbed cells of each condition, CSR, and their batches.
    """

    def __init__(
        self,
        network: PerturbNetwork,
        controls: Controls,
        parts: Sequence[tuple[str, ...]],
        contexts: Sequence[str],
        changes: np.ndarray,
        cells: Sequence[tuple[sparse.csr_matrix, np.ndarray]] | None = None,
    ) -> None:
        self.controls, self.contexts, self.changes, self.cells = controls, contexts, changes, cells
        self.flags = [network.flags(x) for x in parts]
        self.settings = network.settings

    def __call__(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.cells is None:
            return self.controls.draw(self.contexts[row], self.settings.pool, rng), self.flags[row], self.changes[row]
        values, batches = self.cells[row]
        one = int(rng.integers(values.shape[0]))
        before = self.controls.draw(self.contexts[row], 1, rng, batch=batches[one])
        return before, self.flags[row], values[one].toarray().ravel().astype(np.float32)
