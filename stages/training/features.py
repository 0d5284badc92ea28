"""Features for training: mean and deviation, and rows from memory if they fit, else read ahead from the store."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captionmill.data.captions.examples import Indices
from captionmill.data.errors import StoreError
from captionmill.data.features.file import Features
from captionmill.data.features.store import FeatureStore
from captionmill.stages.ahead import map_ahead

MEMORY_LIMIT = 768_000_000  # bytes of features held in main memory: COCO's 123,000 images fit in float16
_GPU_SHARE = 0.5  # share of a GPU's free memory, at most
_AHEAD = 4
_BLOCK_ROWS = 4096
S = TypeVar("S")
T = TypeVar("T")


def measure_features(store: FeatureStore, keys: Sequence[str]) -> tuple[Features, Features]:
    """Mean and standard deviation of each number over the images `keys`, each [D] float32; read block by block.

    Raises StoreError for a number that is not finite, which stores are written without, and as `FeatureStore.read`.
    """
    total, squares = np.zeros(store.spec.feature_dim), np.zeros(store.spec.feature_dim)
    for start in range(0, len(keys), _BLOCK_ROWS):
        block = keys[start : start + _BLOCK_ROWS]
        rows = store.read([store.position(key) for key in block]).astype(np.float64)
        if len(wrong := np.flatnonzero(~np.isfinite(rows).all(axis=1))):
            raise StoreError(
                f"{store.path}: the row of {block[wrong[0]]} was written with numbers that are not finite, which "
                "captionmill does not do; extract the store again with `overwrite`"
            )
        total += rows.sum(0)
        squares += (rows**2).sum(0)
    mean = total / len(keys)
    variance = np.maximum(squares / len(keys) - mean**2, 0)
    std = np.where(variance > 1e-12 * (mean**2 + 1e-12), np.sqrt(variance), 0)  # rounding is not variation
    return mean.astype(np.float32), std.astype(np.float32)


class FeatureFeeder:
    """The features of some images of a store, as tensors on one device."""

    def __init__(
        self,
        store: FeatureStore,
        keys: Sequence[str],
        device: torch.device,
        *,
        with_views: bool = False,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        """Read all rows of `keys` into memory (that of the GPU, if it is the device) if they fit.

        `with_views` keeps each view of the images, if the store has several, and not only their mean.
        """
        self._store, self.device = store, device
        self._positions = np.array([store.position(key) for key in keys], dtype=np.int64)
        self._read, row_length = store.read, store.spec.feature_dim
        if with_views and store.spec.view_count > 1:
            self._read, row_length = store.read_views, store.spec.row_length
        size = len(keys) * row_length * np.dtype(store.dtype).itemsize
        limit = memory_limit
        if device.type == "cuda":
            limit = int(_GPU_SHARE * torch.cuda.mem_get_info(device)[0])
        self._matrix: Tensor | None = None
        if size <= limit:
            blocks = [
                torch.from_numpy(self._read(self._positions[start : start + _BLOCK_ROWS])).to(device)
                for start in range(0, len(keys), _BLOCK_ROWS)
            ]
            self._matrix = torch.cat(blocks)

    def rows(self, images: Indices, views: Tensor | None = None) -> Tensor:
        """The features of the images with the numbers `images`, [B, D], as stored.

        Where several views are kept, of the one that `views` [B] names, or without these their mean.
        """
        if self._matrix is not None:
            rows = self._matrix[torch.from_numpy(images).to(self.device)]
        else:
            rows = torch.from_numpy(self._read(self._positions[images]))
            if self.device.type == "cuda":
                rows = rows.pin_memory().to(self.device, non_blocking=True)
        if rows.ndim == 2:
            return rows
        if views is None:
            return rows.float().mean(dim=1).to(rows.dtype)  # [B, V, D] -> [B, D]
        return rows[torch.arange(len(rows), device=self.device), views.to(self.device)]

    def array(self, images: Indices) -> npt.NDArray[np.float32]:
        """As `rows`, in NumPy; of several views their mean."""
        return np.asarray(self.rows(images).float().cpu())


def prepare_ahead(prepare: Callable[[S], T], batches: Sequence[S]) -> Generator[T, None, None]:
    """`prepare` of each batch, in order, computed in a thread a few batches ahead of the consumer."""
    with ThreadPoolExecutor(1, thread_name_prefix="feeder") as pool:
        yield from map_ahead(prepare, batches, pool, _AHEAD)
