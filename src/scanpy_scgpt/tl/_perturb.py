"""`tl.perturb`: what perturbations do that were not made."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt._keys import PERTURB, UNS
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._perturbation_names import STIMULUS
from scanpy_scgpt._validate import check_anndata, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scgpt.model import Conditions, SCGPTPerturber

logger = get_logger(__name__)
_SAME = 0.2  # of the variance between perturbations that was measured; below, predictions are almost the same


def perturb(
    adata: AnnData,
    perturbation_key: str = "perturbation",
    *,
    predict: Sequence[str | Sequence[str]] = (),
    control: str | Sequence[str] | None = None,
    context_key: str | None = None,
    batch_key: str | None = None,
    layer: str | None = None,
    size_key: str | None = None,
    p_layer: str | None = None,
    targets: Mapping[str, Sequence[str]] | None = None,
    model: str | os.PathLike[str] | Checkpoint | SCGPTPerturber | None = None,
    anchor: str | None = "ridge",
    features: Sequence[str] | Mapping[str, pd.DataFrame] = ("network", "knowledge", "coexpression"),
    gene_sets: Mapping[str, Sequence[str]] | None = None,
    max_epochs: int = 0,
    n_networks: int = 1,
    legacy: bool = False,
    device: str = "cpu",
    n_cells: int = 0,
    save: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    rng: int | np.random.Generator | None = 0,
) -> AnnData:
    """Predict the effects of perturbations, from those in a screen.

    A measured perturbation is shrunk by its noise; an unseen target gets the mean effect, what targets do to their own
    expression, and what ridge regression on features of genes says; a combination the sum of its parts and what other
    combinations show beyond it; the network what these leave (:class:`scanpy_scgpt.model.SCGPTPerturber`). Each is used
    as far as it is surely better on perturbations that are left out, so without signal the answer is the plain one.

    Parameters
    ----------
    adata
        Cells with controls, shape `(n_obs, n_vars)`, counts or log-normalised; or a table of effects with one row for
        each perturbation and negative values. Not changed.
    perturbation_key
        Column of `.obs` with the perturbations, spelled as in :func:`scanpy_scgpt.pp.parse_perturbations`.
    predict
        Perturbations to predict besides those of the screen: `["A", "A+B"]`, or tuples of genes.
    control
        Spelling of the control, where it has no usual name.
    context_key
        Column of `.obs` with what effects depend on: cell type, stimulation, kind of intervention.
    batch_key
        Column of `.obs`: cells are compared with controls of their own batch.
    layer, size_key, p_layer
        Layer with the counts; column with the counts of the whole transcriptome; of a table the layer of -log10 p.
    targets
        Genes of spellings that would be read otherwise: `{"IFNG": ()}` where it is a cytokine and no knock-out.
    model
        Checkpoint of the network and of the gene vectors; or a trained :class:`scanpy_scgpt.model.SCGPTPerturber`, or
        the folder of one: then `adata` and all that is said of it go unused, and only `predict` and `n_cells` count.
    anchor
        `"ridge"`, `"additive"`, `"mean"`, or `None` for the network alone.
    features
        Sources of features of genes, or tables of your own by name, genes x features.
    gene_sets
        Sets of genes by name as one more source.
    max_epochs
        Passes of the network over the perturbations; 0 leaves it out. Its training depends on the order of the cells,
        all else does not.
    n_networks
        Networks with other seeds.
    legacy
        The original recipe, for comparison.
    device
        Where the network runs.
    n_cells
        Cells to write for each row, in `.uns`; see *Returns*.
    save
        Folder to save the model to.
    overwrite
        Replace a model that is there.
    rng
        Seed.

    Returns
    -------
    AnnData with one row for each perturbation in each context, the genes of the matrix with the counts as columns:

    `.X` : :class:`numpy.ndarray` of float32
        Predicted mean of log-normalised expression, not below 0; of a table the change itself.
    `.layers["delta"]`, `.layers["lower"]`, `.layers["upper"]`, `.layers["measured"]`
        Change, the ends of its 90 % interval, and the change as it was measured (NaN where it was not).
    `.obs` : `condition`, `context`, `n_cells`, `kind`, `targets`, `target_measured`
        `kind` is `measured`, `seen elsewhere` (in another context), `unseen`, `combination` or `combination with
        unseen`.
    `.uns["scgpt"]["perturb"]` : :class:`dict`
        What was chosen; `interactions` says whether combinations are surely more than sums; `variance_ratio` is how
        much predictions of unseen perturbations differ, in the variance of measured ones.
    `.uns["scgpt"]["perturb"]["cells"]`
        With `n_cells`: CSR, shape `(n_rows * n_cells, n_vars)`, control cells moved by the change.

    Raises
    ------
    KeyError
        When there is no such column or layer.
    ValueError
        Without a control, for scaled expression, or a setting that is out of range.
    FileExistsError
        When `save` exists and `overwrite` is not given.

    Examples
    --------
    >>> effects = scgpt.tl.perturb(adata, "perturbation", predict=["IRF1+STAT1", "TYK2"])
    >>> effects["TYK2"].to_df("delta").T.sort_values("TYK2")
    """
    from scanpy_scgpt.model import SCGPTPerturber

    started, seed = time.perf_counter(), seed_of(rng) % 2**31
    check_anndata(adata, function="tl.perturb")
    if save is not None and os.path.exists(save) and not overwrite:  # noqa: PTH110
        msg = f"{save} exists. Choose another folder, or replace it: overwrite=True."
        raise FileExistsError(msg)
    if isinstance(model, (str, os.PathLike)) and os.path.isfile(os.path.join(model, "perturber.json")):  # noqa: PTH113, PTH118
        model = SCGPTPerturber.load(model)
    trained = model if isinstance(model, SCGPTPerturber) else None
    if n_cells < 0:
        msg = f"n_cells={n_cells!r}: cells to write for each row, 0 or more."
        raise ValueError(msg)
    if trained is None:
        columns = {"control": control, "context_key": context_key, "batch_key": batch_key}
        where = {"layer": layer, "size_key": size_key, "p_layer": p_layer, "targets": targets}
        settings = {"anchor": anchor, "features": features, "gene_sets": gene_sets, "legacy": legacy, "rng": seed}
        trained = SCGPTPerturber(adata, perturbation_key, model=model, **columns, **where, **settings)
        if max_epochs or anchor is None or legacy:
            trained.train(max_epochs or 5, n_networks=n_networks, device=device)
    if save is not None:
        trained.save(save, overwrite=overwrite)
    result = predictions(trained, predict)
    if n_cells:
        result.uns[UNS][PERTURB.uns]["cells"] = _cells(trained, result, n_cells, seed)
    _receipt(result, time.perf_counter() - started)
    return result


def predictions(model: SCGPTPerturber, wanted: Sequence[str | Sequence[str]]) -> AnnData:
    """The rows of the screen, then those that are wanted, as an AnnData."""
    from anndata import AnnData

    from scanpy_scgpt.model import Conditions

    asked = model.conditions(wanted) if len(wanted) else model.screen_.conditions.take([])
    known = model.screen_.conditions
    there = {(x, context) for x, context in zip(known.parts, known.contexts, strict=True)}
    pairs = [x for x in zip(asked.parts, asked.contexts, strict=True) if x not in there]
    pairs = [*zip(known.parts, known.contexts, strict=True), *dict.fromkeys(pairs)]
    conditions = Conditions(tuple(x for x, _ in pairs), tuple(context for _, context in pairs))
    change, width = model.predict(conditions)
    n, base = len(known), np.stack([_base(model, context) for context in conditions.contexts])
    measured = np.full(change.shape, np.nan, dtype=np.float32)
    measured[:n] = model.screen_.effects
    layers = {"delta": change, "lower": change - width, "upper": change + width, "measured": measured}
    x = change if model.is_table_ else np.maximum(base + change, 0)
    result = AnnData(x.astype(np.float32), obs=_rows(model, conditions, n), layers=layers)
    result.var_names = list(model.screen_.genes)
    record = {
        **model.record(),
        "version": __version__,
        "variance_ratio": _ratio(change[_unseen(result)], model.screen_.effects),
    }
    result.uns[UNS] = {PERTURB.uns: record}
    return result


def _unseen(result: AnnData) -> np.ndarray:
    """Rows of perturbations that were made nowhere."""
    return ~result.obs["kind"].isin(["measured", "seen elsewhere"]).to_numpy()


def _base(model: SCGPTPerturber, context: str) -> np.ndarray:
    """Mean of the controls of a context."""
    controls = model.screen_.controls
    if not controls:
        return np.zeros(len(model.screen_.genes), dtype=np.float32)
    return controls.get(context, np.mean(list(controls.values()), axis=0))


def _rows(model: SCGPTPerturber, conditions: Conditions, n: int) -> pd.DataFrame:
    genes = set(model.screen_.genes)
    names = [model.names_.get(x, "+".join(x)) for x in conditions.parts]
    contexts = list(conditions.contexts)
    index = [f"{name} | {context}" if context else name for name, context in zip(names, contexts, strict=True)]
    sizes = np.zeros(len(names), dtype=np.int64)
    if not model.is_table_:
        sizes[:n] = model.screen_.n_cells
    return pd.DataFrame(
        {
            "condition": names,
            "context": contexts,
            "n_cells": sizes,
            "kind": pd.Categorical(model.kinds(conditions)),
            "targets": ["+".join(part for part in x if not part.endswith(STIMULUS)) for x in conditions.parts],
            "target_measured": [all(part in genes for part in x) for x in conditions.parts],
        },
        index=index,
    )


def _ratio(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Variance between predictions in that between measured effects."""
    if len(predicted) < 2 or len(measured) < 2:  # noqa: PLR2004
        return float("nan")
    return float(predicted.var(axis=0).sum() / max(float(measured.var(axis=0).sum()), 1e-12))


