"""`captionmill search` and `captionmill audit` as a user runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import ROOT, damage, draw_photos, make_matching_model, make_model, make_spec, make_store
from click.testing import CliRunner, Result

import captionmill
from captionmill.cli import main
from captionmill.data.errors import InputError
from captionmill.stages.settings import ExtractConfig

WORDS = ("a", "red", "blue", "dog", "cat", "läuft", "on", "grass")
CPU = ("--device", "cpu")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def fail(*arguments: object) -> str:
    """The one error line of a command that fails."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of an image for each word, one more of two words, and a model."""
    folder = tmp_path_factory.mktemp("search")
    rows = np.concatenate([np.eye(8), [[0, 3, 0, 4, 0, 0, 0, 0]]]).astype(np.float32)
    keys = [*(f"{word}.png" for word in WORDS), "red dog.png"]
    order = np.argsort(keys)
    make_store(folder / "f.h5", sorted(keys), rows[order])
    make_matching_model(folder / "model", make_spec())
    return folder


def test_words_find_the_images_that_fit_them(searched: Path, tmp_path: Path) -> None:
    given = ("search", searched / "f.h5", "--model", searched / "model", *CPU)
    result = run(*given, "Dog!", "--top", 2)
    assert result.stdout == " 1.0000  dog.png\n 0.8000  red dog.png\n"
    several = run(*given, "a red dog", "bird", "--top", 1, "--format", "csv")
    assert several.stdout == f"key,cosine\nred dog.png,{7 / 5 / 3**0.5:.4f}\n"
    assert "Note: the model does not know these words: bird\n" in several.stderr
    assert run(*given, "dog", "--top", 1, "--output", tmp_path / "found.jsonl").stdout == (
        f"{tmp_path / 'found.jsonl'}: the best 1 of 9 images\n"
    )
    assert (tmp_path / "found.jsonl").read_text() == '{"key": "dog.png", "cosine": 1.0}\n'
    assert run(*given, "läuft", "--top", 1, "--format", "jsonl").stdout == '{"key": "läuft.png", "cosine": 1.0}\n'


def test_a_key_finds_the_images_like_it_and_not_itself(searched: Path) -> None:
    found = captionmill.search_store(
        str(searched / "f.h5"), searched / "model", like="dog.png", top=1, machine=ExtractConfig(device="cpu")
    )
    assert [(image.key, round(image.cosine, 5)) for image in found.images] == [("red dog.png", 0.8)]
    assert (found.searched, found.damaged, found.unknown_words) == (8, (), ())


def test_the_page_shows_them_in_order(searched: Path, tmp_path: Path) -> None:
    draw_photos(tmp_path / "photos").joinpath("red_0.png").rename(tmp_path / "photos" / "dog.png")
    page = tmp_path / "page.html"
    files = captionmill.RetrievalFiles(gallery=page, images=tmp_path / "photos")
    captionmill.search_store(searched / "f.h5", searched / "model", "dog", top=2, files=files)
    content = page.read_text(encoding="utf-8")
    assert re.findall(r'\["([^"]+)", ?"(cosine [^"]+)"', content) == [
        ("dog.png", "cosine 1.0000"),
        ("red dog.png", "cosine 0.8000"),
    ]
    assert "photos/dog.png" in content


def test_a_file_is_compared_by_the_features_that_extract_makes(
    photos: Path, thin_weights: Path, tmp_path: Path
) -> None:
    thin = ["--backbone", "scenes-resnet14", "--preprocess", "squash", "--image-size", "32", "--engine", "torch", *CPU]
    assert run("extract", photos, "--output", tmp_path / "f.h5", "--weights", thin_weights, *thin).exit_code == 0
    store = captionmill.FeatureStore.open(tmp_path / "f.h5")
    model = make_model(tmp_path / "model", store.spec)
    assert "has no matcher, which compares images with words; train it again, with --matcher-epochs above 0" in fail(
        "search", tmp_path / "f.h5", "red", "--model", model
    )  # an option of another command
    make_matching_model(model, store.spec)
    given = ("search", tmp_path / "f.h5", "--model", model, "--weights", thin_weights, "--engine", "torch", *CPU)
    result = run(*given, "--like", photos / "red_0.png", "--top", 1)
    assert result.stdout == " 1.0000  red_0.png\n"
    assert fail(*given, "--like", "no.png") == (
        f"Error: no.png: neither a key of {tmp_path / 'f.h5'} nor an image file; check how it is written"
    )


