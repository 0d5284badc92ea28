"""What a person decided stays with an image that was renamed or moved: its content has the same hash as before."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from captionmill.data.tables.review import Review

ContentsOf = Callable[[Sequence[str]], Sequence[int]]
"""The hash of the content of each image, by key; 0 where it is not known."""


def unknown_contents(keys: Sequence[str]) -> Sequence[int]:
    """No hash is known."""
    return [0] * len(keys)


@dataclass(frozen=True)
class Elsewhere:
    """The decisions on images that are not there under their keys."""

    renamed: list[Review]
    """Decisions for images that have another key now, and none under it yet."""
    left: list[str]
    """The keys that these images had; no decision stays under them."""
    absent: int
    """Decisions on images that are not there under any key; they count again when these are back."""


def follow_images(
    reviews: Mapping[str, Review], keys: Sequence[str], contents_of: ContentsOf, former: Mapping[str, int]
) -> Elsewhere:
    """Where the images of `reviews` are now, if those that are there have the keys `keys`.

    `former` has the content of images before the last run whose key another image has now, as if they were exchanged.

    Of images with one content and different decisions, none is followed.
    """
    decided = {path for path, review in reviews.items() if review.decision != "undecided"}
    gone = sorted(decided.difference(keys))
    replaced = decided.intersection(former)
    if not gone and not replaced:
        return Elsewhere([], [], 0)
    by_content: dict[int, set[str]] = defaultdict(set)
    for path, content in (*zip(gone, contents_of(gone), strict=True), *((path, former[path]) for path in replaced)):
        if content:
            by_content[content].add(path)
    renamed: list[Review] = []
    left: set[str] = set()
    for key, content in zip(keys, contents_of(keys), strict=True) if by_content else ():
        paths = by_content.get(content, set())
        decisions = {(reviews[path].decision, reviews[path].caption) for path in paths}
        if len(decisions) == 1 and (key not in decided or key in replaced):
            renamed.append(Review(key, *decisions.pop()))
            left |= paths
    return Elsewhere(renamed, sorted(left), len(set(gone) - left))
