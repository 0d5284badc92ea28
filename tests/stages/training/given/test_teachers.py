"""A training with teachers learns what they predict, names them, and is resumed to the bit."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import TINY_TRAINING, make_rows, make_spec, make_store, make_task, require_same_weights
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.data.captions.references import read_annotations
from captionmill.data.captions.splits import choose_splits
from captionmill.data.captions.vocabulary import END, PAD
from captionmill.data.errors import (
    CaptionmillError,
    InputError,
    SettingError,
    SpecMismatchError,
    TrainingError,
    UnfinishedRunError,
)
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import model_digest, read_bundle
from captionmill.data.progress import no_progress
from captionmill.pipeline.plan.read import read_plan
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.decoding.ensemble import Ensemble
from captionmill.stages.settings import SearchConfig, TrainConfig
from captionmill.stages.training.checkpoint import TEACHER_CAPTIONS_NAME, Checkpoint, read_checkpoint, write_checkpoint
from captionmill.stages.training.given.captions import learn_teacher_captions
from captionmill.stages.training.given.teachers import Teachers
from captionmill.stages.training.losses import WordLogits, cross_entropy, distillation_loss
from captionmill.stages.training.recorder import TrainListener
from captionmill.stages.training.state import LoopConfig, Training
from captionmill.stages.training.train import train

Task = tuple[Path, Path]


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features and captions, and the models `0` and `1` trained on them; no test changes them."""
    folder = tmp_path_factory.mktemp("task")
    task = make_task(folder)
    for seed in (0, 1):
        train(*task, folder / str(seed), replace(TINY_TRAINING, seed=seed))
    return folder


@pytest.fixture
def task(task_folder: Path, tmp_path: Path) -> Task:
    """Features and captions of a copy of `task_folder` in `tmp_path`."""
    shutil.copytree(task_folder, tmp_path, dirs_exist_ok=True)
    return tmp_path / "features.h5", tmp_path / "captions.csv"


def taught(folder: Path, **changes: Any) -> TrainConfig:
    return replace(TINY_TRAINING, seed=2, teacher=(folder / "0", folder / "1"), **changes)


def test_probabilities_are_those_of_the_teachers_as_an_ensemble(task: Task, tmp_path: Path) -> None:
    teachers = Teachers([tmp_path / "0", tmp_path / "1"])
    teachers.build(torch.device("cpu"))
    features = torch.from_numpy(make_rows(2))
    words = torch.tensor([[1, 5, 6, 2], [1, 4, 2, PAD]])
    found = teachers.probabilities(features, words)
    loaded = [Captioner.load(tmp_path / name, device="cpu").decoder for name in "01"]
    decoders = [decoder for decoder in loaded if isinstance(decoder, Decoder)]
    ensemble = Ensemble(decoders)
    state, expected = ensemble.start(features), []
    for step in range(3):
        logits, state = ensemble.step(words[:, step], state)
        expected.append(logits.exp())
    _, targets, rows = WordLogits(decoders[0], torch.float32)(features, words)
    assert (targets.tolist(), rows.tolist()) == ([5, 6, 2, 4, 2], [0, 0, 0, 1, 1])
    in_order = torch.stack([expected[0][0], expected[1][0], expected[2][0], expected[0][1], expected[1][1]])
    torch.testing.assert_close(found[:5], in_order, rtol=0.02, atol=1e-3)  # the teachers may compute in bf16
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)))


def test_teachers_that_are_sure_of_the_captions_give_the_cross_entropy() -> None:
    logits, targets = torch.randn(32, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 5, 2])
    sure = torch.nn.functional.one_hot(torch.cat([targets, targets.new_zeros(29)]), 7).float()
    torch.testing.assert_close(distillation_loss(logits, sure, 3), cross_entropy(logits, targets)[0])


def test_a_decoder_comes_nearer_to_its_teachers(task: Task, tmp_path: Path) -> None:
    """With their probabilities only; and names them."""
    features, captions = task
    train(features, captions, tmp_path / "taught", taught(tmp_path, teacher_weight=1.0, max_epochs=12))
    train(features, captions, tmp_path / "free", replace(TINY_TRAINING, seed=2, max_epochs=12))
    rows, words = torch.from_numpy(make_rows(8)), torch.tensor([[1, 4, 5, 6, 2]] * 8)

    def distance(name: str) -> float:
        models = [tmp_path / name, tmp_path / "0", tmp_path / "1"]
        probabilities = []
        for model in (models[:1], models[1:]):
            teachers = Teachers(model)
            teachers.build(torch.device("cpu"))
            probabilities.append(teachers.probabilities(rows, words)[:32])
        return float((probabilities[0] - probabilities[1]).abs().sum())

    assert distance("taught") < 0.8 * distance("free")
    training = read_bundle(tmp_path / "taught").training
    assert training["teacher"] == [str(tmp_path / "0"), str(tmp_path / "1")]
    assert training["teacher_sha256"] == [model_digest(tmp_path / "0"), model_digest(tmp_path / "1")]
    card = (tmp_path / "taught" / "README.md").read_text(encoding="utf-8")
    assert card.count("- Learned from the model `") == 2
    assert read_bundle(tmp_path / "free").training["teacher"] == []