def test_what_cannot_be_searched_is_one_line(searched: Path, tmp_path: Path) -> None:
    given = ("search", searched / "f.h5", "--model", searched / "model", *CPU)
    assert fail(*given, "zebra") == (
        f"Error: 'zebra': {searched / 'model'} knows none of these words; `captionmill vocabulary` lists those that it "
        "knows"
    )
    assert fail(*given) == "Error: a search needs words, or an image as --like, and not both"
    for nothing in ("", " ", "?!"):
        assert fail(*given, nothing) == f"Error: a search needs words, and there are none in {nothing!r}"
    assert (
        fail(*given, "dog", "--like", "dog.png") == "Error: a search needs words, or an image as --like, and not both"
    )
    assert fail(*given, "dog", "--images", searched) == (
        "Error: --images are shown on a page: name its file with --gallery"
    )
    assert "would be overwritten" in fail(*given, "dog", "--output", searched / "f.h5")
    both = tmp_path / "both.csv"
    assert fail(*given, "dog", "--output", both, "--gallery", both) == (
        f"Error: {both}: cannot be the table and the page at once; name another file as --gallery"
    )
    with pytest.raises(InputError, match="has no matcher"):
        captionmill.search_store(searched / "f.h5", make_model(tmp_path / "model", make_spec()), "dog")


def test_an_audit_lists_the_captions_that_fit_worst(searched: Path, tmp_path: Path) -> None:
    captions, store = tmp_path / "captions.csv", tmp_path / "f.h5"
    store.write_bytes((searched / "f.h5").read_bytes())
    texts = {word: word for word in WORDS} | {"dog": "cat", "cat": "dog", "gone": "a", "a": "a heron"}
    captions.write_text("image,caption\n" + "".join(f"{word}.png,{text}\n" for word, text in texts.items()))
    given = ("audit", store, "--captions", captions, "--model", searched / "model", *CPU)
    result = run(*given, "--top", 2)
    assert [line.split()[1:] for line in result.stdout.splitlines()] == [["cat.png", "dog"], ["dog.png", "cat"]]
    assert result.stderr.endswith(
        "Note: the model does not know 11.1% of the words (heron); what they say is not compared\n"
        "Not compared, without features: 1\n  gone.png\n"
    )
    damage(store, "cat.png")
    table = tmp_path / "audit.csv"
    result = run(*given, "--top", 1, "--output", table)
    assert result.stdout == f"{table}: the worst 1 of 7 captions of 7 images\n"
    assert result.stderr.endswith("Not compared, as their features are damaged: 1; run extract again\n  cat.png\n")
    assert table.read_text(encoding="utf-8").splitlines()[1].startswith("dog.png,cat,-")


def test_wrong_arguments_and_files_are_named_before_torch_is_imported(searched: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", make_spec())
    captions = tmp_path / "c.csv"
    captions.write_text("image,caption\ndog.png,a dog\n")
    store, good = str(searched / "f.h5"), str(searched / "model")
    commands = [
        ["search", store, "zebra", "--model", good],
        ["search", store, "dog", "--model", str(model)],
        ["search", store, "--like", "no.png", "--model", good],
        ["audit", store, "--captions", str(captions), "--model", str(model)],
    ]
    program = f"""
import sys
from click.testing import CliRunner
from captionmill.cli import main
for words in {commands!r}:
    print(CliRunner().invoke(main, words).exit_code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1 False\n" * 4


def test_json_has_the_documented_fields(searched: Path, tmp_path: Path) -> None:
    table = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").partition("## Results as")[2]
    captions = tmp_path / "c.csv"
    captions.write_text("image,caption\ndog.png,a dog\n")
    given: dict[str, list[object]] = {"search": ["dog"], "audit": ["--captions", captions]}
    for name, words in given.items():
        result = run(name, searched / "f.h5", *words, "--model", searched / "model", "--log-format", "json", *CPU)
        values = json.loads(result.stdout)
        (cell,) = re.findall(rf"^\| `{name}` \| (.*) \|$", table, re.M)
        assert list(values)[5:] == re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", cell))
