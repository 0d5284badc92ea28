"""Every error that a user can cause. The message is one line: which file, what is wrong, what to do next.

Parameters are named in backticks, as Python calls them; the terminal shows them as options.

CaptionmillError
├── ImageError            one image that cannot be read: a row in failures.csv; the run continues
├── InputError            a path with nothing to work on, or arguments that contradict each other
│   └── SettingError       a setting out of its range, or settings that contradict each other
├── AnnotationError       a captions file or a split list that cannot be understood
├── WeightsError          ResNet weights that are missing, unreachable or of another network
├── StoreError            a feature store that cannot be opened, read or written
│   ├── SpecMismatchError  features of another network or preprocessing than asked for
│   ├── StoreAccessError   a store that cannot be opened now, whatever is in it
│   ├── StoreDamageError   a file or rows of a store that are not what was written
│   └── MissingRowError    an image that has no row; also a KeyError
├── ModelError            a model that cannot be opened
├── ExportError           an exported network whose results differ from the model's
├── TrainingError         a training run that cannot start or continue
│   └── UnfinishedRunError  an unfinished run of other settings or data than asked for now
├── ClusterError          processes or machines that do not answer or keep dying
└── PipelineError         a pipeline file that cannot be understood
"""

import re


def one_line(error: Exception) -> str:
    """The beginning of an error's text, which other libraries make pages long; its class if it has none."""
    return " ".join(str(error).split())[:150] or type(error).__name__


class CaptionmillError(Exception):
    """The base of every error that the command line shows as one line."""


class ImageError(CaptionmillError, ValueError):
    """One image cannot be read; the message is the reason and names no path."""


class InputError(CaptionmillError, ValueError):
    """A path holds nothing to work on, or arguments contradict each other."""


class SettingError(InputError):
    """A setting is out of its range, or settings contradict each other; the message names them in backticks."""

    @property
    def names(self) -> list[str]:
        """The field names of the settings that it is about."""
        return re.findall(r"`(\w+)`", str(self))


class AnnotationError(CaptionmillError, ValueError):
    """A captions file or a split list cannot be understood."""


class WeightsError(CaptionmillError, ValueError):
    """ResNet weights are missing, cannot be downloaded, or belong to another network."""


class StoreError(CaptionmillError, ValueError):
    """A feature store cannot be opened, read or written."""


class SpecMismatchError(StoreError):
    """Features were made by another network or preprocessing than asked for."""


class StoreAccessError(StoreError):
    """A feature store cannot be opened now: permissions, another program, the storage. Its content is not judged."""


class StoreDamageError(StoreError):
    """A file of a feature store, or a row in it, is not what was written."""


class MissingRowError(StoreError, KeyError):
    """An image has no row in a feature store."""

    def __str__(self) -> str:
        """The message; a KeyError would show it in quotes."""
        return str(self.args[0])


class ModelError(CaptionmillError, ValueError):
    """A model cannot be opened."""


class ExportError(CaptionmillError, ValueError):
    """The results of an exported network differ from the model's."""


class TrainingError(CaptionmillError, ValueError):
    """A training run cannot start or continue."""


class UnfinishedRunError(TrainingError):
    """An unfinished run was made from other settings or data than asked for now."""


class ClusterError(CaptionmillError, RuntimeError):
    """Processes or machines do not answer, or keep dying."""


class PipelineError(CaptionmillError, ValueError):
    """A pipeline file cannot be understood."""
