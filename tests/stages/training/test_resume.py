"""A training that was interrupted, wherever that was, ends as it would have without; what cannot be resumed says so."""

import contextlib
import dataclasses
import pickletools
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch
from builders import TINY_TRAINING, make_rows, make_store, make_task
from processes import Child

from captionmill.data.captions.references import read_annotations
from captionmill.data.captions.splits import choose_splits
from captionmill.data.errors import InputError, TrainingError, UnfinishedRunError
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import BUNDLE_NAME, read_bundle
from captionmill.data.progress import Progress
from captionmill.stages import charts
from captionmill.stages.settings import SearchConfig, TrainConfig
from captionmill.stages.training.checkpoint import (
    CHECKPOINT_NAME,
    MATCHER_NAME,
    Checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from captionmill.stages.training.origin import describe_origin, require_same
from captionmill.stages.training.recorder import TrainListener
from captionmill.stages.training.run_folder import CURVES_NAME, EVENTS_NAME, HISTORY_NAME
from captionmill.stages.training.state import EpochResult, LoopConfig
from captionmill.stages.training.train import train

CONFIG = dataclasses.replace(
    TINY_TRAINING, batch_size=8, self_critical_epochs=2, self_critical_learning_rate=0.05, search=TINY_TRAINING.search
)
MANY_STEPS = LoopConfig(images_per_step=4, steps_per_check=1)
"""Many steps, a look at each."""
SAVE_EACH_STEP = dataclasses.replace(MANY_STEPS, checkpoint_every_s=0)
LISTENER = TrainListener(loop=MANY_STEPS)
TIMES = ["captions_per_s", "duration_s"]
Unfinished = tuple[Path, Path, Path]


class Killed(BaseException):
    """As sudden as a KeyboardInterrupt."""


def weights_of(model: Path) -> bytes:
    (path,) = model.glob("*.safetensors")
    return path.read_bytes()


def assert_same_training(model: Path, other: Path) -> None:
    assert weights_of(model) == weights_of(other)
    assert (model / BUNDLE_NAME).read_bytes() == (other / BUNDLE_NAME).read_bytes()
    mine, others = (pd.read_csv(path / HISTORY_NAME).drop(columns=TIMES) for path in (model, other))
    pd.testing.assert_frame_equal(mine, others)


def kill_at(place: str, step: int) -> Progress:
    def progress(label: str, done: int, total: int, **_: object) -> None:
        if (label.split(" of ", maxsplit=1)[0], done) == (place, step):
            raise Killed

    return progress


@pytest.fixture(scope="module")
def unfinished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, captions and a training of `CONFIG` that was killed in a step; no test changes them."""
    folder = tmp_path_factory.mktemp("unfinished")
    listener = TrainListener(loop=SAVE_EACH_STEP)
    with pytest.raises(Killed):
        train(*make_task(folder), folder / "model", CONFIG, listener=listener, progress=kill_at("epoch 2", 2))
    return folder


@pytest.fixture
def unfinished(unfinished_folder: Path, tmp_path: Path) -> Unfinished:
    """The features, captions and output of a copy of `unfinished_folder` in `tmp_path`."""
    shutil.copytree(unfinished_folder, tmp_path, dirs_exist_ok=True)
    return tmp_path / "features.h5", tmp_path / "captions.csv", tmp_path / "model"


def test_a_training_killed_at_every_moment_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, captions = make_task(tmp_path)
    last: dict[str, Mapping[str, torch.Tensor]] = {}

    def keep_last(name: str) -> None:  # the bundle may be of an epoch before the last
        checkpoint = read_checkpoint(tmp_path / f"{name}.training")
        assert checkpoint
        last[name] = checkpoint.tensors

    listener = TrainListener(on_epoch=lambda result: keep_last("whole"), loop=MANY_STEPS)
    whole = train(features, captions, tmp_path / "whole", CONFIG, listener=listener)
    assert [result.phase for result in whole.history] == 2 * ["cross entropy"] + 2 * ["self-critical"]

    deaths: set[tuple[object, ...]] = set()
    steps: Counter[tuple[str, int]] = Counter()

    def die_once(*moment: object) -> None:
        if (place := (max(steps, default=None), *moment)) not in deaths:
            deaths.add(place)
            raise Killed

    def progress(label: str, done: int, total: int, **_: object) -> None:
        steps[label.split(" of ", maxsplit=1)[0], done] += 1

    rename = Path.replace

    def replace(path: Path, target: Path) -> Path:  # nothing else adds to what is on disk
        if path.suffix == ".partial":
            die_once(path.parent.name, "decoder" if path.name.startswith(".decoder") else target.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)

    def on_epoch(result: EpochResult) -> None:
        keep_last("model")
        die_once("on_epoch")

    summary = None
    while summary is None:
        assert len(deaths) < 200
        with contextlib.suppress(Killed):
            summary = train(
                features,
                captions,
                tmp_path / "model",
                CONFIG,
                overwrite=True,  # also killed when the model is there and the rest is not
                listener=TrainListener(on_epoch=on_epoch, loop=SAVE_EACH_STEP),
                progress=progress,
            )
    assert len(deaths) > 20
    assert steps == dict.fromkeys([(f"epoch {epoch}", step) for epoch in (1, 2, 3, 4) for step in (1, 2)], 2)
    assert [dataclasses.replace(result, captions_per_s=0, duration_s=0) for result in summary.history] == [
        dataclasses.replace(result, captions_per_s=0, duration_s=0) for result in whole.history
    ]
    assert last["model"].keys() == last["whole"].keys()
    assert all(torch.equal(tensor, last["whole"][name]) for name, tensor in last["model"].items())
    assert_same_training(tmp_path / "model", tmp_path / "whole")
    assert not (tmp_path / "model.training").exists()


def test_curves_have_all_epochs_though_the_training_was_killed_after_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, output = make_task(tmp_path), tmp_path / "model"
    monkeypatch.setattr(charts, "draw_curves", lambda path, rows, **_: path.write_text(f"{len(rows)} epochs"))

    def on_epoch(result: EpochResult) -> None:
        if result.epoch == CONFIG.max_epochs:
            raise Killed

    config = dataclasses.replace(CONFIG, self_critical_epochs=0)
    with pytest.raises(Killed):
        train(*task, output, config, listener=TrainListener(on_epoch=on_epoch))
    assert (tmp_path / "model.training" / CURVES_NAME).read_text() == "1 epochs"
    train(*task, output, config)
    assert (output / CURVES_NAME).read_text() == f"{CONFIG.max_epochs} epochs"


def test_a_second_phase_that_is_killed_before_its_first_checkpoint_begins_again_where_the_first_was_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, captions = make_task(tmp_path)
    config = dataclasses.replace(CONFIG, max_epochs=4, dropout=0.0)
    whole = train(features, captions, tmp_path / "whole", config, listener=LISTENER)
    assert whole.history[4].best  # its weights are there before a checkpoint

    rename = Path.replace

    def die(path: Path, target: Path) -> Path:
        if target.name == HISTORY_NAME and len(pd.read_csv(path)) == 5:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", die)
        with pytest.raises(Killed):
            train(features, captions, tmp_path / "model", config, listener=LISTENER)
    train(features, captions, tmp_path / "model", config, listener=LISTENER)
    assert_same_training(tmp_path / "model", tmp_path / "whole")


def test_a_run_that_is_killed_while_it_is_put_in_its_place_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, captions = make_task(tmp_path)
    config = dataclasses.replace(TINY_TRAINING, max_epochs=1)

    remove, replace = shutil.rmtree, Path.replace

    def die_before(path: Path, target: Path) -> None:
        if target == tmp_path / "model" / BUNDLE_NAME:
            raise Killed
        replace(path, target)

    def die(folder: Path, *, ignore_errors: bool = False) -> None:
        if folder.name == EVENTS_NAME:
            remove(folder)
            return
        (folder / BUNDLE_NAME).unlink()
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", die_before)
        with pytest.raises(Killed):
            train(features, captions, tmp_path / "model", config)
    assert (tmp_path / "model" / "README.md").exists()  # the bundle is the last file
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", die)
        with pytest.raises(Killed):
            train(features, captions, tmp_path / "model", config)
    weights = weights_of(tmp_path / "model")
    with pytest.raises(InputError, match="holds a model already"):
        train(features, captions, tmp_path / "model", config)
    assert not (tmp_path / "model.training").exists()
    train(features, captions, tmp_path / "model", config, overwrite=True)
    assert weights_of(tmp_path / "model") == weights


def test_a_process_killed_in_the_middle_leaves_the_old_model_whole_and_is_gone_on_with(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    config = dataclasses.replace(TINY_TRAINING, batch_size=1)  # 16 steps an epoch, a look after 10
    train(features, captions, tmp_path / "whole", config, listener=LISTENER)
    train(features, captions, tmp_path / "model", dataclasses.replace(config, max_epochs=1, seed=5), listener=LISTENER)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.is_file()}
    program = (
        "import os, signal\n"
        "from captionmill.stages.settings import SearchConfig, TrainConfig\n"
        "from captionmill.stages.training.state import LoopConfig; from captionmill.stages.training.train import *\n"
        "def kill(label, done, total, **_):\n"
        "    if label.startswith('epoch 2 ') and done == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"train({str(features)!r}, {str(captions)!r}, {str(tmp_path / 'model')!r},\n"
        f"    {config!r}, overwrite=True, listener=TrainListener(loop={SAVE_EACH_STEP!r}), progress=kill)\n"
    )
    with Child(program) as process:
        assert process.wait() == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.is_file()} == before
    work_dir = tmp_path / "model.training"
    assert len(read_bundle(work_dir).vocabulary) == 14
    (work_dir / f".{CHECKPOINT_NAME}.0123456789abcdef.partial").write_bytes(
        b"half"
    )  # as a kill while it is written leaves it
    steps: list[tuple[str, int]] = []
    train(
        features,
        captions,
        tmp_path / "model",
        config,
        overwrite=True,
        listener=LISTENER,
        progress=lambda label, done, total, **_: steps.append((label.split(" of ")[0], done)),
    )
    assert steps == [("epoch 2", step) for step in range(8, 17)]
    assert_same_training(tmp_path / "model", tmp_path / "whole")
    assert not work_dir.exists()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 9}, r"other `seed` \(0, now 9\)"),
        ({"max_epochs": 3}, r"other `max_epochs` \(2, now 3\)"),
        ({"max_epochs": None}, r"other `max_epochs` \(2, now not set\)"),
        ({"self_critical_epochs": 0}, r"other `self_critical_epochs` \(2, now 0\)"),
        ({"search": SearchConfig(beam_size=2, max_length=6)}, r"other `beam_size` \(1, now 2\)"),
    ],
)
def test_an_unfinished_training_of_other_settings_is_refused(
    unfinished: Unfinished, tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    features, captions, output = unfinished
    before = (tmp_path / "model.training" / CHECKPOINT_NAME).read_bytes()
    with pytest.raises(UnfinishedRunError, match=difference + r"; pass `restart` to start from scratch$") as error:
        train(features, captions, output, dataclasses.replace(CONFIG, **change), listener=LISTENER)
    assert "\n" not in str(error.value)
    assert (tmp_path / "model.training" / CHECKPOINT_NAME).read_bytes() == before


def test_validation_captions_that_are_sampled_with_another_seed_make_another_training(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    store, annotations = FeatureStore.open(features), read_annotations(captions)
    splits = choose_splits(annotations, store.keys)
    origins = [
        describe_origin(store, annotations, splits, TrainConfig(search=search), word_rule=1)
        for search in (SearchConfig(sample=True), SearchConfig(sample=True, seed=1), SearchConfig(seed=1))
    ]
    require_same(tmp_path, origins[0], origins[0])
    with pytest.raises(UnfinishedRunError, match=r"other `search\.seed` \(0, now 1\)"):
        require_same(tmp_path, origins[0], origins[1])
    assert origins[2]["--search-seed"] == "0"  # no caption depends on it
    of_before = {name: value for name, value in origins[1].items() if name != "--search-seed"}
    require_same(tmp_path, of_before, origins[1])  # earlier versions did not keep the seed: any resumes
    with pytest.raises(UnfinishedRunError, match=r"other `seed` \(0, now 3\)"):
        require_same(tmp_path, of_before, origins[1] | {"--seed": "3"})


def test_an_unfinished_training_of_other_data_is_refused(unfinished: Unfinished, tmp_path: Path) -> None:
    features, captions, output = unfinished
    store = FeatureStore.open(features)
    other = make_store(tmp_path / "other.h5", store.keys, make_rows(10, seed=1))
    with pytest.raises(UnfinishedRunError, match="an unfinished training with other features; pass `restart`"):
        train(other, captions, output, CONFIG, listener=LISTENER)
    text = captions.read_text()
    for changed in (text.replace("there is a red dog", "there was a red dog"), text.replace(",val", ",train", 2)):
        captions.write_text(changed)
        with pytest.raises(UnfinishedRunError, match="other captions or splits; pass `restart`"):
            train(features, captions, output, CONFIG, listener=LISTENER)
    captions.write_text(
        text.replace("07.jpg,a grey cat,train", "07.jpg,a grey cat,val").replace(
            "07.jpg,there is a grey cat,train", "07.jpg,there is a grey cat,val"
        )
    )
    assert captions.read_text() != text  # the same captions in the same order, but the last one to train on is not
    with pytest.raises(UnfinishedRunError, match="other captions or splits"):
        train(features, captions, output, CONFIG, listener=LISTENER)


def test_another_number_of_processes_is_named(unfinished: Unfinished, tmp_path: Path) -> None:
    features, captions, output = unfinished
    checkpoint = read_checkpoint(tmp_path / "model.training")
    assert checkpoint
    checkpoint.state["made_from"]["number of processes"] = "2"
    write_checkpoint(tmp_path / "model.training", checkpoint)
    with pytest.raises(UnfinishedRunError, match=r"other number of processes \(2, now 1\)"):
        train(features, captions, output, CONFIG, listener=LISTENER)


def test_another_size_of_self_critical_steps_is_named(unfinished: Unfinished) -> None:
    features, captions, output = unfinished
    message = r"other images per self-critical step \(4, now 50\); pass `restart` to start from scratch$"
    with pytest.raises(UnfinishedRunError, match=message):
        train(features, captions, output, CONFIG)


def test_a_checkpoint_that_does_not_know_the_size_of_self_critical_steps_is_resumed(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    config = dataclasses.replace(CONFIG, max_epochs=1)
    train(features, captions, tmp_path / "whole", config)
    with pytest.raises(Killed):
        train(
            features,
            captions,
            tmp_path / "model",
            config,
            listener=TrainListener(loop=LoopConfig(checkpoint_every_s=0)),
            progress=kill_at("epoch 3", 1),
        )
    checkpoint = read_checkpoint(tmp_path / "model.training")
    assert checkpoint
    assert checkpoint.state["made_from"].pop("images per self-critical step") == "50"
    write_checkpoint(tmp_path / "model.training", checkpoint)  # as earlier versions wrote it
    train(features, captions, tmp_path / "model", config)
    assert_same_training(tmp_path / "model", tmp_path / "whole")


def test_a_checkpoint_of_the_first_word_rule_is_resumed_by_it(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    config = dataclasses.replace(CONFIG, max_length=None, search=SearchConfig(beam_size=1))
    listener = TrainListener(loop=SAVE_EACH_STEP)
    with pytest.raises(Killed):
        train(features, captions, tmp_path / "model", config, listener=listener, progress=kill_at("epoch 2", 2))
    checkpoint = read_checkpoint(tmp_path / "model.training")
    assert checkpoint
    made_from = checkpoint.state["made_from"]
    assert (made_from.pop("word rule"), made_from["--max-length"], made_from["--search-length"]) == (
        "2",
        "None",
        "None",
    )
    made_from |= {"--max-length": "20", "--search-length": "20"}
    write_checkpoint(tmp_path / "model.training", checkpoint)  # as earlier versions wrote it
    with pytest.raises(Killed):
        train(features, captions, tmp_path / "model", config, listener=listener, progress=kill_at("epoch 3", 1))
    train(features, captions, tmp_path / "model", config, listener=listener)  # what was saved by then has the rule too
    bundle = read_bundle(tmp_path / "model")
    assert (bundle.vocabulary.word_rule, bundle.training["max_length"]) == (1, 20)


def test_restart_starts_from_scratch(unfinished: Unfinished, tmp_path: Path) -> None:
    features, captions, output = unfinished
    (tmp_path / "model.training" / MATCHER_NAME).touch()  # as a training has it that is stopped near its end
    steps: list[tuple[str, int]] = []
    config = dataclasses.replace(CONFIG, seed=9)

    def progress(label: str, done: int, total: int, **_: object) -> None:
        steps.append((label.split(" of ", maxsplit=1)[0], done))

    train(features, captions, output, config, restart=True, listener=LISTENER, progress=progress)
    assert steps[0] == ("epoch 1", 1)
    train(features, captions, tmp_path / "whole", config, listener=LISTENER)
    assert_same_training(output, tmp_path / "whole")


def test_restart_removes_nothing_that_is_not_a_trainings(unfinished: Unfinished, tmp_path: Path) -> None:
    features, captions, output = unfinished
    (tmp_path / "model.training" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files \(notes\.txt\); move it away"):
        train(features, captions, output, CONFIG, restart=True, listener=LISTENER)
    assert read_checkpoint(tmp_path / "model.training")
    (tmp_path / "new.training").write_text("mine too")
    with pytest.raises(InputError, match="is a file; move it away"):
        train(features, captions, tmp_path / "new", CONFIG, listener=LISTENER)


def test_two_trainings_at_once_do_not_mix(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)

    def start_another(result: EpochResult) -> None:
        with pytest.raises(TrainingError, match=r"model\.training: another process is running this training; wait"):
            train(features, captions, tmp_path / "model", TINY_TRAINING, restart=result.epoch == 1)

    summary = train(
        features, captions, tmp_path / "model", TINY_TRAINING, listener=TrainListener(on_epoch=start_another)
    )
    assert len(summary.history) == 2
    assert not (tmp_path / "model.training").exists()


def test_an_output_that_is_a_file_is_told_before_training(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    (tmp_path / "model").write_text("mine")
    with pytest.raises(InputError, match="is a file; `output` must be a folder"):
        train(features, captions, tmp_path / "model", TINY_TRAINING)
    assert not (tmp_path / "model.training").exists()


def damage_middle(content: bytes) -> bytes:
    middle = len(content) * 2 // 3
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"PK not a checkpoint",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        damage_middle,
        lambda content: content.replace(b"format_version", b"format_versiom", 1).replace(b"made_from", b"made_frog"),
        lambda content: safetensors.torch.save({"weight": torch.zeros(2)}),
    ],
    ids=["empty", "foreign", "half", "one byte short", "one bit", "renamed", "no header"],
)
def test_a_damaged_checkpoint_is_a_one_line_error(
    unfinished: Unfinished, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    features, captions, output = unfinished
    path = tmp_path / "model.training" / CHECKPOINT_NAME
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TrainingError, match=r"not a readable checkpoint; pass `restart` to start") as error:
        train(features, captions, output, CONFIG, listener=LISTENER)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_checkpoint_of_another_version_says_so(unfinished: Unfinished, tmp_path: Path) -> None:
    features, captions, output = unfinished
    path = tmp_path / "model.training" / CHECKPOINT_NAME
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        header = file.metadata()
    safetensors.torch.save_file(tensors, path, metadata=header | {"format_version": "2"})
    with pytest.raises(TrainingError, match="of another version of captionmill; pass `restart` to start"):
        train(features, captions, output, CONFIG, listener=LISTENER)


def test_a_checkpoint_holds_no_pickle(unfinished: Unfinished, tmp_path: Path) -> None:
    content = (tmp_path / "model.training" / CHECKPOINT_NAME).read_bytes()
    assert content[8:9] == b"{"  # the length of a JSON header, the header, numbers
    assert int.from_bytes(content[:8], "little") < len(content)
    assert not content.startswith((b"PK", b"\x80"))
    with pytest.raises(ValueError, match=r"."):
        list(pickletools.genops(content))
    saved = read_checkpoint(tmp_path / "model.training")
    assert isinstance(saved, Checkpoint)
    assert saved.state["training"]["epoch"] == 2
    assert {name.split(".")[0] for name in saved.tensors} == {"decoder", "optimizer"}


def test_a_killed_training_that_started_from_a_model_ends_as_one_that_was_not(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    for seed in (0, 1):
        train(features, captions, tmp_path / f"base-{seed}", dataclasses.replace(TINY_TRAINING, seed=seed))
    config = dataclasses.replace(CONFIG, init=tmp_path / "base-0", self_critical_epochs=1)
    listener = TrainListener(loop=SAVE_EACH_STEP)
    train(features, captions, tmp_path / "whole", config, listener=listener)
    for moment in (("epoch 1", 1), ("epoch 2", 2), ("epoch 3", 1)):
        with pytest.raises(Killed):
            train(features, captions, tmp_path / "model", config, listener=listener, progress=kill_at(*moment))
    other = dataclasses.replace(config, init=tmp_path / "base-1")
    with pytest.raises(UnfinishedRunError, match="an unfinished training with other model to start from; pass"):
        train(features, captions, tmp_path / "model", other, listener=listener)
    train(features, captions, tmp_path / "model", config, listener=listener)
    assert_same_training(tmp_path / "model", tmp_path / "whole")


def test_a_disk_that_is_full_of_a_checkpoint_is_an_error_of_the_system(tmp_path: Path) -> None:
    """Of safetensors' own errors, no command would make one line."""
    resource = pytest.importorskip("resource")
    tensors = {"weights": torch.zeros(100_000)}
    write_checkpoint(tmp_path, Checkpoint({"epoch": 1}, tensors))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            write_checkpoint(tmp_path, Checkpoint({"epoch": 2}, tensors))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(tmp_path / CHECKPOINT_NAME)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_NAME]
    found = read_checkpoint(tmp_path)
    assert found is not None
    assert found.state == {"epoch": 1}