def _cells(model: SCGPTPerturber, result: AnnData, n_cells: int, seed: int) -> Any:
    """Control cells, each moved by the change of its row; what falls below 0 becomes 0."""
    from scipy import sparse

    if model.is_table_ or model._read is None:
        msg = (
            f"n_cells={n_cells}: cells are made from control cells, and a table or a loaded model has none: n_cells=0."
        )
        raise ValueError(msg)
    values, contexts = model.control_cells()
    rng, blocks = np.random.default_rng([seed, 71]), []
    for row, context in enumerate(result.obs["context"]):
        own = np.flatnonzero(contexts == context)
        own = np.arange(len(contexts)) if not len(own) else own
        chosen = values[rng.choice(own, size=n_cells)].toarray()
        blocks.append(sparse.csr_matrix(np.maximum(chosen + result.layers["delta"][row], 0).astype(np.float32)))
    return sparse.vstack(blocks, format="csr")


def _receipt(result: AnnData, seconds: float) -> None:
    record = result.uns[UNS][PERTURB.uns]
    kinds = result.obs["kind"].value_counts()
    parts = [", ".join(f"{n:,} {kind}" for kind, n in kinds.items() if n), f"anchor {record['anchor']}"]
    if "unseen" in record:
        unseen = record["unseen"]
        source = f"features {unseen['source']}" if unseen["gain"] > 0 else "features do not help, plain guess kept"
        parts.append(f"unseen targets: {source}")
        parts.append("interactions found" if record["interactions"] else "no interaction found")
    parts.append(f"network weight {record['network_weight']:g}")
    logger.info("perturb: %s · %.1f s", " · ".join(parts), seconds)
    if record["variance_ratio"] < _SAME:
        logger.warning(
            "warning: predictions of unseen perturbations are almost the same (%.0f %% of the measured variance); "
            "compare with the mean effect: anchor='mean'.",
            100 * record["variance_ratio"],
        )
