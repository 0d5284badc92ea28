"""A trained model as files that run without captionmill: encoder, decoder, words, and a manifest of them."""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captionmill.data.captions.vocabulary import END, PAD, START, UNK
from captionmill.data.errors import InputError
from captionmill.data.files import digest_of_file, errors_named, write_text
from captionmill.data.paths import AnyPath, AnyPaths, as_path
from captionmill.data.progress import Progress, no_progress
from captionmill.stages.decoding.captioner import Captioner, build_decoders
from captionmill.stages.decoding.constraints import WordRule
from captionmill.stages.encoding.encoder import encoder_for_spec
from captionmill.stages.machine import versions
from captionmill.stages.settings import ExtractConfig, SearchConfig

if TYPE_CHECKING:
    from captionmill.stages.portable.file import Port, PortableNetwork

MANIFEST_NAME = "manifest.json"
VOCABULARY_NAME = "vocabulary.json"
FORMAT = "captionmill-export"
FORMAT_VERSION = 1
_NETWORKS = ("encoder", "decoder_start", "decoder_step")
_FILES = (
    MANIFEST_NAME,
    VOCABULARY_NAME,
    *(name + suffix for name in _NETWORKS for suffix in (".onnx", ".pt")),  # TorchScript, of versions before
)
"""All that an export may hold, in the order in which it is removed."""


@dataclass(frozen=True)
class ExportSummary:
    """What was exported."""

    output: Path
    files: tuple[str, ...]
    """Names in `output`, the manifest last."""
    largest_difference: float
    """How far a number of an exported network was off from torch's, as `write_network` measures it."""
    size_bytes: int
    """Of all files together."""


def export_model(
    model: AnyPaths,
    output: AnyPath,
    *,
    weights: AnyPath | None = None,
    with_encoder: bool = True,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> ExportSummary:
    """Write the networks of `model` into the folder `output`, with its vocabulary and a manifest.

    Several folders in `model` are exported as one ensemble. Each network is compared with torch's before anything is
    put into `output`. `weights` is where the backbone's weights file is now, if it was moved since training; without
    the encoder none is needed. `overwrite` replaces an older export.

    Raises InputError if a package is missing or `output` holds something, ExportError if a network comes out of its
    file other than it went in, WeightsError if the backbone's weights cannot be had or are not the model's.
    """
    output, weights = Path(output), as_path(weights)
    staging = output.with_name(f".{output.name}.partial")
    _require_export_place(output, staging, overwrite=overwrite)
    captioner = Captioner.load(model, device="cpu")
    from captionmill.stages.portable.file import SUFFIX, require_packages, write_network  # torch takes seconds
    from captionmill.stages.portable.networks import portable_decoder, portable_encoder

    require_packages()
    networks: list[PortableNetwork] = []
    if with_encoder:
        networks.append(portable_encoder(encoder_for_spec(captioner.spec, ExtractConfig(device="cpu"), weights)))
    networks += portable_decoder(build_decoders(captioner.models))
    if not (output / MANIFEST_NAME).exists():
        _remove_export(output)  # what a kill left of one, while `staging` still shows whose it is
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        described = {}
        for number, network in enumerate(networks):
            progress("export networks", number, len(networks))
            path = staging / (network.name + SUFFIX)
            with errors_named(output / path.name):
                difference = write_network(network, path)
            described[network.name] = _network_facts(network, path, difference)
        progress("export networks", len(networks), len(networks))
        write_text(staging / VOCABULARY_NAME, _json_text(captioner.vocabulary.words))
        write_text(staging / MANIFEST_NAME, _json_text(_manifest(captioner, described)))
        files = _put_in_place(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return ExportSummary(
        output,
        tuple(files),
        max(network["largest_difference"] for network in described.values()),
        sum((output / name).stat().st_size for name in files),
    )


def _require_export_place(output: Path, staging: Path, *, overwrite: bool) -> None:
    """Raise InputError unless `output` is new or empty, or an older export that may be replaced.

    So may one that a kill cut short while it was put in place: its manifest, the last file, is in `staging` still.
    """
    if not output.exists() or not any(output.iterdir()):
        return
    if not (output / MANIFEST_NAME).exists():
        if (staging / MANIFEST_NAME).exists() and all(path.name in _FILES for path in output.iterdir()):
            return
        raise InputError(f"{output}: holds other files; name another folder as `output`")
    if not overwrite:
        with suppress(OSError):
            staging.rmdir()  # empty, as a kill left it that came when all was put in place
        raise InputError(f"{output}: holds an export already; pass `overwrite` to replace it, or another `output`")


def _manifest(captioner: Captioner, networks: dict[str, Any]) -> dict[str, Any]:
    from captionmill.stages.encoding.network import IMAGENET_MEAN, IMAGENET_STD

    rule = WordRule.of(captioner.fit_search(SearchConfig()), captioner.vocabulary)
    barred_first = rule.barred(np.empty((1, 0), np.int64), len(captioner.vocabulary))
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "file_format": "onnx",
        "networks": networks,
        "vocabulary": {"file": VOCABULARY_NAME, "size": len(captioner.vocabulary)},
        "word_rule": captioner.vocabulary.word_rule,
        "special": {"pad": PAD, "start": START, "end": END, "unk": UNK},
        "search": {
            **{reason.replace(" ", "_"): words[0].tolist() for reason, words in barred_first},
            "max_length": rule.max_length,
            "repeat_words": rule.repeat_words,
            "doubled": list(rule.doubled),
        },
        "features": captioner.spec.to_json(),
        "normalisation": {"in_network": True, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        "decoders": [bundle.decoder_config for bundle in captioner.bundles],
        "versions": versions(),
    }


def _network_facts(network: "PortableNetwork", path: Path, difference: float) -> dict[str, Any]:
    def described(ports: "Sequence[Port]") -> list[dict[str, Any]]:
        return [{name: value for name, value in asdict(port).items() if name != "below"} for port in ports]

    return {
        "file": path.name,
        "sha256": digest_of_file(path),
        "inputs": described(network.inputs),
        "outputs": described(network.outputs),
        "largest_difference": difference,
    }


def _put_in_place(staging: Path, output: Path) -> list[str]:
    """Move all files into `output`, the manifest last; what an older export had goes, its manifest first."""
    names = sorted((path.name for path in staging.iterdir()), key=lambda name: (name == MANIFEST_NAME, name))
    output.mkdir(parents=True, exist_ok=True)
    _remove_export(output)
    try:
        for name in names:
            (staging / name).replace(output / name)
    except BaseException:  # Ctrl-C too: `staging` goes, and without it the rest would be taken for other files
        _remove_export(output)
        raise
    return names


def _remove_export(output: Path) -> None:
    """Remove the files of an export from a folder, the manifest first."""
    for name in _FILES:
        (output / name).unlink(missing_ok=True)


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
