"""A person's decisions belong to images: they stay with those that are renamed, moved or exchanged.

An image is known again by the hash of its content, or, where only its metadata changed, by that of its features.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from captionmill.data.tables.review import ASSUMED, Decided, Review, Reviews

HashesOf = Callable[[Sequence[str]], Sequence[int]]
"""A hash of each image, by key; 0 where it is not known."""


def unknown_hashes(keys: Sequence[str]) -> Sequence[int]:
    """No hash is known."""
    return [0] * len(keys)


@dataclass
class MatchedReviews:
    """The decisions on the images that are there."""

    reviews: dict[str, Review] = field(default_factory=dict)
    """By key."""
    news: list[Decided] = field(default_factory=list)
    """What the journal has to know, so that its last decision for each key is that one, about the image under it."""
    renamed: list[str] = field(default_factory=list)
    """Keys of images whose decisions were made under other keys."""
    changed: list[str] = field(default_factory=list)
    """Keys of images that have become others since they were decided on."""
    absent: int = 0
    """Decisions on images that are not there under any key; they count again when these are back."""


def match_reviews(
    reviews: Reviews,
    keys: Sequence[str],
    contents_of: HashesOf,
    features_of: HashesOf,
    *,
    replaced: Container[str] = (),
) -> MatchedReviews:
    """The decisions on the images that have the keys `keys` now.

    Under the keys in `replaced` may be other images than when the table was written. `reviews` gets the news.

    A decision on another image under the same key stays there only if that image is not there under any key: then it
    was edited, or replaced. An image without a decision under its key has the last one that was made on it under a key
    that it does not have any more.
    """
    matched = MatchedReviews()
    if not reviews.by_image:
        return matched
    images = _ImagesThere(reviews, dict(zip(keys, contents_of(keys), strict=True)), features_of)
    news: dict[str, Review] = {}
    former: dict[str, Decided] = {}
    assumed: set[str] = set()
    for key, content in images.contents.items():
        last = reviews.last(key)
        if last is None and content not in images.decided:
            continue
        found = images.find_own(key, last)
        is_open = found is None or found.review.decision == "undecided"
        if is_open and (former_one := images.find_former(key, found)) is not None:
            found = replace(former_one, review=replace(former_one.review, path=key))
            matched.renamed.append(key)
        if found is None and last is not None and last.review.decision != "undecided":
            if last.content in images.there:
                found = Decided(Review(key, "undecided", ""))
            else:
                found = last
                matched.changed.append(key)
        if found is None:
            continue
        matched.reviews[key] = found.review
        assumed |= {key} if found.features == ASSUMED else set()
        if content and (last is None or (last.review, last.content) != (found.review, content)):
            news[key] = found.review
            if found is last and not last.content and key in replaced:  # it may be about the image before
                matched.changed += [key] if found.review.decision != "undecided" else []
            elif found is last and not last.content:  # new: it also counts for the keys that the image had before
                former |= {one.review.path: one for one in images.with_former_keys(found.review, content)}
    overtaken = sorted(former.keys() & images.contents.keys() - news.keys())  # another image has that key now
    news |= {key: matched.reviews.get(key, Review(key, "undecided", "")) for key in overtaken}
    features = dict(zip(news, features_of(list(news)), strict=True))
    features |= dict.fromkeys([*matched.changed, *assumed], ASSUMED)
    matched.news = list(former.values())
    matched.news += [Decided(news[key], images.contents[key], features[key]) for key in news]
    for one in matched.news:
        reviews.add(one.line())
    matched.absent = _ImagesThere(reviews, images.contents, features_of).count_absent(matched.reviews)
    return matched


class _ImagesThere:
    """The images that are there, and all decisions by the hash of the content that they are about."""

    def __init__(self, reviews: Reviews, contents: dict[str, int], features_of: HashesOf) -> None:
        self.contents, self.there = contents, set(contents.values())
        self._reviews, self._features_of = reviews, features_of
        self.decided: dict[int, list[Decided]] = defaultdict(list)
        for one in reviews.all():
            self.decided[one.content].append(one)

    def find_own(self, key: str, last: Decided | None) -> Decided | None:
        """The decision on the image under `key` that was made there; `last` is the last one made there."""
        content = self.contents[key]
        if last is None or not content or last.content in (0, content):
            return last
        if last.features > 0 and last.features == self._features_of([key])[0]:
            return last
        return self._reviews.by_image[key].get(content)

    def find_former(self, key: str, taken_back: Decided | None) -> Decided | None:
        """The last decision on the image of `key` under one that it does not have now, if it is later than that.

        Of copies, that of the same file name is preferred.
        """
        found = self._former(self.contents[key])
        same_name = [one for one in found if one.review.path.rpartition("/")[2] == key.rpartition("/")[2]]
        if not found:
            return None
        last = (same_name or found)[-1]
        is_later = taken_back is None or last.number > taken_back.number
        return last if is_later and last.review.decision != "undecided" else None

    def with_former_keys(self, review: Review, content: int) -> list[Decided]:
        """`review` for all keys from which the image has brought the decision that it replaces."""
        before = self._reviews.by_image[review.path].get(content)
        return [
            replace(one, review=replace(review, path=one.review.path))
            for one in self._former(content)
            if before is not None and one.review == replace(before.review, path=one.review.path)
        ]

    def count_absent(self, matched: Mapping[str, Review]) -> int:
        """How many decisions on images are shown nowhere, as `matched` shows them by key."""
        shown = {(self.contents[key], review.decision, review.caption) for key, review in matched.items()}
        hidden = {
            (content, one.review.decision, one.review.caption)
            for content, decided in self.decided.items()
            for one in decided
            if one.review.decision != "undecided" and matched.get(one.review.path) != one.review
        }
        return len(hidden - shown)

    def _former(self, content: int) -> list[Decided]:
        """The decisions on an image under keys that it does not have now."""
        if not content:
            return []
        decided = [one for one in self.decided[content] if one.features != ASSUMED]
        return [one for one in decided if self.contents.get(one.review.path) != content]
