"""Every setting of the stages, written once: default, type, range, unit and meaning in one field. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from captionmill.data.errors import SettingError
from captionmill.data.features.spec import Preprocess, StoredDtype, Views
from captionmill.data.paths import AnyPath
from captionmill.stages.fields import Configuration, setting

Backbone = Literal["resnet50", "resnet101", "resnet152", "scenes-resnet14"]
EngineName = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
ImageInput = Literal["init", "first", "every"]
Rerank = Literal["auto", "none", "consensus", "matcher", "both"]
FeatureScaling = Literal["standardize", "unit", "standardize-unit"]

GREATEST_SEED = 2**63 - 1
LEAST_MEMORY = 0.1  # GB
GREATEST_LENGTH = 10_000  # words of a caption
USUAL_LENGTH = 20  # words of a caption, unless a setting or the data ask for more
USUAL_CANDIDATES = 20
VALIDATION_SEARCH = ("beam_size", "length_penalty", "rerank", "candidates")
"""What a training may set of the search that decodes validation captions; its length is that of training."""
LISTED_IMAGES, LISTED_CAPTIONS = 20, 100  # that a search and an audit list


def device_setting() -> str:
    """The field of a device."""
    return setting("auto", "Device: auto, cpu, cuda, cuda:N or mps; auto takes a GPU if there is one.")


def length_setting(help_text: str, *, unset: str) -> int | None:
    """The field of a maximum number of words."""
    return setting(None, help_text, least=1, most=GREATEST_LENGTH, unset=unset, example=USUAL_LENGTH)


@dataclass(frozen=True)
class ExtractConfig(Configuration):
    """Stage one: which network makes the features, and how the machine runs it."""

    backbone: Backbone = setting(
        "resnet50", "Network that computes the features; scenes-resnet14 is the demo's, for drawn scenes only."
    )
    weights: str = setting(  # the smoothed labels of v2 make worse features: Kornblith et al. 2021
        "imagenet1k_v1",
        "Weights of the network: imagenet1k_v1, imagenet1k_v2 (worse for captions) or a state_dict file (.pth, "
        ".safetensors).",
    )
    preprocess: Preprocess | None = setting(
        None,
        "How an image is fitted to the network. squash: whole image made square; crop: centre cut out, shorter side "
        "resized before; whole: nothing cut, shape kept.",
        unset="squash, or that of a store that exists",
        example="squash",
    )
    image_size: int = setting(
        224, "Side of the square input of the network, in pixels; with whole, the shorter side.", least=32, most=4096
    )
    views: Views = setting(
        "one",
        "Views of each image. flip: the mean of the image and its mirror image; two: both are kept, and training draws "
        "one; six: four crops from the corners too. Each view takes as long as one image.",
    )
    batch_size: int | None = setting(
        None, "Images per pass, in openvino up to 256.", least=1, most=10**6, unset="8 in openvino, else 32", example=32
    )
    workers: int = setting(
        0, "Threads that decode images; auto is one per core that it may use.", least=0, most=256, words={"auto": 0}
    )
    memory: float | None = setting(
        None,
        "Gigabytes of memory for images while they are decoded, for all threads and processes on this machine "
        "together; images that need more are listed as failures.",
        least=LEAST_MEMORY,
        most=1_000_000,
        unset="half of the machine's memory",
        example=8,
    )
    device: str = device_setting()
    engine: EngineName = setting(
        "auto", "Engine that runs the network; auto is openvino on a CPU if it is installed, else torch."
    )
    compile: bool = setting(
        False, "Compile the network with torch.compile: takes minutes at the start and pays off in long runs on a GPU."
    )
    precision: Precision = setting(
        "auto",
        "Precision of the network; auto is bf16 or fp16 if the device is fast at it, else fp32. int8 is the fastest on "
        "a CPU with AVX2, and the least exact.",
    )
    decode: Literal["cpu", "gpu"] = setting(
        "cpu", "Where usual JPEGs are decoded and resized; gpu needs CUDA, is experimental and changes rows slightly."
    )
    dtype: StoredDtype = setting(
        "float16", "Number type of the stored features; float16 halves the file and keeps three digits."
    )
    flush_every: int = setting(
        1024,
        "Rows per part file: an interrupted run loses at most these and the rows in flight; fewer make more files.",
        least=1,
    )
    own_failures: bool = setting(
        False, "List unreadable images in STORE.failures.csv instead of failures.csv, for several stores in one folder."
    )


MACHINE_SETTINGS = ("batch_size", "workers", "memory", "device", "engine", "precision")
"""Settings of an extraction that affect how the machine runs it, not its result; captioning a folder has them too."""


@dataclass(frozen=True)
class SearchConfig(Configuration):
    """How captions are decoded: by beam search, or with `sample` drawn at random."""

    beam_size: int = setting(
        5, "Captions kept at each step; 1 is greedy search. Sampling ignores it.", least=1, most=10_000
    )
    length_penalty: float = setting(
        0.7, "Power of the length that divides a caption's log probability; 0 favours short ones.", least=0, most=10
    )
    min_length: int = setting(
        1, "Minimum number of words in a caption, unless no word may follow.", least=1, most=GREATEST_LENGTH
    )
    max_length: int | None = length_setting(
        "Maximum number of words in a caption; longer ones are cut.",
        unset="20, or the model's length in training if that is more",
    )
    no_repeat_ngram: int = setting(
        0, "Number of words in a row that may not occur twice in a caption; 0 allows all repeats.", least=0
    )
    repeat_words: bool = setting(False, "Let a word follow itself; a character of a script without spaces may once.")
    alternatives: int = setting(
        0, "Number of further captions per image: the next best of the beam, or further samples.", least=0, most=10_000
    )
    diversity_groups: int = setting(
        1, "Number of equal groups that divide the beam; each avoids the words of the groups before it.", least=1
    )
    diversity_strength: float = setting(
        0.5,
        "Penalty on a word's log probability for each caption of an earlier group that has the word at this position.",
        least=0,
    )
    rerank: Rerank = setting(
        "auto",
        "What chooses among the candidates of beam search. consensus: the captions of training images; matcher: "
        "words that fit the image; auto: both, as far as the model has them, but nothing for greedy search.",
    )
    candidates: int = setting(
        USUAL_CANDIDATES,
        "Candidates that are re-ranked: the beam is at least that wide then, and guided by words of training captions.",
        least=1,
        most=1000,
    )
    sample: bool = setting(False, "Draw each word at random by its probability instead of beam search.")
    temperature: float = setting(
        1.0, "Below 1 likely words are sampled more often, above 1 unlikely ones.", least=0.01, most=100, needs="sample"
    )
    top_k: int = setting(0, "Sample from only this many of the most likely words; 0 is all.", least=0, needs="sample")
    top_p: float = setting(
        1.0,
        "Sample from the likeliest words that together reach this probability.",
        least=0.001,
        most=1,
        needs="sample",
    )
    seed: int = setting(
        0,
        "Random seed; an image's sampled words depend on it, its key and its features only.",
        least=0,
        most=GREATEST_SEED,
    )

    @property
    def longest(self) -> int:
        """The maximum number of words: `max_length`, or the usual one where it is not set."""
        return self.max_length or max(USUAL_LENGTH, self.min_length)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_length > self.longest:
            raise SettingError(f"`min_length` {self.min_length} is more than `max_length` {self.max_length}")
        if self.sample:
            usual = {"diversity_groups": (1,), "rerank": ("auto", "none"), "candidates": (USUAL_CANDIDATES,)}
            for name, values in usual.items():
                if getattr(self, name) not in values:
                    raise SettingError(f"`{name}` applies to beam search only: leave it or `sample` out")
            return
        is_reranked = self.rerank != "none" and (self.rerank != "auto" or self.beam_size > 1)
        found, least = max(self.beam_size, self.candidates * is_reranked), self.alternatives + 1
        if found < least:
            names = "`beam_size` or `candidates`" if is_reranked else "`beam_size`"
            raise SettingError(f"`alternatives` {self.alternatives} needs {names} {least} or more, not {found}")
        if self.beam_size % (groups := self.diversity_groups):
            raise SettingError(f"`beam_size` {self.beam_size} is not a multiple of `diversity_groups` {groups}")


@dataclass(frozen=True)
class TrainConfig(Configuration):
    """Stage two: the decoder's size and how it is trained; defaults were chosen by measurement (docs/benchmarks.md)."""

    init: AnyPath | None = setting(
        None, "Model to start from; new words join its own.", unset="fresh weights", example="base", path_to="model"
    )
    teacher: tuple[AnyPath, ...] = setting(
        (), "Model whose probabilities of each word are learned too; of several, their mean.", path_to="model"
    )
    teacher_weight: float = setting(
        0.5,
        "Weight of the teachers' probabilities in the loss; the captions have the rest.",
        least=0,
        most=1,
        needs="teacher",
    )
    teacher_captions: bool = setting(
        True,
        "Learn captions that the teachers together write of the training images, too; re-ranking does not use these.",
        needs="teacher",
    )
    min_count: int = setting(5, "Minimum number of times that a word occurs; rarer words become <unk>.", least=1)
    image_input: ImageInput = setting(
        "init",
        "Where the image enters the decoder. init: the LSTM's initial state; first: before the first word; every: with "
        "every word.",
    )
    feature_scaling: FeatureScaling = setting(
        "standardize-unit",
        "Scaling of the features. standardize: each number; unit: each row to length 1; standardize-unit: both.",
    )
    embed_dim: int = setting(512, "Size of the word embeddings.", least=1, most=65_536)
    hidden_dim: int = setting(512, "Size of the hidden state of the LSTM.", least=1, most=65_536)
    layers: int = setting(1, "Number of LSTM layers.", least=1, most=100)
    tie_weights: bool = setting(True, "Use the word embeddings as output weights too.")
    dropout: float = setting(0.5, "Dropout rate of the embeddings and outputs in training.", least=0, most=1)
    feature_dropout: float = setting(0.3, "Dropout rate of the image features in training.", least=0, most=1)
    forget_bias: float = setting(  # with 0, half of the memory, and so of the image, is lost at each word
        2.0, "Initial bias of the LSTM's forget gates; with a higher bias it remembers longer.", least=0, most=10
    )
    label_smoothing: float = setting(
        0.1, "Label smoothing: share of each target that is spread evenly over all words.", least=0, most=1
    )
    batch_size: int = setting(64, "Captions per optimizer step, over all processes together.", least=1, most=1_000_000)
    learning_rate: float = setting(
        1e-3, "Peak learning rate of AdamW, after a tenth of the steps; it ends at 0. From a model, 0.3 of it.", least=0
    )
    weight_decay: float = setting(0.0, "Weight decay of AdamW, applied to matrices only.", least=0)
    clip_norm: float = setting(1.0, "Gradients are clipped to this norm.", least=0.001)  # 0 would remove the gradient
    max_epochs: int | None = setting(
        None,
        "Maximum number of passes over the training captions.",
        least=1,
        unset="6, up to 100 for few captions, up to 10 from a model",
        example=20,
    )
    patience: int | None = setting(
        None,
        "Epochs without a better validation CIDEr-D (or loss, where that decides nothing) after which training stops.",
        least=1,
        unset="half of the epochs, at least 3",
        example=10,
    )
    self_critical_epochs: int = setting(
        0,
        "Further passes over the training images that reward sampled captions by their CIDEr-D (self-critical).",
        least=0,
    )
    self_critical_learning_rate: float = setting(1e-4, "Peak learning rate of AdamW in self-critical epochs.", least=0)
    self_critical_samples: int = setting(
        5, "Captions sampled per image for them; each one's baseline is the others' mean reward.", least=2, most=1000
    )
    matcher_epochs: int | None = setting(
        None,
        "Passes over the training captions for the matcher, which re-ranks captions by the image; 0: no matcher.",
        least=0,
        unset="10 to 40; under 100 training images none, unless rerank asks; from a model of more images its own",
        example=10,
    )
    max_length: int | None = length_setting(
        "Maximum number of words in a training or validation caption; longer ones are cut, and have no end to learn.",
        unset="20, or more, up to 100, if that cuts over 2 % of the training captions",
    )
    seed: int = setting(
        0, "Random seed of weights, the captions' order and, without splits, 90/5/5.", least=0, most=GREATEST_SEED
    )
    device: str = device_setting()
    search: SearchConfig = SearchConfig()
    """How validation captions are decoded after each epoch, by default up to the `max_length` of training. With
    `rerank` auto only those of the finished model are re-ranked, and with none the model gets no ranker."""

    @property
    def reranks_validation(self) -> bool:
        """Whether the validation captions of every epoch are re-ranked, so that these choose the epoch."""
        return self.search.rerank not in ("auto", "none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.matcher_epochs == 0 and self.search.rerank in ("matcher", "both"):
            raise SettingError(f"`rerank` {self.search.rerank} needs a matcher: leave `matcher_epochs` 0 out")
        if self.matcher_epochs and self.search.rerank == "none":
            raise SettingError("`matcher_epochs` does nothing with `rerank` none: leave one out")