def begin(folder: Path, loop: LoopConfig = LoopConfig()) -> Training:
    """A training of the task in `folder` with both teachers, before its first step."""
    store, annotations = FeatureStore.open(folder / "features.h5"), read_annotations(folder / "captions.csv")
    splits, teachers = choose_splits(annotations, store.keys, seed=0), Teachers([folder / "0", folder / "1"])
    vocabulary = teachers.models[0].model.vocabulary
    training = Training(store, annotations.captions, splits, vocabulary, TINY_TRAINING, loop=loop)
    training.learn_from(teachers)
    return training


def test_teachers_together_caption_the_training_images_and_no_other(task: Task, tmp_path: Path) -> None:
    training = begin(tmp_path)
    learn_teacher_captions(training, tmp_path, no_progress)
    keys, count = training.splits.train, len(training.references)
    added = training.dataset.words(np.arange(count, len(training.dataset)))
    captioner = Captioner.load([tmp_path / "0", tmp_path / "1"], device="cpu")
    expected = dict(captioner.captions(training.store, keys, SearchConfig(max_length=6)))
    assert [training.vocabulary.decode([word for word in words if word > END]) for words in added.tolist()] == [
        expected[key].text for key in keys
    ]
    assert training.dataset.images[count:].tolist() == [*range(len(keys))]
    np.testing.assert_array_equal(training.dataset.words(np.arange(count)), training.references.words(np.arange(count)))
    assert set(training.captions) == set(training.splits.val)  # what scores compare with


def test_captions_of_teachers_that_are_interrupted_go_on(task: Task, tmp_path: Path) -> None:
    steps: list[int] = []

    def stop_at_four(label: str, done: int, *_: object, **__: object) -> None:
        steps.append(done)
        if steps == [2, 4]:
            raise KeyboardInterrupt

    often = LoopConfig(checkpoint_every_s=0)
    with pytest.raises(KeyboardInterrupt):
        learn_teacher_captions(begin(tmp_path, often), tmp_path, stop_at_four, block_rows=10)
    training, whole = begin(tmp_path, often), begin(tmp_path)
    learn_teacher_captions(training, tmp_path, stop_at_four, block_rows=10)
    assert steps == [2, 4, 6, 8]
    (tmp_path / "other").mkdir()
    learn_teacher_captions(whole, tmp_path / "other", no_progress)
    everything = np.arange(len(whole.dataset))
    np.testing.assert_array_equal(training.dataset.words(everything), whole.dataset.words(everything))


def test_captions_of_teachers_are_no_references_and_can_be_left_out(task: Task, tmp_path: Path) -> None:
    labels: dict[str, set[str]] = {}
    for name, is_wanted in (("with", True), ("without", False)):
        seen = labels.setdefault(name, set())
        config = taught(tmp_path, teacher_captions=is_wanted, matcher_epochs=1)
        train(*task, tmp_path / name, config, progress=lambda label, *_, seen=seen, **__: seen.add(label))
    assert labels["with"] - labels["without"] == {"teachers' captions"}
    models = [read_bundle(tmp_path / name) for name in labels]
    rankers = [model.ranker for model in models if model.ranker is not None]
    assert [ranker.tensors["captions_per_image"].tolist() for ranker in rankers] == [[2] * 8] * 2
    assert [model.training["teacher_captions"] for model in models] == [True, False]
    weights = [model.tensors["embedding.weight"].tobytes() for model in models]
    assert weights[0] != weights[1]


def test_a_taught_training_is_resumed_to_the_bit_and_only_with_its_teachers(task: Task, tmp_path: Path) -> None:
    config = taught(tmp_path, self_critical_epochs=1)
    train(*task, tmp_path / "whole", config)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def stop_in_step(label: str, done: int, *_: object, **__: object) -> None:
        if (label[:7], done) == ("epoch 1", 3):
            raise KeyboardInterrupt

    def stop_in_captions(label: str, *_: object, **__: object) -> None:
        if label == "teachers' captions":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(*task, tmp_path / "model", config, progress=stop_in_captions)
    assert (tmp_path / "model.training" / TEACHER_CAPTIONS_NAME).exists()
    every_step = LoopConfig(checkpoint_every_s=0, steps_per_check=1)
    with pytest.raises(KeyboardInterrupt):
        train(*task, tmp_path / "model", config, listener=TrainListener(loop=every_step), progress=stop_in_step)
    with pytest.raises(UnfinishedRunError, match="an unfinished training with other teachers; pass"):
        train(*task, tmp_path / "model", replace(config, teacher=(tmp_path / "1",)))
    with pytest.raises(KeyboardInterrupt):
        train(*task, tmp_path / "model", config, listener=TrainListener(on_epoch=stop))
    train(*task, tmp_path / "model", config)
    require_same_weights(tmp_path / "whole", tmp_path / "model")


