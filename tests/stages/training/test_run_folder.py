"""A training run leaves settings, history, curves, samples and events; a resumed run goes on with them."""

import contextlib
import json
import logging
import sys
from pathlib import Path

import pytest
from builders import make_model, make_spec
from PIL import Image

from captionmill.data.csv_tables import Cell
from captionmill.data.errors import InputError
from captionmill.stages import charts
from captionmill.stages.charts import draw_curves
from captionmill.stages.training.checkpoint import CHECKPOINT_NAME, MATCHER_NAME
from captionmill.stages.training.run_folder import RUN_NAMES, RunFolder, copy_run, remove_published

CIDERS = [0.1, 0.3, 0.2, 0.4]


@pytest.fixture(autouse=True)
def drawn_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here they are no empty files."""
    monkeypatch.setattr(charts, "draw_curves", draw_curves)


def make_history(epochs: int, *, self_critical_from: int = 99) -> list[dict[str, Cell]]:
    return [
        {
            "epoch": epoch,
            "phase": "self-critical" if epoch >= self_critical_from else "cross entropy",
            "loss": 4.0 / epoch,
            "val_cider": CIDERS[epoch - 1],
            "captions_per_s": 1900.25,
            "duration_s": 16.0,
            "learning_rate": 0.00005,
            "best": epoch != 3,
        }
        for epoch in range(1, epochs + 1)
    ]


def read_colours(path: Path) -> set[object]:
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (960, 720))
        return {colour for _, colour in image.convert("RGB").getcolors(960 * 720) or ()}


def test_config_says_settings_data_counts_and_versions(tmp_path: Path) -> None:
    run_folder = RunFolder(tmp_path / "run")
    run_folder.write_config(
        {"seed": 3, "search": {"beam_size": 2}}, data={"features": Path("f.h5"), "val_list": None}, counts={"train": 6}
    )
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    assert set(values.pop("versions")) >= {"captionmill", "python", "torch"}
    assert values == {
        "settings": {"seed": 3, "search": {"beam_size": 2}},
        "data": {"features": "f.h5", "val_list": None},
        "counts": {"train": 6},
    }


def test_history_is_a_table_whose_small_numbers_keep_their_digits(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_history(make_history(3))
    assert (tmp_path / "history.csv").read_text() == (
        "epoch,phase,loss,val_cider,captions_per_s,duration_s,learning_rate,best\n"
        "1,cross entropy,4,0.1,1900.25,16,5e-05,True\n"
        "2,cross entropy,2,0.3,1900.25,16,5e-05,True\n"
        "3,cross entropy,1.33333,0.2,1900.25,16,5e-05,False\n"
    )


def test_curves_are_a_picture_from_the_first_epoch_on_and_mark_the_self_critical_phase(tmp_path: Path) -> None:
    reward_colour = (0x6A, 0x4C, 0x9C)
    RunFolder(tmp_path).write_history(make_history(1))
    assert reward_colour not in read_colours(tmp_path / "curves.png")
    RunFolder(tmp_path).write_history(make_history(4, self_critical_from=3))
    assert reward_colour in read_colours(tmp_path / "curves.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "history.csv"]


@pytest.mark.parametrize("size", [1e-4, 1.0, 10.0])
def test_labels_of_the_curves_are_within_the_picture(tmp_path: Path, size: float) -> None:
    rows = [
        row | {"loss": 0.0002 * size * (epoch + 1), "val_cider": 0.35 * size * (1 + epoch / 1000)}
        for epoch, row in enumerate(make_history(4, self_critical_from=3))
    ]
    RunFolder(tmp_path).write_history(rows)
    with Image.open(tmp_path / "curves.png") as picture:
        grey = picture.convert("L")
        for left in (0, grey.width - 5):
            assert grey.crop((left, 0, left + 5, grey.height)).getextrema() == (255, 255)


def test_curves_of_quick_epochs_are_drawn_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run_folder:
        run_folder.write_history(make_history(1))
        first = (tmp_path / "curves.png").read_bytes()
        run_folder.write_history(make_history(4))
        assert (tmp_path / "curves.png").read_bytes() == first
    assert (tmp_path / "curves.png").read_bytes() != first


def test_an_error_ends_a_run_without_drawing(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), RunFolder(tmp_path) as run_folder:
        run_folder.write_history(make_history(1))
        drawn = (tmp_path / "curves.png").read_bytes()
        run_folder.write_history(make_history(4))
        raise KeyboardInterrupt
    assert (tmp_path / "curves.png").read_bytes() == drawn


def test_samples_show_an_images_captions_one_below_the_other(tmp_path: Path) -> None:
    run_folder = RunFolder(tmp_path)
    references = ["A red ball.", 'A "ball", red.']
    run_folder.write_samples(1, [("b.jpg", "a a", references), ("a.jpg", "a", [])])
    run_folder.write_samples(2, [("b.jpg", "a red ball", references), ("a.jpg", "snow", [])])
    quoted = '"A red ball. | A ""ball"", red."'
    assert (tmp_path / "samples.csv").read_text() == (
        f"key,epoch,caption,references\nb.jpg,1,a a,{quoted}\nb.jpg,2,a red ball,{quoted}\na.jpg,1,a,\na.jpg,2,snow,\n"
    )


def test_samples_of_an_epoch_that_is_done_again_are_replaced(tmp_path: Path) -> None:
    killed = RunFolder(tmp_path)
    for epoch in (1, 2, 3):
        killed.write_samples(epoch, [("a.jpg", f"killed {epoch}", [])])
    RunFolder(tmp_path).write_samples(2, [("a.jpg", "resumed 2", [])])
    assert (tmp_path / "samples.csv").read_text() == (
        "key,epoch,caption,references\na.jpg,1,killed 1,\na.jpg,2,resumed 2,\n"
    )


def test_a_foreign_samples_table_is_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").write_text("what,ever\n1,2\n")
    with pytest.raises(InputError, match=r"samples\.csv: not a table of sample captions"):
        RunFolder(tmp_path)


def test_events_of_a_killed_run_are_gone_on_with_and_no_epoch_comes_twice(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = make_history(4, self_critical_from=4)
    with RunFolder(tmp_path) as killed:
        for row in history[:3]:
            killed.add_epoch_events(row | {"val_cider": 0.0})
    (path,) = (tmp_path / "events").iterdir()
    parts = path.name.split(".")
    parts[3] = str(int(parts[3]) - 3600)  # an hour ago: file names have whole seconds
    path = path.rename(path.with_name(".".join(parts)))
    path.write_bytes(path.read_bytes() + b"\x18\0\0")  # killed within a record
    with RunFolder(tmp_path) as resumed:
        for row in history[2:]:
            resumed.add_epoch_events(row)

    events = EventAccumulator(str(tmp_path / "events")).Reload()
    read = {
        tag: [(event.step, round(event.value, 6)) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert read == {
        "loss/train": [(1, 4.0), (2, 2.0), (3, 1.333333)],
        "reward/train": [(4, 1.0)],
        "cider_d/val": [(1, 0.0), (2, 0.0), (3, 0.2), (4, 0.4)],
        "learning_rate": [(epoch, 0.00005) for epoch in (1, 2, 3, 4)],
        "speed/captions_per_s": [(epoch, 1900.25) for epoch in (1, 2, 3, 4)],
    }


def test_without_tensorboard_there_are_no_events_and_one_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.INFO, "captionmill"), RunFolder(tmp_path) as run_folder:
        for row in make_history(2):
            run_folder.add_epoch_events(row)
    assert caplog.messages == ["no TensorBoard events: pip install 'captionmill[tensorboard]'"]
    assert not (tmp_path / "events").exists()


def test_a_finished_run_replaces_all_of_an_older_run_and_nothing_else(tmp_path: Path) -> None:
    work_dir, output, outside = tmp_path / "model.training", tmp_path / "model", tmp_path / "outside"
    outside.mkdir()
    for folder, names in ((output, RUN_NAMES), (work_dir, ("config.json", "samples.csv"))):
        (folder / "events").mkdir(parents=True)
        (folder / "events" / f"of-{folder.name}").touch()
        for name in names[:4]:
            (folder / name).write_text(folder.name)
    (output / "bundle.json").touch()
    (output / "curves.png").unlink()
    (output / "curves.png").symlink_to(outside, target_is_directory=True)
    copy_run(work_dir, output)
    assert outside.is_dir()
    assert sorted(path.name for path in output.iterdir()) == ["bundle.json", "config.json", "events", "samples.csv"]
    assert (output / "config.json").read_text() == "model.training"
    assert [path.name for path in (output / "events").iterdir()] == ["of-model.training"]
    assert sorted(path.name for path in work_dir.iterdir()) == ["config.json", "events", "samples.csv"]


@pytest.mark.parametrize(
    ("seed", "has_checkpoint", "other", "stays"),
    [
        (0, True, "", False),
        (0, False, "", False),
        (1, False, "", False),  # nothing can be resumed without a checkpoint
        (1, True, "", True),
        (0, True, "mine.txt", True),
    ],
)
def test_the_folder_of_a_training_whose_model_is_in_its_place_goes(
    seed: int, has_checkpoint: bool, other: str, stays: bool, tmp_path: Path
) -> None:
    model, folder = make_model(tmp_path / "model", make_spec()), tmp_path / "model.training"
    make_model(folder, make_spec(), seed=seed)
    for name in [MATCHER_NAME] + [CHECKPOINT_NAME] * has_checkpoint + [other] * bool(other):
        (folder / name).touch()
    before = {path.name for path in folder.iterdir()}
    remove_published(folder, tmp_path / "none")
    remove_published(folder, model)
    assert folder.exists() == stays
    assert not stays or before <= {path.name for path in folder.iterdir()}
