"""Captions in one JSON object: COCO's, with images and annotations, and Karpathy's, with sentences in each image."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from captionmill.data.captions.formats.rows import FORMATS, REJECTED, ColumnNames, LeftOut, ReferenceRow, is_marked
from captionmill.data.errors import AnnotationError

_ID_TYPES = (int, float, str)
_WANTED = "give the file with captions of the same images, captions_*.json"
_OTHER_KINDS = {
    "keypoints, as person_keypoints_*.json is": {"keypoints", "num_keypoints"},
    "segments, as panoptic_*.json is": {"segments_info"},
    "objects, as instances_*.json is": {"bbox", "segmentation", "category_id"},
    "questions, as those of VQA are": {"question", "question_id", "answers"},
}
_SHOWN = 100  # annotations that show what a file is about
_NUMBER = re.compile(r"0*(\d+)(?:\.0+)?", re.ASCII)


def read_images(content: Mapping[str, Any], columns: ColumnNames, left_out: LeftOut) -> Iterator[ReferenceRow]:
    """The captions of `content`, a whole file; AnnotationError if it has neither of the two layouts."""
    images = content.get("images")
    columns.refuse("this JSON")
    if isinstance(images, list) and "annotations" in content:
        return _read_coco(images, _field(content, "annotations", list, "the file"), left_out)
    if isinstance(images, list) and any(isinstance(image, dict) and "sentences" in image for image in images):
        return _read_karpathy(images)
    if isinstance(images, list) and "sentences" not in content and {"info", "licenses"} & content.keys():
        raise AnnotationError(f"COCO's list of images without annotations, as image_info_*.json is; {_WANTED}")
    raise AnnotationError(
        f"unknown JSON, without images and annotations (COCO) or sentences (Karpathy); expected {FORMATS}"
    )


def _read_coco(images: list[Any], annotations: list[Any], left_out: LeftOut) -> Iterator[ReferenceRow]:
    _require_captions(annotations)
    by_id = _images_by_id(images, left_out)
    names_splits = any(_has_split(image) for _, image in by_id.values())
    unknown_count, used = 0, set()
    for index, annotation in enumerate(annotations):
        where = f"annotations[{index}]"
        image_id = _id(annotation, "image_id", where)
        if image_id is None or image_id not in by_id:
            unknown_count += 1
            if unknown_count == len(annotations):
                first = _field(annotations[0], "image_id", _ID_TYPES, "annotations[0]")
                raise AnnotationError(
                    f"annotations[0] is about image {first}, which is not among the images of the file"
                )
            continue
        place, image = by_id[image_id]
        used.add(image_id)
        split = _field(annotation, "split", str, where) if _has_split(annotation) else None
        if names_splits:
            of_image = _field(image, "split", str, place)
            if split is not None and split.strip().lower() != of_image.strip().lower():
                raise AnnotationError(
                    f"{where} has the split {split!r}, but {place} has {of_image!r}; correct one of them"
                )
            split = of_image
        name, caption = _field(image, "file_name", str, place), _caption_of(annotation, "caption", where)
        is_rejected = any(is_marked(annotation.get(mark)) for mark in REJECTED)
        yield ReferenceRow(where, name, caption, split, is_rejected)
    left_out["annotations of unknown images"] += unknown_count
    left_out["images without file_name"] += sum(
        not isinstance(image.get("file_name"), str) for image_id, (_, image) in by_id.items() if image_id not in used
    )


def _require_captions(annotations: list[Any]) -> None:
    """Raise AnnotationError if all annotations are of something else than captions, in one of COCO's other files."""
    if any(not isinstance(entry, dict) or "caption" in entry for entry in annotations):
        return
    fields = {field for entry in annotations[:_SHOWN] for field in entry}
    kind = next((kind for kind, signs in _OTHER_KINDS.items() if fields & signs), None)
    if kind is not None:
        raise AnnotationError(f"COCO annotations of {kind}, without captions; {_WANTED}")


def _images_by_id(images: list[Any], left_out: LeftOut) -> dict[str, tuple[str, dict[str, Any]]]:
    """The place of each image in the file, and itself, by its id; those without an id, of no use, are counted."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for index, image in enumerate(images):
        where = f"images[{index}]"
        image_id = _id(image, "id", where)
        if image_id is None:
            left_out["images without id"] += 1
            continue
        place, known = found.setdefault(image_id, (where, image))
        if image.get("file_name") != known.get("file_name"):
            name = known.get("file_name") or place
            raise AnnotationError(f"{where} has the id {image_id} of {name}; every image needs its own")
        if image.get("split") != known.get("split"):
            raise AnnotationError(f"{where} and {place} are one image with different splits; correct one of them")
    return found


def _has_split(entry: Mapping[str, Any]) -> bool:
    """Whether an image or an annotation has a split."""
    return entry.get("split") not in (None, "")


def _id(entry: Any, name: str, where: str) -> str | None:
    """An id as text: 7, 7.0, "7", "7.0" and "007" are one id, as programs write it; None if it is not there."""
    if isinstance(entry, dict) and entry.get(name) is None:
        return None
    value = _field(entry, name, _ID_TYPES, where)
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    number = _NUMBER.fullmatch(text)
    return number[1] if number else text


def _read_karpathy(images: list[Any]) -> Iterator[ReferenceRow]:
    for index, image in enumerate(images):
        where = f"images[{index}]"
        name, split = _field(image, "filename", str, where), _field(image, "split", str, where)
        folder = image.get("filepath") or ""
        sentences = _field(image, "sentences", list, where) or [{"raw": None}]
        for number, sentence in enumerate(sentences):
            caption = _caption_of(sentence, "raw", f"{where}.sentences[{number}]")
            yield ReferenceRow(where, f"{folder}/{name}" if folder else name, caption, split)


def _caption_of(entry: Any, name: str, where: str) -> str | None:
    """The caption of `entry`, None for a null; AnnotationError if there is none, as in files of other annotations."""
    if isinstance(entry, dict) and name in entry and entry[name] is None:
        return None
    caption: str = _field(entry, name, str, where)
    return caption


def _field(entry: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise AnnotationError(f"{where} has no usable {name!r}; download or export the file again")
    return value
