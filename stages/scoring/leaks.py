"""Finds images of one split that are also, or nearly, in another: scores on such test images are too high.

Images are compared by the cosine of their cached features, and by the hash of their files' content. Subtracting the
mean of all features first was measured and is worse: see docs/benchmarks.md.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from captionmill.data.captions.files import CaptionFiles, Captions, as_caption_files
from captionmill.data.captions.near import describe_near
from captionmill.data.captions.references import read_annotations, read_split_list
from captionmill.data.csv_tables import require_own_table, write_table
from captionmill.data.errors import InputError
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import model_paths, read_bundle
from captionmill.data.models.source import find_model
from captionmill.data.paths import AnyPath, as_path
from captionmill.data.progress import Progress, no_progress
from captionmill.data.tables.formats import require_other_output
from captionmill.stages.machine import choose_device
from captionmill.stages.scoring.settings import LeakConfig

if TYPE_CHECKING:
    import torch

SPLIT_NAMES = ("train", "val", "test")
ALL_IMAGES = "all"
"""The split of all images of a store, where none are named."""

_ROUNDING = 1e-6  # of cosines in float32: that of a row with itself may be this far below 1

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LeakLimits:
    """How much is in memory at once."""

    kept_pairs: int = 100_000
    """Only the closest pairs are kept; all are counted."""
    resident_rows: int = 16_384
    """Rows of the smaller split on the device: 134 MB of 2048 float32."""
    block_rows: int = 1024
    """Rows of the larger split compared with them; the cosines take 67 MB."""


@dataclass(frozen=True)
class LeakPair:
    """Two images that are the same, or nearly."""

    key_a: str
    split_a: str
    key_b: str
    split_b: str
    cosine: float
    """Cosine of their features, at most 1; 1 for features of the same direction."""
    identical: bool
    """Their files had the same content when the features were made, or they are one image in two splits."""


_COLUMNS = tuple(field.name for field in fields(LeakPair))


@dataclass(frozen=True)
class PairCount:
    """How many pairs two splits have."""

    near: int
    """With a cosine of at least the threshold, or identical."""
    identical: int


@dataclass(frozen=True)
class LeakReport:
    """What splits have in common."""

    threshold: float
    images: dict[str, int]
    """Images with features in each split."""
    counts: dict[tuple[str, str], PairCount]
    """For each two splits that were compared, in the order train, val, test."""
    pairs: tuple[LeakPair, ...]
    """Identical ones first, then by decreasing cosine; the first `kept_pairs` if there are more."""
    without_features: tuple[str, ...]
    """Images of a split that have no row, sorted."""
    damaged: tuple[str, ...]
    """Images of a split whose rows are damaged, sorted: `extract` makes them again."""
    in_no_split: int
    """Rows of images that are in no split."""


class _Hits(NamedTuple):
    """Pairs found, as positions in the store, [N] each; `first` is in the earlier split."""

    first: Places
    second: Places
    cosine: npt.NDArray[np.float32]
    identical: npt.NDArray[np.bool_]


def find_leaks(
    features: AnyPath,
    captions: Captions | None = None,
    config: LeakConfig = LeakConfig(),
    *,
    lists: Mapping[str, AnyPath] | None = None,
    model: AnyPath | None = None,
    output: AnyPath | None = None,
    device: str = "auto",
    limits: LeakLimits = LeakLimits(),
    progress: Progress = no_progress,
) -> LeakReport:
    """Pairs of images in two splits whose rows in the store `features` have a cosine of `config.threshold` or more.

    The splits are those that the training of `model` used; without a model, those of `lists` (a file for each of
    "train", "val", "test" that is wanted), or else those of the captions file. With `config.within` and no splits, all
    images of the store are compared. Files with the same content are reported whatever their cosine. The pairs are
    written to `output` as CSV. Memory use is constant: no split is read as a whole, and at most `limits.kept_pairs`
    pairs are kept.

    Raises InputError if fewer than two splits have images with features (one is enough with `config.within`), or if
    `model` is combined with `captions` or `lists`; ModelError if the model cannot be read.
    """
    features, output = Path(features), as_path(output)
    model = None if model is None else find_model(model)
    captions = None if captions is None else as_caption_files(captions)
    list_paths = {split: Path(path) for split, path in (lists or {}).items()}
    if output:
        model_files = model_paths(model) if model else []
        require_other_output(
            output, features, *(captions.paths if captions else ()), *list_paths.values(), *model_files
        )
        require_own_table(output, _COLUMNS)
    store = FeatureStore.open(features)
    splits = _read_splits(captions, list_paths, model, store, within=config.within)
    damaged = set(store.verify({key for keys in splits.values() for key in keys}))
    places = {
        name: np.array(
            sorted(store.position(key) for key in keys if key in store and key not in damaged), dtype=np.int64
        )
        for name, keys in splits.items()
    }
    _require_something_to_compare(places, config, splits, store)
    compared = (
        itertools.combinations_with_replacement(places, 2) if config.within else itertools.combinations(places, 2)
    )
    sources = store.sources()
    hashes = np.where(sources[:, 0] > 0, sources[:, 2], np.uint64(0))  # an unknown source has 0 bytes
    comparison = _Comparison(store, hashes, places, config.threshold, choose_device(device), limits)
    counts: dict[tuple[str, str], PairCount] = {}
    pairs: list[LeakPair] = []
    for names in compared:
        hits, counts[names] = _collect(comparison.tiles(*names, progress), limits.kept_pairs)
        pairs += [
            LeakPair(store.keys[first], names[0], store.keys[second], names[1], cosine, identical)
            for first, second, cosine, identical in zip(*(column.tolist() for column in hits), strict=True)
        ]
    pairs.sort(key=lambda pair: (not pair.identical, -pair.cosine))
    in_splits = np.unique(np.concatenate(list(places.values())))
    report = LeakReport(
        threshold=config.threshold,
        images={name: len(rows) for name, rows in places.items()},
        counts=counts,
        pairs=tuple(pairs[: limits.kept_pairs]),
        without_features=tuple(sorted({key for keys in splits.values() for key in keys if key not in store})),
        damaged=tuple(sorted(damaged)),
        in_no_split=len(store) - len(in_splits) - len(damaged),
    )
    if output:
        write_table(output, _COLUMNS, (astuple(pair) for pair in report.pairs))
    return report


def _read_splits(
    captions: CaptionFiles | None, lists: Mapping[str, Path], model: Path | None, store: FeatureStore, *, within: bool
) -> dict[str, list[str]]:
    """The keys of each split, each once, in the order train, val, test."""
    if model:
        if captions or lists:
            raise InputError(f"{model}: the model knows its splits; do not pass captions or lists as well")
        splits = read_bundle(model).splits_in(store.keys)
        return {name: splits[name] for name in SPLIT_NAMES if splits[name]}
    if lists:
        return {
            name: sorted(read_split_list(lists[name], known_keys=store.keys)) for name in SPLIT_NAMES if name in lists
        }
    if captions is None:
        if within:
            return {ALL_IMAGES: list(store.keys)}
        raise InputError(
            "it is unknown which image is in which split: pass `model`, `captions` with splits, or split lists; or "
            "`within`, which then compares all images of the store with each other"
        )
    annotations = read_annotations(captions, known_keys=store.keys)
    if not annotations.splits:
        raise InputError(
            f"{captions.name}: names no splits; pass two or more of `train_list`, `val_list` and `test_list`, "
            "or the `model` whose training drew them"
        )
    return {name: annotations.keys_of(name) for name in SPLIT_NAMES if annotations.keys_of(name)}


def _require_something_to_compare(
    places: Mapping[str, Places], config: LeakConfig, splits: Mapping[str, Sequence[str]], store: FeatureStore
) -> None:
    with_images = [name for name, rows in places.items() if len(rows)]
    if len(with_images) < (1 if config.within else 2):
        near = describe_near([key for keys in splits.values() for key in keys if key not in store], store.keys)
        of_one = f"{with_images[0]} only" if with_images else "no split"
        remedy = "name the splits' images by their paths in the store, and two splits or `within`"
        raise InputError(f"nothing to compare: {store.path} has images of {of_one}; {near or remedy}")


@dataclass(frozen=True)
class _Comparison:
    """Everything that finding the pairs of two splits needs."""

    store: FeatureStore
    hashes: npt.NDArray[np.uint64]
    """The hash of each row's source, [N]; 0 if unknown."""
    places: Mapping[str, Places]
    """Positions in the store of each split's images."""
    threshold: float
    device: "torch.device"
    limits: LeakLimits

    def tiles(self, first_name: str, second_name: str, progress: Progress) -> Iterator[_Hits]:
        """The pairs of two splits, tile by tile; for one split with itself, each pair once."""
        first, second = self.places[first_name], self.places[second_name]
        within = first_name == second_name
        swapped = len(first) > len(second)
        small, large = (second, first) if swapped else (first, second)
        resident_rows, block_rows = self.limits.resident_rows, self.limits.block_rows
        starts = range(0, len(small), resident_rows)
        for chunk_number, chunk_start in enumerate(starts):
            chunk = small[chunk_start : chunk_start + resident_rows]
            chunk_rows = self._unit_rows(chunk)  # [M, D]
            for start in range(chunk_start if within else 0, len(large), block_rows):
                block = large[start : start + block_rows]
                in_block, in_chunk, cosine, identical = self._tile(block, chunk, chunk_rows, within=within)
                yield _Hits(*((in_block, in_chunk) if swapped else (in_chunk, in_block)), cosine, identical)
                done = chunk_number * len(large) + start + len(block)
                progress(f"{first_name} and {second_name}", done, len(starts) * len(large))

    def _tile(
        self, block: Places, chunk: Places, chunk_rows: "torch.Tensor", *, within: bool
    ) -> tuple[Places, Places, npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """The pairs of `block` [B] and `chunk` [M]: their positions, their cosine, whether they are identical."""
        cosines = self._unit_rows(block) @ chunk_rows.T  # [B, M]
        block_hashes = self._to_tensor(self.hashes[block]).unsqueeze(1)  # [B, 1]
        identical = (block_hashes == self._to_tensor(self.hashes[chunk])) & (block_hashes != 0)  # [B, M]
        found = (cosines >= self.threshold - _ROUNDING) | identical
        if within:  # each image with those after it
            found &= self._to_tensor(block).unsqueeze(1) > self._to_tensor(chunk)
        rows, columns = found.nonzero(as_tuple=True)
        in_block, in_chunk = block[rows.cpu().numpy()], chunk[columns.cpu().numpy()]
        cosine = cosines[rows, columns].clamp(max=1).cpu().numpy()
        return in_block, in_chunk, cosine, identical[rows, columns].cpu().numpy() | (in_block == in_chunk)

    def _unit_rows(self, places: Places) -> "torch.Tensor":
        """The rows at `places`, scaled to length 1, [M, D]; a row of zeros stays zero."""
        import torch

        return torch.nn.functional.normalize(torch.from_numpy(self.store.read(places)).to(self.device).float(), dim=1)

    def _to_tensor(self, values: npt.NDArray[np.uint64] | Places) -> "torch.Tensor":
        import torch

        return torch.from_numpy(np.ascontiguousarray(values).view(np.int64)).to(self.device)


def _collect(tiles: Iterator[_Hits], kept_pairs: int) -> tuple[_Hits, PairCount]:
    """The closest `kept_pairs` of all tiles' pairs, and how many there were."""
    kept: list[_Hits] = []
    waiting_count, near, identical = 0, 0, 0
    for hits in tiles:
        if not len(hits.first):
            continue
        near, identical = near + len(hits.first), identical + int(hits.identical.sum())
        kept.append(hits)
        waiting_count += len(hits.first)
        if waiting_count > kept_pairs:
            kept, waiting_count = [_closest(kept, kept_pairs)], 0
    return _closest(kept, kept_pairs), PairCount(near, identical)


def _closest(parts: Sequence[_Hits], kept_pairs: int) -> _Hits:
    """The first `kept_pairs` of all `parts` in the order of `LeakReport.pairs`."""
    if not parts:
        return _Hits(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.bool_))
    hits = _Hits(*map(np.concatenate, zip(*parts, strict=True)))
    order = np.lexsort((hits.second, hits.first, -hits.cosine, ~hits.identical))[:kept_pairs]
    return _Hits(hits.first[order], hits.second[order], hits.cosine[order], hits.identical[order])
