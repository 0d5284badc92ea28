"""Every setting of the stages with its default, unit and reason. Imports no torch, so that `--help` is instant."""

import math
from dataclasses import dataclass
from typing import Literal

from captionmill.data.captions.table import TableFormat
from captionmill.data.errors import SettingError
from captionmill.data.features.spec import StoredDtype

Backbone = Literal["resnet50", "resnet101", "resnet152", "scenes-resnet14"]
Preprocess = Literal["crop", "squash", "whole"]
Views = Literal["one", "flip"]
EngineName = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
ImageInput = Literal["init", "first", "every"]
FeatureScaling = Literal["standardize", "unit", "standardize-unit"]
ExportFormat = Literal["onnx", "torchscript"]

RANGES: dict[str, tuple[float, float | None]] = {
    "image_size": (32, 4096),
    "workers": (0, 256),
    "dropout": (0, 1),
    "feature_dropout": (0, 1),
    "learning_rate": (0, None),
    "length_penalty": (0, 10),
    "no_repeat_ngram": (0, None),
    "alternatives": (0, None),
    "diversity_strength": (0, None),
    "temperature": (0.01, 100),
    "top_k": (0, None),
    "top_p": (0.001, 1),
    "forget_bias": (0, 10),
    "label_smoothing": (0, 1),
    "weight_decay": (0, None),
    "clip_norm": (0.001, None),  # at 0 no gradient would be left
    "self_critical_epochs": (0, None),
    "self_critical_learning_rate": (0, None),
    "self_critical_samples": (2, 1000),
    "threshold": (0, 1),
    "low_confidence": (0, 1),
    "seed": (0, 2**63 - 1),
}
"""Least and greatest value of a setting; numbers that are not listed are at least 1. All are finite."""


class _Checked:
    """A config that refuses values out of `RANGES` with SettingError, from wherever they come."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            low, high = RANGES.get(name, (1, None))
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not (low <= value and (high is None or value <= high)):
                limits = f"at least {low}" + (f" and at most {high}" if high is not None else "")
                raise SettingError(f"`{name}` is to be {limits}, not {value}")
            if not math.isfinite(value):
                raise SettingError(f"`{name}` is to be a finite number, not {value}")


@dataclass(frozen=True)
class ExtractConfig(_Checked):
    """Stage one: which network makes the features, and how the machine runs it."""

    backbone: Backbone = "resnet50"
    """Architecture; scenes-resnet14 is the demo's small network for drawn scenes, not for photographs."""
    weights: str = "imagenet1k_v1"
    """imagenet1k_v1, imagenet1k_v2 or a file; v2's smoothed labels make worse features (Kornblith et al. 2021)."""
    preprocess: Preprocess = "crop"
    """crop: the shorter side resized, the centre cut out; squash: the whole picture made square; whole: shape kept."""
    image_size: int = 224
    """Side of the square that the network sees, for whole the shorter side, pixels."""
    views: Views = "one"
    """flip: the mean of the features of the picture and its mirror, at twice the time."""
    batch_size: int | None = None
    """Images a forward pass; None is the engine's own: 8 with OpenVINO, 32 with torch."""
    workers: int = 0
    """Threads that decode images; 0 takes one for each core."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto takes a GPU where there is one."""
    engine: EngineName = "auto"
    """What runs the network; auto takes OpenVINO on a CPU where it is installed, else torch."""
    compile: bool = False
    """Let torch.compile make the network faster: minutes at the start, worth it for long runs on a GPU."""
    precision: Precision = "auto"
    """Arithmetic of the network; auto takes bf16 or fp16 where the device is fast at it, else fp32."""
    dtype: StoredDtype = "float16"
    """Numbers as stored; float16 halves the file and keeps three digits."""
    flush_every: int = 1024
    """Rows a part file: at most these, and those on their way, are lost to a kill; fewer make more files."""


MACHINE_SETTINGS = ("batch_size", "workers", "device", "engine", "precision")
"""Settings of an extraction that say how the machine runs it, not what it makes: captioning a folder takes them too."""


