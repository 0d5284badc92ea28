"""An extension of griffe, for the API page: an attribute that is a setting is shown as its field describes it."""

import importlib
from typing import Any

from griffe import Class, Docstring, Extension

from captionmill.stages.fields import Configuration, settings_of


class SettingDocs(Extension):
    """Gives each setting its default as the value of the attribute, and its description as the docstring."""

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Called by griffe with every class that it has read, before it builds signatures from the values."""
        if not (cls.bases and "dataclass" in [str(decorator.value).partition("(")[0] for decorator in cls.decorators]):
            return
        kind = getattr(importlib.import_module(cls.module.path), cls.name)
        if issubclass(kind, Configuration):
            for name, setting in settings_of(kind).items():
                if (attribute := cls.attributes.get(name)) is not None:  # others are inherited
                    attribute.value = repr(setting.default)
                    attribute.docstring = Docstring(setting.description(), parent=attribute)
