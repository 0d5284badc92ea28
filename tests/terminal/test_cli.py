"""Each command as a user runs it: exit code, what it prints, what is on disk."""

import csv
import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from builders import draw_photos, make_store, make_task
from click.testing import CliRunner, Result
from processes import start_command

from captionmill.cli import main
from captionmill.data.features.store import FeatureStore

THIN = ["--backbone", "scenes-resnet14", "--preprocess", "squash", "--image-size", "32"]
OLD_TABLE = "path,caption,confidence,flags,status,error\nold.jpg,an old caption,0.5,,ok,\n"
SMALL = [
    "--min-count",
    "1",
    "--embed-dim",
    "16",
    "--hidden-dim",
    "32",
    "--dropout",
    "0",
    "--feature-dropout",
    "0",
    "--learning-rate",
    "0.02",
]
SMALL += ["--batch-size", "4", "--max-epochs", "40", "--patience", "40"]


def small(*changes: object) -> list[object]:
    """The options of a small training, with other values of some."""
    values: dict[object, object] = dict(zip(SMALL[::2], SMALL[1::2], strict=True))
    values |= dict(zip(changes[::2], changes[1::2], strict=True))
    return [word for option in values.items() for word in option]


ONE_EPOCH = small("--max-epochs", 1)


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False, env=env)


