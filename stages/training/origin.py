"""What a training was begun from: it is resumed only from the same settings, data and number of processes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from captionmill.data.captions.references import Annotations
from captionmill.data.captions.splits import Splits
from captionmill.data.captions.words import FIRST_RULE, WORD_RULE
from captionmill.data.errors import UnfinishedRunError
from captionmill.data.features.store import FeatureStore
from captionmill.stages.settings import USUAL_LENGTH, SearchConfig, TrainConfig
from captionmill.stages.training.checkpoint import read_checkpoint
from captionmill.stages.training.state import LoopConfig


def _name_of(setting: str) -> str:
    """The name of a setting in checkpoints: that of batch_size is --batch-size."""
    return f"--{setting.replace('_', '-')}"


_IMAGES_PER_STEP = "images per self-critical step"
_WORD_RULE = "word rule"
_START = "model to start from"
_TEACHERS = "teachers"
NO_MODEL = "none"
_DIGESTS = ("features", "captions or splits", _START, _TEACHERS)
_NOT_PARAMETERS = ("number of processes", _IMAGES_PER_STEP, _WORD_RULE, *_DIGESTS)
_REPEAT_WORDS, _TEACHER_CAPTIONS = _name_of("repeat_words"), _name_of("teacher_captions")
_BEFORE = {
    _IMAGES_PER_STEP: str(LoopConfig().images_per_step),
    _WORD_RULE: str(FIRST_RULE),
    _REPEAT_WORDS: "True",
    _START: NO_MODEL,
    _TEACHERS: NO_MODEL,
    _name_of("teacher_weight"): str(TrainConfig().teacher_weight),
    _TEACHER_CAPTIONS: "False",
    _name_of("matcher_epochs"): "None",
    _name_of("rerank"): SearchConfig().rerank,
    _name_of("candidates"): str(SearchConfig().candidates),
}
"""The values of checkpoints that do not name them."""
_SEARCH_SEED, _SEARCH_LENGTH = _name_of("search_seed"), _name_of("search_length")
_UNKNOWN_BEFORE = (_SEARCH_SEED,)
"""What a checkpoint that does not name it may have begun with: it is resumed with whatever is set now."""
_SHOWN = {_SEARCH_SEED: "search.seed", _SEARCH_LENGTH: "search.max_length"}
"""The settings of which a search and a training have one each."""


def as_it_began(work_dir: Path, config: TrainConfig, *, restart: bool) -> tuple[int, TrainConfig]:
    """The word rule of the training that is unfinished in `work_dir`, or of a new one; and `config` with its defaults.

    In the first versions the default length was always 20 words, and any word could follow itself; teachers wrote no
    captions.
    """
    unfinished = None if restart else read_checkpoint(work_dir)
    if unfinished is None:
        return WORD_RULE, config
    made_from = unfinished.state["made_from"]
    word_rule = int((_BEFORE | made_from)[_WORD_RULE])
    if _REPEAT_WORDS not in made_from:
        config = replace(config, search=replace(config.search, repeat_words=True))
    if config.teacher and _TEACHER_CAPTIONS not in made_from:
        config = replace(config, teacher_captions=False)
    if word_rule != FIRST_RULE:
        return word_rule, config
    search = replace(config.search, max_length=config.search.max_length or USUAL_LENGTH)
    return word_rule, replace(config, max_length=config.max_length or USUAL_LENGTH, search=search)


def describe_origin(
    store: FeatureStore,
    annotations: Annotations,
    splits: Splits,
    config: TrainConfig,
    *,
    word_rule: int,
    start: str = NO_MODEL,
    teachers: Sequence[str] = (),
) -> dict[str, str]:
    """What must be the same for a training to be resumed, by name; device and speed settings are left out.

    `start` is the digest of the model that it starts from, `teachers` are those of its teachers.
    """
    values = asdict(config.search) | asdict(config)
    left_out = ("device", "search", "init", "teacher", *([] if teachers else ["teacher_captions"]))
    settings = {_name_of(name): str(value) for name, value in values.items() if name not in left_out}
    settings[_SEARCH_LENGTH] = str(config.search.max_length)
    settings[_SEARCH_SEED] = str(config.search.seed if config.search.sample else 0)
    digest = hashlib.sha256()
    for name, keys in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        for key in keys:
            digest.update(json.dumps((name, key, annotations.captions[key])).encode())
    data = {"features": store.digest().hex(), "captions or splits": digest.hexdigest()}
    models = {_START: start, _TEACHERS: " ".join(teachers) or NO_MODEL}
    return settings | {_WORD_RULE: str(word_rule)} | models | data


def describe_processes(count: int, images_per_step: int) -> dict[str, str]:
    """What else must be the same: the number of processes and the size of self-critical steps, by name."""
    return {"number of processes": str(count), _IMAGES_PER_STEP: str(images_per_step)}


def require_same(work_dir: Path, made_from: Mapping[str, Any], fingerprint: Mapping[str, str]) -> None:
    """Raise UnfinishedRunError, which names the difference, if a checkpoint was made from something else."""
    unknown = {name: fingerprint[name] for name in _UNKNOWN_BEFORE if name in fingerprint}
    before = _BEFORE | unknown | dict(made_from)
    name = next((name for name, value in fingerprint.items() if before.get(name) != value), None)
    if name is None:
        return
    is_digest = name in _DIGESTS
    was, now = (values.get(name, "None").replace("None", "not set") for values in (before, fingerprint))
    change = "" if is_digest else f" ({was}, now {now})"
    shown = name if name in _NOT_PARAMETERS else f"`{_SHOWN.get(name, name.removeprefix('--').replace('-', '_'))}`"
    raise UnfinishedRunError(
        f"{work_dir}: an unfinished training with other {shown}{change}; pass `restart` to start from scratch"
    )
