"""What an explanation says in words, on the page and on the terminal."""

from dataclasses import dataclass
from pathlib import Path
from typing import SupportsFloat

from PIL import Image

from captionmill.data.images.decode import Pixels
from captionmill.data.model import Model
from captionmill.stages.decoding.decoder import DecoderConfig
from captionmill.stages.decoding.explain import Explanation
from captionmill.stages.settings import SearchConfig


@dataclass(frozen=True)
class PictureExplanation:
    """One picture's way to its caption, and where each part comes from."""

    name: str
    """The picture as the user named it."""
    key: str
    """What the store or the captions file calls it; "" if neither was asked."""
    picture: Image.Image | None
    """Upright RGB; None if only its row in a store is here."""
    seen: Pixels | None
    """What the network sees of it, [H, W, 3]; None without the picture."""
    origin: str
    """Where the features come from."""
    role: str
    """What the picture was to the model, as far as its key tells; "" without any sign."""
    references_from: str
    """Which captions the references are; "" without any."""
    models: tuple[str, ...]
    """Names of the models' folders."""
    bundles: tuple[Model, ...]
    search: SearchConfig
    explanation: Explanation

    @property
    def caption(self) -> str:
        """What the captioner says."""
        return self.bundles[0].vocabulary.decode(self.explanation.beam.words)

    @property
    def greedy_caption(self) -> str:
        """What the highest logit at each step says."""
        return self.bundles[0].vocabulary.decode(self.explanation.greedy.words)

    @property
    def decoders(self) -> tuple[DecoderConfig, ...]:
        """What each model's decoder was built from."""
        return tuple(DecoderConfig(**bundle.decoder_config) for bundle in self.bundles)


def show_number(value: SupportsFloat) -> str:
    """Four decimals: "-1.2345"."""
    return f"{float(value):.4f}"


def show_probability(value: float) -> str:
    """ "0.1234", "2.1e-07"."""
    return f"{value:.4f}" if value >= 0.00005 else f"{value:.1e}"


def tell_how_computed(explained: PictureExplanation) -> str:
    """One sentence: network, decoder, search."""
    spec, search, config = explained.bundles[0].spec, explained.search, explained.decoders[0]
    words = len(explained.bundles[0].vocabulary)
    decoder = f"an LSTM with a state of {config.hidden_dim:,}"
    if len(explained.models) > 1:
        decoder = f"{len(explained.models)} LSTM decoders, the mean of whose probabilities counts,"
    found = "greedy search, the highest score at each step"
    if search.beam_size > 1:
        found = f"beam search ({search.beam_size} captions kept, length penalty {search.length_penalty:g})"
    return (
        f"{spec.backbone} ({Path(spec.weights).name}, {spec.preprocess} to {spec.image_size} pixels) made "
        f"{spec.feature_dim:,} numbers of the picture, {decoder} chose from {words:,} words one after the other, and "
        f"{found} found the caption"
    )


def tell_scaling(config: DecoderConfig) -> str:
    """How the features are scaled before the first Linear layer."""
    standard = (
        "each number is compared with those of the training pictures: their mean is taken off, and what is left is "
        "divided by their standard deviation"
    )
    unit = "the whole row is stretched to one length (root mean square 1)"
    told = {"standardize": standard, "unit": unit, "standardize-unit": f"{standard}; then {unit}"}
    return told[config.feature_scaling]


def tell_start(config: DecoderConfig) -> str:
    """How the image enters the LSTM."""
    if config.image_input == "init":
        return (
            f"two Linear layers, {config.feature_dim:,} to {config.hidden_dim:,}, each followed by tanh, make of it "
            "the hidden state h0 and the cell state c0: what the LSTM remembers before it reads <start>"
        )
    vector = f"a Linear layer, {config.feature_dim:,} to {config.embed_dim:,}, makes of it a vector like that of a word"
    if config.image_input == "first":
        return f"{vector}; the LSTM reads it before <start>, and what it remembers then is h0 and c0"
    return f"{vector}, which the LSTM reads beside every word; h0 and c0 are zeros"
