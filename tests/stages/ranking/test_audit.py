"""The captions that fit their image worst."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import damage, make_matching_model, make_spec, make_store

from captionmill.data.errors import InputError
from captionmill.stages.ranking.audit import audit_captions
from captionmill.stages.ranking.fit import TEMPERATURE, Sample

WORDS = ("a", "red", "blue", "dog", "cat", "läuft", "on", "grass")
KEYS = [f"{word}.jpg" for word in WORDS]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A store with an image for each word, captions of which those of dog and cat are swapped, and a model."""
    store = make_store(tmp_path / "f.h5", sorted(KEYS), np.eye(8, dtype=np.float32)[np.argsort(KEYS)])
    captions = tmp_path / "captions.csv"
    texts = {**dict(zip(KEYS, WORDS, strict=True)), "dog.jpg": "cat", "cat.jpg": "dog", "gone.jpg": "grass"}
    captions.write_text("\n".join(["image,caption", *(f"{key},{text}" for key, text in texts.items()), ""]))
    return store, captions, make_matching_model(tmp_path / "model", make_spec())


def test_swapped_captions_are_the_worst(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    store, captions, model = files
    audit = audit_captions(store, captions, model, top=3, output=tmp_path / "audit.csv", device="cpu")
    assert [caption.caption for caption in audit.worst[:2]] == ["dog", "cat"]  # cat.jpg, dog.jpg
    swapped = -math.log(7 + math.exp(1 / TEMPERATURE))  # the other image has the cosine 1, this and six have 0
    swapped_caption = -math.log(7 + math.exp(1 / TEMPERATURE))
    assert audit.worst[0].fit == pytest.approx((swapped + swapped_caption) / 2)
    assert audit.worst[2].fit == pytest.approx(0, abs=1e-6)
    assert (audit.captions, audit.images, audit.without_features, audit.damaged) == (8, 8, ("gone.jpg",), ())
    lines = (tmp_path / "audit.csv").read_text().splitlines()
    assert lines[:2] == ["key,caption,fit", f"cat.jpg,dog,{audit.worst[0].fit:.4f}"]
    audit_captions(store, captions, model, top=3, output=tmp_path / "audit.csv", device="cpu")
    (tmp_path / "others.csv").write_bytes(captions.read_bytes())
    with pytest.raises(InputError, match="no table that this command wrote"):
        audit_captions(store, captions, model, output=tmp_path / "others.csv", device="cpu")


def test_damaged_rows_are_left_out(files: tuple[Path, Path, Path]) -> None:
    store, captions, model = files
    damage(store, "cat.jpg")
    audit = audit_captions(store, captions, model, device="cpu")
    assert (audit.captions, audit.images, audit.damaged) == (7, 7, ("cat.jpg",))
    assert "cat.jpg" not in {caption.key for caption in audit.worst}


def test_captions_of_other_images_are_refused(files: tuple[Path, Path, Path]) -> None:
    store, captions, model = files
    captions.write_text("image,caption\ndog.png,a dog\n")
    with pytest.raises(InputError, match=r"no image with captions has features in .*; 1 of them differs"):
        audit_captions(store, captions, model)


def test_a_caption_that_is_unlike_the_others_of_its_image_fits_less() -> None:
    unit = torch.eye(3)
    sample = Sample(unit[:2], torch.tensor([0, 1]), unit[:2], torch.tensor([0, 1]))
    image, numbers, owners = unit[:1], torch.tensor([0]), torch.zeros(3, dtype=torch.long)
    fits = sample.fit(image, unit[[0, 0, 2]], owners, numbers)
    alone = sample.fit(image, unit[[0]], owners[:1], numbers)
    assert fits[0] == pytest.approx(fits[1])
    assert fits[2] == pytest.approx(-math.log(2), abs=1e-4)  # cosines of 0, beside one random one of 0, in all three
    assert alone[0] == pytest.approx(0, abs=1e-6)
