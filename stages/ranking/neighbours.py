"""The training images that look most like an image: cosines of reduced features, in whole numbers.

Features are standardised, scaled to length 1, reduced by PCA and rounded to 8 bits. Their products are whole numbers
below 2^24, which float32 holds exactly: the neighbours of an image do not depend on the images beside it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captionmill.stages.ranking.ngrams import Integers, Reals

REDUCED_DIM = 256
_LEVELS = 127
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reduction:
    """The way from features to a short vector of 8-bit numbers."""

    mean: Reals  # [D]
    deviation: Reals  # [D], 0 where a feature never changes
    components: Reals  # [D, R]: orthonormal columns

    @classmethod
    def fit(cls, features: Reals, mean: Reals, deviation: Reals, size: int = REDUCED_DIM) -> "Reduction":
        """From the features [N, D] of some training images; `size` is at most the directions that they span."""
        reduction = cls(mean, deviation, np.eye(features.shape[1], dtype=np.float32))
        rows = reduction.scale(features)
        values, vectors = np.linalg.eigh(rows.T @ rows)  # rising
        size = min(size, int((values > 1e-9 * values[-1]).sum()) or 1)
        components = vectors[:, ::-1][:, :size].astype(np.float16).astype(np.float32)  # as they are stored
        return cls(mean, deviation, np.ascontiguousarray(components))

    def scale(self, features: Reals) -> Doubles:
        """Standardised features of length 1, [B, D]; zeros for an image that is the mean."""
        deviation = np.where(self.deviation > 0, self.deviation, np.inf).astype(np.float64)
        rows = (features.astype(np.float64) - self.mean) / deviation
        return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))

    def reduce(self, features: Reals) -> npt.NDArray[np.int8]:
        """Features [B, D] -> [B, R]; the largest number of a row has 127 levels.

        In float64, so that the same image gets the same numbers whatever the batch.
        """
        rows = self.scale(features) @ self.components.astype(np.float64)
        largest = np.abs(rows).max(axis=1, keepdims=True)
        levels: npt.NDArray[np.int8] = np.rint(rows * (_LEVELS / np.maximum(largest, 1e-12))).astype(np.int8)
        return levels


class Neighbours:
    """The reduced features of the training images, to be searched."""

    def __init__(self, reduction: Reduction, rows: npt.NDArray[np.int8]) -> None:
        """`rows` is [N, R], as `reduction` gives them."""
        self.reduction, self.rows = reduction, rows
        self._matrix = torch.from_numpy(rows.astype(np.float32))  # [N, R]
        self._norms = self._matrix.norm(dim=1).clamp(min=1e-6)  # [N]

    @torch.inference_mode()
    def find(self, features: Reals, count: int) -> list[tuple[Integers, Reals]]:
        """For each row of `features` [B, D], the `count` images of the highest cosine, in their order, and the cosines.

        Where more have the same cosine as the last of these, they belong to them too.
        """
        queries = torch.from_numpy(self.reduction.reduce(features).astype(np.float32))  # [B, R]
        products: Tensor = queries @ self._matrix.t()  # [B, N], exact
        cosines = products / self._norms / queries.norm(dim=1, keepdim=True).clamp(min=1e-6)
        least = cosines.topk(min(count, cosines.shape[1]), dim=1).values[:, -1:]
        found = []
        for row, is_near in zip(cosines.numpy(), (cosines >= least).numpy(), strict=True):
            images = np.flatnonzero(is_near)
            found.append((images, row[images]))
        return found
