"""How well each caption fits its image, against other images and other captions.

A caption fits if the matcher would pick its image among random images, and if it would pick the caption for the image
among random captions: the loss that the matcher was trained with (`stages/training/reranking/matching.py`), with random
ones instead of those of a batch. If the image has other captions, the caption must be like these, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captionmill.data.captions.vocabulary import UNK
from captionmill.stages.ranking.matcher import Matcher
from captionmill.stages.ranking.ngrams import Integers
from captionmill.stages.ranking.opened import MatchedStore
from captionmill.stages.ranking.retrieve import embedded_blocks

SAMPLED = 1000
"""Images and captions that each caption is compared with; of fewer, all."""
TEMPERATURE = 0.05
_SEED = 0
_BLOCK_ROWS = 1024  # with five captions each, their cosines with the sample take 20 MB

Texts = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class CaptionFit:
    """A caption and how well it fits its image."""

    key: str
    caption: str
    fit: float
    """0 and less: the mean natural logarithm of the probabilities that the caption belongs to this image and not to a
    random one, and that the image has this caption and not a random one; if the image has other captions, the mean of
    this and of the same for these instead of the image."""


@dataclass(frozen=True)
class Sample:
    """Images and captions, drawn at random, which others are compared with."""

    images: Tensor  # [S, M]
    image_numbers: Tensor  # [S]
    captions: Tensor  # [R, M]
    caption_numbers: Tensor  # [R]: those of their images

    @classmethod
    def draw(
        cls, opened: MatchedStore, matcher: Matcher, texts: Texts, positions: Integers, device: torch.device
    ) -> "Sample":
        """From the rows at `positions` that are not damaged, with a fixed seed; numbers are positions in the store."""
        random, count = np.random.default_rng(_SEED), min(SAMPLED, len(positions))
        drawn = [np.sort(random.choice(positions, count, replace=False)) for _ in range(2)]
        blocks = [(block, vectors) for block, vectors, _ in _blocks(opened, matcher, drawn[0], device)]
        chosen = [texts[opened.store.keys[position]] for position in drawn[1].tolist()]
        captions = _embed(opened, matcher, [own[int(random.integers(len(own)))] for own in chosen], device)
        numbers = torch.from_numpy(np.concatenate([block for block, _ in blocks])).to(device)
        images = torch.cat([vectors for _, vectors in blocks])
        return cls(images, numbers, captions, torch.from_numpy(drawn[1]).to(device))

    def fit(self, images: Tensor, captions: Tensor, owners: Tensor, numbers: Tensor) -> Tensor:
        """How well captions [C, M] fit the `images` [B, M] that they belong to: `CaptionFit.fit` of each, [C].

        `owners` [C] is the row of each caption's image, `numbers` [B] those of the images.
        """
        own, number = images[owners], numbers[owners].unsqueeze(1)  # [C, M], [C, 1]
        is_own_image, is_own_caption = number == self.image_numbers, number == self.caption_numbers  # [C, S], [C, R]
        cosines = (own * captions).sum(dim=1)
        of_image = _log_share(cosines, captions @ self.images.t(), is_own_image)
        of_caption = _log_share(cosines, own @ self.captions.t(), is_own_caption)
        sums = torch.zeros_like(images).index_add_(0, owners, captions)  # [B, M]
        others = F.normalize(sums[owners] - captions, dim=1)
        among_others = _log_share((others * captions).sum(dim=1), others @ self.captions.t(), is_own_caption)
        has_others = torch.bincount(owners, minlength=len(images))[owners] > 1
        of_pair = (of_image + of_caption) / 2
        return torch.where(has_others, (of_pair + among_others) / 2, of_pair)


def _log_share(cosines: Tensor, others: Tensor, is_own: Tensor) -> Tensor:
    """The logarithms of the softmax probabilities of `cosines` [C] beside the `others` [C, R] except for `is_own`."""
    differences = ((others - cosines.unsqueeze(1)) / TEMPERATURE).masked_fill(is_own, -torch.inf)
    return -F.softplus(torch.logsumexp(differences, dim=1))


def fit_captions(
    opened: MatchedStore, matcher: Matcher, texts: Texts, positions: Integers, device: torch.device
) -> Iterator[tuple[list[CaptionFit], list[str]]]:
    """The captions of the rows at `positions`, block by block, and the keys of damaged rows, which are left out."""
    sample = Sample.draw(opened, matcher, texts, positions, device)
    for block, vectors, damaged in _blocks(opened, matcher, positions, device):
        keys = [opened.store.keys[position] for position in block.tolist()]
        own = [(row, text) for row, key in enumerate(keys) for text in texts[key]]
        fits: list[float] = []
        if own:
            owners = torch.tensor([row for row, _ in own], device=device)
            captions = _embed(opened, matcher, [text for _, text in own], device)
            fits = sample.fit(vectors, captions, owners, torch.from_numpy(block).to(device)).tolist()
        found = [CaptionFit(keys[row], text, fit) for (row, text), fit in zip(own, fits, strict=True)]
        yield found, damaged


def _blocks(
    opened: MatchedStore, matcher: Matcher, positions: Integers, device: torch.device
) -> Iterator[tuple[Integers, Tensor, list[str]]]:
    for block, vectors, damaged in embedded_blocks(opened.store, matcher, positions, _BLOCK_ROWS):
        yield block, torch.from_numpy(vectors).to(device), damaged


def _embed(opened: MatchedStore, matcher: Matcher, captions: Sequence[str], device: torch.device) -> Tensor:
    """Captions as vectors, [C, M]; one without words is one unknown word."""
    words = [opened.model.vocabulary.encode(caption) or [UNK] for caption in captions]
    return torch.from_numpy(matcher.embed_captions(words)).to(device)