@pytest.mark.parametrize("has_teachers", [False, True])
def test_an_unfinished_training_of_before_teachers_wrote_captions_is_resumed(
    task: Task, tmp_path: Path, has_teachers: bool
) -> None:
    """As it began: without these captions."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    config = taught(tmp_path) if has_teachers else TINY_TRAINING
    train(*task, tmp_path / "whole", replace(config, teacher_captions=False) if has_teachers else config)
    before = replace(config, teacher_captions=False) if has_teachers else config
    with pytest.raises(KeyboardInterrupt):
        train(*task, tmp_path / "model", before, listener=TrainListener(on_epoch=stop))
    checkpoint = read_checkpoint(tmp_path / "model.training")
    assert checkpoint
    assert checkpoint.state["made_from"].pop("--teacher-captions", None) == ("False" if has_teachers else None)
    write_checkpoint(tmp_path / "model.training", checkpoint)
    train(*task, tmp_path / "model", config)
    require_same_weights(tmp_path / "whole", tmp_path / "model")


def test_teachers_captions_that_are_cut_are_not_learned(task: Task, tmp_path: Path) -> None:
    """They have no end, and would be learned with one."""
    training = begin(tmp_path)
    training.length = 1
    learn_teacher_captions(training, tmp_path, no_progress)
    captioner = Captioner.load([tmp_path / "0", tmp_path / "1"], device="cpu")
    found = dict(captioner.captions(training.store, training.splits.train, SearchConfig(max_length=1)))
    whole = [key for key, caption in found.items() if not caption.cut]
    assert len(whole) < len(found)
    assert len(training.dataset) - len(training.references) == len(whole)


def test_another_file_in_the_place_of_teachers_captions_is_named(task: Task, tmp_path: Path) -> None:
    training = begin(tmp_path)
    for tensors in ({}, {"captions": torch.zeros(3)}, {"captions": torch.tensor([*b"[1]"], dtype=torch.uint8)}):
        write_checkpoint(tmp_path, Checkpoint({}, tensors), TEACHER_CAPTIONS_NAME)
        with pytest.raises(TrainingError, match=r"teacher-captions.safetensors: not what a training keeps; pass `rest"):
            learn_teacher_captions(training, tmp_path, no_progress)


def test_teachers_that_do_not_fit_are_refused_before_anything_is_written(task: Task, tmp_path: Path) -> None:
    features, captions = task
    other = make_store(
        tmp_path / "other.h5", [f"{n:02d}.jpg" for n in range(10)], make_rows(10), make_spec(image_size=320)
    )
    refused: list[tuple[Path, TrainConfig, type[CaptionmillError], str]] = [
        (features, taught(tmp_path, min_count=6), InputError, "0 and this training have different vocabularies: index"),
        (other, taught(tmp_path), SpecMismatchError, "image_size: 224, not 320"),
        (features, replace(config := taught(tmp_path), teacher=config.teacher[:1] * 2), InputError, "is named twice"),
    ]
    for store, config, error, message in refused:
        with pytest.raises(error, match=message):
            train(store, captions, tmp_path / "model", config)
        assert not (tmp_path / "model.training").exists()
    result = CliRunner().invoke(
        main,
        ["train", str(features), "--captions", str(captions), "--output", str(tmp_path / "m"), "--teacher", "nowhere"],
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: nowhere: ")


def test_the_teachers_of_a_pipeline_are_trained_first(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.toml"
    path.write_text(
        '[train]\nfeatures = "features.h5"\ncaptions = "captions.csv"\n'
        '[train.a]\nteacher = ["models/b", "0"]\n[train.b]\n'
    )
    tasks = read_plan(path).tasks
    assert [one.id for one in tasks] == ["train.b", "train.a"]
    assert tasks[1].job.inputs()["teacher 2"] == tmp_path / "0"


def test_settings_of_teachers_without_teachers_are_refused() -> None:
    with pytest.raises(SettingError, match="`teacher_weight` does nothing without `teacher`"):
        TrainConfig(teacher_weight=0.3)
    with pytest.raises(SettingError, match="`teacher_captions` does nothing without `teacher`"):
        TrainConfig(teacher_captions=False)
