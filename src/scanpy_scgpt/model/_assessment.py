"""What an annotator says of cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd


class Assessment(NamedTuple):
    """What :meth:`SCGPTAnnotator.assess` gives.

    Attributes
    ----------
    probabilities
        Table of float32, cells x labels.
    sets
        Table of bool, cells x labels: what cannot be ruled out.
    novelty
        Share of the validation cells that are as far from the training cells; low for a cell that is new.
    distance
        Mean cosine distance to the nearest training cells.
    support
        Share of left-out cells whose own label was no more probable than the best label of the cell; low where no label
        fits.
    """

    probabilities: pd.DataFrame
    sets: pd.DataFrame
    novelty: pd.Series
    distance: pd.Series
    support: pd.Series

    @property
    def doubt(self) -> pd.Series:
        """Entropy of the probabilities as a share of the highest, from 0 to 1, float64, shape `(n_cells,)`.

        High for a cell whose label the reference lacks; see the page on annotation for how well that tells.
        """
        p = self.probabilities.to_numpy().astype(np.float64)
        entropy = -(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(axis=1)
        return pd.Series(entropy / np.log(max(p.shape[1], 2)), index=self.probabilities.index, name="doubt")
