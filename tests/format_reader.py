"""Reads stores and models as docs/formats.md says, without captionmill: the page is right if this is.

Only h5py, zlib, json, struct and numpy; a loop for every sum of the page.
"""

import csv
import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Row = tuple[Array, int, Array]
"""Numbers [D], checksum, source [3]."""

COMPARED = ("backbone", "weights_sha256", "preprocess", "image_size", "resize_size", "feature_dim", "views")


def read_store(path: Path) -> tuple[dict[str, Any], dict[str, Row]]:
    """The spec, and the rows by key: main file first, then parts in the order of their names."""
    parts = sorted((path.parent / f"{path.name}.parts").glob("part-*.h5"), key=lambda part: part.name.encode())
    spec: dict[str, Any] = {}
    rows: dict[str, Row] = {}
    for file_path in [*([path] if path.exists() else []), *parts]:
        with h5py.File(file_path, "r") as file:
            assert set(file.attrs) <= {"format", "format_version", "spec", "made_by", "shard"}
            assert file.attrs["format"] == "captionmill-features"
            version = file.attrs["format_version"]
            assert file.attrs["format_version"].dtype == np.int64
            own = json.loads(file.attrs["spec"])
            assert all(own[name] == spec.get(name, own[name]) for name in COMPARED)
            assert set(own) == {*COMPARED, "weights"}
            assert all(isinstance(value, str) for value in json.loads(file.attrs["made_by"]).values())
            spec = spec or own
            assert set(file) - {"removed"} == {"keys", "features", "checksums", "sources"}
            keys = [key.decode("utf-8") for key in file["keys"][:]]
            assert keys == sorted(set(keys))
            features = file["features"]
            view_count = {"two": 2, "six": 6}.get(own["views"], 1)
            assert version == (2 if view_count == 1 else 3)
            assert (features.shape, features.chunks) == ((len(keys), view_count * own["feature_dim"]), None)
            assert features.dtype.str in ("<f2", "<f4")
            assert (file["checksums"].dtype.str, file["sources"].dtype.str) == ("<u4", "<u8")
            if "removed" in file:
                for removed in file["removed"][:]:
                    rows.pop(removed.decode("utf-8"), None)
            columns = zip(keys, features[:], file["checksums"][:], file["sources"][:], strict=True)
            rows.update({key: (row, int(checksum), source) for key, row, checksum, source in columns})
    return spec, rows


def checksum(key: str, row: Array, source: Array) -> int:
    return zlib.crc32(key.encode("utf-8") + b"\0" + row.tobytes() + struct.pack("<3Q", *map(int, source)))


def read_bundle(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The bundle and its tensors; the safetensors file is taken apart by hand."""
    bundle = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    assert (bundle["format"], bundle["format_version"]) == ("captionmill-bundle", 1)
    content = (folder / bundle["weights"]["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == bundle["weights"]["sha256"]
    assert bundle["weights"]["file"] == f"decoder-{bundle['weights']['sha256'][:12]}.safetensors"
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "F32"
        begin, end = entry["data_offsets"]
        values = np.frombuffer(content[8 + length + begin : 8 + length + end], "<f4")
        tensors[name] = values.reshape(entry["shape"])
    return bundle, tensors


def expected_shapes(decoder: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of the page's table."""
    names = ("feature_dim", "vocab_size", "embed_dim", "hidden_dim", "layers")
    dim, vocab, embed, hidden, layers = (decoder[name] for name in names)
    shapes: dict[str, tuple[int, ...]] = {"feature_mean": (dim,), "feature_std": (dim,)}
    if decoder["image_input"] == "init":
        for name in ("to_hidden", "to_cell"):
            shapes |= {f"{name}.weight": (hidden, dim), f"{name}.bias": (hidden,)}
    else:
        shapes |= {"to_input.weight": (embed, dim), "to_input.bias": (embed,)}
    shapes["embedding.weight"] = (vocab, embed)
    for layer in range(layers):
        first = 2 * embed if decoder["image_input"] == "every" else embed
        shapes[f"lstm.weight_ih_l{layer}"] = (4 * hidden, hidden if layer else first)
        shapes[f"lstm.weight_hh_l{layer}"] = (4 * hidden, hidden)
        shapes |= {f"lstm.bias_ih_l{layer}": (4 * hidden,), f"lstm.bias_hh_l{layer}": (4 * hidden,)}
    if decoder["tie_weights"]:
        shapes |= {"to_embedding.weight": (embed, hidden), "to_embedding.bias": (embed,)}
    else:
        shapes["to_logits.weight"] = (vocab, hidden)
    shapes["to_logits.bias"] = (vocab,)
    return shapes


def decode(bundle: dict[str, Any], tensors: dict[str, Array], row: Array, max_length: int = 20) -> tuple[str, float]:
    """The greedy caption of one row, and its confidence: steps 1 to 6 of the page."""
    decoder, words = bundle["decoder"], bundle["vocabulary"]
    pad, start, end, unknown = (words.index(word) for word in ("<pad>", "<start>", "<end>", "<unk>"))

    def linear(name: str, vector: Array) -> Array:
        return np.asarray(tensors[f"{name}.weight"] @ vector + tensors[f"{name}.bias"])

    x: Array = row.astype(np.float32)
    if decoder["feature_scaling"] != "unit":
        x = (x - tensors["feature_mean"]) / tensors["feature_std"]
    if decoder["feature_scaling"] != "standardize":
        x = x * np.float32(np.sqrt(len(x))) / max(np.sqrt((x * x).sum()), np.float32(1e-12))

    layers = range(decoder["layers"])
    hidden: list[Array] = [np.zeros(decoder["hidden_dim"], np.float32) for _ in layers]
    cell: list[Array] = [np.zeros(decoder["hidden_dim"], np.float32) for _ in layers]
    image: Array = np.zeros(0, np.float32)

    def step(y: Array) -> None:
        for layer in layers:
            a = tensors[f"lstm.weight_ih_l{layer}"] @ y + tensors[f"lstm.bias_ih_l{layer}"]
            a = a + tensors[f"lstm.weight_hh_l{layer}"] @ hidden[layer] + tensors[f"lstm.bias_hh_l{layer}"]
            enter, forget, candidate, leave = np.split(a, 4)
            cell[layer] = sigmoid(forget) * cell[layer] + sigmoid(enter) * np.tanh(candidate)
            y = hidden[layer] = sigmoid(leave) * np.tanh(cell[layer])

    if decoder["image_input"] == "init":
        hidden = [np.tanh(linear("to_hidden", x)) for _ in layers]
        cell = [np.tanh(linear("to_cell", x)) for _ in layers]
    elif decoder["image_input"] == "first":
        step(linear("to_input", x))
    else:
        image = linear("to_input", x)

    word, chosen, logs = start, list[int](), list[float]()
    while len(chosen) < max_length:
        step(np.concatenate([tensors["embedding.weight"][word], image]))
        output = linear("to_embedding", hidden[-1]) if decoder["tie_weights"] else hidden[-1]
        matrix = tensors["embedding.weight" if decoder["tie_weights"] else "to_logits.weight"]
        logits = matrix @ output + tensors["to_logits.bias"]
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        allowed = probabilities.copy()
        allowed[[pad, start, unknown, *(chosen[-1:] or [end])]] = -1
        word = int(allowed.argmax())
        if word == end:
            break
        chosen.append(word)
        logs.append(float(np.log(probabilities[word])))
    return " ".join(words[word] for word in chosen).replace(" 's", "'s"), float(np.exp(np.mean(logs)))


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
