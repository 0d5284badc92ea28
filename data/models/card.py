"""The model card: README.md in a model's folder, for people, with a header that model hubs read.

The header is YAML between two lines of dashes, as in "Model Cards" of the Hugging Face Hub. A card that somebody wrote
or changed is theirs and is left alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captionmill.data.errors import InputError
from captionmill.data.files import write_text
from captionmill.data.models.bundle import CARD_NAME, Model, read_model
from captionmill.data.paths import AnyPath

_SIGNATURE = "<!-- captionmill card "
_SCORE_NAMES = {
    "cider_d": "CIDEr-D",
    "bleu_4": "BLEU-4",
    "bleu_3": "BLEU-3",
    "bleu_2": "BLEU-2",
    "bleu_1": "BLEU-1",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "spice": "SPICE",
}
_SETTINGS = ("batch_size", "learning_rate", "dropout", "label_smoothing", "max_epochs", "self_critical_epochs", "seed")


@dataclass(frozen=True)
class ScoredImages:
    """The scores of one file that `evaluate` wrote."""

    chosen_by: str
    """How the images were chosen."""
    count: int
    values: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]


def write_card(folder: AnyPath, scores: Sequence[AnyPath] = ()) -> Path:
    """Write the card of the model in `folder`, with the scores in files that `evaluate` wrote; returns its path.

    Raises ModelError if there is no sound model; InputError if a file of scores cannot be read, or if there is a card
    that captionmill did not write or that was changed.
    """
    folder = Path(folder)
    path = folder / CARD_NAME
    if not may_write_card(folder):
        raise InputError(f"{path}: was written or changed by somebody; move it away to get a new one")
    text = render_card(read_model(folder), folder.resolve().name, [_read_scores(Path(one)) for one in scores])
    write_text(path, f"{text}\n{_SIGNATURE}{_digest(text)} -->\n")
    return path


def may_write_card(folder: Path) -> bool:
    """Whether the card in `folder` does not exist or is as captionmill wrote it."""
    try:
        text, found, signature = (folder / CARD_NAME).read_text(encoding="utf-8").rpartition(f"\n{_SIGNATURE}")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False
    return bool(found) and signature == f"{_digest(text)} -->\n"


def render_card(model: Model, name: str, scores: Sequence[ScoredImages] = ()) -> str:
    """The card as Markdown."""
    spec, config = model.spec, model.decoder_config
    counts = {split: len(keys) for split, keys in model.splits.items()}
    lines = [
        *_header(name, scores),
        f"# {name}",
        "",
        f"An image captioning model of captionmill: an LSTM decoder for the features of a frozen {spec.backbone}.",
        f"Trained on {counts['train']:,} images; {counts['val']:,} chose the epoch, {counts['test']:,} were held out.",
        "",
        "## Use",
        "",
        "    captionmill caption photos --model . --output captions.csv",
        "",
        "`.` is the folder of this file; a packed model (`captionmill pack`) or a URL will do too.",
        "",
        "## Scores",
        "",
        *_score_lines(model, scores),
        "",
        "## Features that it needs",
        "",
        f"- Network: {spec.backbone}, without its classifier ({spec.feature_dim:,} numbers per image)",
        f"- Weights: `{Path(spec.weights).name}`, SHA-256 of the tensors `{spec.weights_sha256}`",
        f"- Preprocessing: `{spec.preprocess}`, {spec.image_size} pixels; views: {spec.views}",
        "",
        "The weights are not part of this model. Names such as `imagenet1k_v2` are torchvision's, which downloads",
        "them; any other file is passed as `--weights`. Features of other weights are refused.",
        "",
        "## Training",
        "",
        f"- Vocabulary: {len(model.vocabulary):,} words",
        f"- Decoder: {config.get('layers', 1)} layer(s) of {config['hidden_dim']}, embeddings of {config['embed_dim']}",
        *[f"- `{setting}`: {model.training[setting]}" for setting in _SETTINGS if setting in model.training],
        *[f"- {software} {version}" for software, version in model.versions.items()],
        *[f"- Note: {note}" for note in model.notes],
        "",
        "## Limits",
        "",
        "The model has only the words of its training captions and describes what their writers described. On other",
        "kinds of images its captions are often wrong, and a high confidence proves nothing. It has not been examined",
        "for bias.",
    ]
    return "\n".join(lines)


def _header(name: str, scores: Sequence[ScoredImages]) -> list[str]:
    lines = ["---", "library_name: captionmill", "pipeline_tag: image-to-text", "tags:", "- image-captioning"]
    if scores:
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
    for scored in scores:
        lines += [
            "  - task:",
            "      type: image-to-text",
            "    dataset:",
            f"      name: {json.dumps(scored.chosen_by)}",
        ]
        lines += ["      type: captions", "    metrics:"]
        for metric, value in scored.values.items():
            lines += [f"    - type: {metric}", f"      value: {value:.4f}"]
    return [*lines, "---", ""]


def _score_lines(model: Model, scores: Sequence[ScoredImages]) -> list[str]:
    if not scores:
        found = model.scores.get("val_cider_d")
        known = "" if found is None else f"Validation CIDEr-D {found:.3f}, which chose the epoch. "
        return [
            f"{known}For scores with intervals: `captionmill evaluate ... --output scores.json`, then",
            "`captionmill card MODEL --scores scores.json`.",
        ]
    lines = ["| images | metric | score | 95 % interval |", "|---|---|---|---|"]
    for scored in scores:
        for metric, shown in _SCORE_NAMES.items():
            if metric in scored.values:
                low, high = scored.intervals[metric]
                images = f"{scored.count:,} ({_one_cell(scored.chosen_by)})"
                lines.append(f"| {images} | {shown} | {scored.values[metric]:.3f} | {low:.3f} to {high:.3f} |")
    return lines


def _one_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _read_scores(path: Path) -> ScoredImages:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return ScoredImages(
            str(values["images_chosen_by"]),
            len(values["captions"]),
            {name: float(score) for name, score in values["scores"].items()},
            {name: [float(low), float(high)] for name, (low, high) in values["intervals"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise InputError(f"{path}: not a file of scores that `evaluate` wrote ({exc})") from exc


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
