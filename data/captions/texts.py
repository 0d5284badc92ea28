"""The captions of many images, compactly in memory: five million take half a gigabyte, which is freed completely."""

from array import array
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

_ANY = "surrogatepass"  # JSON may hold half of a surrogate pair


class CaptionTexts(Mapping[str, tuple[str, ...]]):
    """Image key -> its captions in the order they were added; the images may come in any order.

    All text is one block of UTF-8: as separate strings, captions take 1.5 times as much memory, and the memory is not
    returned to the system.
    """

    def __init__(self) -> None:
        """Start without captions."""
        self._numbers: dict[str, int] = {}  # image key -> number of the image
        self._image_count = 0  # including dropped ones
        self._text = bytearray()
        self._images = array("i")  # of each caption, the number of its image
        self._starts = array("q", [0])  # where each caption starts in the text; the end of the last
        self._places: npt.NDArray[np.int64] | None = None  # captions sorted by image; made on first use
        self._firsts: npt.NDArray[np.int64] = np.empty(0, np.int64)  # where each image's captions start among these

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
        """Rename the image `key` to `new_key`, which must not be another image's key."""
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
