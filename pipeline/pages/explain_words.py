"""An explanation in words, for its page and for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsFloat

from PIL import Image

from captionmill.data.images.decode import Pixels
from captionmill.data.models.bundle import Model
from captionmill.stages.decoding.beam_tree import BeamNode
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.explain import Explanation
from captionmill.stages.decoding.reranking import Candidate, candidate_search
from captionmill.stages.settings import SearchConfig

_MOST_CANDIDATES = 10  # that are shown
_RERANKED_BY = {
    "consensus": "the captions of the training images",
    "matcher": "the words that fit the image",
    "both": "the captions of the training images and the words that fit the image",
}


@dataclass(frozen=True)
class ImageExplanation:
    """One image's way to its caption, and where each part comes from."""

    name: str
    """The image as the user named it."""
    key: str
    """Its key in the store or the captions file; "" if neither was asked."""
    image: Image.Image | None
    """Upright RGB; None if only its row in a store is here."""
    seen: Pixels | None
    """What the network sees of it, [H, W, 3]; None without the image."""
    origin: str
    """Where the features come from."""
    role: str
    """What the image was to the model, as far as its key shows; "" if nothing is known."""
    references_from: str
    """Which captions the references are; "" without any."""
    models: tuple[str, ...]
    """Names of the models' folders."""
    bundles: tuple[Model, ...]
    search: SearchConfig
    explanation: Explanation

    @property
    def caption(self) -> str:
        """The caption that the captioner gives."""
        return self.text_of(self.explanation.beam.words)

    @property
    def greedy_caption(self) -> str:
        """The caption of the highest logit at each step."""
        return self.text_of(self.explanation.greedy.words)

    @property
    def decoders(self) -> tuple[DecoderConfig, ...]:
        """What each model's decoder was built from."""
        return tuple(DecoderConfig(**bundle.decoder_config) for bundle in self.bundles)

    @property
    def wide_search(self) -> SearchConfig:
        """The search that was run: that of all candidates, where they were re-ranked."""
        return candidate_search(self.search) if self.explanation.choice else self.search

    @property
    def shown_models(self) -> tuple[str, ...]:
        """Names of the models whose numbers the caption's steps have.

        All of an ensemble, or the one that found the caption, where each searched candidates by itself.
        """
        choice = self.explanation.choice
        return (self.models[choice.candidates[0].caption.decoder],) if choice else self.models

    @property
    def candidates(self) -> list[tuple[int, Candidate]]:
        """The candidates to show, the highest total first, each with its place from 1; none without re-ranking.

        The ten best; if the search's first choice is not among them, it is shown as the tenth.
        """
        choice = self.explanation.choice
        ranked = list(enumerate(choice.candidates, start=1)) if choice else []
        own = [(place, candidate) for place, candidate in ranked[_MOST_CANDIDATES:] if candidate.place == 0]
        return ranked[: _MOST_CANDIDATES - len(own)] + own

    @property
    def branches(self) -> Sequence[Sequence[BeamNode]]:
        """The beam's steps to show: all, or where only some of the candidates are shown, what leads to these."""
        beam, choice = self.explanation.beam, self.explanation.choice
        if choice is None or len(self.candidates) == len(choice.candidates):
            return beam.steps
        return beam.branches([candidate.caption.words for _, candidate in self.candidates])

    def text_of(self, words: Sequence[int]) -> str:
        """A caption from its word indices."""
        return self.bundles[0].vocabulary.decode(words)

    def training_key(self, image: int) -> str:
        """The key of a neighbour by its number; "" if not all training images can be one, so that it is not known."""
        ranker, keys = self.bundles[0].ranker, self.bundles[0].splits["train"]
        return keys[image] if ranker is not None and len(ranker.tensors["rows"]) == len(keys) else ""


def show_number(value: SupportsFloat) -> str:
    """Four decimals: "-1.2345"."""
    return f"{float(value):.4f}"


def show_probability(value: float) -> str:
    """ "0.1234", "2.1e-07"."""
    return f"{value:.4f}" if value >= 0.00005 else f"{value:.1e}"


