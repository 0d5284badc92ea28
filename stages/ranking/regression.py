"""How much each training image counts for another image: kernel ridge regression on reduced features.

A function of images that is known for the training images, such as how well a caption fits them, is predicted for a new
image as the sum of their values times their weights: w = k(x) (K + ridge I)^-1, with the kernel k = exp(cosine - 1).
Unlike the similarities themselves, the weights of images that are alike share their influence, and some are
negative. Source: Hastie et al. 2009, "The elements of statistical learning", section 5.8.

Features are standardised, scaled to length 1, reduced by PCA and rounded to 8 bits. Their products are whole numbers
below 2^24, which float32 holds exactly, so that cosines do not depend on the images beside an image. Weights hardly do:
the mean of an image's kernel, which is large and would cancel out, is solved for by itself.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from captionmill.stages.ranking.matcher import without_single_row
from captionmill.stages.ranking.ngrams import Reals

if TYPE_CHECKING:
    from torch import Tensor

REDUCED_DIM = 512
EIGENVECTORS = 1000
RIDGE = 0.3
_OVERSAMPLED, _ITERATIONS = 64, 3  # of the subspace iteration
_LEVELS = 127


@dataclass(frozen=True)
class Reduction:
    """The principal components of features, on which they become short vectors of 8-bit numbers."""

    mean: Reals  # [D]
    deviation: Reals  # [D], 0 where a feature never changes
    components: Reals  # [D, R]: orthonormal columns

    @classmethod
    def fit(cls, features: Reals, mean: Reals, deviation: Reals, size: int = REDUCED_DIM) -> "Reduction":
        """From the features [N, D] of some training images; `size` is at most the directions that they span."""
        import torch

        reduction = cls(mean, deviation, np.eye(features.shape[1], dtype=np.float32))
        rows = torch.from_numpy(reduction.scale(features))
        values, vectors = torch.linalg.eigh(rows.t() @ rows)  # rising
        size = min(size, int((values > 1e-9 * values[-1]).sum()) or 1)
        components = vectors.flip(1)[:, :size].half().float()  # as they are stored
        return cls(mean, deviation, np.ascontiguousarray(components.numpy()))

    def scale(self, features: Reals) -> npt.NDArray[np.float64]:
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


class ImageRegression:
    """The training images, and what solves for their weights."""

    def __init__(self, reduction: Reduction, rows: npt.NDArray[np.int8], vectors: Reals, gains: Reals) -> None:
        """`rows` [N, R] are reduced features, `vectors` [N, E] the first eigenvectors of the kernel.

        `gains` [E + 1] are what each of these is multiplied by, and last all other directions.
        """
        self.reduction, self.rows, self.vectors, self.gains = reduction, rows, vectors, gains
        self._matrix = rows.astype(np.float32)  # [N, R]
        self._vectors = vectors.astype(np.float32)  # [N, E]
        self._gains = gains.astype(np.float32)  # [E + 1]
        self._lengths = _lengths(self._matrix)
        sums = self._vectors.sum(axis=0, dtype=np.float64) * self._gains[:-1]  # [E]
        solved = self._gains[-1] + np.einsum("ne,e->n", self._vectors, sums)
        self._of_ones: Reals = solved.astype(np.float32)  # [N]: the weights if the kernel were 1 everywhere

    @classmethod
    def fit(cls, reduction: Reduction, rows: npt.NDArray[np.int8]) -> "ImageRegression":
        """From reduced features [N, R]; takes N x N numbers of memory. The same rows give the same numbers."""
        import torch

        matrix = rows.astype(np.float32)  # [N, R]
        kernel = torch.from_numpy(_kernel(_cosines(matrix, matrix, _lengths(matrix))))  # [N, N]
        count = min(EIGENVECTORS, len(rows))
        values, vectors = _eigenvectors(kernel, count)
        others = float(kernel.diagonal().sum() - values.sum())
        rest = others / max(1, len(rows) - count)  # mean of the other eigenvalues
        base = 1 / (RIDGE + max(0.0, rest))
        gains = torch.cat([1 / (values + RIDGE) - base, values.new_tensor([base])])
        return cls(reduction, rows, vectors.half().float().numpy(), gains.numpy())

    def weights(self, features: Reals) -> tuple[Reals, Reals]:
        """Features [B, D] -> the weight of each training image and its cosine, both [B, N]."""
        queries = self.reduction.reduce(without_single_row(features)).astype(np.float32)  # [B, R]
        cosines = _cosines(queries, self._matrix, self._lengths)
        kernel = _kernel(cosines)  # [B, N]
        means = kernel.mean(axis=1, keepdims=True)  # [B, 1]
        kernel -= means
        weights = kernel * self._gains[-1] + (kernel @ self._vectors * self._gains[:-1]) @ self._vectors.T
        weights += means * self._of_ones
        return weights[: len(features)], cosines[: len(features)]


def _lengths(rows: Reals) -> Reals:
    return np.asarray(np.maximum(np.linalg.norm(rows, axis=1), 1e-6))


def _cosines(queries: Reals, rows: Reals, lengths: Reals) -> Reals:
    """The cosine of each of [B, R] with each of [N, R], which have `lengths`, all whole numbers -> [B, N]."""
    products: Reals = queries @ rows.T  # exact
    products /= lengths
    products /= _lengths(queries)[:, np.newaxis]
    return products


def _kernel(cosines: Reals) -> Reals:
    kernel: Reals = cosines - 1
    return np.exp(kernel, out=kernel)


def _eigenvectors(kernel: "Tensor", count: int) -> "tuple[Tensor, Tensor]":
    """The `count` largest eigenvalues of a symmetric [N, N] and their vectors [N, count], by subspace iteration.

    Source: Halko et al. 2011, "Finding structure with randomness", with a fixed seed.
    """
    import torch

    if count + _OVERSAMPLED >= len(kernel):
        values, vectors = torch.linalg.eigh(kernel)
        return values.flip(0)[:count], vectors.flip(1)[:, :count]
    start = torch.randn(len(kernel), count + _OVERSAMPLED, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(kernel @ start)[0]
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(kernel @ basis)[0]
    values, inner = torch.linalg.eigh(basis.t() @ (kernel @ basis))
    return values.flip(0)[:count], (basis @ inner).flip(1)[:, :count]
