"""The model card: README.md in a model's folder, for people, with a header that model hubs read.

The header is YAML between two lines of dashes, as in "Model Cards" of the Hugging Face Hub. A card that somebody wrote
or changed is theirs and is never replaced.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from captionmill.data.errors import InputError
from captionmill.data.files import write_text
from captionmill.data.foreign import WRONG_VALUES, finite_number, parse_json
from captionmill.data.models.bundle import CARD_NAME, RERANKED_CIDER, Model, read_bundle
from captionmill.data.paths import AnyPath
from captionmill.data.regular import read_text

_TEMPLATE = Path(__file__).parent / "assets" / "card.md"
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
    put_card(folder, read_bundle(folder), [_scored_images(Path(one)) for one in scores])
    return path


def put_card(folder: Path, model: Model, scores: Sequence[ScoredImages] = ()) -> None:
    """Write the card of `model`, which need not be in `folder` yet."""
    text = _render_card(model, folder.resolve().name, scores)
    write_text(folder / CARD_NAME, f"{text}\n{_SIGNATURE}{_digest(text)} -->\n")


def may_write_card(folder: Path) -> bool:
    """Whether the card in `folder` does not exist or is as captionmill wrote it."""
    try:
        text, found, signature = read_text(folder / CARD_NAME).rpartition(f"\n{_SIGNATURE}")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False
    return bool(found) and signature == f"{_digest(text)} -->\n"


def _render_card(model: Model, name: str, scores: Sequence[ScoredImages] = ()) -> str:
    """The card as Markdown."""
    spec, config = model.spec, model.decoder_config
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        header="\n".join(_header(name, scores)),
        name=name,
        backbone=spec.backbone,
        train=f"{len(model.splits['train']):,}",
        val=f"{len(model.splits['val']):,}",
        test=f"{len(model.splits['test']):,}",
        scores="\n".join(_score_lines(scores)) if scores else _validation_score(model),
        feature_dim=f"{spec.feature_dim:,}",
        weights=Path(spec.weights).name,
        weights_sha256=spec.weights_sha256,
        preprocess=spec.preprocess,
        image_size=spec.image_size,
        views=spec.views,
        words=f"{len(model.vocabulary):,}",
        hidden_dim=config["hidden_dim"],
        embed_dim=config["embed_dim"],
        settings="\n".join(
            [
                *[f"- `{setting}`: {model.training[setting]}" for setting in _SETTINGS if setting in model.training],
                *_start_line(model),
                *_teacher_lines(model),
                *[f"- {software} {version}" for software, version in model.versions.items()],
                *[f"- Note: {note}" for note in model.notes],
            ]
        ),
    )


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
    return [*lines, "---"]


def _teacher_lines(model: Model) -> list[str]:
    """The models whose probabilities its training learned, one per line."""
    names, digests = (model.training.get(name) for name in ("teacher", "teacher_sha256"))
    if not isinstance(names, list) or not isinstance(digests, list):
        return []
    return [
        f"- Learned from the model `{_one_cell(str(name))}`, SHA-256 of its bundle.json `{digest}`"
        for name, digest in zip(names, digests, strict=False)
    ]


def _start_line(model: Model) -> list[str]:
    """The model that its training started from, if there is one."""
    start, digest = (model.training.get(name) for name in ("init", "init_sha256"))
    return (
        [f"- Started from the model `{_one_cell(str(start))}`, SHA-256 of its bundle.json `{digest}`"] if start else []
    )


def _validation_score(model: Model) -> str:
    found, reranked = (model.scores.get(name) for name in ("val_cider_d", RERANKED_CIDER))
    if found is None:
        return "Not measured."
    after = "" if reranked is None else f"; {reranked:.3f} with re-ranking"
    if model.reranks_validation:
        after = "; captions were re-ranked"
    return f"Validation CIDEr-D {found:.3f}, which chose the epoch{after}."


def _score_lines(scores: Sequence[ScoredImages]) -> list[str]:
    lines = ["| images | metric | score | 95 % interval |", "|---|---|---|---|"]
    for scored in scores:
        images = f"{scored.count:,} ({_one_cell(scored.chosen_by)})"
        for metric, shown in _SCORE_NAMES.items():
            if metric in scored.values:
                low, high = scored.intervals[metric]
                lines.append(f"| {images} | {shown} | {scored.values[metric]:.3f} | {low:.3f} to {high:.3f} |")
    return lines


def _one_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _scored_images(path: Path) -> ScoredImages:
    try:
        values: dict[str, Any] = parse_json(read_text(path))
        scores = {name: finite_number(score) for name, score in values["scores"].items()}
        intervals = {name: values["intervals"][name] for name in scores.keys() & _SCORE_NAMES}
        return ScoredImages(
            str(values["images_chosen_by"]),
            len(values["captions"]),
            scores,
            {name: (finite_number(low), finite_number(high)) for name, (low, high) in intervals.items()},
        )
    except (OSError, *WRONG_VALUES) as exc:
        raise InputError(f"{path}: not a file of scores that `evaluate` wrote ({exc})") from exc


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()  # as `write_text` writes it
