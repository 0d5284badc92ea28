"""What made a feature vector. A feature store, and every model trained on it, is bound to one such spec."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from captionmill.data.errors import SpecMismatchError
from captionmill.data.foreign import record_of

StoredDtype = Literal["float16", "float32"]
Preprocess = Literal["crop", "squash", "whole"]
Views = Literal["one", "flip", "two", "six"]
USUAL_PREPROCESS: Preprocess = "squash"
"""That of new stores: a caption describes the whole image, of which "crop" shows the network about half (measured on 60
images: docs/benchmarks.md)."""
GPU_JPEGS = "JPEGs decoded on the GPU"
_APART = ("int8", GPU_JPEGS)
"""In the description of an engine: its rows are further from the others than rounding moves them."""
_VIEW_COUNTS = {"one": 1, "flip": 1, "two": 2, "six": 6}
_SETTINGS = ("backbone", "weights", "preprocess", "image_size", "views")  # of an extraction, under these names
SPEC_SETTINGS = tuple(name for name in _SETTINGS if name != "weights")
"""Those that are known before any weights are read."""
_UNCOMPARED = ("weights",)  # the same weights may have different names on two machines; the hash counts


@dataclass(frozen=True)
class FeatureSpec:
    """The network and the preprocessing that turn an image into features."""

    backbone: str
    """Architecture: resnet50, resnet101, resnet152, ..."""
    weights: str
    """The weights as the user named them: a torchvision name or a path."""
    weights_sha256: str
    """SHA-256 over the names, shapes and values of the network's tensors, without the classifier."""
    preprocess: str
    """"crop": shorter side to `resize_size`, centre cut out; "squash": made square; "whole": shape kept."""
    image_size: int
    """Side of the square that the network sees, or its shorter side for "whole", pixels."""
    resize_size: int
    """Length of the shorter side before the crop, pixels; equal to `image_size` for "squash" and "whole"."""
    feature_dim: int = 2048
    """Numbers per image: the mean of the last feature map over its positions."""
    views: str = "one"
    """"one"; "flip": the mean of the features of the image and its mirror image; "two": both are kept; "six": so are
    those of four crops, each from a corner of the image made an eighth larger."""

    @property
    def view_count(self) -> int:
        """Number of views of an image that are kept."""
        return _VIEW_COUNTS[self.views]

    @property
    def row_length(self) -> int:
        """Numbers that are kept per image: those of all views, one after the other."""
        return self.view_count * self.feature_dim

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "FeatureSpec":
        """The spec that `to_json` wrote; TypeError or ValueError if a field is missing, unknown or of a wrong type."""
        spec = record_of(cls, values)
        for name, known in (("preprocess", get_args(Preprocess)), ("views", get_args(Views))):
            if (value := getattr(spec, name)) not in known:
                raise ValueError(f"{name} is {value!r}, not one of {', '.join(known)}")
        return spec

    def differences(self, other: "FeatureSpec") -> list[str]:
        """The fields in which the features of the two do not match, as "name: MINE, not OTHER"."""
        found = []
        for field in fields(self):
            mine, others = getattr(self, field.name), getattr(other, field.name)
            if field.name in _UNCOMPARED or mine == others:
                continue
            if field.name == "weights_sha256":
                mine, others = f"{self.weights} ({mine[:12]})", f"{other.weights} ({others[:12]})"
            found.append(f"{field.name.removesuffix('_sha256')}: {mine}, not {others}")
        return found

    def require(self, other: "FeatureSpec", *, mine: str, others: str) -> None:
        """Raise SpecMismatchError with both values of each difference; `mine` and `others` name the owners."""
        if found := self.differences(other):
            raise SpecMismatchError(f"{mine} and {others} do not fit: {mine} has {'; '.join(found)}")

    def require_run(self, run: "FeatureSpec", store: object) -> None:
        """Raise SpecMismatchError, with what to pass, if a run of the spec `run` cannot add to `store`, of this one."""
        try:
            self.require(run, mine=str(store), others="this run")
        except SpecMismatchError as exc:
            differing = {difference.partition(":")[0] for difference in self.differences(run)}
            own = [f"`{name}` {getattr(self, name)}" for name in _SETTINGS if name in differing]
            raise SpecMismatchError(f"{exc}: pass {', '.join(own) or 'another `output`'}, or `overwrite`") from exc


def join_engines(makers: Iterable[dict[str, str]]) -> dict[str, str]:
    """The entry `engine` of `made_by` for rows that several makers made: each engine once; none if none is known."""
    engines = [engine for made_by in makers for engine in made_by.get("engine", "").split("; ") if engine]
    return {"engine": "; ".join(dict.fromkeys(engines))} if engines else {}


def mixture_note(made_by: dict[str, str]) -> str | None:
    """A warning if some rows were made in int8, or of JPEGs that a GPU decoded, and others were not."""
    engines = made_by.get("engine", "")
    mixed = [name for name in _APART if len({name in engine for engine in engines.split("; ")}) > 1]
    if not mixed:
        return None
    return f"holds rows of {' and of '.join(mixed)} and others ({engines}); `overwrite` makes all of them again"
