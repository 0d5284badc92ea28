"""captionmill captions images offline and in bulk: ResNet features are cached once, an LSTM turns them into words.

Everything that a script needs is here by name: `captionmill.extract`, `captionmill.train`, `captionmill.caption_folder`
and so on. A name's module is imported when the name is first used (PEP 562), so `import captionmill` loads no torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from captionmill.data.captions.files import CaptionFiles
    from captionmill.data.errors import CaptionmillError
    from captionmill.data.features.store import FeatureStore
    from captionmill.data.models.archive import pack_model
    from captionmill.data.models.source import read_model
    from captionmill.data.tables.decisions import apply_decisions
    from captionmill.pipeline.captioning.array import extract_for_captions
    from captionmill.pipeline.captioning.folder import caption_folder
    from captionmill.pipeline.captioning.images import CaptionedImage, caption_images
    from captionmill.pipeline.captioning.source import CacheConfig
    from captionmill.pipeline.cluster import open_spread
    from captionmill.pipeline.compare import compare_tables
    from captionmill.pipeline.explain import explain_image as explain
    from captionmill.pipeline.plan.run import RunEvents, run_pipeline
    from captionmill.pipeline.search import RetrievalFiles, search_store
    from captionmill.stages.decoding.captioner import Captioner
    from captionmill.stages.encoding.extract import extract
    from captionmill.stages.ranking.audit import audit_captions
    from captionmill.stages.scoring.evaluate import evaluate
    from captionmill.stages.scoring.settings import BootstrapConfig, EvaluateConfig, LeakConfig
    from captionmill.stages.settings import ExtractConfig, SearchConfig, TrainConfig
    from captionmill.stages.split_settings import SplitLists
    from captionmill.stages.table_settings import TableConfig
    from captionmill.stages.training.recorder import TrainListener
    from captionmill.stages.training.train import train

    __version__: str

_HOMES = {
    "BootstrapConfig": "captionmill.stages.scoring.settings.BootstrapConfig",
    "CacheConfig": "captionmill.pipeline.captioning.source.CacheConfig",
    "CaptionFiles": "captionmill.data.captions.files.CaptionFiles",
    "CaptionedImage": "captionmill.pipeline.captioning.images.CaptionedImage",
    "Captioner": "captionmill.stages.decoding.captioner.Captioner",
    "CaptionmillError": "captionmill.data.errors.CaptionmillError",
    "EvaluateConfig": "captionmill.stages.scoring.settings.EvaluateConfig",
    "ExtractConfig": "captionmill.stages.settings.ExtractConfig",
    "FeatureStore": "captionmill.data.features.store.FeatureStore",
    "LeakConfig": "captionmill.stages.scoring.settings.LeakConfig",
    "RunEvents": "captionmill.pipeline.plan.run.RunEvents",
    "SearchConfig": "captionmill.stages.settings.SearchConfig",
    "RetrievalFiles": "captionmill.pipeline.search.RetrievalFiles",
    "SplitLists": "captionmill.stages.split_settings.SplitLists",
    "TableConfig": "captionmill.stages.table_settings.TableConfig",
    "TrainConfig": "captionmill.stages.settings.TrainConfig",
    "TrainListener": "captionmill.stages.training.recorder.TrainListener",
    "apply_decisions": "captionmill.data.tables.decisions.apply_decisions",
    "audit_captions": "captionmill.stages.ranking.audit.audit_captions",
    "caption_folder": "captionmill.pipeline.captioning.folder.caption_folder",
    "caption_images": "captionmill.pipeline.captioning.images.caption_images",
    "compare_tables": "captionmill.pipeline.compare.compare_tables",
    "evaluate": "captionmill.stages.scoring.evaluate.evaluate",
    "explain": "captionmill.pipeline.explain.explain_image",
    "extract": "captionmill.stages.encoding.extract.extract",
    "extract_for_captions": "captionmill.pipeline.captioning.array.extract_for_captions",
    "open_spread": "captionmill.pipeline.cluster.open_spread",
    "pack_model": "captionmill.data.models.archive.pack_model",
    "read_model": "captionmill.data.models.source.read_model",
    "run_pipeline": "captionmill.pipeline.plan.run.run_pipeline",
    "search_store": "captionmill.pipeline.search.search_store",
    "train": "captionmill.stages.training.train.train",
}

__all__ = [
    "BootstrapConfig",
    "CacheConfig",
    "CaptionFiles",
    "CaptionedImage",
    "Captioner",
    "CaptionmillError",
    "EvaluateConfig",
    "ExtractConfig",
    "FeatureStore",
    "LeakConfig",
    "RetrievalFiles",
    "RunEvents",
    "SearchConfig",
    "SplitLists",
    "TableConfig",
    "TrainConfig",
    "TrainListener",
    "__version__",
    "apply_decisions",
    "audit_captions",
    "caption_folder",
    "caption_images",
    "compare_tables",
    "evaluate",
    "explain",
    "extract",
    "extract_for_captions",
    "open_spread",
    "pack_model",
    "read_model",
    "run_pipeline",
    "search_store",
    "train",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name):
        """Import the object called `name`, once: the next use finds it like any other name of the module."""
        import importlib

        if name == "__version__":
            import importlib.metadata

            value = importlib.metadata.version("captionmill")
        elif name in _HOMES:
            module, _, name_there = _HOMES[name].rpartition(".")
            value = getattr(importlib.import_module(module), name_there)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value
