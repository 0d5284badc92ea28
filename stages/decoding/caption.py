"""Stage two, captioning: cached features in, captions out, without opening an image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from captionmill.data.bundle import Bundle, read_bundle
from captionmill.data.errors import BundleError
from captionmill.data.feature_store import FeatureStore
from captionmill.data.vocabulary import Vocabulary
from captionmill.stages.config import SearchConfig
from captionmill.stages.decoding.decoder import Decoder, DecoderConfig
from captionmill.stages.decoding.search import search_captions
from captionmill.stages.runtime import Progress, choose_device, no_progress

BATCH_IMAGES = 256  # decoded together


@dataclass(frozen=True)
class Caption:
    """A caption and how sure the decoder is of it."""

    text: str
    confidence: float
    """Geometric mean of the words' probabilities, 0 to 1."""


@dataclass(frozen=True)
class Captioner:
    """A trained decoder, ready to run, and what it needs to know about features and words."""

    decoder: Decoder
    bundle: Bundle

    @classmethod
    def load(cls, model: Path, *, device: str = "auto") -> "Captioner":
        """The decoder of the bundle in folder `model`; BundleError if it cannot be read."""
        bundle = read_bundle(model)
        try:
            decoder = Decoder(DecoderConfig(**bundle.decoder_config))
            decoder.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in bundle.tensors.items()})
        except (TypeError, RuntimeError) as exc:
            raise BundleError(f"{model}: weights and configuration do not fit each other; train it again") from exc
        if decoder.config.vocab_size != len(bundle.vocabulary):
            raise BundleError(f"{model}: {len(bundle.vocabulary)} words for {decoder.config.vocab_size} logits")
        return cls(decoder.to(choose_device(device)).eval(), bundle)

    def captions(
        self,
        store: FeatureStore,
        keys: Sequence[str],
        search: SearchConfig = SearchConfig(),
        *,
        progress: Progress = no_progress,
    ) -> Iterator[tuple[str, Caption]]:
        """The caption of each image of `keys`, in that order; KeyError for a key without a row.

        Raises SpecMismatchError at once if the features are not of the kind that the decoder was trained on.
        """
        self.bundle.spec.require(store.spec, mine="the model", others=str(store.path))
        return decode_features(self.decoder, store, keys, self.bundle.vocabulary, search, progress=progress)


def decode_features(
    decoder: Decoder,
    store: FeatureStore,
    keys: Sequence[str],
    vocabulary: Vocabulary,
    search: SearchConfig,
    *,
    progress: Progress = no_progress,
) -> Iterator[tuple[str, Caption]]:
    """The caption of each image of `keys`, in that order, `BATCH_IMAGES` at a time."""
    decoder.eval()
    device = next(decoder.parameters()).device
    for start in range(0, len(keys), BATCH_IMAGES):
        batch = keys[start : start + BATCH_IMAGES]
        rows = store.read([store.position(key) for key in batch])
        features = torch.from_numpy(rows).to(device).float()  # [B, D]
        decoded = search_captions(decoder, features, beam_size=search.beam_size, max_length=search.max_length)
        for key, caption in zip(batch, decoded, strict=True):
            yield key, Caption(vocabulary.decode(caption.words), caption.confidence)
        progress("caption", start + len(batch), len(keys))
