"""The sizes of a decoder, and weights that fit them; known without torch."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from captionmill.data.errors import ModelError, SettingError
from captionmill.data.foreign import WRONG_VALUES
from captionmill.data.models.bundle import Model
from captionmill.stages.settings import FeatureScaling, ImageInput, TrainConfig

ARCHITECTURE = ("image_input", "feature_scaling", "embed_dim", "hidden_dim", "layers", "tie_weights", "forget_bias")
"""The settings of which a decoder's weights fit only one value, and one that only fresh weights use."""
Weights = Mapping[str, npt.NDArray[np.float32]]
"""By the names that they have in `Decoder`; tied ones once, as `embedding.weight`."""


@dataclass(frozen=True)
class DecoderConfig:
    """What a decoder is built from; its weights fit no other."""

    feature_dim: int
    """Numbers per image."""
    vocab_size: int
    """Words, the four special ones included."""
    embed_dim: int
    """Numbers per word embedding."""
    hidden_dim: int
    """Numbers in the hidden state, and in the cell state, of each layer."""
    dropout: float
    """Share of embedding and output values dropped in training."""
    feature_dropout: float
    """Share of the image's numbers dropped in training."""
    layers: int = 1
    """LSTM layers, one on the other."""
    image_input: ImageInput = "init"
    """Where the image enters."""
    feature_scaling: FeatureScaling = "standardize"
    """How the features are scaled before they enter."""
    tie_weights: bool = False
    """Whether a word's output weights are its embedding."""

    def __post_init__(self) -> None:
        """Raise ValueError for settings that no decoder has: one of a damaged bundle would caption otherwise."""
        for value, known in ((self.image_input, ImageInput), (self.feature_scaling, FeatureScaling)):
            if value not in get_args(known):
                raise ValueError(f"{value!r} is not one of {', '.join(get_args(known))}")
        if not all(0 <= share <= 1 for share in (self.dropout, self.feature_dropout)):
            raise ValueError("a dropout rate is 0 to 1")

    @classmethod
    def of(cls, training: TrainConfig, *, feature_dim: int, vocab_size: int) -> "DecoderConfig":
        """The decoder that `training` asks for, with such features and so many words."""
        names = {field.name for field in fields(cls)} - {"feature_dim", "vocab_size"}
        return cls(feature_dim, vocab_size, **{name: getattr(training, name) for name in names})

    @property
    def state_parts(self) -> tuple[str, ...]:
        """The names of the arrays of a state, in their order."""
        return ("hidden", "cell", "image") if self.image_input == "every" else ("hidden", "cell")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all weights, by their names."""
        feature, vocab, embed, hidden = self.feature_dim, self.vocab_size, self.embed_dim, self.hidden_dim
        shapes: dict[str, tuple[int, ...]] = {"feature_mean": (feature,), "feature_std": (feature,)}
        linear = {"to_hidden": (hidden, feature), "to_cell": (hidden, feature)}
        if self.image_input != "init":
            linear = {"to_input": (embed, feature)}
        if self.tie_weights:
            linear["to_embedding"] = (embed, hidden)
        for name, shape in linear.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        shapes |= {"embedding.weight": (vocab, embed), "to_logits.bias": (vocab,)}
        if not self.tie_weights:
            shapes["to_logits.weight"] = (vocab, hidden)
        for layer in range(self.layers):
            below = hidden if layer else embed * (2 if self.image_input == "every" else 1)
            shapes |= {f"lstm.weight_ih_l{layer}": (4 * hidden, below), f"lstm.bias_ih_l{layer}": (4 * hidden,)}
            shapes |= {f"lstm.weight_hh_l{layer}": (4 * hidden, hidden), f"lstm.bias_hh_l{layer}": (4 * hidden,)}
        return shapes


def architecture_of(model: Model, decoder: DecoderConfig) -> dict[str, Any]:
    """The values of `ARCHITECTURE` that `model`, with a decoder of this kind, was trained with, as far as known."""
    known = model.training | asdict(decoder)
    return {name: known[name] for name in ARCHITECTURE if name in known}


def require_architecture(
    name: str, architecture: Mapping[str, Any], config: TrainConfig, given: Collection[str]
) -> None:
    """Raise SettingError if one of the settings of `config` that were `given` is not that of the model `name`."""
    wrong = [one for one, value in architecture.items() if one in given and getattr(config, one) != value]
    if wrong:
        shown = ", ".join(f"`{one}` {architecture[one]}, not {getattr(config, one)}" for one in wrong)
        raise SettingError(f"`init`: {name} has {shown}; leave these settings out")


def sound_weights(model: Path, bundle: Model) -> tuple[DecoderConfig, Weights]:
    """The sizes and weights of `bundle`, which was read from the folder `model`; ModelError if they do not fit."""
    try:
        config = DecoderConfig(**bundle.decoder_config)
        layers = sum(name.startswith("lstm.weight_hh_l") for name in bundle.tensors)
        tied = ("to_logits.weight",) if config.tie_weights else ()
        weights = {name: tensor.astype(np.float32) for name, tensor in bundle.tensors.items() if name not in tied}
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        if layers != config.layers or shapes != config.shapes():
            raise ValueError("weights of other sizes")
    except ModelError:  # of a file that is read only now
        raise
    except WRONG_VALUES as exc:
        raise ModelError(f"{model}: weights and configuration do not fit each other; train it again") from exc
    if config.vocab_size != len(bundle.vocabulary):
        raise ModelError(f"{model}: {len(bundle.vocabulary)} words for {config.vocab_size} logits")
    if not all(bool(np.isfinite(tensor).all()) for tensor in weights.values()):
        raise ModelError(f"{model}: some of its weights are not finite, and it has no captions; train it again")
    return config, weights
