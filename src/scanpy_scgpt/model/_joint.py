"""Joint coordinates of cells: blocks side by side, each with its weight, batches laid over one another or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ._alignment import Alignment, align
from ._blocks import Block


@dataclass
class Joint:
    """Blocks of coordinates, and how they become one vector.

    Attributes
    ----------
    blocks
        Projections by name.
    weights
        Length of the part of each block in the joint vector.
    alignments
        What lays the batches of a block over one another; None where there is nothing to lay over.
    bridges
        Maps from the coordinates of other blocks to those of a block that a cell may lack, by the names of both.
    corrected
        Whether batches are laid over one another.
    """

    blocks: dict[str, Block]
    weights: dict[str, float]
    alignments: dict[str, Alignment | None] = field(default_factory=dict)
    bridges: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    corrected: bool = True

    def align(self, coordinates: Mapping[str, np.ndarray], batches: np.ndarray, *, rng: int) -> None:
        """Find the alignment of each block from the cells that have it."""
        self.alignments = {}
        for name, x in coordinates.items():
            there = np.isfinite(x).all(axis=1)
            self.alignments[name] = align(x[there], batches[there], rng=rng)

    def moved(
        self, coordinates: Mapping[str, np.ndarray], batches: np.ndarray, *, corrected: bool | None = None
    ) -> dict[str, np.ndarray]:
        """Coordinates with the batches laid over one another (or as they are), gaps filled from the other blocks."""
        wanted = self.corrected if corrected is None else corrected
        out = {}
        for name, x in coordinates.items():
            alignment = self.alignments.get(name) if wanted else None
            out[name] = np.array(x, dtype=np.float32)
            there = np.isfinite(x).all(axis=1)
            if alignment is not None:
                out[name][there] = alignment.apply(x[there], batches[there])
        return self._filled(out)

    def joined(
        self, coordinates: Mapping[str, np.ndarray], batches: np.ndarray, *, corrected: bool | None = None
    ) -> np.ndarray:
        """Joint vectors, float32, shape `(n, n_dims)`."""
        parts = []
        for name, x in self.moved(coordinates, batches, corrected=corrected).items():
            length = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
            parts.append(self.weights[name] * x / length)
        return np.concatenate(parts, axis=1).astype(np.float32)

    def learn(self, coordinates: Mapping[str, np.ndarray], batches: np.ndarray) -> None:
        """Find the new batches among cells: their shifts."""
        for name, alignment in self.alignments.items():
            if alignment is not None:
                there = np.isfinite(coordinates[name]).all(axis=1)
                self.alignments[name] = alignment.with_batches(coordinates[name][there], batches[there])

    def known(self) -> dict[str, list[int]]:
        """Codes of the batches that have shifts, by block."""
        found = {name: alignment for name, alignment in self.alignments.items() if alignment is not None}
        return {name: np.flatnonzero(x.shifts.any(axis=(1, 2))).tolist() for name, x in found.items()}

    def forget(self, known: Mapping[str, list[int]]) -> None:
        """Drop the shifts of all batches but these."""
        for name, alignment in self.alignments.items():
            if alignment is not None:
                others = ~np.isin(np.arange(len(alignment.shifts)), known.get(name, []))
                self.alignments[name] = replace(alignment, shifts=np.where(others[:, None, None], 0, alignment.shifts))

    def bridge(
        self,
        coordinates: Mapping[str, np.ndarray],
        batches: np.ndarray,
        *,
        penalty: float = 10.0,
        always: bool = False,
    ) -> None:
        """Ridge regression from each block to each that some cells lack (`always`: to each); on cells with both."""
        moved = self.moved(coordinates, batches)
        whole = {name: np.isfinite(x).all(axis=1) for name, x in coordinates.items()}
        self.bridges = {}
        for to, x in moved.items():
            if whole[to].all() and not always:
                continue
            for name, given in moved.items():
                both = whole[to] & whole[name]
                if name != to and both.sum() > 1:
                    design = np.column_stack([given[both], np.ones(both.sum())])
                    gram = design.T @ design + penalty * np.eye(design.shape[1])
                    solved = np.linalg.solve(gram, design.T @ x[both])
                    self.bridges[name, to] = solved.astype(np.float32)

    def _filled(self, coordinates: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Gaps: the mean of what the blocks that a cell has say of the block that it lacks; the middle without any."""
        there = {name: np.isfinite(x).all(axis=1) for name, x in coordinates.items()}
        out = {}
        for to, x in coordinates.items():
            gap = np.flatnonzero(~there[to])
            if not len(gap):
                out[to] = x
                continue
            total, n = np.zeros((len(gap), x.shape[1]), dtype=np.float32), np.zeros((len(gap), 1), dtype=np.float32)
            for (name, target), weight in self.bridges.items():
                if target == to:
                    known = there[name][gap]
                    given = coordinates[name][gap[known]]
                    total[known] += given @ weight[:-1] + weight[-1]
                    n[known] += 1
            out[to] = x.copy()
            out[to][gap] = total / np.maximum(n, 1)
        return out

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, to be saved as arrays."""
        out = {"joint.corrected": np.asarray([self.corrected])}
        for i, (name, block) in enumerate(self.blocks.items()):
            key = f"joint.{i}.{name}.{block.kind}"
            out |= block.arrays(key)
            out[f"{key}.weight"] = np.asarray([self.weights[name]], dtype=np.float32)
            if self.alignments.get(name) is not None:
                out |= self.alignments[name].arrays(f"{key}.alignment")
        for (name, to), weight in self.bridges.items():
            out[f"joint.bridge.{name}.{to}"] = weight
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Joint | None:
        """What :meth:`arrays` gave, or None."""
        if "joint.corrected" not in arrays:
            return None
        joint = cls({}, {}, corrected=bool(arrays["joint.corrected"][0]))
        keys = [key.removesuffix(".weight") for key in arrays if key.startswith("joint.") and key.endswith(".weight")]
        for key in sorted(keys, key=lambda key: int(key.split(".")[1])):
            _, _, name, kind = key.split(".")
            joint.blocks[name] = Block.from_arrays(kind, arrays, key)
            joint.weights[name] = float(arrays[f"{key}.weight"][0])
            joint.alignments[name] = Alignment.from_arrays(arrays, f"{key}.alignment")
        for key, array in arrays.items():
            if key.startswith("joint.bridge."):
                name, to = key.split(".")[2:]
                joint.bridges[name, to] = array
        return joint
