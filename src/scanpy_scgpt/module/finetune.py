"""Fine-tuning: which heads, which terms. Loads scvi-tools, so it is imported by the file that needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor

from scanpy_scgpt._types import Pooling
from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.nn import (
    POOLINGS,
    AdversaryHead,
    CellPool,
    CellToGeneHead,
    CellTransformer,
    ClassHead,
    ExpressionHead,
    TransformerConfig,
)
from scanpy_scgpt.objectives import (
    classification,
    combine,
    elastic_similarity,
    masked_mse,
    reverse_gradient,
)

Objective = Literal["cls", "gep", "gepc", "ecs", "dar"]
WEIGHTS: Mapping[str, float] = {"ecs": 10.0}  # of the original; 1 for the others
_MASKED = -1.0  # value of a gene that is hidden in its place


class FineTuneModule(BaseModuleClass):
    """A cell transformer with the heads of the objectives of fine-tuning (:cite:t:`Cui2024`).

    Takes dictionaries of tensors: `gene_ids` (batch, length) int64, `values` (batch, length), `padding` (batch, length)
    bool or None, `labels` and `batch` (batch, 1) int64, below 0 where a cell has none.

    Parameters
    ----------
    config
        Shape of the network.
    objectives
        Terms of the loss: `cls` (cross entropy of the labels), `gep` and `gepc` (values of hidden genes from their
        tokens and from the cell vector), `ecs` (elastic similarity of cells), `dar` (batches, against the network).
    n_labels, n_batch
        Number of labels and batches; 0 for none.
    pooling
        How token vectors become the cell vector.
    mask_ratio
        Share of the genes of a cell that are hidden, for `gep` and `gepc`.
    ecs_threshold
        Threshold of `ecs`.
    weights
        Weights of the terms, in place of :data:`WEIGHTS`.
    smoothing
        Label smoothing of `cls`.
    head_layers
        Affine maps of the head of the labels.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        objectives: Sequence[Objective],
        n_labels: int = 0,
        n_batch: int = 0,
        pooling: Pooling = "cls",
        mask_ratio: float = 0.4,
        ecs_threshold: float = 0.8,
        weights: Mapping[str, float] | None = None,
        smoothing: float = 0.0,
        head_layers: int = 3,
    ) -> None:
        super().__init__()
        self.objectives, self.pooling = tuple(objectives), pooling
        self.mask_ratio, self.ecs_threshold, self.smoothing = mask_ratio, ecs_threshold, smoothing
        self.weights = {**WEIGHTS, **(weights or {})}
        self.transformer = CellTransformer(config)
        self.expression_head = ExpressionHead(d_model=config.d_model)
        self.cell_to_gene_head = CellToGeneHead(d_model=config.d_model)
        self.class_head = (
            ClassHead(d_model=config.d_model, n_classes=n_labels, n_layers=head_layers) if n_labels else None
        )
        adversary = n_batch > 1 and "dar" in self.objectives
        self.adversary_head = AdversaryHead(d_model=config.d_model, n_batches=n_batch) if adversary else None
        self._rest_unused()

    def _rest_unused(self) -> None:
        """What no term of the loss reaches asks for no gradient: else processes would wait for it for ever."""
        self.transformer.encoder.unknown.requires_grad_(requires_grad=False)
        for name, part in (("gep", self.expression_head), ("gepc", self.cell_to_gene_head), ("cls", self.class_head)):
            if part is not None and name not in self.objectives:
                part.requires_grad_(requires_grad=False)

    @property
    def hides(self) -> bool:
        """Whether an objective hides genes."""
        return bool({"gep", "gepc"} & set(self.objectives))

    def _get_inference_input(self, tensors: Mapping[str, Tensor], **_kwargs: object) -> dict[str, Tensor | None]:
        values, padding = tensors["values"], tensors.get("padding")
        hidden = None
        if self.hides:
            hidden = torch.rand_like(values) < self.mask_ratio
            hidden[:, 0] = False
            hidden = hidden if padding is None else hidden & ~padding
        return {"gene_ids": tensors["gene_ids"], "values": values, "padding": padding, "hidden": hidden}

    @auto_move_data
    def inference(
        self, gene_ids: Tensor, values: Tensor, padding: Tensor | None = None, hidden: Tensor | None = None
    ) -> dict[str, Tensor | None]:
        """Token vectors and cell vectors; genes where `hidden` is True enter without their value."""
        weights = values if hidden is None else values.masked_fill(hidden, 0)
        shown = self._marks(values if hidden is None else values.masked_fill(hidden, _MASKED))
        pool = CellPool(self.pooling, padding=padding, values=weights)
        tokens = self.transformer(gene_ids, shown, padding, watch=pool)
        return {"tokens": tokens, "cell": pool.result(), "hidden": hidden}

    def _marks(self, values: Tensor) -> Tensor:
        """Values for the value encoder: a table has rows of its own for padded and hidden, past those of the digits."""
        config = self.transformer.config
        if config.value_encoding != "category":
            return values
        return torch.where(values < 0, config.n_bins + (values == _MASKED).to(values.dtype), values)

    def _get_generative_input(
        self, tensors: Mapping[str, Tensor], inference_outputs: Mapping[str, Tensor], **_kwargs: object
    ) -> dict[str, Tensor]:
        outputs = {name: inference_outputs[name] for name in ("tokens", "cell")}
        return {**outputs, "gene_ids": tensors["gene_ids"]}

    @auto_move_data
    def generative(self, tokens: Tensor, cell: Tensor, gene_ids: Tensor) -> dict[str, Tensor | None]:
        """What each head makes of them: `values`, `from_cell` (batch, length), `classes`, `batches`."""
        out = self._of_cells(cell)
        if "gep" in self.objectives:
            out["values"] = self.expression_head(tokens).values
        if "gepc" in self.objectives:
            out["from_cell"] = self.cell_to_gene_head(cell, self.transformer.encoder.genes(gene_ids)).values
        return out

    def _of_cells(self, cell: Tensor) -> dict[str, Tensor | None]:
        """What the heads of the whole cell make of its vector."""
        out: dict[str, Tensor | None] = dict.fromkeys(("values", "from_cell", "classes", "batches"))
        if self.class_head is not None:
            out["classes"] = self.class_head(cell)
        if self.adversary_head is not None:
            out["batches"] = self.adversary_head(reverse_gradient(cell))
        return out

    def loss(
        self,
        tensors: Mapping[str, Tensor],
        inference_outputs: Mapping[str, Tensor],
        generative_outputs: Mapping[str, Tensor],
    ) -> LossOutput:
        """Weighted sum of the terms, and the value of each."""
        hidden, values = inference_outputs["hidden"], tensors["values"]
        terms: dict[str, Tensor] = {}
        for name, predicted in (("gep", "values"), ("gepc", "from_cell")):
            if name in self.objectives:
                terms[name] = masked_mse(generative_outputs[predicted], values, hidden)
        if "cls" in self.objectives:
            labels = tensors["labels"].flatten()
            scores = generative_outputs["classes"]
            terms["cls"] = classification(scores, labels, smoothing=self.smoothing)
        if "ecs" in self.objectives:
            terms["ecs"] = elastic_similarity(inference_outputs["cell"], threshold=self.ecs_threshold)
        if self.adversary_head is not None:
            terms["dar"] = classification(generative_outputs["batches"], tensors["batch"].flatten())
        weights = {name: self.weights.get(name, 1.0) for name in terms}
        loss = combine(terms, weights)
        return LossOutput(loss=loss.total, n_obs_minibatch=len(values), extra_metrics=loss.terms)

    def sample(self, *_args: object, **_kwargs: object) -> None:
        """A transformer that classifies has no samples.

        Raises
        ------
        NotImplementedError
            Always.
        """
        msg = "Samples of expression come from a generative model: scanpy_scgpt.tl.generate(adata)."
        raise NotImplementedError(msg)


