"""One picture's way to its caption, and where each part comes from: what the page and the text are made of."""

from dataclasses import dataclass

from PIL import Image

from captionmill.data.bundle import Bundle
from captionmill.data.images import Pixels
from captionmill.stages.config import SearchConfig
from captionmill.stages.decoding.decoder import DecoderConfig
from captionmill.stages.decoding.explain import Explanation


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
    bundles: tuple[Bundle, ...]
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
