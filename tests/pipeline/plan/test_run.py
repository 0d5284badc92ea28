"""A pipeline file runs the stages in order, once, and again only where something changed."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
from builders import draw_photos
from click.testing import CliRunner, Result
from processes import start_command

from captionmill.cli import main
from captionmill.data.errors import InputError, PipelineError
from captionmill.data.features.store import FeatureStore
from captionmill.pipeline.pages.gallery import write_gallery
from captionmill.pipeline.plan.records import claim_pipeline
from captionmill.pipeline.plan.run import RunEvents, run_pipeline
from captionmill.pipeline.plan.standing import survey
from captionmill.stages.training.state import EpochResult

PLAN = """
[extract]
images = "photos"
backbone = "scenes-resnet14"
weights = "thin.safetensors"
preprocess = "squash"
image_size = 32
engine = "torch"

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


def write_plan(folder: Path, thin_weights: Path) -> Path:
    """Photos, captions, new photos and pipeline.toml, which is returned."""
    draw_photos(folder / "photos")
    draw_photos(folder / "new")
    (folder / "thin.safetensors").write_bytes(thin_weights.read_bytes())
    with (folder / "references.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        for image in sorted((folder / "photos").rglob("*_*.*")):
            colour, number = image.stem.split("_")
            split = {"6": "val", "7": "test"}.get(number, "train")
            writer.writerow([image.relative_to(folder / "photos").as_posix(), f"a {colour} picture", split])
    path = folder / "pipeline.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def plan_path(tmp_path: Path, thin_weights: Path) -> Path:
    """pipeline.toml in a folder in which nothing has run yet."""
    return write_plan(tmp_path, thin_weights)


@pytest.fixture(scope="module")
def finished_folder(thin_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages have run; no test changes it."""
    folder = tmp_path_factory.mktemp("finished")
    assert stages_run(write_plan(folder, thin_weights)) == ["extract", "train", "evaluate", "caption"]
    return folder


@pytest.fixture
def finished_plan(finished_folder: Path, tmp_path: Path) -> Path:
    """pipeline.toml in a copy of `finished_folder`: what was made elsewhere is up to date here."""
    shutil.copytree(finished_folder, tmp_path, dirs_exist_ok=True)
    return tmp_path / "pipeline.toml"


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


def test_a_link_to_itself_and_a_damaged_tar_end_no_run(plan_path: Path) -> None:
    new = plan_path.parent / "new"
    (new / "loop.png").symlink_to("loop.png")
    (new / "cut.tar").write_bytes(b"")
    assert stages_run(plan_path) == ["extract", "train", "evaluate", "caption"]
    assert stages_run(plan_path) == []


def test_a_changed_setting_reruns_what_depends_on_it(finished_plan: Path) -> None:
    finished_plan.write_text(PLAN.replace("beam_size = 2", "beam_size = 1"))
    assert stages_run(finished_plan) == ["caption"]
    finished_plan.write_text(PLAN.replace("hidden_dim = 16", "hidden_dim = 12"))
    assert stages_run(finished_plan) == ["train", "evaluate", "caption"]
    finished_plan.write_text(PLAN.replace("image_size = 32", "image_size = 40"))
    assert stages_run(finished_plan) == ["extract", "train", "evaluate", "caption"]
    assert FeatureStore.open(finished_plan.parent / "features.h5").spec.image_size == 40


def test_a_training_runs_again_when_the_model_that_it_starts_from_has_changed(plan_path: Path) -> None:
    start = PLAN[: PLAN.index("[evaluate]")]
    plan_path.write_text(start + '[train.base]\n[train.more]\ninit = "models/base"\n')
    assert stages_run(plan_path) == ["extract", "train.base", "train.more"]
    assert stages_run(plan_path) == []
    plan_path.write_text(start + '[train.base]\nseed = 1\n[train.more]\ninit = "models/base"\n')
    (standing,) = (one for one in survey(plan_path)[1] if one.task.id == "train.more")
    assert standing.reasons == ("train.base runs first",)
    assert stages_run(plan_path) == ["train.base", "train.more"]
    plan_path.write_text(start + "[train.base]\nseed = 1\n[train.more]\n")
    (standing,) = (one for one in survey(plan_path)[1] if one.task.id == "train.more")
    assert standing.reasons == ("init is left out",)


def test_other_weights_under_the_same_name_rerun_everything(finished_plan: Path) -> None:
    state = safetensors.torch.load_file(finished_plan.parent / "thin.safetensors")
    changed = {name: tensor * 1.5 if name == "conv1.weight" else tensor for name, tensor in state.items()}
    safetensors.torch.save_file(changed, finished_plan.parent / "thin.safetensors")
    assert stages_run(finished_plan) == ["extract", "train", "evaluate", "caption"]


def test_a_deleted_output_is_made_again(finished_plan: Path) -> None:
    (finished_plan.parent / "scores.json").unlink()
    assert stages_run(finished_plan) == ["evaluate"]


def test_new_pictures_are_added_to_the_store_and_captioned(finished_plan: Path) -> None:
    (finished_plan.parent / "new" / "more.png").write_bytes((finished_plan.parent / "new" / "red_0.png").read_bytes())
    assert stages_run(finished_plan) == ["caption"]
    assert "more.png" in (finished_plan.parent / "captions.csv").read_text()


def test_a_model_that_the_pipeline_did_not_make_is_not_replaced(finished_plan: Path) -> None:
    (finished_plan.parent / "pipeline.made.json").unlink()
    before = (finished_plan.parent / "model" / "bundle.json").read_bytes()
    with pytest.raises(ValueError, match="holds a model already"):
        run_pipeline(finished_plan)
    errors = {standing.task.id: standing.error for standing in survey(finished_plan)[1]}
    assert "holds a model already that this pipeline did not make" in errors["train"]
    assert (finished_plan.parent / "model" / "bundle.json").read_bytes() == before


def test_a_file_that_is_no_table_of_captions_is_not_replaced_by_one(plan_path: Path) -> None:
    mine = plan_path.parent / "captions.csv"
    mine.write_text("image,caption\na.png,my own words\n")
    for _ in range(2):  # the first run does not make it the pipeline's own
        with pytest.raises(PipelineError, match=r"captions\.csv: not a table of captions; move it away"):
            run_pipeline(plan_path)
        assert mine.read_text() == "image,caption\na.png,my own words\n"
    mine.unlink()
    assert stages_run(plan_path) == ["caption"]


def test_a_cluster_has_its_own_processes_also_where_nothing_is_left_to_do(finished_plan: Path) -> None:
    with pytest.raises(InputError, match="`jobs` is for this machine: with `cluster`"):
        run_pipeline(finished_plan, jobs=2, cluster="dask://127.0.0.1:1")
    assert len(run_pipeline(finished_plan, cluster="dask://127.0.0.1:1")) == 4


def test_two_plans_in_one_folder_do_not_take_each_others_outputs_for_their_own(finished_plan: Path) -> None:
    other_path = finished_plan.with_name("other.toml")
    other_path.write_text(PLAN.replace("min_count = 1", 'output = "other"\nseed = 7\nmin_count = 1'))
    run_pipeline(other_path)
    assert stages_run(finished_plan) == ["evaluate", "caption"]


def test_a_run_cut_short_in_training_is_made_again_by_the_next(plan_path: Path) -> None:
    def interrupt(result: EpochResult) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pipeline(plan_path, events=RunEvents(on_epoch=interrupt))
    assert stages_run(plan_path) == ["train", "evaluate", "caption"]
    plan_path.write_text(PLAN.replace("hidden_dim = 16", "hidden_dim = 12"))
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(plan_path, events=RunEvents(on_epoch=interrupt))
    plan_path.write_text(PLAN)
    assert stages_run(plan_path) == ["train"]


def test_an_output_that_somebody_changed_is_made_again(finished_plan: Path) -> None:
    captions_path = finished_plan.parent / "captions.csv"
    before = captions_path.read_text()
    captions_path.write_text("other\n")
    assert stages_run(finished_plan) == ["caption"]
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


def run_command(plan_path: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["run", str(plan_path), *options], catch_exceptions=False)


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
    assert commands[3] == "captionmill caption new --model model --output captions.csv --beam-size 2 --engine torch"
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


def test_a_run_that_made_something_writes_a_report_of_all_outputs(plan_path: Path) -> None:
    report = plan_path.with_name("report.html")
    line = f"{report}: the report, open it in a browser"
    assert run_command(plan_path).stdout.splitlines()[-1] == line
    text = report.read_text(encoding="utf-8")
    assert f"<h1>{plan_path.parent.name}: pipeline.toml</h1>" in text
    assert "8</b> images with features" in text  # of photos/
    assert "8</b> images captioned" in text  # of new/
    assert "best validation CIDEr-D" in text
    assert "data:image/jpeg;base64," in text  # the scored pictures were found
    assert line not in run_command(plan_path).stdout
    report.unlink()
    assert run_command(plan_path).stdout.splitlines()[-1] == line


def test_a_gallery_is_written_when_the_file_asks_for_it(finished_plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished_plan.parent)
    finished_plan.write_text(PLAN + 'gallery = "pages/new.html"\n')
    result = run_command(finished_plan)
    assert "$ captionmill caption new --model model --output captions.csv --gallery pages/new.html" in result.stderr
    assert "9 rows as before" in result.stdout
    assert "blue_2.png" in (finished_plan.parent / "pages" / "new.html").read_text(encoding="utf-8")
    assert stages_run(finished_plan) == []


def test_a_report_that_cannot_be_written_is_a_warning(plan_path: Path) -> None:
    report = plan_path.with_name("report.html")
    write_gallery(report, "a page of another kind", [], [])
    before = report.read_bytes()
    result = run_command(plan_path)
    assert result.exit_code == 0
    assert f"no report of this run: {report}: exists already and is not a report of captionmill" in result.stderr
    assert "open it in a browser" not in result.stdout
    assert report.read_bytes() == before
    other_path = plan_path.rename(plan_path.with_name("other.toml"))
    assert (
        f"{plan_path.with_name('other.report.html')}: the report" in run_command(other_path, "--from", "train").stdout
    )


def test_a_touched_input_reruns_nothing_and_a_changed_one_what_is_made_of_it(finished_plan: Path) -> None:
    folder = finished_plan.parent
    captions = (folder / "references.csv").read_text()
    for path in [*(folder / "photos").glob("*.png"), folder / "references.csv", folder / "captions.csv"]:
        os.utime(path, ns=(1, 1))
    assert stages_run(finished_plan) == []
    (folder / "references.csv").write_text(captions.replace("a red picture", "a pink picture"))
    assert stages_run(finished_plan) == ["train", "evaluate", "caption"]


def test_settings_that_change_no_output_rerun_nothing(finished_plan: Path) -> None:
    finished_plan.write_text(
        PLAN.replace("image_size = 32", 'image_size = 32\nworkers = 1\ndevice = "cpu"\nbatch_size = 2')
    )
    assert stages_run(finished_plan) == []


def test_a_dry_run_says_what_would_be_run_and_why_and_runs_nothing(plan_path: Path) -> None:
    assert run_command(plan_path, "--dry-run").stdout.splitlines() == [
        "extract   would run: never run",
        "train     would run: never run; extract runs first",
        "evaluate  would run: never run; extract, train run first",
        "caption   would run: never run; train runs first",
    ]
    assert not (plan_path.parent / "features.h5").exists()
    run_pipeline(plan_path)
    (plan_path.parent / "captions.csv").unlink()
    (plan_path.parent / "new" / "red_0.png").unlink()
    plan_path.write_text(PLAN.replace("hidden_dim = 16", "hidden_dim = 12"))
    assert run_command(plan_path, "--dry-run").stdout.splitlines() == [
        "extract   up to date",
        "train     would run: hidden_dim was 16, is 12",
        "evaluate  would run: train runs first",
        "caption   would run: captions.csv is not there; train runs first",
    ]
    told = CliRunner().invoke(main, ["status", str(plan_path)], catch_exceptions=False).stdout
    lines = told.splitlines()
    assert lines[3] == "train <- extract"
    assert re.search(r"model, made 20..-..-.. ..:..:.. in .* by captionmill \d", lines[4])
    assert lines[5] == "    would run: hidden_dim was 16, is 12"


def test_from_forces_a_stage_and_what_depends_on_it(finished_plan: Path) -> None:
    forced = run_command(finished_plan, "--from", "train", "--dry-run").stdout.splitlines()
    assert forced[0] == "extract   up to date"
    assert forced[1] == "train     would run: forced by --from"
    made = [outcome.task.id for outcome in run_pipeline(finished_plan, start="evaluate") if outcome.summary]
    assert made == ["evaluate"]
    with pytest.raises(PipelineError, match=r"there is no task trian; did you mean train\?"):
        run_pipeline(finished_plan, start="trian")


def test_a_run_with_nothing_to_do_imports_no_torch(finished_plan: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from captionmill.pipeline.plan.run import run_pipeline\n"
        "print([outcome.text for outcome in run_pipeline(Path(sys.argv[1]), jobs=2)], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, finished_plan], capture_output=True, text=True, check=True)
    assert done.stdout == f"{['up to date'] * 4} False\n"


def test_a_task_that_fails_stops_only_those_that_need_it(plan_path: Path) -> None:
    plan_path.write_text(
        PLAN.replace("[train]", '[train]\ncaptions = "references.csv"\n[train.bad]\nmin_count = 99\n[train.good]', 1)
        .replace('captions = "references.csv"\nmin', "min")
        .replace('images = "new"', 'images = "new"\nmodel = "good"')
    )
    result = run_command(plan_path)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"Error: {plan_path}: train.bad failed (no word occurs 99 times in the training captions; pass a lower "
        "`min_count`); not run because of that: evaluate.bad"
    )
    folder = plan_path.parent
    assert (folder / "scores" / "good.json").exists()
    assert (folder / "captions.csv").exists()
    assert not (folder / "models" / "bad").exists()


def test_one_pipeline_is_run_by_one_process_at_a_time(plan_path: Path) -> None:
    with claim_pipeline(plan_path):
        message = run_command(plan_path).stderr.splitlines()[-1]
    assert message == f"Error: {plan_path}: another process is running this pipeline; wait for it to end"


SEVERAL = """
[extract]
backbone = "scenes-resnet14"
weights = "thin.safetensors"
preprocess = "squash"
image_size = 32
engine = "torch"
[extract.first]
images = "photos"
[extract.second]
images = "new"

[train]
captions = "references.csv"
min_count = 1
embed_dim = 8
hidden_dim = 16
tie_weights = false
max_epochs = 2
[train.first.grid]
seed = [0, 1]
[train.second]

[evaluate]
[evaluate.together]
model = "first"
several = "ensemble"
[evaluate.each]

[caption]
images = "new"
[caption.best]
model = "first-*"
[caption.all]
several = "ensemble"
"""


@pytest.mark.parametrize("where", ["here", "aside"])
def test_several_of_each_stage_side_by_side_as_one_after_the_other(plan_path: Path, where: str) -> None:
    plan_path.write_text(SEVERAL)
    before = [thread.name for thread in threading.enumerate()]
    outcomes = run_pipeline(plan_path, jobs=1 if where == "here" else 2)
    folder = plan_path.parent
    made = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".h5", ".json"))
    assert [name for name in made if not name.endswith("config.json")] == [
        "captions/all.features.h5",
        "captions/best.features.h5",
        "features/first.h5",
        "features/second.h5",
        "models/first-seed-0/bundle.json",
        "models/first-seed-1/bundle.json",
        "models/second/bundle.json",
        "pipeline.made.json",
        "scores/each-first-seed-0.json",
        "scores/each-first-seed-1.json",
        "scores/each-second.json",
        "scores/together.json",
    ]
    assert [path.name for path in sorted((folder / "features").glob("*.failures.csv"))] == [
        "first.failures.csv",
        "second.failures.csv",
    ]
    assert json.loads((folder / "scores" / "together.json").read_text())["model"] == ["first-seed-0", "first-seed-1"]
    train = next(outcome for outcome in outcomes if outcome.task.id == "train.second")
    assert any("one validation image" in line for line in train.warnings) == (where == "aside")
    assert "jobs aside" not in {thread.name for thread in threading.enumerate()} - {*before}
    assert stages_run(plan_path) == []
    plan_path.write_text(SEVERAL.replace("seed = [0, 1]", "seed = [0, 1, 2]"))
    assert stages_run(plan_path) == [
        "train.first-seed-2",
        "evaluate.together",
        "evaluate.each-first-seed-2",
        "caption.best",
        "caption.all",
    ]


def test_ctrl_c_stops_what_runs_aside_and_the_next_run_goes_on(plan_path: Path) -> None:
    long = SEVERAL.replace("max_epochs = 2", "max_epochs = 30\npatience = 30")
    plan_path.write_text(long[: long.index("[train.second]")])
    models = plan_path.parent / "models"
    told = plan_path.with_name("told")
    with start_command("run", plan_path, "--jobs", 2, output=told) as process:
        while not list(models.glob("*.training/checkpoint*")):
            assert process.is_running()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    stderr = told.read_text()
    assert "Stopped." in stderr
    assert "Traceback" not in stderr
    assert not (plan_path.parent / ".pipeline.stop").exists()
    unfinished = sorted({path.parent.name for path in models.glob("*.training/checkpoint*")})
    lines = run_command(plan_path, "--dry-run").stdout.splitlines()
    assert lines[0] == "extract.first       up to date"
    assert f"train.{unfinished[0].removesuffix('.training')}  would run: interrupted" in lines
    done_before = len((models / unfinished[0] / "history.csv").read_text().splitlines()) - 1
    result = run_command(plan_path)
    assert result.exit_code == 0, result.output
    resuming = re.search(rf"resuming {re.escape(str(models / unfinished[0]))}: epochs done: (\d+)", result.stderr)
    assert resuming, result.stderr
    assert 0 <= done_before - int(resuming[1]) <= 1  # an epoch is told of before it is safe
    assert not list(models.glob("*.training"))