def check_settings(*, mask_ratio: float, smoothing: float, head_layers: int, pooling: Pooling | None) -> None:
    """Settings that a module can work with.

    Raises
    ------
    ValueError
        For a share out of range, a head without a map, or an unknown pooling.
    """
    check_one_of(pooling, (None, *POOLINGS), name="pooling")
    for name, value, good, what in (
        ("mask_ratio", mask_ratio, 0 < mask_ratio < 1, "a share between 0 and 1, such as 0.4"),
        ("smoothing", smoothing, 0 <= smoothing < 1, "a share from 0 to below 1, such as 0.1"),
        ("head_layers", head_layers, head_layers >= 1, "a number of affine maps, such as 3"),
    ):
        if not good:
            msg = f"{name}={value!r}: {what}."
            raise ValueError(msg)


def check_objectives(
    objectives: Sequence[str] | str, *, n_labels: int, n_batch: int, weights: Mapping[str, float] | None = None
) -> tuple[str, ...]:
    """Objectives that the registered data can serve.

    Raises
    ------
    ValueError
        For an unknown one, none at all, one whose column was not registered, or a weight of an unknown one.
    """
    choices = get_args(Objective)
    objectives = (objectives,) if isinstance(objectives, str) else objectives
    for name in objectives:
        check_one_of(name, choices, name="an objective")
    for name in weights or ():
        check_one_of(name, choices, name="an objective in weights")
    if not objectives:
        msg = f"objectives is empty: name at least one of {', '.join(map(repr, choices))}."
        raise ValueError(msg)
    if "cls" in objectives and n_labels < 1:
        msg = "The objective 'cls' needs labels: name their column in setup_anndata(adata, labels_key='cell_type')."
        raise ValueError(msg)
    if "cls" in objectives and n_labels == 1:
        msg = "The objective 'cls' tells labels apart, and there is 1. Name a column with several as labels_key."
        raise ValueError(msg)
    if "dar" in objectives and n_batch <= 1:
        msg = (
            f"The objective 'dar' tells batches apart, and there {'is 1' if n_batch == 1 else 'are 0'}. Leave it out, "
            "or name a column with several in setup_anndata(adata, batch_key='donor')."
        )
        raise ValueError(msg)
    return tuple(dict.fromkeys(objectives))
