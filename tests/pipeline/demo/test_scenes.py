import csv
import resource
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captionmill.pipeline.demo.scene_captions import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    describes,
    random_scene,
    read_scene_caption,
    word_captions,
)
from captionmill.pipeline.demo.scenes import OUTLINES, SHADES, TEXTURES, draw_samples, draw_scene, write_scene

RED_CIRCLE = SceneObject("small", "red", "circle")
BLUE_STAR = SceneObject("large", "blue", "star")
TWO_ON_SAND = Scene((BLUE_STAR, RED_CIRCLE), "sand")


def test_same_seed_draws_same_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    one = draw_samples(tmp_path / "one", 20, seed=3, captions_path=tmp_path / "one.csv", workers=1)
    two = draw_samples(tmp_path / "two", 20, seed=3, captions_path=tmp_path / "two.csv", workers=2)

    assert one == two
    assert read_bytes(tmp_path / "one") == read_bytes(tmp_path / "two")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


@pytest.mark.parametrize("name", ["scene.png", "scene.jpg"])
def test_a_full_disk_is_an_error_and_leaves_no_half_picture(tmp_path: Path, name: str) -> None:
    write_scene(tmp_path / f"whole_{name}", 3, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / f"whole_{name}").stat().st_size - 1, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_scene(tmp_path / name, 3, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == [f"whole_{name}"]


def test_another_seed_draws_other_scenes(tmp_path: Path) -> None:
    assert draw_samples(tmp_path, 10, seed=3, workers=1) != draw_samples(tmp_path, 10, seed=4, workers=1)


def test_more_pictures_begin_with_the_same_ones(tmp_path: Path) -> None:
    few = draw_samples(tmp_path / "few", 4, seed=3, workers=1)
    many = draw_samples(tmp_path / "many", 8, seed=3, workers=1)

    assert {key: many[key] for key in few} == few
    assert read_bytes(tmp_path / "few").items() <= read_bytes(tmp_path / "many").items()


def test_an_image_that_is_not_drawn_to_its_end_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_samples(tmp_path, 2, seed=3, workers=1)
    before = read_bytes(tmp_path)

    write = Path.write_bytes

    def stop(path: Path, content: bytes) -> None:
        write(path, content[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        draw_samples(tmp_path, 2, seed=4, workers=1)
    assert read_bytes(tmp_path) == before


def test_keys_are_the_files_half_png_half_jpeg_some_in_a_sub_folder(tmp_path: Path) -> None:
    scenes = draw_samples(tmp_path, 16, seed=0, workers=1)

    assert set(scenes) == set(read_bytes(tmp_path))
    assert Counter(read_format(tmp_path / key) for key in scenes) == {"PNG": 8, "JPEG": 8}
    assert [key for key in scenes if "/" in key] == [
        "album/scene_00006.png",
        "album/scene_00007.jpg",
        "album/scene_00014.png",
        "album/scene_00015.jpg",
    ]


def test_without_captions_path_only_pictures_are_written(tmp_path: Path) -> None:
    draw_samples(tmp_path / "images", 2, seed=0, workers=1)

    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_csv_holds_five_true_captions_an_image_and_one_split_an_image(tmp_path: Path) -> None:
    scenes = draw_samples(tmp_path / "images", 40, seed=0, captions_path=tmp_path / "captions.csv", workers=1)
    with (tmp_path / "captions.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)

    assert reader.fieldnames == ["image", "caption", "split"]
    assert Counter(row["image"] for row in rows) == dict.fromkeys(scenes, 5)
    assert all(describes(row["caption"], scenes[row["image"]]) for row in rows)
    splits = {row["image"]: row["split"] for row in rows}
    assert len({(row["image"], row["split"]) for row in rows}) == 40
    assert Counter(splits.values()) == {"train": 32, "val": 4, "test": 4}


def test_every_part_of_the_language_can_be_drawn() -> None:
    assert (tuple(OUTLINES), tuple(SHADES), tuple(TEXTURES)) == (tuple(SHAPES), COLOURS, tuple(PLACES))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_objects_lie_whole_inside_the_picture(size: str, shape: str) -> None:
    scene = Scene((SceneObject(size, "red", shape),), "snow")
    for seed in range(8):
        pixels = np.asarray(draw_scene(scene, np.random.default_rng(seed))).astype(int)
        red = pixels[..., 0] - pixels[..., 1] > 80

        assert red.sum() > 200
        assert red[1:-1, 1:-1].sum() == red.sum()


def test_every_wording_of_many_scenes_is_read_back_right() -> None:
    rng = np.random.default_rng(5)
    for _ in range(500):
        scene = random_scene(rng)
        captions = word_captions(scene, rng, count=6)

        assert len(set(captions)) == 6
        assert [caption for caption in captions if not describes(caption, scene)] == []


def test_a_caption_wrong_in_one_attribute_is_refused() -> None:
    rng = np.random.default_rng(6)
    for _ in range(100):
        scene = random_scene(rng)
        for wrong in one_attribute_off(scene):
            assert not any(describes(caption, scene) for caption in word_captions(wrong, rng))


@pytest.mark.parametrize(
    "caption",
    [
        "A small red circle and a large blue star on sand.",
        "on sand, a tiny red disc is next to a big blue star",
        "there is a blue huge star beside a little red circle on a sandy beach",
        "small red circle large blue star sand",
    ],
)
def test_wordings_by_hand_are_read(caption: str) -> None:
    assert read_scene_caption(caption) == TWO_ON_SAND
    assert describes(caption, TWO_ON_SAND)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a small red circle on sand",  # one object of two
        "a small red circle and a large blue star",  # no background
        "a small red circle and a large blue star on sand in the snow",  # two backgrounds
        "a small red circle and a small red circle and a large blue star on sand",  # one object twice
        "a red circle and a large blue star on sand",  # no size
        "a small circle and a large blue star on sand",  # no colour
        "a small large red circle and a large blue star on sand",  # two sizes
        "a small red circle and a large blue star on sand, large",  # a size of nothing
        "a small red circle and a large blue star and a dog on sand",  # not of this language
        "a small red circle and a large blue <unk> star on sand",
    ],
)
def test_captions_that_tell_less_more_or_something_else_are_refused(caption: str) -> None:
    assert not describes(caption, TWO_ON_SAND)


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_format(path: Path) -> str | None:
    with Image.open(path) as picture:
        return picture.format


def one_attribute_off(scene: Scene) -> list[Scene]:
    others = [replace(scene, background=background) for background in PLACES if background != scene.background]
    for index, scene_object in enumerate(scene.objects):
        changed = [
            *(replace(scene_object, size=size) for size in SIZES),
            *(replace(scene_object, colour=colour) for colour in COLOURS),
            *(replace(scene_object, shape=shape) for shape in SHAPES),
        ]
        for other in changed:
            if other != scene_object:
                others.append(replace(scene, objects=(*scene.objects[:index], other, *scene.objects[index + 1 :])))
    return others