@dataclass(frozen=True)
class SearchConfig(_Checked):
    """How captions are read out of a decoder: by beam search, or with `sample` drawn at random.

    Raises SettingError, besides for values out of range, if settings contradict each other.
    """

    beam_size: int = 5
    """Captions kept at each step; 1 is greedy. Sampling keeps none and does not look at it."""
    length_penalty: float = 0.7
    """Power of a caption's length that its sum of log probabilities is divided by; at 0 captions come out short."""
    min_length: int = 1
    """Words a caption at least, unless nothing may follow."""
    max_length: int = 20
    """Words a caption at most; a caption that long is cut."""
    no_repeat_ngram: int = 0
    """Words in a row that must not come twice in a caption; 0 lets all."""
    alternatives: int = 0
    """Further captions an image: the next best of the beam, or further draws."""
    diversity_groups: int = 1
    """Groups of equal size that the beam is cut into; each avoids the words of those before it."""
    diversity_strength: float = 0.5
    """Taken from a word's log probability for each caption of an earlier group with this word at this place."""
    sample: bool = False
    """Draw each word at random by its probability."""
    temperature: float = 1.0
    """Of sampling: what the logarithms of the probabilities are divided by; below 1 the likely words gain."""
    top_k: int = 0
    """Of sampling: only so many of the likeliest words are drawn from; 0 is all."""
    top_p: float = 1.0
    """Of sampling: only the likeliest words that together have this probability are drawn from."""
    seed: int = 0
    """Of sampling: what is drawn for an image depends on this, its key and its features alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_length > self.max_length:
            raise SettingError(f"`min_length` {self.min_length} is more than `max_length` {self.max_length}")
        if self.sample:
            if self.diversity_groups > 1:
                raise SettingError("`diversity_groups` is of beam search: leave it or `sample` out")
            return
        if self.alternatives >= self.beam_size:
            least = self.alternatives + 1
            raise SettingError(f"`alternatives` {least - 1} needs `beam_size` {least} or more, not {self.beam_size}")
        if self.beam_size % self.diversity_groups:
            raise SettingError(
                f"`beam_size` {self.beam_size} is no multiple of `diversity_groups` {self.diversity_groups}"
            )
        for name, neutral in (("temperature", 1), ("top_k", 0), ("top_p", 1)):
            if getattr(self, name) != neutral:
                raise SettingError(f"`{name}` is of sampling: set `sample` too")


@dataclass(frozen=True)
class TableConfig(_Checked):
    """A table of captions: how it is written, what is flagged in it, and which files go with it."""

    format: TableFormat | None = None
    """csv, jsonl or parquet; None is what the table's suffix says, else csv."""
    low_confidence: float | None = None
    """Captions less sure than this are flagged; None is what a tenth of the model's validation captions are below."""
    sidecar: str | None = None
    """Ending of a text file beside each image, such as .txt; None writes none."""


@dataclass(frozen=True)
class BootstrapConfig(_Checked):
    """How the intervals of scores are found."""

    resamples: int = 1000
    """Times the images are drawn anew; more make the ends of an interval steadier, not narrower."""
    seed: int = 0
    """Of the draws: the same seed gives the same intervals."""


@dataclass(frozen=True)
class LeakConfig(_Checked):
    """Which images of two splits count as nearly the same."""

    threshold: float = 0.86
    """Least cosine of a pair's features; about half of the 30 such pairs of Flickr8k show one scene."""
    within: bool = False
    """Compare the images of each split with each other too."""


@dataclass(frozen=True)
class TrainConfig(_Checked):
    """Stage two: the decoder's size and how it is trained; chosen by measurement (docs/benchmarks.md)."""

    min_count: int = 5
    """Occurrences that give a training word an index; rarer words become <unk>."""
    image_input: ImageInput = "init"
    """Where the image enters: the LSTM's initial state, before the first word, or beside every word."""
    feature_scaling: FeatureScaling = "standardize-unit"
    """Each number standardised, the row scaled to unit length, or both, one after the other."""
    embed_dim: int = 512
    """Numbers a word embedding."""
    hidden_dim: int = 512
    """Numbers in the LSTM's hidden state."""
    layers: int = 1
    """LSTM layers."""
    forget_bias: float = 2.0
    """First bias of the LSTM's forget gates: with 0 half of its memory, and so of the image, is lost at each word."""
    tie_weights: bool = True
    """Use a word's embedding as its output weights too."""
    dropout: float = 0.5
    """Share of embedding and output values dropped in training."""
    feature_dropout: float = 0.3
    """Share of the image's numbers dropped in training."""
    label_smoothing: float = 0.1
    """Share of each target spread evenly over all words."""
    batch_size: int = 64
    """Captions an optimizer step, over all processes together."""
    learning_rate: float = 1e-3
    """AdamW's largest step size: reached after a tenth of the steps, and falling to 0 along a cosine after that."""
    weight_decay: float = 0.0
    """AdamW's, of matrices."""
    clip_norm: float = 1.0
    """A gradient longer than this is made this long."""
    max_epochs: int | None = None
    """Passes over the training captions, the learning rate being 0 at the end of the last; None: by their number."""
    patience: int | None = None
    """Epochs without a better validation CIDEr before training stops early; None is half of `max_epochs`."""
    self_critical_epochs: int = 0
    """Passes over the training images after that, with sampled captions and their CIDEr-D as the reward."""
    self_critical_learning_rate: float = 1e-4
    """AdamW's largest step size in these."""
    self_critical_samples: int = 5
    """Captions sampled an image; the mean reward of the others is each one's baseline."""
    max_length: int = 20
    """Words of a training caption at most; longer ones are cut."""
    seed: int = 0
    """Of the initial weights, the order of the captions and, without any split, the split."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    search: SearchConfig = SearchConfig()
    """How validation captions are decoded after each epoch."""
