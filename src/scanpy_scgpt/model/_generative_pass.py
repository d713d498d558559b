"""One pass of generation: from the genes that are seen to the digits of those that are asked for, in batches."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scanpy_scgpt._batch import CellBatch, GenerativeBatch
from scanpy_scgpt.io import Checkpoint, load_component
from scanpy_scgpt.module import PretrainModule

from ._devices import choose_device, choose_precision
from ._gene_lists import GeneLists
from ._workers import BatchQueue, Budget, is_out_of_memory

HEAD = "distribution_head"
_TOKENS_ON_CPU, _TOKENS_ON_GPU = 8192, 2**17
_MAX_PADDING = 0.1
_PAD_VALUE = np.float32(-2)


class Predicted(NamedTuple):
    """Generated expression of the genes that were asked for, entry by entry as in the lists of genes.

    Attributes
    ----------
    values
        On the scale of the bins, 1 to `n_bins - 1`; float32, shape `(n_entries,)`.
    spread
        Standard deviation of the learned distribution in bins, float32, shape `(n_entries,)`; NaN where the model has
        none.
    """

    values: np.ndarray
    spread: np.ndarray

    @classmethod
    def empty(cls, n_entries: int) -> Predicted:
        """NaN everywhere."""
        return cls(*(np.full(n_entries, np.nan, dtype=np.float32) for _ in range(2)))


class Seen(NamedTuple):
    """What the network sees of cells: genes, and their values (n_entries,) float32."""

    genes: GeneLists
    values: np.ndarray

    def extended(self, new: GeneLists, values: np.ndarray) -> Seen:
        """With more genes of each cell, behind those that are there."""
        order = np.argsort(np.concatenate([self.genes.cells, new.cells]), kind="stable")
        gene_ids = np.concatenate([self.genes.gene_ids, new.gene_ids])[order]
        indptr = self.genes.indptr + new.indptr
        return Seen(GeneLists(indptr, gene_ids), np.concatenate([self.values, values])[order])


class GenerativePass:
    """The network of a checkpoint with its heads, and batches for it.

    Parameters
    ----------
    checkpoint, device, max_tokens, precision
        As in :class:`Generator`.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str, max_tokens: int | None, precision: str) -> None:
        self.checkpoint = checkpoint
        self.device = choose_device(device)
        self.precision = choose_precision(precision, [self.device])
        if max_tokens is None:
            max_tokens = _TOKENS_ON_CPU if self.device.type == "cpu" else _TOKENS_ON_GPU
        if not isinstance(max_tokens, int | np.integer) or max_tokens < 1:
            msg = f"max_tokens={max_tokens!r}: a whole number of at least 1; leave it out for the default."
            raise ValueError(msg)
        self._budget = Budget(max_tokens)
        _check_trained(checkpoint)
        self.module = self._load()

    def _load(self) -> PretrainModule:
        has_head = any(name.startswith(f"{HEAD}.") for name in self.checkpoint.weights)
        with torch.random.fork_rng(devices=[]):  # initial weights draw; all that are used are overwritten
            legacy = bool(self.checkpoint.info.get("legacy_generation"))
            module = PretrainModule(self.checkpoint.transformer, distribution=has_head, legacy_generation=legacy)
        for part in ("transformer", "expression_head", *([HEAD] if has_head else [])):
            load_component(getattr(module, part), self.checkpoint, part)
        return module.eval().requires_grad_(requires_grad=False).to(self.device)

    def predict(self, seen: Seen, asked: GeneLists, cell: np.ndarray | None, chance: np.ndarray | None) -> Predicted:
        """All genes that are asked for, from what is seen; cells of similar length share a batch.

        Parameters
        ----------
        seen
            Genes with their values.
        asked
            Genes to predict.
        cell
            Vectors (n_cells, d_model) in place of the `<cls>` input, or None.
        chance
            Numbers between 0 and 1 (n_entries,) at which values are drawn, or None for the mean.
        """
        found = Predicted.empty(len(asked.gene_ids) + 1)
        wanted = np.flatnonzero(asked.lengths)
        lengths = (seen.genes.lengths + asked.lengths)[wanted]
        queue = BatchQueue(lengths, self._budget, max_padding=_MAX_PADDING)
        while (batch := queue.pop()) is not None:
            try:
                self._fill(found, seen, asked, wanted[batch], cell, chance)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                queue.too_large(batch, error)
        return Predicted(found.values[:-1], found.spread[:-1])

    @torch.inference_mode()
    def _fill(
        self,
        found: Predicted,
        seen: Seen,
        asked: GeneLists,
        cells: np.ndarray,
        cell: np.ndarray | None,
        chance: np.ndarray | None,
    ) -> None:
        """Write the predictions for some cells into `found`, whose last entry takes those of padding."""
        known = self._known(seen, cells)
        prompt = None if cell is None else self._tensor(np.asarray(cell[cells], dtype=np.float32))
        places = asked.places(cells)
        gene_ids = np.append(asked.gene_ids, self.checkpoint.vocab.pad_id).astype(np.int64)[places]
        lots = None if chance is None else np.append(chance, 0.5)[places]
        n_known = known.gene_ids.shape[1]
        width = max(self._budget.max_tokens // len(cells) - n_known, n_known)
        for start in range(0, places.shape[1], width):  # a cell longer than a batch: in parts no shorter than is known
            part = slice(start, start + width)
            unknown = self._tensor(gene_ids[:, part])
            padding = self._tensor(places[:, part] == len(asked.gene_ids))
            batch = GenerativeBatch(known, unknown, torch.zeros_like(unknown), padding)
            values, spread = self._pass(batch, prompt, None if lots is None else self._tensor(lots[:, part]))
            found.values[places[:, part]], found.spread[places[:, part]] = values.cpu().numpy(), spread.cpu().numpy()

    def _known(self, seen: Seen, cells: np.ndarray) -> CellBatch:
        """`<cls>` and what is seen of some cells."""
        vocab = self.checkpoint.vocab
        places = seen.genes.places(cells)
        shape = len(cells), places.shape[1] + 1
        gene_ids, values = np.full(shape, vocab.cls_id), np.full(shape, self.checkpoint.tokenizer.cls_value, np.float32)
        padding = np.zeros(shape, dtype=bool)
        gene_ids[:, 1:] = np.append(seen.genes.gene_ids, vocab.pad_id)[places]
        values[:, 1:] = np.append(seen.values, _PAD_VALUE)[places]
        padding[:, 1:] = places == len(seen.values)
        mask = self._tensor(padding) if padding.any() else None
        return CellBatch(self._tensor(gene_ids), self._tensor(values), mask)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _pass(self, batch: GenerativeBatch, cell: Tensor | None, chance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values and spread (batch, n_unknown) of a batch, float32."""
        in_half = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if in_half else nullcontext():
            out = self.module.generate(batch, cell=cell)
        highest = self.checkpoint.tokenizer.n_bins - 1
        if out.logits is None:
            values = out.unknown.float().clamp(1, highest)
            return values, torch.full_like(values, torch.nan)
        probability = torch.softmax(out.logits[..., 1:].float(), dim=-1)  # digit 0 is never a target
        digits = torch.arange(1, highest + 1, dtype=torch.float32, device=self.device)
        mean = probability @ digits
        spread = (probability * (digits - mean.unsqueeze(-1)).square()).sum(-1).sqrt()
        if chance is None:
            return mean, spread
        passed = probability.cumsum(-1) < chance.unsqueeze(-1)
        return digits[passed.sum(-1).clamp(max=highest - 1)], spread


def _check_trained(checkpoint: Checkpoint) -> None:
    """A model must have learned to predict unknown genes from known ones."""
    task = checkpoint.info.get("settings", {}).get("task")
    if task == "pcpt" or "transformer.encoder.unknown" not in checkpoint.weights:
        why = "its task was 'pcpt'" if task == "pcpt" else "it has no tensor transformer.encoder.unknown"
        msg = (
            f"{checkpoint.label} was not pretrained generatively ({why}), so it cannot generate. Use model='mini', or "
            "a model of scgpt.pretrain.run(..., task='gen')."
        )
        raise ValueError(msg)
    if checkpoint.transformer.value_encoding == "category":
        msg = (
            f"{checkpoint.label} reads values as categories, and generated values are no whole digits. "
            "Use a model with value_encoding='continuous'."
        )
        raise ValueError(msg)
