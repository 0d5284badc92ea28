"""The captions of many images, compactly in memory: five million take half a gigabyte and leave no trace when gone."""

from array import array
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

_ANY = "surrogatepass"  # JSON may hold half a character


class CaptionTexts(Mapping[str, tuple[str, ...]]):
    """Image key -> its captions in the order they were added, which may come in any order of the images.

    All text is one block of UTF-8: as strings of their own, captions take half as much again, and memory that was full
    of them is not given back to the system.
    """

    def __init__(self) -> None:
        """Without any caption."""
        self._numbers: dict[str, int] = {}  # of the images
        self._image_count = 0  # with those that were dropped
        self._text = bytearray()
        self._images = array("i")  # of each caption
        self._starts = array("q", [0])  # of each caption in the text, and the end of the last
        self._places: npt.NDArray[np.int64] | None = None  # captions by image; made when first asked for
        self._firsts: npt.NDArray[np.int64] = np.empty(0, np.int64)  # of each image's captions among these

    def add(self, key: str, caption: str) -> None:
        """Add a caption of the image `key`."""
        if key not in self._numbers:
            self._numbers[key] = self._image_count
            self._image_count += 1
        self._images.append(self._numbers[key])
        self._text += caption.encode(errors=_ANY)
        self._starts.append(len(self._text))
        self._places = None

    def rename(self, key: str, new_key: str) -> None:
        """Call the image `key` `new_key` from now on, which no other image may be called."""
        self._numbers[new_key] = self._numbers.pop(key)

    def drop(self, key: str) -> None:
        """Forget the captions of the image `key`, if there are any."""
        self._numbers.pop(key, None)

    def __getitem__(self, key: str) -> tuple[str, ...]:
        number = self._numbers[key]
        if self._places is None:
            images = np.array(self._images)
            self._places = np.argsort(images, kind="stable")
            self._firsts = np.searchsorted(images[self._places], np.arange(self._image_count + 1))
        places = self._places[self._firsts[number] : self._firsts[number + 1]].tolist()
        return tuple(self._text[self._starts[place] : self._starts[place + 1]].decode(errors=_ANY) for place in places)

    def __contains__(self, key: object) -> bool:
        return key in self._numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)
