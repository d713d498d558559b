"""Query cells on a trained model: what is taken over, and what is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from scanpy_scgpt._logging import get_logger

from ._registry import setup_of, state_of
from ._store import _device, _taken

if TYPE_CHECKING:
    from anndata import AnnData
    from lightning.pytorch import LightningDataModule
    from mudata import MuData

logger = get_logger(__name__)
_ADAPTED = (".norm1.", ".norm2.", ".norm.")  # layer norms: few numbers, through which a query can shift


class QueryMixin:
    """`load_query_data`, `prepare_query_anndata`."""

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData | MuData,
        reference_model: str | os.PathLike[str] | Any,
        registry: dict[str, Any] | None = None,
        inplace_subset_query_vars: bool = False,  # noqa: FBT001, FBT002 - the signature of scvi-tools
        accelerator: str = "auto",
        device: int | str = "auto",
        unfrozen: bool = False,  # noqa: FBT001, FBT002
        freeze_classifier: bool = True,  # noqa: FBT001, FBT002
        datamodule: LightningDataModule | None = None,
        *,
        min_genes: int | None = None,
        **setup: Any,
    ) -> Self:
        """A model for query cells that starts from a trained one.

        Genes are matched by name, so neither order nor missing ones need attention. Batches that the model has not seen
        are added. `train` then adapts the layer norms of the transformer and the heads of the objectives, all else
        stays: with the objectives of the reference without `"cls"`, and with `"gep"` and `"gepc"` when nothing else is
        left, since a query has no labels.

        Parameters
        ----------
        adata
            Query cells; columns that the reference was set up with may be missing.
        reference_model
            Trained model, or the folder of one.
        registry, datamodule, inplace_subset_query_vars
            Not needed; there for the signature of scvi-tools.
        accelerator, device
            Where the network goes.
        unfrozen
            Train everything.
        freeze_classifier
            False trains the head of the labels too, on the labels of the query.
        min_genes
            Fewest genes that must be in the vocabulary; that of the reference by default.
        **setup
            What is otherwise for the query when it is registered, by the names of `setup_anndata` or `setup_mudata`:
            `layer`, `gene_symbols`, `batch_key`; of :class:`SCGPTMulti` also `layers` (`{}` for `X`) and `modalities`.

        Raises
        ------
        ValueError
            For arguments that this model has no use for.
        TypeError
            For an argument that the cells of the reference were not registered with.
        """
        if registry is not None or datamodule is not None or inplace_subset_query_vars:
            msg = "load_query_data takes the query cells as they are: leave registry, datamodule and subsetting out."
            raise ValueError(msg)
        reference = reference_model
        if isinstance(reference_model, str | os.PathLike):
            reference = cls.load(reference_model, adata=False, accelerator="cpu")
        known = reference.registry_
        register = setup_of(cls, known)
        for name in setup:
            if name not in known["setup_args"]:
                listed = ", ".join(known["setup_args"])
                msg = f"load_query_data knows no argument {name!r}. The cells are registered with: {listed}."
                raise TypeError(msg)
        cls._check_setup(adata, setup)
        register(adata, source_registry=known, extend_categories=True, **{**known["setup_args"], **setup})
        labelled = not freeze_classifier and bool(state_of(known, "labels"))
        objectives = tuple(x for x in reference.module.objectives if x != "cls" or labelled)
        if set(objectives) <= {"dar"}:  # alone it could map all cells to one vector
            objectives = ("gep", "gepc", *objectives)
        settings = {
            **_taken(cls, reference.init_params_["non_kwargs"]),
            "objectives": objectives,
            "from_scratch": False,
        }
        settings |= {} if min_genes is None else {"min_genes": min_genes}
        model = cls(adata, **{**settings, "model": reference.to_checkpoint()})
        model.panel_ = reference.panel_
        _extend(model, reference)
        _freeze(model, unfrozen=unfrozen, freeze_classifier=freeze_classifier)
        model.to_device(_device(accelerator, device))
        model.module.eval()
        model._set_arrays(reference._arrays())
        model._knows_start = False
        for name in ("shares_", "facts_", "other_genes_"):
            if hasattr(reference, name):
                setattr(model, name, getattr(reference, name))
        model.is_trained_, model.names_labels_ = reference.is_trained_, reference.names_labels_
        model._as_query()
        return model

    def _as_query(self) -> None:
        """What a class keeps of its reference, and says about the cells of a query."""

    @staticmethod
    def _check_setup(adata: AnnData | MuData, setup: Mapping[str, Any]) -> None:
        """Of a query: what is said of it must be there."""

    @staticmethod
    def prepare_query_anndata(
        adata: AnnData,
        reference_model: str | os.PathLike[str] | Any,
        return_reference_var_names: bool = False,  # noqa: FBT001, FBT002
        inplace: bool = True,  # noqa: FBT001, FBT002
    ) -> AnnData | None:
        """Nothing needs to be prepared: genes are matched by name. Returns a copy with `inplace=False`."""
        return None if inplace else adata.copy()

    @staticmethod
    def prepare_query_mudata(
        mdata: MuData,
        reference_model: str | os.PathLike[str] | Any,
        return_reference_var_names: bool = False,  # noqa: FBT001, FBT002
        inplace: bool = True,  # noqa: FBT001, FBT002
    ) -> MuData | None:
        """As :meth:`prepare_query_anndata`."""
        return None if inplace else mdata.copy()


def _extend(model: Any, reference: Any) -> None:
    """What the reference knows of labels and batches stays; what belongs to new batches is new."""
    for name in ("class_head", "adversary_head"):
        new, old = (getattr(part.module, name, None) for part in (model, reference))
        if new is None or old is None:
            continue
        state, known = new.state_dict(), old.state_dict()
        for key, tensor in known.items():
            state[key][: len(tensor)] = tensor
        new.load_state_dict(state)


def _freeze(model: Any, *, unfrozen: bool, freeze_classifier: bool) -> None:
    heads = {"gep": "expression_head", "gepc": "cell_to_gene_head", "dar": "adversary_head"}
    trained = [heads[x] for x in model.module.objectives if x in heads] + ([] if freeze_classifier else ["class_head"])
    for name, parameter in model.module.named_parameters():
        adapted = name.startswith("transformer.") and any(part in name for part in _ADAPTED)
        wanted = unfrozen or adapted or name.split(".")[0] in trained
        parameter.requires_grad_(wanted and parameter.requires_grad)  # what no term reaches stays at rest
    if not unfrozen:
        n_free = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
        n_all = sum(p.numel() for p in model.module.parameters())
        logger.info("query: %s of %s weights are free to adapt", f"{n_free:,}", f"{n_all:,}")
