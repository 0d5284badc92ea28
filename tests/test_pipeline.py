"""A pipeline file runs the stages in order, once, and again only where something changed."""

import csv
from pathlib import Path

import pytest
import safetensors.torch
from builders import draw_photos
from click.testing import CliRunner, Result

from captionmill.cli import main
from captionmill.data.errors import PipelineError
from captionmill.data.feature_store import FeatureStore
from captionmill.pipeline.plan import read_plan
from captionmill.pipeline.run import run_pipeline
from captionmill.stages.decoding.training_state import EpochResult

PLAN = """
[extract]
images = "photos"
backbone = "scenes-resnet14"
weights = "thin.safetensors"
preprocess = "squash"
image_size = 32

[train]
captions = "references.csv"
min_count = 1
embed_dim = 8
hidden_dim = 16
tie_weights = false
max_epochs = 2

[evaluate]

[caption]
images = "new"
beam_size = 2
"""


@pytest.fixture
def plan_path(tmp_path: Path, thin_weights: Path) -> Path:
    """A folder with photos, captions, new photos and pipeline.toml."""
    draw_photos(tmp_path / "photos")
    draw_photos(tmp_path / "new")
    (tmp_path / "thin.safetensors").write_bytes(thin_weights.read_bytes())
    with (tmp_path / "references.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        for image in sorted((tmp_path / "photos").rglob("*_*.*")):
            colour, number = image.stem.split("_")
            split = {"6": "val", "7": "test"}.get(number, "train")
            writer.writerow([image.relative_to(tmp_path / "photos").as_posix(), f"a {colour} picture", split])
    path = tmp_path / "pipeline.toml"
    path.write_text(PLAN)
    return path


def stages_run(plan_path: Path) -> list[str]:
    return [outcome.task.id for outcome in run_pipeline(plan_path) if outcome.summary is not None]


def test_a_first_run_makes_everything_and_a_second_nothing(plan_path: Path) -> None:
    assert stages_run(plan_path) == ["extract", "train", "evaluate", "caption"]
    folder = plan_path.parent
    assert len(FeatureStore.open(folder / "features.h5")) == 8
    made = ["features.h5", "model/bundle.json", "scores.json", "captions.csv", "pipeline.made.json"]
    before = {name: (folder / name).stat().st_mtime_ns for name in made}
    assert stages_run(plan_path) == []
    assert {name: (folder / name).stat().st_mtime_ns for name in made} == before


def test_a_changed_setting_reruns_what_depends_on_it(plan_path: Path) -> None:
    run_pipeline(plan_path)
    plan_path.write_text(PLAN.replace("beam_size = 2", "beam_size = 1"))
    assert stages_run(plan_path) == ["caption"]
    plan_path.write_text(PLAN.replace("hidden_dim = 16", "hidden_dim = 12"))
    assert stages_run(plan_path) == ["train", "evaluate", "caption"]
    plan_path.write_text(PLAN.replace("image_size = 32", "image_size = 40"))
    assert stages_run(plan_path) == ["extract", "train", "evaluate", "caption"]
    assert FeatureStore.open(plan_path.parent / "features.h5").spec.image_size == 40


def test_other_weights_under_the_same_name_rerun_everything(plan_path: Path) -> None:
    run_pipeline(plan_path)
    state = safetensors.torch.load_file(plan_path.parent / "thin.safetensors")
    changed = {name: tensor * 1.5 if name == "conv1.weight" else tensor for name, tensor in state.items()}
    safetensors.torch.save_file(changed, plan_path.parent / "thin.safetensors")
    assert stages_run(plan_path) == ["extract", "train", "evaluate", "caption"]


def test_a_deleted_output_is_made_again(plan_path: Path) -> None:
    run_pipeline(plan_path)
    (plan_path.parent / "scores.json").unlink()
    assert stages_run(plan_path) == ["evaluate"]


def test_new_pictures_are_added_to_the_store_and_captioned(plan_path: Path) -> None:
    run_pipeline(plan_path)
    (plan_path.parent / "new" / "more.png").write_bytes((plan_path.parent / "new" / "red_0.png").read_bytes())
    assert stages_run(plan_path) == ["caption"]
    assert "more.png" in (plan_path.parent / "captions.csv").read_text()


def test_a_model_that_the_pipeline_did_not_make_is_not_replaced(plan_path: Path) -> None:
    run_pipeline(plan_path)
    (plan_path.parent / "pipeline.made.json").unlink()
    before = (plan_path.parent / "model" / "bundle.json").read_bytes()
    with pytest.raises(ValueError, match="holds a model already"):
        run_pipeline(plan_path)
    assert (plan_path.parent / "model" / "bundle.json").read_bytes() == before


def test_two_plans_in_one_folder_do_not_take_each_others_outputs_for_their_own(plan_path: Path) -> None:
    run_pipeline(plan_path)
    other_path = plan_path.with_name("other.toml")
    other_path.write_text(PLAN.replace("min_count = 1", 'output = "other"\nseed = 7\nmin_count = 1'))
    run_pipeline(other_path)
    assert stages_run(plan_path) == ["evaluate", "caption"]


def test_a_run_cut_short_in_training_is_made_again_by_the_next(plan_path: Path) -> None:
    def interrupt(result: EpochResult) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pipeline(plan_path, on_epoch=interrupt)
    assert stages_run(plan_path) == ["train", "evaluate", "caption"]
    plan_path.write_text(PLAN.replace("hidden_dim = 16", "hidden_dim = 12"))
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(plan_path, on_epoch=interrupt)
    plan_path.write_text(PLAN)
    assert stages_run(plan_path) == ["train"]


def test_an_output_that_somebody_changed_is_made_again(plan_path: Path) -> None:
    run_pipeline(plan_path)
    captions_path = plan_path.parent / "captions.csv"
    before = captions_path.read_text()
    captions_path.write_text("other\n")
    assert stages_run(plan_path) == ["caption"]
    assert captions_path.read_text() == before


def test_what_is_left_out_of_training_is_told(plan_path: Path) -> None:
    with (plan_path.parent / "references.csv").open("a") as file:
        file.write("nowhere.png,a ghost,train\n")
    result = run_command(plan_path)
    assert "left out, captions without features: 1" in result.stderr
    assert "  nowhere.png\n" in result.stderr


@pytest.mark.parametrize("text", ["[]", '{"extract": 5}', '{"extract": {}}', "{"])
def test_a_damaged_record_is_a_one_line_error(plan_path: Path, text: str) -> None:
    plan_path.with_name("pipeline.made.json").write_text(text)
    with pytest.raises(PipelineError, match=r"not readable .*; delete it and run again"):
        run_pipeline(plan_path)


def run_command(plan_path: Path) -> Result:
    return CliRunner().invoke(main, ["run", str(plan_path)], catch_exceptions=False)


def test_the_command_shows_what_it_runs_and_the_commands_do_the_same(
    plan_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plan_path.parent)
    result = run_command(plan_path)
    assert result.exit_code == 0, result.output
    commands = [line.removeprefix("$ ") for line in result.stderr.splitlines() if line.startswith("$ ")]
    assert commands[1] == (
        "captionmill train features.h5 --captions references.csv --output model "
        "--min-count 1 --embed-dim 8 --hidden-dim 16 --no-tie-weights --max-epochs 2"
    )
    assert commands[3] == "captionmill caption new --model model --output captions.csv --beam-size 2"
    captions = (plan_path.parent / "captions.csv").read_text()
    bundle = (plan_path.parent / "model" / "bundle.json").read_text()
    for command in commands:
        words = [*command.split()[1:], *(["--overwrite"] if command.split()[1] == "train" else [])]
        repeated = CliRunner().invoke(main, words, catch_exceptions=False)
        assert repeated.exit_code == 0, repeated.output
    assert (plan_path.parent / "captions.csv").read_text() == captions
    assert (plan_path.parent / "model" / "bundle.json").read_text() == bundle
    again = run_command(plan_path)
    assert [line.split(": ")[1] for line in again.stdout.splitlines()] == 4 * ["up to date"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[evaluate]", "[evaluat]"), "there is no table [evaluat]; did you mean `evaluate`?"),
        (("hidden_dim", "hiden_dim"), "[train] has no key `hiden_dim`; did you mean `hidden_dim`?"),
        (("image_size = 32", 'image_size = "32"'), "[extract] image_size = '32': is to be a whole number"),
        (("image_size = 32", 'compile = "yes"'), "[extract] compile = 'yes': is to be true or false"),
        (('"squash"', '"stretch"'), "[extract] preprocess = 'stretch': is to be one of crop, squash"),
        (('images = "photos"', ""), "[extract] needs `images`, a path"),
        (('captions = "references.csv"', "captions = 3"), "[train] captions = 3: is to be a path in quotes"),
        (("[train]", "[train"), "not TOML: "),
        (("hidden_dim = 16", "dropout = 1.5"), "[train]: dropout is to be at least 0 and at most 1, not 1.5"),
    ],
)
def test_a_plan_that_is_wrong_names_the_place_and_the_nearest_key(
    plan_path: Path, change: tuple[str, str], message: str
) -> None:
    plan_path.write_text(PLAN.replace(*change))
    with pytest.raises(PipelineError) as error:
        read_plan(plan_path)
    assert str(error.value).startswith(f"{plan_path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
