"""What made a feature vector: the one thing that a feature store, and every model trained on it, is bound to."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from captionmill.data.errors import SpecMismatchError

StoredDtype = Literal["float16", "float32"]
Preprocess = Literal["crop", "squash", "whole"]
Views = Literal["one", "flip"]
_UNCOMPARED = ("weights",)  # two machines call the same weights differently, their hash is what counts


@dataclass(frozen=True)
class FeatureSpec:
    """The network and the preprocessing that turn an image into numbers."""

    backbone: str
    """Architecture: resnet50, resnet101, resnet152, ..."""
    weights: str
    """What the user called the weights: a torchvision name or a path."""
    weights_sha256: str
    """SHA-256 over the names, shapes and values of the network's tensors, classifier left out."""
    preprocess: str
    """"crop": shorter side to `resize_size`, centre cut out; "squash": whole picture made square; "whole": as is."""
    image_size: int
    """Side of the square that the network sees, for "whole" the shorter side, pixels."""
    resize_size: int
    """Length of the shorter side before the crop, pixels; equal to `image_size` for "squash" and "whole"."""
    feature_dim: int = 2048
    """Numbers an image: the mean of the last feature map over its positions."""
    views: str = "one"
    """"one", or "flip": the mean of the features of the picture and its mirror."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "FeatureSpec":
        """The spec that `to_json` wrote; TypeError or ValueError if a field is missing, unknown or of another kind."""
        spec = cls(**values)
        for field in fields(cls):
            if type(getattr(spec, field.name)) is not field.type:
                raise TypeError(f"{field.name} is {getattr(spec, field.name)!r}")
        for name, known in (("preprocess", get_args(Preprocess)), ("views", get_args(Views))):
            if (value := getattr(spec, name)) not in known:
                raise ValueError(f"{name} is {value!r}, not one of {', '.join(known)}")
        return spec

    def differences(self, other: "FeatureSpec") -> list[str]:
        """The fields that make features of the two unfit for each other, as "name: MINE, not OTHER"."""
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
        """Raise SpecMismatchError naming both values of each difference; `mine`, `others` say whose."""
        found = self.differences(other)
        if found:
            raise SpecMismatchError(f"{mine} and {others} do not fit: {mine} has {'; '.join(found)}")
