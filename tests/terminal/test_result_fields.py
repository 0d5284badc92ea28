"""The results of all commands in JSON: their fields are those that the documents list, and have the run's numbers."""

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from builders import draw_photos
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.pipeline.demo.demo import DemoSummary
from captionmill.pipeline.export import ExportSummary
from captionmill.pipeline.result_fields import export_fields
from captionmill.pipeline.terminal.demo import demo_fields

FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"
COMMON = ["time", "level", "event", "message", "command"]
SILENT = {"completion"}  # prints a script
THIN = ["--backbone", "scenes-resnet14", "--preprocess", "squash", "--image-size", "32", "--device", "cpu"]
Fields = dict[str, Any]


def documented() -> dict[str, list[str]]:
    """The fields of each command, by its name in the table."""
    section = FORMATS.read_text(encoding="utf-8").partition("## Results as JSON")[2]
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", section, re.M)
    found: dict[str, list[str]] = {}
    for names, cell in rows:
        fields = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)|;.*", "", cell))
        for name in re.findall(r"`([a-z -]+)`", names):
            found[name] = fields or found["extract --dry-run"]
    return found


def results_of(*arguments: object, code: int = 0) -> list[Fields]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--log-format", "json"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def result_of(name: str, *arguments: object) -> Fields:
    """The fields of the one result of a command, which are those documented under `name`."""
    (values,) = results_of(*arguments)
    assert list(values)[:5] == COMMON
    assert values["event"] == "result"
    assert list(values)[5:] == documented()[name]
    return values


@pytest.fixture(scope="module")
def trained(thin_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fields, Fields]:
    """A folder with photos, captions, a store and a model, and the results of the two commands."""
    folder = tmp_path_factory.mktemp("fields")
    draw_photos(folder / "photos")
    keys = [path.relative_to(folder / "photos").as_posix() for path in sorted((folder / "photos").rglob("*_*.*"))]
    lines = [
        f"{key},a {Path(key).stem[:3]} wall,{('test', 'train', 'val', 'train')[i % 4]}" for i, key in enumerate(keys)
    ]
    (folder / "captions.csv").write_text("\n".join(["image,caption,split", *lines, ""]))
    store = folder / "f.h5"
    extracted = result_of("extract", "extract", folder / "photos", "--output", store, *THIN, "--weights", thin_weights)
    small = ["--min-count", 1, "--embed-dim", 8, "--hidden-dim", 8, "--max-epochs", 2, "--device", "cpu"]
    arguments = ["--captions", folder / "captions.csv", "--output", folder / "model", *small]
    return folder, extracted, result_of("train", "train", store, *arguments)


def test_those_of_extract_and_train_have_the_numbers_of_the_run(
    trained: tuple[Path, Fields, Fields], thin_weights: Path
) -> None:
    folder, extracted, learned = trained
    assert (extracted["command"], extracted["output"]) == ("extract", str(folder / "f.h5"))
    counts = {name: extracted[name] for name in ("found", "cached", "extracted", "failed", "unlisted", "pruned")}
    assert counts == {"found": 9, "cached": 0, "extracted": 8, "failed": 1, "unlisted": 0, "pruned": 0}
    assert extracted["rate"] == pytest.approx(8 / extracted["seconds"], rel=0.01)
    assert (learned["epochs"], learned["output"]) == (2, str(folder / "model"))
    weights = ["--weights", thin_weights]
    again = result_of("extract", "extract", folder / "photos", "--output", folder / "f.h5", *THIN, *weights)
    assert (again["cached"], again["extracted"], again["failed"], again["rate"]) == (8, 0, 1, None)


def test_every_command_that_has_a_result_is_documented() -> None:
    names = []
    for name, command in main.commands.items():
        names += [f"{name} {child}" for child in command.commands] if isinstance(command, click.Group) else [name]
    assert {name for name in names if name not in documented()} == SILENT


def test_those_of_captions_and_what_is_made_of_them(trained: tuple[Path, Fields, Fields], tmp_path: Path) -> None:
    folder = trained[0]
    table, model = tmp_path / "t.csv", ["--model", folder / "model"]
    caption = ["caption", folder / "photos", *model, "--output", table, "--features", tmp_path / "f.h5"]
    caption += ["--engine", "torch", "--precision", "fp32", "--device", "cpu", "--max-length", 3]
    planned = result_of("caption --dry-run", *caption, "--dry-run")
    assert (planned["found"], planned["to_read"], planned["made"], planned["seconds"]) == (9, 9, 9, None)
    assert [*tmp_path.iterdir()] == []
    done = result_of("caption", *caption)
    assert (done["found"], done["captioned"], done["made"], done["failed"], done["sidecars"]) == (9, 8, 9, 1, None)
    planned = result_of("caption --dry-run", *caption, "--dry-run")
    assert (planned["to_read"], planned["failed_before"], planned["made"]) == (1, 1, 0)
    assert planned["seconds"] > 0
    before = table.read_text("utf-8-sig").splitlines()[1].split(",")
    (tmp_path / "decisions.csv").write_text(
        f"path,decision,caption,shown\n{before[0]},corrected,a wall,{before[1]}\n", encoding="utf-8"
    )
    applied = result_of("apply", "apply", tmp_path / "decisions.csv", "--to", table)
    assert (applied["corrected"], applied["conflicts"], applied["dry_run"]) == (1, 0, False)
    compared = result_of("compare", "compare", table, table, "--captions", folder / "captions.csv")
    assert (compared["equal"], compared["different"], compared["first"]) == (9, 0, compared["second"])
    explained = result_of("explain", "explain", folder / "photos" / "red_0.png", *model, *caption[8:])
    assert explained["output"] is None
    assert explained["caption"] in explained["message"]


