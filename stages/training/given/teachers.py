"""Models whose mean probabilities of each word a training learns beside its captions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from captionmill.data.captions.vocabulary import Vocabulary
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.source import require_each_once
from captionmill.data.paths import AnyPath
from captionmill.stages.decoding.trained import TrainedModels, require_same_words
from captionmill.stages.machine import choose_training_dtype
from captionmill.stages.training.given.model import GivenModel
from captionmill.stages.training.losses import WordLogits


class Teachers:
    """Decoders whose mean probabilities of each word a training learns beside its captions; false if there are none."""

    def __init__(self, names: Sequence[AnyPath] = ()) -> None:
        """The models that `names` name, as `find_model` finds them.

        Raises ModelError if one cannot be read, InputError if one is named twice.
        """
        self.models = [GivenModel.read(name) for name in names]
        require_each_once([teacher.folder for teacher in self.models], names)
        self._networks: list[WordLogits] = []

    def __len__(self) -> int:
        return len(self.models)

    def fit(self, store: FeatureStore, vocabulary: Vocabulary, *, may_reorder: bool) -> Vocabulary:
        """`vocabulary`; if it `may_reorder`, in the first teacher's order of the same words.

        Captions that the teachers did not learn from may count words in another order. Raises SpecMismatchError unless
        all take the rows of `store`, InputError for other words.
        """
        if may_reorder and self.models:
            known = self.models[0].model.vocabulary
            is_same = known.word_rule == vocabulary.word_rule and {*known.words} == {*vocabulary.words}
            vocabulary = known if is_same else vocabulary
        for teacher in self.models:
            teacher.model.spec.require(store.spec, mine=teacher.name, others=str(store.path))
            require_same_words(teacher.folder, teacher.model.vocabulary, "this training", vocabulary)
        return vocabulary

    @property
    def trained(self) -> TrainedModels:
        """All of them, as one captioner takes them."""
        return TrainedModels(
            tuple(teacher.folder for teacher in self.models), tuple(teacher.model for teacher in self.models)
        )

    def build(self, device: torch.device) -> None:
        """Move the decoders to `device`."""
        for teacher in self.models:
            decoder = teacher.decoder.to(device).eval().requires_grad_(False)
            self._networks.append(WordLogits(decoder, choose_training_dtype(device)))

    @torch.no_grad()
    def probabilities(self, features: Tensor, words: Tensor) -> Tensor:
        """The mean probabilities of the words that `WordLogits` predicts, in its order, [N + 31 at most, V]."""
        mean: Tensor = self._networks[0](features, words)[0].softmax(dim=-1)
        for network in self._networks[1:]:
            mean += network(features, words)[0].softmax(dim=-1)
        return mean / len(self._networks)
