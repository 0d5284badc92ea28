"""The models that a training uses: one that it starts from instead of fresh weights, and teachers.

Words that a model to start from has keep their indices and rows; new ones come behind them, with fresh rows. Everything
else of the decoder stays as it is, the scaling of its features too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captionmill.data.captions.vocabulary import Vocabulary
from captionmill.data.errors import InputError
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import Model, model_digest, read_bundle
from captionmill.data.models.source import find_model
from captionmill.data.paths import AnyPath
from captionmill.stages.decoding.config import ARCHITECTURE, architecture_of, require_architecture, sound_weights
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.decoding.trained import require_same_words
from captionmill.stages.machine import choose_training_dtype
from captionmill.stages.settings import TrainConfig
from captionmill.stages.training.losses import WordLogits


@dataclass(frozen=True)
class GivenModel:
    """A trained model that a training starts from or learns from."""

    name: str
    """The folder, file or URL, as it was given."""
    folder: Path
    """Where it is, unpacked."""
    model: Model
    digest: str
    """SHA-256 of its bundle, in hex."""
    decoder: Decoder
    """Its decoder, on the CPU."""

    @classmethod
    def read(cls, name: AnyPath) -> "GivenModel":
        """The model that `name` names, as `find_model` finds it; ModelError if it cannot be read."""
        folder = find_model(name)
        model = read_bundle(folder)
        decoder = Decoder.of(*sound_weights(folder, model))
        return cls(str(name), folder, model, model_digest(folder), decoder)

    @property
    def architecture(self) -> dict[str, Any]:
        """The settings of training that the weights fit, as far as they are known."""
        return architecture_of(self.model, self.decoder.config)

    def fit(self, config: TrainConfig, spec: FeatureSpec, *, features: Path, output: Path) -> TrainConfig:
        """`config` with the architecture of the model, for the rows of the store `features`, which are of `spec`.

        A setting at its default counts as not given. Raises SettingError for one that contradicts the model,
        SpecMismatchError if the features do not fit, InputError if `output` is the model itself.
        """
        if output.resolve() == self.folder.resolve():
            raise InputError(f"{output}: `init` and `output` are one folder; name another `output`")
        self.model.spec.require(spec, mine=self.name, others=str(features))
        default = TrainConfig()
        given = [name for name in ARCHITECTURE if getattr(config, name) != getattr(default, name)]
        require_architecture(self.name, self.architecture, config, given)
        return replace(config, **self.architecture)

    @torch.no_grad()
    def copy_into(self, decoder: Decoder) -> None:
        """Give `decoder`, which has the same architecture and more words behind those of the model, its weights."""
        target = decoder.state_dict()
        for name, tensor in self.decoder.state_dict().items():
            target[name][: len(tensor)].copy_(tensor)  # of a matrix of words, the first rows


class Teachers:
    """Decoders whose mean probabilities of each word a training learns beside its captions; false if there are none."""

    def __init__(self, names: Sequence[AnyPath] = ()) -> None:
        """The models that `names` name, as `find_model` finds them; ModelError if one cannot be read."""
        self.models = [GivenModel.read(name) for name in names]
        self._networks: list[WordLogits] = []

    def __len__(self) -> int:
        return len(self.models)

    def fit(self, store: FeatureStore, vocabulary: Vocabulary, *, may_reorder: bool) -> Vocabulary:
        """`vocabulary`; if it `may_reorder`, in the first teacher's order of the same words.

        Further captions, such as those that the teachers write, count words in another order. Raises SpecMismatchError
        unless all take the rows of `store`, InputError for other words.
        """
        if may_reorder and self.models:
            known = self.models[0].model.vocabulary
            is_same = known.word_rule == vocabulary.word_rule and {*known.words} == {*vocabulary.words}
            vocabulary = known if is_same else vocabulary
        for teacher in self.models:
            teacher.model.spec.require(store.spec, mine=teacher.name, others=str(store.path))
            require_same_words(teacher.folder, teacher.model.vocabulary, "this training", vocabulary)
        return vocabulary

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
