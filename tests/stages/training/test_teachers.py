"""A training with teachers learns what they predict, names them, and is resumed to the bit."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import TINY_TRAINING, make_rows, make_spec, make_store, make_task, require_same_weights
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.data.captions.vocabulary import PAD
from captionmill.data.errors import CaptionmillError, InputError, SettingError, SpecMismatchError, UnfinishedRunError
from captionmill.data.models.bundle import model_digest, read_bundle
from captionmill.pipeline.plan.read import read_plan
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.decoding.ensemble import Ensemble
from captionmill.stages.settings import TrainConfig
from captionmill.stages.training.losses import WordLogits, cross_entropy, distillation_loss
from captionmill.stages.training.start import Teachers
from captionmill.stages.training.state import LoopConfig
from captionmill.stages.training.train import TrainListener, train

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


def test_captions_that_teachers_wrote_may_be_learned_beside_the_others(task: Task, tmp_path: Path) -> None:
    features, captions = task
    extra = tmp_path / "extra.csv"
    extra.write_text(
        "image,caption,split\n" + "".join(f"{number:02d}.jpg,boat boat boat,train\n" for number in range(8))
    )
    train(features, [captions, extra], tmp_path / "taught", taught(tmp_path))
    words = [read_bundle(tmp_path / name).vocabulary.words for name in ("0", "taught")]
    assert words[0] == words[1]


def test_a_taught_training_is_resumed_to_the_bit_and_only_with_its_teachers(task: Task, tmp_path: Path) -> None:
    config = taught(tmp_path, self_critical_epochs=1)
    train(*task, tmp_path / "whole", config)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def stop_in_step(label: str, done: int, *_: object, **__: object) -> None:
        if (label[:7], done) == ("epoch 1", 3):
            raise KeyboardInterrupt

    every_step = LoopConfig(checkpoint_every_s=0, steps_per_check=1)
    with pytest.raises(KeyboardInterrupt):
        train(*task, tmp_path / "model", config, listener=TrainListener(loop=every_step), progress=stop_in_step)
    with pytest.raises(UnfinishedRunError, match="an unfinished training with other teachers; pass"):
        train(*task, tmp_path / "model", replace(config, teacher=(tmp_path / "1",)))
    with pytest.raises(KeyboardInterrupt):
        train(*task, tmp_path / "model", config, listener=TrainListener(on_epoch=stop))
    train(*task, tmp_path / "model", config)
    require_same_weights(tmp_path / "whole", tmp_path / "model")


def test_teachers_that_do_not_fit_are_refused_before_anything_is_written(task: Task, tmp_path: Path) -> None:
    features, captions = task
    other = make_store(
        tmp_path / "other.h5", [f"{n:02d}.jpg" for n in range(10)], make_rows(10), make_spec(image_size=320)
    )
    refused: list[tuple[Path, TrainConfig, type[CaptionmillError], str]] = [
        (features, taught(tmp_path, min_count=6), InputError, "0 and this training have different vocabularies: index"),
        (other, taught(tmp_path), SpecMismatchError, "image_size: 224, not 320"),
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


def test_a_weight_without_teachers_is_refused() -> None:
    with pytest.raises(SettingError, match="`teacher_weight` does nothing without `teacher`"):
        TrainConfig(teacher_weight=0.3)
