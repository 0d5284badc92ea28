"""The trained models of one captioner as they are on disk, read and compared without torch.

What depends on them only, such as the features that they need and the settings of a search, is known before a decoder
is built: a run that has nothing to do builds none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from captionmill.data.captions.vocabulary import Vocabulary
from captionmill.data.errors import InputError
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.models.bundle import Model, RankerParts, read_bundle
from captionmill.data.models.source import find_models
from captionmill.data.paths import AnyPaths
from captionmill.stages.settings import SearchConfig


@dataclass(frozen=True)
class TrainedModels:
    """One model or those of an ensemble; they agree in `spec` and `vocabulary`."""

    folders: tuple[Path, ...]
    bundles: tuple[Model, ...]

    @property
    def pairs(self) -> tuple[tuple[Path, Model], ...]:
        """The folder of each with what was read from it."""
        return tuple(zip(self.folders, self.bundles, strict=True))

    @property
    def spec(self) -> FeatureSpec:
        """What made the features that every decoder was trained on."""
        return self.bundles[0].spec

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of every decoder."""
        return self.bundles[0].vocabulary

    def fit_search(self, search: SearchConfig) -> SearchConfig:
        """`search` with what it leaves open: the maximum length, and what re-ranks its candidates.

        The length is 20 words, or as many as a decoder was trained on. InputError for a re-ranking that a model lacks.
        """
        search = choose_rerank(search, {str(folder): bundle.ranker for folder, bundle in self.pairs})
        if search.max_length is not None:
            return search
        trained = [bundle.training.get("max_length") for bundle in self.bundles]
        lengths = [length for length in trained if isinstance(length, int)]
        return replace(search, max_length=max([search.longest, *lengths]))


def choose_rerank(search: SearchConfig, rankers: Mapping[str, RankerParts | None]) -> SearchConfig:
    """`search` with a `rerank` that is not auto, and that all `rankers` can do, by their models' names.

    InputError naming the first model that cannot.
    """
    unranked = [model for model, ranker in rankers.items() if ranker is None]
    unmatched = [model for model, ranker in rankers.items() if ranker is None or "matcher" not in ranker.settings]
    if search.rerank == "auto":
        if unranked or search.sample or search.beam_size == 1:
            return replace(search, rerank="none")
        return replace(search, rerank="consensus" if unmatched else "both")
    if search.rerank != "none" and unranked:
        raise InputError(
            f"`rerank` {search.rerank}: {unranked[0]} has nothing to re-rank by; train it with `matcher_epochs`"
        )
    if search.rerank in ("matcher", "both") and unmatched:
        raise InputError(f"`rerank` {search.rerank}: {unmatched[0]} has no matcher; use consensus, or train it again")
    return search


def read_models(model: AnyPaths, *, weights_later: bool = False) -> TrainedModels:
    """The model in folder `model`, or the models in several such folders; `weights_later` as `read_bundle`.

    Raises ModelError if one cannot be read, SpecMismatchError if they were trained on different kinds of features,
    InputError if their words or the indices of these differ, or no folder is given.
    """
    folders = find_models(model)
    if not folders:
        raise InputError("no model is given: name at least one folder that `captionmill train` wrote")
    bundles = [read_bundle(folder, weights_later=weights_later) for folder in folders]
    for folder, bundle in zip(folders[1:], bundles[1:], strict=True):
        bundles[0].spec.require(bundle.spec, mine=str(folders[0]), others=str(folder))
        require_same_words(folders[0], bundles[0].vocabulary, folder, bundle.vocabulary)
    return TrainedModels(tuple(folders), tuple(bundles))


def require_same_words(first: Path | str, mine: Vocabulary, other: Path | str, others: Vocabulary) -> None:
    """Raise InputError naming the first index at which the vocabularies of two models differ."""
    for index, (my_word, other_word) in enumerate(zip_longest(mine.words, others.words)):
        if my_word != other_word:
            raise InputError(
                f"{first} and {other} have different vocabularies: index {index} is {my_word or 'no word'} in {first}, "
                f"{other_word or 'no word'} in {other}; train both on the same captions, splits and `min_count`"
            )
