"""Model card from the record of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scanpy_scgpt.tokenizer import GeneVocab


def model_card(name: str, info: Mapping[str, Any], *, vocab: GeneVocab, n_parameters: int) -> str:
    """Card in Markdown: what the model is, what it saw, how it did."""
    settings, losses, floor = info["settings"], info["losses"], info["mean_bin_mse"]
    studies = "\n".join(f"| {study} | {n:,} |" for study, n in info["studies"].items())
    shape = f"{settings['n_layers']} layers, width {settings['d_model']}, {settings['n_heads']} heads"
    terms = "\n".join(f"| {key.removesuffix('_validation')} | {value:.1f} |" for key, value in sorted(losses.items()))
    return f"""# {name}

A scGPT transformer ({shape}, {n_parameters / 1e6:.2f} million parameters, {len(vocab.genes):,} genes) pretrained with
scanpy-scgpt {info["version"]} on {info["n_training_cells"]:,} cells; {info["n_validation_cells"]:,} were held out.

## Training data

| study | cells |
|---|---|
{studies}

## Losses on held-out cells

Mean squared error on the scale of the {settings["n_bins"]} bins, ties "{settings["ties"]}"; shares of unknown genes
{", ".join(map(str, settings["ratios"]))}.

| term | value |
|---|---|
{terms}
| mean digit for every gene | {floor["constant"]:.1f} |
| mean digit of the gene | {floor["per_gene"]:.1f} |

## Settings

{chr(10).join(f"- {key}: {value}" for key, value in settings.items())}
- seconds: {info["seconds"]:.0f}
"""
