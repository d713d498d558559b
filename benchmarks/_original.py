"""How the original makes tokens, written from its description, and its released package where that is at hand.

Per cell: dense row, non-zeros, 50 quantile edges, digits from both sides of the edges, a uniform draw between them,
`<cls>` in front, a random cut to the longest length; then a batch padded to its longest cell.
"""

from __future__ import annotations

import importlib
import logging
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

N_BINS, BATCH, MAX_LENGTH, CLS_VALUE, PAD_VALUE = 51, 64, 1200, -2.0, -2.0


def digit_range(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges below each value, and edges not above it; the digits in between are all valid."""
    edges = np.quantile(values, np.linspace(0, 1, N_BINS - 1))
    return np.digitize(values, edges, right=True), np.digitize(values, edges)


def bin_cell(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Digits of the non-zero values of a cell, ties drawn."""
    low, high = digit_range(values)
    return np.ceil(high - rng.random(values.size) * (high - low)).astype(np.int64)


def token_batches(
    counts: sparse.csr_matrix, gene_ids: np.ndarray, *, cls_id: int, pad_id: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Padded ids and values, batch by batch; `gene_ids` are those of the columns."""
    dense = counts.toarray()
    for start in range(0, dense.shape[0], BATCH):
        cells = []
        for row in dense[start : start + BATCH]:
            expressed = np.flatnonzero(row)
            genes = np.concatenate([[cls_id], gene_ids[expressed]])
            values = np.concatenate([[CLS_VALUE], bin_cell(row[expressed].astype(np.float32), rng)])
            if genes.size > MAX_LENGTH:
                kept = np.concatenate([[0], 1 + rng.permutation(genes.size - 1)[: MAX_LENGTH - 1]])
                genes, values = genes[kept], values[kept]
            cells.append((genes, values))
        longest = max(genes.size for genes, _ in cells)
        ids, padded = np.full((len(cells), longest), pad_id), np.full((len(cells), longest), PAD_VALUE, np.float32)
        for i, (genes, values) in enumerate(cells):
            ids[i, : genes.size], padded[i, : genes.size] = genes, values
        yield torch.from_numpy(ids), torch.from_numpy(padded)


class Package:
    """Modules of the released package, without running its `__init__`, which asks for much that is not needed here.

    Parameters
    ----------
    folder
        Where `pip install --no-deps --target <folder> scgpt==0.2.4` put it.
    """

    def __init__(self, folder: Path) -> None:
        self.label = next((path.name.split(".dist-info")[0] for path in folder.glob("scgpt-*.dist-info")), "scgpt")
        package = types.ModuleType("scgpt")
        package.__path__ = [str(folder / "scgpt")]
        package.logger = logging.getLogger("scGPT")
        sys.modules["scgpt"] = package
        self.binning = importlib.import_module("scgpt.preprocess").binning
        self.collator_class = importlib.import_module("scgpt.data_collator").DataCollator

    def token_batches(
        self, counts: sparse.csr_matrix, gene_ids: np.ndarray, *, cls_id: int, pad_id: int
    ) -> Iterator[dict[str, Tensor]]:
        """Batches through the package's own collator, fed cell by cell as its zero-shot path does."""
        collate = self.collator_class(
            pad_token_id=pad_id, pad_value=PAD_VALUE, do_mlm=False, max_length=MAX_LENGTH, keep_first_n_tokens=1
        )
        dense = counts.toarray()
        for start in range(0, dense.shape[0], BATCH):
            examples = []
            for row in dense[start : start + BATCH]:
                expressed = np.nonzero(row)[0]
                genes = np.insert(gene_ids[expressed], 0, cls_id)
                values = np.insert(row[expressed].astype(np.float32), 0, CLS_VALUE)
                examples.append({"genes": torch.from_numpy(genes).long(), "expressions": torch.from_numpy(values)})
            yield collate(examples)

    def vocabulary_reader(self) -> Callable[[Path], Any]:
        """The package's function that reads a vocabulary file, over :class:`RenewedVocab`."""
        module = types.ModuleType("torchtext.vocab")
        module.Vocab, module.vocab = RenewedVocab, lambda *_, **__: RenewedVocab()
        sys.modules.update({"torchtext": types.ModuleType("torchtext"), "torchtext.vocab": module})
        sys.modules["torchtext"].vocab = module
        return importlib.import_module("scgpt.tokenizer").GeneVocab.from_file


class RenewedVocab:
    """Stands in for torchtext's vocabulary, which no longer exists for current PyTorch.

    As in the replacement that the original's repository has by now, each insertion makes the whole dictionary anew.
    """

    def __init__(self, _: object = None) -> None:
        self.tokens: list[str] = []
        self.index: dict[str, int] = {}
        self.vocab = None

    def insert_token(self, token: str, position: int) -> None:
        self.tokens.insert(position, token)
        self.index = {name: i for i, name in enumerate(self.tokens)}

    def __contains__(self, token: str) -> bool:
        return token in self.index

    def __getitem__(self, token: str) -> int:
        return self.index[token]

    def set_default_index(self, index: int) -> None:
        self.default = index


def find_package(folder: str | None) -> Package | None:
    """The released package if it is there and imports; else a line that says why not."""
    if not folder or not (Path(folder) / "scgpt").is_dir():
        where = f"no package scgpt in {folder}" if folder else "neither --rival nor SCGPT_RIVAL given"
        print(f"Released package not compared ({where}); the rival is the loop written from its description.")
        return None
    try:
        return Package(Path(folder))
    except ImportError as error:
        print(f"Released package not compared (it does not import: {error}).")
        return None