def fail(*arguments: object, code: int = 1) -> str:
    """The error line of a command that is expected to fail."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: ")
    return lines[-1]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def trained(thin_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, their captions (one of each colour in train, its twin in val), a store, a model."""
    folder = tmp_path_factory.mktemp("trained")
    draw_photos(folder / "photos")
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        for image in sorted((folder / "photos").rglob("*_*.*")):
            colour, number = image.stem.split("_")
            split = "train" if int(number) < 4 else "val"
            key = image.relative_to(folder / "photos").as_posix()
            writer.writerow([key, f"a {colour} picture, all {colour}", split])
    extracted = run("extract", folder / "photos", "--output", folder / "f.h5", *THIN, "--weights", thin_weights)
    assert extracted.exit_code == 0, extracted.output
    arguments = ["--captions", folder / "captions.csv", "--output", folder / "model"]
    result = run("train", folder / "f.h5", *arguments, *SMALL)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """The model of a copy of `trained` in `tmp_path`."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "model"


@pytest.fixture
def captions(model: Path) -> Path:
    return model.with_name("captions.csv")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    if not (tmp_path / "photos").exists():
        draw_photos(tmp_path / "photos")
    return tmp_path / "photos"


def test_extract_tells_what_it_did_and_lists_what_failed(photos: Path, thin_weights: Path, tmp_path: Path) -> None:
    arguments = ["extract", photos, "--output", tmp_path / "f.h5", *THIN, "--weights", thin_weights]
    result = run(*arguments)
    assert result.exit_code == 0
    assert f"{tmp_path / 'f.h5'}: 9 images found: 0 cached before, 8 extracted, 1 failed; " in result.stdout
    assert "broken.jpg: " in result.stderr
    assert [row["key"] for row in read_csv(tmp_path / "failures.csv")] == ["broken.jpg"]
    assert len(FeatureStore.open(tmp_path / "f.h5")) == 8
    again = run(*arguments)
    assert again.stdout == f"{tmp_path / 'f.h5'}: 9 images found: 8 cached before, 0 extracted, 1 failed\n"


def test_extract_strict_fails_when_an_image_does(photos: Path, thin_weights: Path, tmp_path: Path) -> None:
    arguments = ["extract", photos, "--output", tmp_path / "f.h5", *THIN, "--weights", thin_weights, "--strict"]
    assert fail(*arguments) == "Error: 1 image cannot be read, and --strict is given"
    assert len(FeatureStore.open(tmp_path / "f.h5")) == 8


def test_extract_takes_a_list_of_paths_and_a_limit(photos: Path, thin_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("photos/red_0.png\nphotos/more/green_1.png\nphotos/gone.png\n")
    result = run(
        "extract", tmp_path / "list.txt", "--output", tmp_path / "f.h5", *THIN, "--weights", thin_weights, "--limit", 2
    )
    assert result.exit_code == 0
    assert "2 images found: 0 cached before, 1 extracted, 1 failed" in result.stdout
    assert FeatureStore.open(tmp_path / "f.h5").keys == ["photos/more/green_1.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "gone", "--output", "f.h5"], "Path 'gone' does not exist"),
        (["extract", ".", "--output", "f.h5", "--batch-size", "0"], "0 is not in the range 1<=x<=1000000"),
        (["extract", ".", "--output", "f.h5", "--backbone", "resnet18"], "'resnet18' is not one of 'resnet50'"),
        (["train", "f.h5", "--captions", "gone.csv", "--output", "m"], "'gone.csv' does not exist"),
        (["train", "f.h5", "--output", "m", "--learning-rate", "inf"], "'--learning-rate': inf is not a finite number"),
        (["train", "f.h5", "--output", "m", "--weight-decay", "nan"], "'--weight-decay': nan is not a finite number"),
        (["train", "f.h5", "--output", "m", "--clip-norm", "0"], "'--clip-norm': 0.0 is not in the range x>=0.001"),
        (["caption", ".", "--output", "c.csv"], "Missing option '--model'"),
        (["caption", ".", "--model", "m", "--output", "c.csv", "--in-place"], "need --embed-metadata"),
        (
            ["caption", ".", "--model", "m", "--output", "c", "--embed-metadata", "--in-place", "--copies", "d"],
            "--in-place makes no copies",
        ),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], message: str) -> None:
    assert message in fail(*arguments, code=2)


def test_train_shows_splits_epochs_and_the_model(model: Path, captions: Path, tmp_path: Path) -> None:
    result = run("train", tmp_path / "f.h5", "--captions", captions, "--output", tmp_path / "other", *ONE_EPOCH)
    assert "images: 4 train, 4 val, 0 test\n" in result.stderr
    assert "epoch 1: loss " in result.stderr
    assert result.stdout.startswith(f"{tmp_path / 'other'}: 11 words, epoch ")
    names = ["README.md", "bundle.json", "config.json", "curves.png", "events", "history.csv", "samples.csv"]
    names += ["unmatched.csv"]
    assert sorted(path.name for path in model.iterdir() if path.suffix != ".safetensors") == names
    assert fail("train", tmp_path / "f.h5", "--captions", captions, "--output", model) == (
        f"Error: {model}: holds a model already; pass --overwrite to replace it, or another --output"
    )


def test_train_shows_a_first_score_within_a_long_epoch(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path, train=100)
    options = small("--max-epochs", 1, "--batch-size", 1, "--matcher-epochs", 0)
    result = run("train", features, "--captions", captions, "--output", tmp_path / "model", *options)
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    [first] = [line for line in lines if line.startswith("a third of epoch 1: validation CIDEr-D ")]
    assert lines.index(first) < next(place for place, line in enumerate(lines) if line.startswith("epoch 1: "))


def test_train_without_a_store_names_the_command_that_makes_it(tmp_path: Path) -> None:
    captions = tmp_path / "c.csv"
    captions.write_text("image,caption\na.jpg,a dog\n")
    message = fail("train", tmp_path / "f.h5", "--captions", captions, "--output", tmp_path / "model")
    assert message == (f"Error: {tmp_path / 'f.h5'}: no such feature store; `captionmill extract` makes one")


def test_caption_writes_a_row_for_every_image_found(model: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "captions.csv"
    result = run("caption", photos, "--model", model, "--output", output)
    assert result.exit_code == 0, result.output
    assert f"{output}: 9 images found: 8 captioned (0 from cached features), 1 failed; " in result.stdout
    rows = read_csv(output)
    assert list(rows[0]) == ["path", "caption", "confidence", "flags", "status", "error"]
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    for row in rows:
        if row["path"] == "broken.jpg":
            assert (row["caption"], row["confidence"], row["status"]) == ("", "", "failed")
            assert row["error"]
        else:
            colour = Path(row["path"]).stem.split("_")[0]
            assert row["caption"] == f"a {colour} picture all {colour}"
            assert 0 < float(row["confidence"]) <= 1
            assert (row["status"], row["error"]) == ("ok", "")
    (tmp_path / "photos" / "broken.jpg").unlink()
    again = run("caption", photos, "--model", model, "--output", output)
    assert "8 images found: 8 captioned (8 from cached features, 8 rows as before), 0 failed" in again.stdout
    assert len(read_csv(output)) == 8


def test_caption_writes_a_gallery_of_every_image_found(model: Path, photos: Path, tmp_path: Path) -> None:
    output, page_path = tmp_path / "made.csv", tmp_path / "page.html"
    arguments = ["caption", photos, "--model", model, "--output", output, "--gallery"]
    result = run(*arguments, page_path)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(f"{page_path}: the gallery, open it in a browser\n")
    page = page_path.read_text(encoding="utf-8")
    assert "<title>Captions of photos</title>" in page
    assert "<b>9</b> images" in page
    found = re.search(r'<script type="application/json" id="rows">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    shown = [(path, caption) for path, caption, *_ in json.loads(found[1])]
    assert shown == [(row["path"], row["caption"]) for row in read_csv(output)]
    before = output.read_bytes()
    assert "cannot be the gallery and another output" in fail(*arguments, output)
    assert output.read_bytes() == before


def test_another_folder_with_the_same_names_gets_its_own_captions(model: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "c.csv"
    run("caption", photos, "--model", model, "--output", output)
    (tmp_path / "swapped").mkdir()
    (tmp_path / "swapped" / "red_0.png").write_bytes((photos / "blue_2.png").read_bytes())
    result = run("caption", tmp_path / "swapped", "--model", model, "--output", output)
    assert "1 image found: 1 captioned (0 from cached features), 0 failed" in result.stdout
    assert [(row["path"], row["caption"]) for row in read_csv(output)] == [("red_0.png", "a blue picture all blue")]


def test_caption_searches_and_samples_as_asked(model: Path, photos: Path, tmp_path: Path) -> None:
    def texts(*options: str) -> list[str]:
        arguments = ["--model", model, "--output", tmp_path / "c.csv", "--features", tmp_path / "f.h5", *options]
        result = run("caption", photos, *arguments)
        assert result.exit_code == 0, result.output
        return [row["caption"] for row in read_csv(tmp_path / "c.csv") if row["status"] == "ok"]

    plain = texts()
    assert "a blue picture all blue" in plain
    once = texts("--no-repeat-ngram", "1")
    assert len(once) == len(plain)
    assert all(len(set(text.split())) == len(text.split()) for text in once)
    assert {len(text.split()) for text in texts("--max-length", "3", "--min-length", "3")} == {3}
    wild = ["--sample", "--temperature", "100", "--seed"]
    assert texts(*wild, "1") == texts(*wild, "1") != texts(*wild, "2")
    assert texts("--sample", "--top-k", "1") == texts("--beam-size", "1")


def test_search_options_that_contradict_each_other_are_one_line(model: Path, photos: Path, tmp_path: Path) -> None:
    result = run("caption", photos, "--model", model, "--output", tmp_path / "c.csv", "--top-p", "0.9")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: --top-p does nothing without --sample: set that too, or leave this out\n",
    )
    result = run(
        "evaluate", tmp_path / "f.h5", "--model", model, "--captions", tmp_path / "captions.csv", "--alternatives", "20"
    )
    assert result.exit_code == 1
    assert result.stderr == "Error: --alternatives 20 needs --beam-size or --candidates 21 or more, not 20\n"


def test_caption_of_other_features_is_refused_and_keeps_the_table(
    model: Path, photos: Path, thin_weights: Path, tmp_path: Path
) -> None:
    run("extract", photos, "--output", tmp_path / "other.h5", *THIN[:-1], "48", "--weights", thin_weights)
    (tmp_path / "captions_before.csv").write_text(OLD_TABLE)
    arguments = ["--model", model, "--output", tmp_path / "captions_before.csv", "--features", tmp_path / "other.h5"]
    assert fail("caption", photos, *arguments).endswith(
        "the model has image_size: 32, not 48; resize_size: 32, not 48; pass another --features, or --overwrite to "
        "make them again"
    )
    assert (tmp_path / "captions_before.csv").read_text() == OLD_TABLE


def test_caption_finds_moved_weights_by_option_and_refuses_other_ones(
    model: Path, photos: Path, thin_weights: Path, tmp_path: Path
) -> None:
    bundle_path = model / "bundle.json"
    bundle = json.loads(bundle_path.read_text())
    bundle["features"]["weights"] = str(tmp_path / "gone.safetensors")
    bundle_path.write_text(json.dumps(bundle))
    arguments = ["caption", photos, "--model", model, "--output", tmp_path / "c.csv"]
    assert "pass that file as --weights" in fail(*arguments)
    assert run(*arguments, "--weights", thin_weights).exit_code == 0


def test_caption_of_a_folder_without_readable_images_still_writes_the_reasons(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"nothing")
    message = fail("caption", tmp_path / "bad", "--model", model, "--output", tmp_path / "c.csv")
    assert "none of 1 images can be read" in message
    assert [row["status"] for row in read_csv(tmp_path / "c.csv")] == ["failed"]


def test_evaluate_prints_a_table_and_writes_json(model: Path, captions: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    (tmp_path / "list.txt").write_text("blue_6.JPG\nmore/yellow_7.JPG\nnowhere.jpg\n")
    arguments = ["--captions", captions, "--list", tmp_path / "list.txt", "--output", output]
    result = run("evaluate", tmp_path / "f.h5", "--model", model, *arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == ["2 images: listed in list.txt", "  BLEU-1   1.0000  95 % [1.0000, 1.0000]"]
    assert lines[4:6] == ["  BLEU-4   1.0000  95 % [1.0000, 1.0000]", "  ROUGE-L  1.0000  95 % [1.0000, 1.0000]"]
    assert lines[6].startswith("  CIDEr-D  ")
    assert lines[7:] == [
        "captions",
        "  length                5.0 words, mean",
        "  distinct              2 of 2",
        "  vocabulary used       71.4%, 5 words",
        "  copied from training  100.0%",
        "  repeated word         0.0%",
        "  repeated trigram      0.0%",
    ]
    assert "  nowhere.jpg\n" in result.stderr
    scores = json.loads(output.read_text())
    assert scores["images"] == 2
    assert scores["scores"]["rouge_l"] == 1.0
    assert scores["intervals"]["rouge_l"] == [1.0, 1.0]
    assert scores["bootstrap"] == {"resamples": 1000, "seed": 0, "level": 0.95}
    assert (scores["against"], scores["left_out"]) == (None, [])
    assert scores["caption_statistics"] == {
        "mean_length": 5.0,
        "distinct": 2,
        "words_used": 5,
        "vocabulary_share": 0.714286,
        "copied": 1.0,
        "training_images": 4,
        "training_images_missing": 0,
        "repeated_word": 0.0,
        "repeated_trigram": 0.0,
    }


def test_evaluate_writes_a_row_for_each_image_that_no_spreadsheet_takes_for_a_formula(
    model: Path, captions: Path, tmp_path: Path
) -> None:
    store = FeatureStore.open(tmp_path / "f.h5")
    rows = np.stack([store["blue_6.JPG"], store["more/yellow_7.JPG"]])
    make_store(tmp_path / "odd.h5", ["=cmd.jpg", "a,b.jpg"], rows, store.spec)
    (tmp_path / "odd.csv").write_text('image,caption\n=cmd.jpg,a blue picture all blue\n"a,b.jpg",a red picture\n')
    table = tmp_path / "per" / "image.csv"
    arguments = ["--model", model, "--captions", tmp_path / "odd.csv", "--per-image", table, "--java-metrics"]
    result = run("evaluate", tmp_path / "odd.h5", *arguments, env={"PATH": ""})
    assert result.exit_code == 0, result.output
    assert "Note: METEOR is left out: Java is not installed here\n" in result.stderr
    assert "Note: SPICE is left out: Java is not installed here\n" in result.stderr
    assert (
        "  copied from training  unknown, the captions file has no training captions of this model\n" in result.stdout
    )
    first, second = read_csv(table)
    assert 0 < float(first.pop("confidence")) <= 1
    assert float(first.pop("cider_d")) > float(second["cider_d"])
    assert first == {
        "key": "'=cmd.jpg",
        "caption": "a blue picture all blue",
        "bleu_4": "1.0000",
        "rouge_l": "1.0000",
        "words": "5",
        "copied": "",
        "repeated_word": "no",
        "repeated_trigram": "no",
    }
    assert (second["key"], second["caption"]) == ("a,b.jpg", "a yellow picture all yellow")
    assert float(second["bleu_4"]) < 0.001


def test_evaluate_against_another_model_shows_paired_differences(model: Path, captions: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    trained = run("train", tmp_path / "f.h5", "--captions", captions, "--output", other, *ONE_EPOCH)
    assert trained.exit_code == 0, trained.output
    (tmp_path / "list.txt").write_text("red_4.JPG\nmore/green_5.JPG\nblue_6.JPG\nmore/yellow_7.JPG\n")
    arguments = ["--captions", captions, "--list", tmp_path / "list.txt", "--output", tmp_path / "scores.json"]
    evaluated = ["evaluate", tmp_path / "f.h5", "--model", model, *arguments]

    result = run(*evaluated, "--against", other, "--resamples", 200, "--seed", 5)

    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[7] == "difference to other, paired"
    assert re.fullmatch(r"  ROUGE-L  \+0\.\d{4}  95 % \[\+0\.\d{4}, \+[01]\.\d{4}\]", lines[12])
    written = json.loads((tmp_path / "scores.json").read_text())
    alone = run("evaluate", tmp_path / "f.h5", "--model", other, *arguments)
    assert alone.exit_code == 0
    against = written["against"]
    assert against["model"] == "other"
    assert against["scores"] == json.loads((tmp_path / "scores.json").read_text())["scores"]
    for name, difference in against["differences"].items():
        low, high = against["difference_intervals"][name]
        assert low <= difference <= high
        assert difference == pytest.approx(written["scores"][name] - against["scores"][name], abs=2e-6)
    assert written["bootstrap"] == {"resamples": 200, "seed": 5, "level": 0.95}

    itself = run(*evaluated, "--against", model)
    assert itself.stdout.count("+0.0000  95 % [+0.0000, +0.0000]") == 6


def test_evaluate_against_a_model_of_other_features_is_one_line(
    model: Path, captions: Path, photos: Path, thin_weights: Path, tmp_path: Path
) -> None:
    run("extract", photos, "--output", tmp_path / "g.h5", *THIN[:-1], "48", "--weights", thin_weights)
    other = tmp_path / "other"
    arguments = ["--captions", captions]
    trained = run("train", tmp_path / "g.h5", *arguments, "--output", other, *ONE_EPOCH)
    assert trained.exit_code == 0, trained.output
    message = fail("evaluate", tmp_path / "f.h5", "--model", model, *arguments, "--against", other)
    misfit = f"{other} has image_size: 48, not 32; resize_size: 48, not 32"
    assert message == f"Error: {other} and {tmp_path / 'f.h5'} do not fit: {misfit}"
    message = fail("evaluate", tmp_path / "f.h5", "--model", model, *arguments, "--against", tmp_path / "none")
    assert message.startswith(f"Error: {tmp_path / 'none'}: no trained model here")


def test_vocabulary_prints_words_and_indices(model: Path) -> None:
    lines = run("vocabulary", model).stdout.splitlines()
    assert lines[:4] == ["0\t<pad>", "1\t<start>", "2\t<end>", "3\t<unk>"]
    assert lines[4:8] == ["4\ta", "5\tall", "6\tpicture", "7\tblue"]
    assert run("vocabulary", model, "--word", "Picture").stdout == "6\n"
    assert fail("vocabulary", model, "--word", "tree").startswith("Error: tree: not among the 11 words of ")


def test_features_info_and_verify(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    info = run("features", "info", path)
    assert info.stdout.startswith(f"{path}: 8 images, float16, 0.0 MB\n")
    assert "backbone        scenes-resnet14\n" in info.stdout
    assert run("features", "verify", path).stdout == f"{path}: 8 rows, all intact\n"
    store = FeatureStore.open(path)
    content = bytearray(path.read_bytes())
    content[content.index(store["red_0.png"].tobytes()) + 100] ^= 4
    path.write_bytes(content)
    result = run("features", "verify", path)
    assert result.exit_code == 1
    assert "  red_0.png\n" in result.stderr
    assert f"Error: {path}: 1 of 8 rows are damaged" in result.stderr


def test_an_output_that_cannot_be_written_is_a_one_line_error(model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = fail("caption", photos, "--model", model, "--output", tmp_path / "file" / "captions.csv")
    assert "file" in message
    assert "Traceback" not in message


def test_ctrl_c_ends_a_training_in_words_and_leaves_the_old_model(model: Path, captions: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    arguments = ["train", tmp_path / "f.h5", "--captions", captions, "--output", model, "--overwrite"]
    arguments += small("--max-epochs", 9999, "--patience", 9999)
    with start_command(*arguments, output=tmp_path / "told") as process:
        while not (tmp_path / "model.training" / "bundle.json").exists():
            assert process.is_running()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    stderr = (tmp_path / "told").read_text()
    assert "A finished output is unchanged.\n" in stderr
    assert "Traceback" not in stderr
    assert {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()} == before


def test_an_output_that_is_an_input_is_refused_and_untouched(model: Path, captions: Path, tmp_path: Path) -> None:
    store = tmp_path / "f.h5"
    before = (store.read_bytes(), captions.read_bytes())
    (tmp_path / "list.txt").write_text("photos/red_0.png\n")
    refused = "is an input of this command and would be overwritten; name another output"
    assert refused in fail("evaluate", store, "--model", model, "--captions", captions, "--output", captions)
    assert refused in fail("evaluate", store, "--model", model, "--captions", captions, "--output", store)
    assert refused in fail("evaluate", store, "--model", model, "--captions", captions, "--per-image", captions)
    for path in [path for path in model.iterdir() if path.name.startswith(("bundle", "decoder"))]:
        content = path.read_bytes()
        assert refused in fail("evaluate", store, "--model", model, "--captions", captions, "--output", path)
        assert refused in fail("leaks", store, "--model", model, "--output", path)
        assert path.read_bytes() == content
    assert "name two files" in fail(
        "evaluate",
        store,
        "--model",
        model,
        "--captions",
        captions,
        "--per-image",
        tmp_path / "x",
        "--output",
        tmp_path / "x",
    )
    assert refused in fail("caption", tmp_path / "list.txt", "--model", model, "--output", tmp_path / "list.txt")
    assert "table and the cache" in fail(
        "caption", tmp_path / "list.txt", "--model", model, "--output", tmp_path / "x", "--features", tmp_path / "x"
    )
    assert (store.read_bytes(), captions.read_bytes()) == before


def test_train_removes_only_what_a_training_left(model: Path, captions: Path, tmp_path: Path) -> None:
    (model / "decoder-mine.safetensors").write_text("mine")
    arguments = ["train", tmp_path / "f.h5", "--captions", captions, "--output", model, "--overwrite"]
    assert run(*arguments, *ONE_EPOCH).exit_code == 0
    assert (model / "decoder-mine.safetensors").read_text() == "mine"
    (tmp_path / "model.training").mkdir()
    (tmp_path / "model.training" / "thesis.txt").write_text("years of work")
    assert "holds other files (thesis.txt); move it away" in fail(*arguments, *SMALL)
    assert (tmp_path / "model.training" / "thesis.txt").read_text() == "years of work"


def test_a_name_with_a_carriage_return_is_one_row(model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / 'a,"b\r.png').write_bytes((photos / "red_0.png").read_bytes())
    assert run("caption", tmp_path / "odd", "--model", model, "--output", tmp_path / "c.csv").exit_code == 0
    assert [row["path"] for row in read_csv(tmp_path / "c.csv")] == ['a,"b\r.png']


def test_scoring_images_that_were_trained_on_is_told(model: Path, captions: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("red_0.png\nblue_6.JPG\n")
    result = run(
        "evaluate", tmp_path / "f.h5", "--model", model, "--captions", captions, "--list", tmp_path / "list.txt"
    )
    assert "Warning: 1 of the 2 images scored are ones that the model was trained on" in result.stderr


def test_why_one_image_has_no_cider_is_told(model: Path, captions: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("blue_6.JPG\n")
    evaluate = [
        "evaluate",
        tmp_path / "f.h5",
        "--model",
        model,
        "--captions",
        captions,
        "--list",
        tmp_path / "list.txt",
    ]
    result = run(*evaluate)
    assert "CIDEr-D  0.0000" in result.stdout
    assert "Warning: one image: its CIDEr-D is 0 whatever its caption" in result.stderr
    (tmp_path / "list.txt").write_text("blue_6.JPG\nred_0.png\n")
    assert "one image" not in run(*evaluate).stderr


def test_a_killed_caption_leaves_the_old_table_and_the_next_run_makes_the_new_one(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "captions_of_photos.csv"
    output.write_text(OLD_TABLE)
    with start_command("caption", photos, "--model", model, "--output", output) as process:
        while not (tmp_path / "captions_of_photos.features.h5.parts").exists():
            assert process.is_running()
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert output.read_text() == OLD_TABLE
    assert run("caption", photos, "--model", model, "--output", output).exit_code == 0
    assert len(read_csv(output)) == 9


def test_several_models_caption_and_are_scored_as_one(
    model: Path, captions: Path, photos: Path, tmp_path: Path
) -> None:
    trained = run(
        *["train", tmp_path / "f.h5", "--captions", captions, "--output", tmp_path / "second", *SMALL, "--seed", 1]
    )
    assert trained.exit_code == 0, trained.output
    models = ["--model", model, "--model", tmp_path / "second"]
    result = run("caption", photos, *models, "--output", tmp_path / "both.csv")
    assert result.exit_code == 0, result.output
    run("caption", photos, *models[:2], "--output", tmp_path / "one.csv")
    both, one = read_csv(tmp_path / "both.csv"), read_csv(tmp_path / "one.csv")
    assert [row["caption"] for row in both] == [row["caption"] for row in one]
    assert [row["confidence"] for row in both] != [row["confidence"] for row in one]
    (tmp_path / "list.txt").write_text("blue_6.JPG\nmore/yellow_7.JPG\n")
    arguments = ["--captions", captions, "--list", tmp_path / "list.txt", "--output", tmp_path / "scores.json"]
    scored = run("evaluate", tmp_path / "f.h5", *models, *arguments)
    assert scored.stdout.startswith("2 images: listed in list.txt\n  BLEU-1   1.0000  95 % ")
    assert json.loads((tmp_path / "scores.json").read_text())["model"] == ["model", "second"]
    run("evaluate", tmp_path / "f.h5", *models[:2], *arguments)
    assert json.loads((tmp_path / "scores.json").read_text())["model"] == "model"


def test_models_with_other_words_are_refused_in_one_line(
    model: Path, captions: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.csv").write_text(captions.read_text().replace("picture", "photo"))
    other = tmp_path / "other"
    run("train", tmp_path / "f.h5", "--captions", tmp_path / "other.csv", "--output", other, *ONE_EPOCH)
    message = fail("caption", photos, "--model", model, "--model", other, "--output", tmp_path / "c.csv")
    assert message.startswith(
        f"Error: {model} and {other} have different vocabularies: index 6 is picture in {model}, "
    )
    assert not (tmp_path / "c.csv").exists()
