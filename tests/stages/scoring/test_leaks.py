"""Identical and nearly identical images across splits are found, each pair once, whatever the size of the tiles."""

import csv
from pathlib import Path

import numpy as np
import pytest
from builders import make_model, make_rows, make_spec, make_store
from click.testing import CliRunner, Result

from captionmill.cli import main
from captionmill.data.errors import InputError
from captionmill.data.features.file import Features
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.images.read import UNKNOWN_SOURCE, ImageSource
from captionmill.stages.scoring.leaks import LeakLimits, LeakPair, PairCount, find_leaks
from captionmill.stages.scoring.settings import LeakConfig

ROWS = {  # unit vectors in a plane: the cosine of two is that of the angle between them, degrees
    "a.jpg": 0,
    "b.jpg": 90,
    "c.jpg": 10,
    "d.jpg": 45,
    "e.jpg": 75,
    "f.jpg": 0,
    "unused.jpg": 0,
}
SPLITS = {"train": ["a.jpg", "b.jpg", "gone.jpg"], "val": ["c.jpg", "d.jpg"], "test": ["e.jpg", "f.jpg"]}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["leaks", *map(str, arguments)], catch_exceptions=False)


def write_store(path: Path, keys: list[str], rows: Features, hashes: dict[str, int]) -> Path:
    sources = [ImageSource(1000, 0, hashes[key]) if key in hashes else UNKNOWN_SOURCE for key in keys]
    with FeatureWriter(path, make_spec(feature_dim=rows.shape[1]), dtype="float32", made_by={}) as writer:
        writer.add(keys, rows, sources)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Rows of the angles of `ROWS`, of different lengths; a and f are one file, b's hash is c's but for a bit."""
    angles = np.deg2rad(list(ROWS.values()))
    rows = np.zeros((len(ROWS), 8), dtype=np.float32)
    rows[:, 0], rows[:, 1] = np.cos(angles), np.sin(angles)
    rows *= np.arange(1, len(ROWS) + 1, dtype=np.float32)[:, None]
    high = 2**63 + 5
    return write_store(
        tmp_path / "f.h5", list(ROWS), rows, {"a.jpg": high, "f.jpg": high, "b.jpg": 8, "c.jpg": 9, "unused.jpg": high}
    )


@pytest.fixture
def lists(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.txt" for name in SPLITS}
    for name, path in paths.items():
        path.write_text("\n".join(SPLITS[name]) + "\n")
    return paths


def cosine(degrees: float) -> float:
    return float(np.cos(np.deg2rad(degrees)))


def test_pairs_across_splits_the_closest_first(store: Path, lists: dict[str, Path]) -> None:
    report = find_leaks(store, config=LeakConfig(threshold=0.9), lists=lists, device="cpu")
    assert [(pair.key_a, pair.split_a, pair.key_b, pair.split_b, pair.identical) for pair in report.pairs] == [
        ("a.jpg", "train", "f.jpg", "test", True),
        ("a.jpg", "train", "c.jpg", "val", False),
        ("c.jpg", "val", "f.jpg", "test", False),
        ("b.jpg", "train", "e.jpg", "test", False),
    ]
    assert [pair.cosine for pair in report.pairs] == pytest.approx([1, cosine(10), cosine(10), cosine(15)], abs=1e-6)
    assert report.counts == {
        ("train", "val"): PairCount(1, 0),
        ("train", "test"): PairCount(2, 1),
        ("val", "test"): PairCount(1, 0),
    }
    assert report.images == {"train": 2, "val": 2, "test": 2}
    assert (report.without_features, report.in_no_split) == (("gone.jpg",), 1)


def test_within_a_split_each_pair_counts_once(store: Path, lists: dict[str, Path]) -> None:
    config = LeakConfig(threshold=0.8, within=True)
    report = find_leaks(store, config=config, lists={"val": lists["val"]}, device="cpu")
    assert report.counts == {("val", "val"): PairCount(1, 0)}
    (pair,) = report.pairs
    assert pair == LeakPair("c.jpg", "val", "d.jpg", "val", pair.cosine, False)
    assert pair.cosine == pytest.approx(cosine(35), abs=1e-6)
    every = find_leaks(store, config=LeakConfig(threshold=0, within=True), lists=lists, device="cpu")
    assert sum(count.near for count in every.counts.values()) == 6 * 5 / 2
    assert list(every.counts)[:3] == [("train", "train"), ("train", "val"), ("train", "test")]


def test_the_same_file_is_found_whatever_its_features(tmp_path: Path, lists: dict[str, Path]) -> None:
    keys = sorted(key for split in SPLITS.values() for key in split)
    store = write_store(tmp_path / "f.h5", keys, np.eye(8, dtype=np.float32)[: len(keys)], {"b.jpg": 7, "d.jpg": 7})
    report = find_leaks(store, config=LeakConfig(threshold=1.0), lists=lists, device="cpu")
    assert report.pairs == (LeakPair("b.jpg", "train", "d.jpg", "val", 0.0, True),)


def test_an_image_in_two_splits_is_identical_to_itself(tmp_path: Path) -> None:
    store = make_store(tmp_path / "f.h5", ["a.jpg", "b.jpg"], np.eye(2, 8, dtype=np.float32))
    (tmp_path / "one.txt").write_text("a.jpg\nb.jpg\n")
    (tmp_path / "two.txt").write_text("a.jpg\n")
    lists = {"train": tmp_path / "one.txt", "test": tmp_path / "two.txt"}
    assert find_leaks(store, lists=lists, device="cpu").pairs == (
        LeakPair("a.jpg", "train", "a.jpg", "test", 1.0, True),
    )


@pytest.mark.parametrize(("resident", "block"), [(7, 3), (16, 5), (1000, 1000)])
def test_tiles_of_any_size_find_the_same_pairs(tmp_path: Path, resident: int, block: int) -> None:
    keys = [f"{number:03}.jpg" for number in range(60)]
    rows = make_rows(60)
    store = make_store(tmp_path / "f.h5", keys, rows)
    (tmp_path / "train.txt").write_text("\n".join(keys[::3]))
    (tmp_path / "test.txt").write_text("\n".join([*keys[1::3], *keys[2::3]]))
    config = LeakConfig(threshold=0.3, within=True)
    seen: list[tuple[str, int, int]] = []
    report = find_leaks(
        store,
        config=config,
        lists={"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"},
        device="cpu",
        limits=LeakLimits(resident_rows=resident, block_rows=block),
        progress=lambda label, done, total, **_: seen.append((label, done, total)),
    )
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    expected = {frozenset((keys[i], keys[j])) for i in range(60) for j in range(i) if cosines[i, j] >= 0.3}
    assert {frozenset((pair.key_a, pair.key_b)) for pair in report.pairs} == expected
    assert len(report.pairs) == len(expected) == sum(count.near for count in report.counts.values())
    for pair in report.pairs:
        assert (pair.split_a, pair.split_b) in report.counts
        assert pair.cosine == pytest.approx(cosines[keys.index(pair.key_a), keys.index(pair.key_b)], abs=1e-5)
    last = {label: (done, total) for label, done, total in seen}
    assert list(last) == ["train and train", "train and test", "test and test"]
    assert all(done == total for done, total in last.values())


def test_more_pairs_than_are_kept_are_counted(tmp_path: Path) -> None:
    keys = [f"{number:03}.jpg" for number in range(60)]
    rows = make_rows(60)
    store = make_store(tmp_path / "f.h5", keys, rows)
    (tmp_path / "train.txt").write_text("\n".join(keys[:40]))
    (tmp_path / "test.txt").write_text("\n".join(keys[40:]))
    limits = LeakLimits(kept_pairs=10, block_rows=4)
    lists = {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"}
    report = find_leaks(store, config=LeakConfig(threshold=0), lists=lists, device="cpu", limits=limits)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = (unit[:40] @ unit[40:].T).ravel()
    assert report.counts[("train", "test")].near == (cosines >= 0).sum()
    assert [pair.cosine for pair in report.pairs] == pytest.approx(sorted(cosines, reverse=True)[:10], abs=1e-5)


def test_the_command_says_that_the_closest_of_very_many_pairs_are_kept(tmp_path: Path) -> None:
    keys = [f"{number:03}.jpg" for number in range(640)]
    store = make_store(tmp_path / "f.h5", keys, np.abs(make_rows(640)))
    (tmp_path / "train.txt").write_text("\n".join(keys[:320]))
    (tmp_path / "test.txt").write_text("\n".join(keys[320:]))
    lists = ["--train-list", tmp_path / "train.txt", "--test-list", tmp_path / "test.txt"]
    assert "the closest 100,000 of 102,400 pairs are listed" in run(store, *lists, "--threshold", 0).stdout


def test_the_command_prints_a_summary_and_writes_the_pairs(store: Path, lists: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "out" / "leaks.csv"
    options = [argument for name, path in lists.items() for argument in (f"--{name}-list", path)]
    result = run(store, *options, "--threshold", 0.9, "--output", output)
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "images with features: 2 train, 2 val, 2 test\n"
        "train and val: 1 pair of cosine 0.9 or more, 0 identical\n"
        "train and test: 2 pairs of cosine 0.9 or more, 1 identical\n"
        "val and test: 1 pair of cosine 0.9 or more, 0 identical\n"
        "  1.0000  train a.jpg  test f.jpg  identical\n"
        "  0.9848  train a.jpg  val c.jpg\n"
        "  0.9848  val c.jpg  test f.jpg\n"
        "  0.9659  train b.jpg  test e.jpg\n"
    )
    assert result.stderr == (
        "Not compared, without features: 1\n  gone.jpg\nNot compared, in no split: 1 image of the store\n"
    )
    with output.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["key_a", "split_a", "key_b", "split_b", "cosine", "identical"],
            ["a.jpg", "train", "f.jpg", "test", "1.0000", "True"],
            ["a.jpg", "train", "c.jpg", "val", "0.9848", "False"],
            ["c.jpg", "val", "f.jpg", "test", "0.9848", "False"],
            ["b.jpg", "train", "e.jpg", "test", "0.9659", "False"],
        ]


def test_features_of_one_direction_have_a_cosine_of_1_whatever_their_rounding(tmp_path: Path) -> None:
    rows = np.repeat(np.abs(make_rows(50, dim=64)), 2, axis=0)
    store = make_store(tmp_path / "f.h5", [f"{number:03}.jpg" for number in range(100)], rows)
    report = find_leaks(store, config=LeakConfig(threshold=1, within=True), device="cpu")
    assert sorted((int(pair.key_a[:3]), int(pair.key_b[:3])) for pair in report.pairs) == [
        (first, first + 1) for first in range(0, 100, 2)
    ]


def test_the_captions_files_own_splits_are_used_and_long_lists_end_in_a_count(tmp_path: Path) -> None:
    keys = [f"{number:02}.jpg" for number in range(24)]
    store = make_store(tmp_path / "f.h5", keys, np.ones((24, 8), dtype=np.float32))
    lines = [f"{key},a dog,{'train' if number < 12 else 'test'}" for number, key in enumerate(keys)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *lines]))
    result = run(store, "--captions", tmp_path / "captions.csv", "--output", tmp_path / "leaks.csv")
    assert result.stdout.startswith(
        "images with features: 12 train, 12 test\ntrain and test: 144 pairs of cosine 0.86 or more, 0 identical\n"
    )
    assert result.stdout.endswith("  ... and 134 more\n")
    assert len((tmp_path / "leaks.csv").read_text().splitlines()) == 145
    within = run(store, "--captions", tmp_path / "captions.csv", "--within")
    assert "within train: 66 pairs of cosine 0.86 or more, 0 identical\n" in within.stdout


def test_a_models_own_splits_are_used(store: Path, lists: dict[str, Path], tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", make_spec(), splits=SPLITS)
    report = find_leaks(store, model=model, device="cpu")
    assert report == find_leaks(store, lists=lists, device="cpu")
    assert len(report.pairs) == 5
    assert "train and test: 2 pairs of cosine 0.86 or more, 1 identical\n" in run(store, "--model", model).stdout
    beside = run(store, "--model", model, "--test-list", lists["test"])
    assert beside.stderr == f"Error: {model}: the model knows its splits; do not pass captions or lists as well\n"
    no_model = run(store, "--model", tmp_path / "nothing")
    assert (no_model.exit_code, no_model.stderr.count("\n")) == (1, 1)


def test_the_images_of_a_split_may_be_in_any_order(tmp_path: Path) -> None:
    keys = [f"{number}.jpg" for number in range(8)]
    store = make_store(tmp_path / "f.h5", keys, np.ones((8, 8), dtype=np.float32))
    model = make_model(tmp_path / "m", make_spec(), splits={"train": keys[::-1], "val": [], "test": []})
    limits = LeakLimits(resident_rows=2, block_rows=2)
    report = find_leaks(store, config=LeakConfig(within=True), model=model, device="cpu", limits=limits)
    assert len({(pair.key_a, pair.key_b) for pair in report.pairs}) == 8 * 7 / 2


def test_nothing_to_compare_is_said_in_one_line(store: Path, lists: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "plain.csv").write_text("image,caption\na.jpg,a dog\n")
    (tmp_path / "other.txt").write_text("elsewhere/a.jpg\n")
    result = run(store, "--captions", tmp_path / "plain.csv")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {tmp_path / 'plain.csv'}: names no splits; "
        "pass two or more of --train-list, --val-list and --test-list, or the --model whose training drew them\n"
    )
    assert "Error: it is unknown which image is in which split: pass --model, --captions" in run(store).stderr
    for options in (
        ["--train-list", lists["train"]],
        ["--train-list", lists["train"], "--val-list", tmp_path / "other.txt"],
    ):
        assert f"Error: nothing to compare: {store} has images of train only; " in run(store, *options).stderr
    before = lists["val"].read_text()
    with pytest.raises(InputError, match="would be overwritten"):
        find_leaks(store, lists=lists, output=lists["val"])
    assert lists["val"].read_text() == before
    assert len(FeatureStore.open(store)) == 7