def describe_computation(explained: ImageExplanation) -> str:
    """One sentence, without its full stop: network, decoder, search."""
    spec, search, config = explained.bundles[0].spec, explained.wide_search, explained.decoders[0]
    words = len(explained.bundles[0].vocabulary)
    decoder = f"an LSTM with a state of {config.hidden_dim:,} numbers"
    if len(explained.models) > 1:
        how = "each by itself" if explained.explanation.choice else "by the mean of their probabilities"
        decoder = f"{len(explained.models)} LSTM decoders, {how},"
    return (
        f"{spec.backbone} ({Path(spec.weights).name}, {spec.preprocess} to {spec.image_size} pixels) turned the image "
        f"into {spec.feature_dim:,} numbers, {decoder} chose from {words:,} words one after the other, and "
        f"{describe_search(search)} found {_describe_found(explained)}"
    )


def _describe_found(explained: ImageExplanation) -> str:
    choice = explained.explanation.choice
    if choice is None:
        return "the caption"
    return f"{len(choice.candidates)} candidates, among which {_RERANKED_BY[explained.search.rerank]} chose the caption"


def describe_total(explained: ImageExplanation) -> str:
    """What the total of a candidate is the sum of: "consensus + 0.3 x mean ln p - 0.01 x words"; "" without any."""
    choice, by = explained.explanation.choice, explained.search.rerank
    if choice is None:
        return ""
    config = choice.config
    parts = ["consensus"] * (by != "matcher") + [f"{config.likelihood_weight:g} x mean ln p"]
    if by != "consensus":
        parts.append(f"{config.match_weight if by == 'both' else config.match_weight_alone:g} x match")
    taken = [(config.repetition_weight, "repetition"), (config.length_weight, "words")]
    return " + ".join(parts) + "".join(f" - {weight:g} x {what}" for weight, what in taken if weight > 0)


def describe_search(search: SearchConfig) -> str:
    """How the caption was found: the kind of search, with all its settings that count."""
    kind, settings = "greedy search, the highest score at each step", list[str]()
    if search.sample:
        kind, settings = "sampling", [f"temperature {search.temperature:g}"]
        settings += [f"the {search.top_k} likeliest words"] * (search.top_k > 0)
        settings += [f"the likeliest words up to {search.top_p:g}"] * (search.top_p < 1)
        settings += [f"seed {search.seed}"]
    elif search.beam_size > 1:
        kind = "beam search"
        settings = [f"{search.beam_size} captions kept", f"length penalty {search.length_penalty:g}"]
        if search.diversity_groups > 1:
            settings += [f"{search.diversity_groups} groups of diversity strength {search.diversity_strength:g}"]
    settings += [f"{search.min_length} words at least"] * (search.min_length > 1)
    settings += [f"no {search.no_repeat_ngram} words in a row twice"] * (search.no_repeat_ngram > 1)
    settings += ["no word twice"] * (search.no_repeat_ngram == 1)
    settings += ["a word may follow itself"] * search.repeat_words
    return f"{kind} ({', '.join(settings)})" if settings else kind


def describe_scaling(config: DecoderConfig) -> str:
    """How the features are scaled before the first Linear layer."""
    standard = (
        "each number is compared with those of the training images: their mean is subtracted, and the rest is divided "
        "by their standard deviation"
    )
    unit = "the whole row is scaled to one length (root mean square 1)"
    words = {"standardize": standard, "unit": unit, "standardize-unit": f"{standard}; then {unit}"}
    return words[config.feature_scaling]


def describe_start(config: DecoderConfig) -> str:
    """How the image enters the LSTM."""
    if config.image_input == "init":
        return (
            f"two Linear layers, {config.feature_dim:,} to {config.hidden_dim:,}, each followed by tanh, turn it into "
            "the hidden state h0 and the cell state c0: what the LSTM remembers before it reads <start>"
        )
    vector = (
        f"a Linear layer, {config.feature_dim:,} to {config.embed_dim:,}, turns it into a vector like that of a word"
    )
    if config.image_input == "first":
        return f"{vector}; the LSTM reads it before <start>, and what it remembers then is h0 and c0"
    return f"{vector}, which the LSTM reads beside every word; h0 and c0 are zeros"
