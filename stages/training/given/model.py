"""A model that a training is given: to start from instead of fresh weights, or as a teacher.

Words that a model to start from has keep their indices and rows; new ones come behind them, with fresh rows. Everything
else of the decoder stays as it is, the scaling of its features too.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from captionmill.data.errors import InputError
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.models.bundle import Model, model_digest, read_bundle
from captionmill.data.models.source import find_model
from captionmill.data.paths import AnyPath
from captionmill.stages.decoding.config import ARCHITECTURE, architecture_of, require_architecture, sound_weights
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.settings import TrainConfig


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
