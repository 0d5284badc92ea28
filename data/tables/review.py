"""What a person decided about captions; no run of any model replaces it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeGuard, get_args

from captionmill.data.foreign import text_of
from captionmill.data.tables.rows import CaptionRow

Decision = Literal["corrected", "accepted", "later", "undecided"]
DECISIONS = frozenset(get_args(Decision))
LATER = "later"
"""The flag of a row that somebody wants to look at again."""


def is_decision(status: str) -> TypeGuard[Literal["corrected", "accepted"]]:
    """Whether this is the status of a row that a person decided on."""
    return status in {"corrected", "accepted"}


@dataclass(frozen=True)
class Review:
    """A person's decision about the caption of one image."""

    path: str
    """The image's key."""
    decision: Decision
    """`corrected`: `caption` is the person's own; `accepted`: it is the model's and right.

    `later`: somebody wants to look at it again; `undecided`: what was decided before is taken back.
    """
    caption: str
    """The caption that was decided on."""

    def apply(self, row: CaptionRow) -> CaptionRow:
        """The row of the table for this image, whose row without a review is `row`."""
        if self.decision == "undecided":
            return row
        if self.decision == "later":
            status = "ok" if row.status == "accepted" else row.status
            return replace(row, status=status, flags=tuple(dict.fromkeys((*row.flags, LATER))))
        if self.decision == "accepted" and row.caption == self.caption:
            return replace(row, status="accepted", flags=())
        return CaptionRow(self.path, self.caption, None, status=self.decision)


ASSUMED = -1


@dataclass(frozen=True)
class Decided:
    """A review with the image that it is about, as far as that is known."""

    review: Review
    content: int = 0
    """The hash of the image's content; 0 if it is not known."""
    features: int = 0
    """The hash of its features, which stay the same if only its metadata changes; 0 if they are not known; ASSUMED if
    the review may be about another image, which had that key before: then it follows this one to no other key."""
    number: int = 0
    """A later one has a higher number."""

    def line(self) -> dict[str, Any]:
        """As the journal has it."""
        return {"review": asdict(self.review), "image": [self.content, self.features]}


@dataclass
class Reviews:
    """All reviews of a journal."""

    latest: dict[str, Review] = field(default_factory=dict)
    """The last one for each key."""
    by_image: dict[str, dict[int, Decided]] = field(default_factory=dict)
    """For each key and content that an image had under it, the last one."""
    count: int = 0

    def add(self, values: Mapping[str, Any]) -> None:
        """Take the review in a line of the journal; null forgets all before it."""
        if values["review"] is None:
            self.latest.clear()
            self.by_image.clear()
            return
        self.count += 1
        content, features = values.get("image", (0, 0))
        decided = Decided(Review(**values["review"]), content, features, self.count)
        path = decided.review.path
        self.latest[path] = decided.review
        images = self.by_image.setdefault(path, {})
        for content, other in list(images.items()):
            if not content or (decided.features > 0 and other.features == decided.features):  # the same image
                del images[content]
        images[decided.content] = decided

    def last(self, key: str) -> Decided | None:
        """The last one for `key`, whichever image had it then."""
        return max(self.by_image.get(key, {}).values(), key=lambda one: one.number, default=None)

    def all(self) -> list[Decided]:
        """Those that count, the last one last."""
        return sorted((one for images in self.by_image.values() for one in images.values()), key=lambda one: one.number)


def is_review(values: Mapping[str, Any]) -> bool:
    """Whether a line of the journal holds a review, or null in its place."""
    review, image = values["review"], values.get("image", [0, 0])
    return review is None or (
        review.keys() == {"path", "decision", "caption"}
        and text_of(review["decision"]) in DECISIONS
        and all(isinstance(review[name], str) for name in ("path", "caption"))
        and len(image) == 2
        and all(isinstance(number, int) for number in image)
    )
