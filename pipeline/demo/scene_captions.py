"""The scenes of the embedded sample in words: their objects, their captions, and the scene that a caption describes.

The language is closed, so that a generated caption can be checked: `describes` needs no reference captions.
"""

import re
from dataclasses import dataclass

import numpy as np

SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
SHAPES = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "ring": ("ring", "hoop"),
}
PLACES = {
    "sand": ("on sand", "on the sand", "on a sandy beach"),
    "grass": ("on grass", "on the grass", "on a lawn"),
    "snow": ("on snow", "in the snow", "on snowy ground"),
    "water": ("on water", "on the water", "on the sea"),
    "night": ("in the night sky", "in a dark sky", "in the sky at night"),
}
ONE_OBJECT_WORDINGS = (
    "{first} {place}",
    "there is {first} {place}",
    "{place} there is {first}",
    "a picture of {first} {place}",
    "{first} alone {place}",
    "{place}, {first}",
)
TWO_OBJECT_WORDINGS = (
    "{first} and {second} {place}",
    "there is {first} beside {second} {place}",
    "{place}, {first} is next to {second}",
    "a picture of {first} and {second} {place}",
    "{first} near {second} {place}",
    "{place} there is {first} with {second}",
    "{first} next to {second} {place}",
)

_WORD = re.compile(r"[^\W_]+|<[^>]*>")
_BACKGROUND_WORDS = {
    "sand": ("sand", "sandy", "beach"),
    "grass": ("grass", "lawn"),
    "snow": ("snow", "snowy"),
    "water": ("water", "sea"),
    "night": ("night", "dark"),
}
_SIZE_OF = {word: size for size, words in SIZES.items() for word in words}
_SHAPE_OF = {word: shape for shape, words in SHAPES.items() for word in words}
_BACKGROUND_OF = {word: background for background, words in _BACKGROUND_WORDS.items() for word in words}
_LINKS = {
    *("a", "an", "the", "there", "is", "are", "of", "and", "with", "beside", "next", "to", "near", "alone", "picture"),
    *("on", "in", "at", "sky", "ground"),
}


@dataclass(frozen=True, order=True)
class SceneObject:
    """One drawn object, by the canonical words of `SIZES`, `COLOURS` and `SHAPES`."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """The content of one image, and of its captions."""

    objects: tuple[SceneObject, ...]  # one or two; their order means nothing
    background: str  # a key of `PLACES`


def random_scene(rng: np.random.Generator) -> Scene:
    """One object, or a large and a small one (3 scenes of 5), on a random background."""
    sizes = ("large", "small") if rng.random() < 0.6 else (_pick(rng, tuple(SIZES)),)
    objects = tuple(SceneObject(size, _pick(rng, COLOURS), _pick(rng, tuple(SHAPES))) for size in sizes)
    return Scene(objects, _pick(rng, tuple(PLACES)))


def word_captions(scene: Scene, rng: np.random.Generator, *, count: int = 5) -> list[str]:
    """`count` different captions of one scene (6 at most), each of which names everything in it."""
    wordings = ONE_OBJECT_WORDINGS if len(scene.objects) == 1 else TWO_OBJECT_WORDINGS
    captions = []
    for chosen in rng.permutation(len(wordings))[:count]:
        named = [_name_object(scene.objects[index], rng) for index in rng.permutation(len(scene.objects))]
        place = _pick(rng, PLACES[scene.background])
        captions.append(wordings[chosen].format(first=named[0], second=named[-1], place=place))
    return captions


def read_scene_caption(caption: str) -> Scene | None:
    """The scene that a caption describes, its objects sorted; None if it does not describe a complete scene.

    Sizes and colours belong to the next shape, in any order. A word outside the language, an object without its size or
    colour, two sizes or colours for one object, and no background or two all return None.
    """
    objects: list[SceneObject] = []
    backgrounds: set[str] = set()
    sizes: set[str] = set()
    colours: set[str] = set()
    for word in _WORD.findall(caption.lower()):
        if word in _SIZE_OF:
            sizes.add(_SIZE_OF[word])
        elif word in COLOURS:
            colours.add(word)
        elif word in _BACKGROUND_OF:
            backgrounds.add(_BACKGROUND_OF[word])
        elif word in _SHAPE_OF:
            if len(sizes) != 1 or len(colours) != 1:
                return None
            objects.append(SceneObject(sizes.pop(), colours.pop(), _SHAPE_OF[word]))
        elif word not in _LINKS:
            return None
    if not objects or sizes or colours or len(backgrounds) != 1:
        return None
    return Scene(tuple(sorted(objects)), backgrounds.pop())


def describes(caption: str, scene: Scene) -> bool:
    """Whether a caption names the background and every object of a scene correctly, and nothing else."""
    return read_scene_caption(caption) == Scene(tuple(sorted(scene.objects)), scene.background)


def _name_object(scene_object: SceneObject, rng: np.random.Generator) -> str:
    size = _pick(rng, SIZES[scene_object.size])
    shape = _pick(rng, SHAPES[scene_object.shape])
    # "a big red disc", now and then "a red big disc", as people vary the order
    adjectives = (scene_object.colour, size) if rng.random() < 0.1 else (size, scene_object.colour)
    phrase = f"{adjectives[0]} {adjectives[1]} {shape}"
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
