"""What a search or a sampler had after each step of one image: the record from which an explanation is made."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TracedStep:
    """The captions after one step, K of them: the best first, drawn ones in the order of the draws."""

    places: list[int]
    """The place of each in the search's own order, which `parents` of the next step refer to."""
    parents: list[int]
    """Where the caption that each continues stood before this step; of no meaning at the first step."""
    words: list[int]
    """The word that each took; of no meaning where it had ended before."""
    log_probabilities: list[float]
    """Natural logarithm of that word's probability given those before it; 0 where it had ended before."""
    sums: list[float]
    """Of the log probabilities of all its words."""
    scores: list[float]
    """`sums` divided by `lengths` to the power of the length penalty."""
    ranks: list[float]
    """The scores by which they were chosen: less what earlier groups of the beam took from them."""
    lengths: list[int]
    """Words so far, `<end>` counted."""
    ended: list[bool]
    """Whether it ends here, or has ended before."""