def test_those_of_stores_and_scores(trained: tuple[Path, Fields, Fields], thin_weights: Path, tmp_path: Path) -> None:
    folder = trained[0]
    store = folder / "f.h5"
    arguments = [folder / "photos", "--output", store, *THIN, "--weights", thin_weights]
    planned = result_of("extract --dry-run", "extract", *arguments, "--dry-run")
    assert (planned["found"], planned["cached"], planned["to_read"], planned["failed_before"]) == (9, 8, 1, 1)
    assert result_of("features info", "features", "info", store)["images"] == 8
    assert result_of("features verify", "features", "verify", store)["rows"] == 8
    repaired = result_of("features repair", "features", "repair", store)
    assert (repaired["removed"], repaired["renamed"]) == (0, [])
    merged = result_of("features merge", "features", "merge", store, "--output", tmp_path / "m.h5")
    assert (merged["rows"], merged["stores"]) == (8, 1)
    written = result_of("features export", "features", "export", store, "--output", tmp_path / "f.npy")
    assert written["files"] == [str(tmp_path / "f.npy"), str(tmp_path / "f.csv")]
    model, captions = ["--model", folder / "model"], ["--captions", folder / "captions.csv"]
    scored = result_of("evaluate", "evaluate", store, *model, *captions, "--resamples", 2, "--max-length", 3)
    assert set(scored["scores"]["cider_d"]) == {"value", "low", "high"}
    found = result_of("duplicates", "duplicates", store, "--output", tmp_path / "pairs.csv")
    assert (found["images"], found["pairs"] >= 4, found["identical"]) == ({"all": 8}, True, 0)
    same = result_of("leaks", "leaks", store, "--within", "--output", tmp_path / "pairs.csv")
    assert [same[name] for name in documented()["leaks"]] == [found[name] for name in documented()["duplicates"]]
    assert same["message"] == found["message"]
    packed = result_of("pack", "pack", folder / "model", tmp_path / "model.tar")
    assert packed["bytes"] == (tmp_path / "model.tar").stat().st_size
    assert result_of("card", "card", folder / "model")["output"] == str(folder / "model" / "README.md")
    words = result_of("vocabulary", "vocabulary", folder / "model")["words"]
    assert result_of("vocabulary --word", "vocabulary", folder / "model", "--word", "wall")["index"] == (
        words.index("wall")
    )


def test_those_of_pipelines_and_pages(trained: tuple[Path, Fields, Fields], tmp_path: Path) -> None:
    plan = tmp_path / "pipeline.toml"
    assert result_of("init", "init", plan)["output"] == str(plan)
    (tmp_path / "images").symlink_to(trained[0] / "photos")
    settings = 'images = "images"\nbackbone = "scenes-resnet14"\nimage_size = 32\nengine = "torch"\ndevice = "cpu"\n'
    plan.write_text(f"[extract]\n{settings}")
    planned = result_of("run --dry-run", "run", plan, "--dry-run")
    assert (planned["task"], planned["up_to_date"], planned["reasons"]) == ("extract", False, ["never run"])
    first, *others = results_of("run", plan)
    assert list(first)[5:] == documented()["run"]
    assert (first["task"], first["output"], first["ran"]) == ("extract", str(tmp_path / "features.h5"), True)
    assert [list(values)[5:] for values in others] == [["output"]]
    assert result_of("status", "status", plan)["up_to_date"] is True
    page = tmp_path / "report.html"
    reported = result_of("report", "report", "--features", trained[0] / "f.h5", "--output", page)
    assert reported["bytes"] == page.stat().st_size
    assert result_of("doctor", "doctor", "--seconds", 0)["throughput"] is None


def test_those_of_an_export() -> None:
    fields = export_fields(ExportSummary(Path("out"), ("decoder_step.onnx", "manifest.json"), 3e-6, 1234))
    assert list(fields) == documented()["export"]
    assert fields["files"] == ("decoder_step.onnx", "manifest.json")


def test_those_of_the_demo() -> None:
    summary = DemoSummary(Path("d"), Path("d/page.html"), None, Path("d/c.csv"), (), 190, 200, 12.3456)
    fields = demo_fields(summary)
    assert list(fields) == documented()["demo"]
    assert fields["report"] is None
    assert (fields["right"], fields["held_out"], fields["seconds"]) == (190, 200, 12.346)
