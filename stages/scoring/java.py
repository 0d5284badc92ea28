"""METEOR and SPICE, from the Java programs in the PyPI package pycocoevalcap.

Both are optional: without Java, the package or the models that SPICE downloads at its first use, a metric is left out
with a reason. Tokens are those of the other metrics. METEOR is version 1.5 with the English parameters for ranking
(Denkowski & Lavie, "Meteor Universal", WMT 2014); SPICE is version 1.0 (Anderson et al., "SPICE", ECCV 2016).
"""

import contextlib
import functools
import http.client
import importlib.util
import io
import json
import logging
import shutil
import socket
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from captionmill.data.captions.words import WORD_RULE
from captionmill.data.foreign import parse_json
from captionmill.data.optional import install_command
from captionmill.stages.scoring.metrics import Floats, Metric, mean_metric
from captionmill.stages.scoring.tokens import tokenize_for_scores

_PACKAGE = "pycocoevalcap"
JAVA_METRICS = ("meteor", "spice")
CONNECT_TIMEOUT_S = 30
_METEOR_NUMBERS = 23  # that METEOR prints per caption
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75  # METEOR's `-l en`
_MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # of exact, stem, synonym and paraphrase matches

_logger = logging.getLogger(__name__)

Corpus = Sequence[tuple[str, Sequence[str]]]


class _UnavailableError(Exception):
    """A metric is not available here; the message is the reason."""


def measure_with_java(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    names: Collection[str] = JAVA_METRICS,
    word_rule: int = WORD_RULE,
) -> tuple[list[Metric], list[str]]:
    """METEOR and SPICE of one caption per image, rows in the order of `captions`, each 0 to 1; and those left out.

    The second list has a line for each metric of `names` that is not available here, with the reason. `word_rule` is
    that of the model.
    """
    prepare = functools.partial(_tokens_line, word_rule=word_rule)
    corpus = [(prepare(caption), [prepare(text) for text in references[key]]) for key, caption in captions.items()]
    metrics, left_out = [], []
    measures: dict[str, Callable[[Corpus], Metric]] = {"meteor": _measure_meteor, "spice": _measure_spice}
    for name in names:
        try:
            metrics.append(measures[name](corpus))
        except _UnavailableError as exc:
            left_out.append(f"{name.upper()} is left out: {exc}")
    return metrics, left_out


def _tokens_line(caption: str, word_rule: int) -> str:
    """The tokens in one line, without METEOR's separator of sentences."""
    return " ".join(" ".join(tokenize_for_scores(caption, word_rule)).replace("|||", "|").split())


def _measure_meteor(corpus: Corpus) -> Metric:
    lines = [" ||| ".join(["SCORE", *references, caption]) for caption, references in corpus]
    printed = _run_jar(_find("meteor/meteor-1.5.jar"), "-Xmx2G", ["-", "-", "-stdio", "-l", "en", "-norm"], lines)
    try:
        rows = np.array([line.split() for line in printed], np.float64)
    except ValueError as exc:
        raise _UnavailableError("it printed something other than numbers") from exc
    if rows.shape != (len(corpus), _METEOR_NUMBERS):
        raise _UnavailableError(f"it printed {len(printed)} lines for {len(corpus)} captions")
    # A caption that equals the reference is in one piece: Java counts no chunk for it, so there is no penalty.
    perfect = (rows[:, 20] == 1) & (rows[:, 21] == rows[:, 0]) & (rows[:, 22] == rows[:, 1])
    rows[perfect, 20] = 0
    return Metric("meteor", rows, _meteor)


def _meteor(sums: Floats, _: int) -> Floats:
    """METEOR from sums of the numbers that are printed per caption, [..., 23] -> [...]; as its own EVAL computes it.

    The numbers: words of caption and reference, function words of both; for each kind of match the content words
    matched in caption and reference and the function words in both; chunks; words matched in caption and reference.
    """
    lengths = sums[..., :2]  # [..., caption or reference]
    function_words = sums[..., 2:4]
    matches = sums[..., 4:20].reshape(
        *sums.shape[:-1], 4, 2, 2
    )  # [..., kind, content or function, caption or reference]
    weighted = np.einsum("...kwc,k,w->...c", matches, _MATCH_WEIGHTS, np.array([_DELTA, 1 - _DELTA]))
    possible = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    shares = np.divide(weighted, possible, out=np.zeros_like(weighted), where=possible > 0)
    precision, recall = shares[..., 0], shares[..., 1]
    divisor = _ALPHA * precision + (1 - _ALPHA) * recall
    mean = np.divide(precision * recall, divisor, out=np.zeros_like(divisor), where=divisor > 0)
    matched = sums[..., 21:].mean(axis=-1)
    fragmentation = np.divide(sums[..., 20], matched, out=np.zeros_like(matched), where=matched > 0)
    return np.asarray(mean * (1 - _GAMMA * fragmentation**_BETA))


def _measure_spice(corpus: Corpus) -> Metric:
    jar_path = _find("spice/spice-1.0.jar")
    _find_java()
    _fetch_spice_models(jar_path.parent)
    items = [
        {"image_id": index, "test": caption, "refs": list(references)}
        for index, (caption, references) in enumerate(corpus)
    ]
    with tempfile.TemporaryDirectory() as folder:
        input_path, output_path = Path(folder, "captions.json"), Path(folder, "scores.json")
        input_path.write_text(json.dumps(items), encoding="utf-8")
        _run_jar(jar_path, "-Xmx8G", [str(input_path), "-out", str(output_path), "-silent"], [])
        try:
            results = parse_json(output_path.read_text(encoding="utf-8"))
            score_of = {item["image_id"]: float(item["scores"]["All"]["f"]) for item in results}
            scores = np.array([score_of[item["image_id"]] for item in items])
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise _UnavailableError("it wrote no readable scores") from exc
    if not np.isfinite(scores).all():
        raise _UnavailableError(f"it has no score for {int((~np.isfinite(scores)).sum())} of {len(scores)} captions")
    return mean_metric("spice", scores)


def _fetch_spice_models(folder: Path) -> None:
    """Let the package download Stanford CoreNLP 3.6.0 (about 400 MB) into its folder, unless it is there already."""
    if any((folder / "lib").glob("stanford-corenlp-3.6.0-models.jar")):
        return
    _logger.warning("SPICE downloads the models of Stanford CoreNLP (about 400 MB) at its first use")
    try:
        from pycocoevalcap.spice.get_stanford_models import get_stanford_models

        with _connect_timeout(), contextlib.redirect_stdout(io.StringIO()):
            get_stanford_models()
    except (ImportError, OSError, http.client.HTTPException, zipfile.BadZipFile, KeyError) as exc:
        raise _UnavailableError(f"its models cannot be downloaded ({exc})") from exc


@contextlib.contextmanager
def _connect_timeout() -> Iterator[None]:
    """A timeout for downloads: the package sets none, and would wait forever where packets are dropped."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _find(name: str) -> Path:
    """The file `name` of the package; it is not imported, as that would start programs."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in spec.submodule_search_locations or () if spec else ():
        if (path := Path(folder, name)).exists():
            return path
    raise _UnavailableError(f"{_PACKAGE} is not installed here; {install_command('java')}")


def _find_java() -> str:
    java = shutil.which("java")
    if java is None:
        raise _UnavailableError("Java is not installed here")
    return java


def _run_jar(jar_path: Path, heap: str, arguments: Sequence[str], lines: Sequence[str]) -> list[str]:
    """The lines that the program prints for the input `lines`."""
    try:
        done = subprocess.run(
            [_find_java(), heap, "-Dfile.encoding=UTF-8", "-jar", str(jar_path), *arguments],
            input="".join(f"{line}\n" for line in lines),
            cwd=jar_path.parent,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as exc:
        raise _UnavailableError(f"Java cannot be started ({exc.strerror or exc})") from exc
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[0]
        raise _UnavailableError(f"its Java program failed ({said})")
    return done.stdout.splitlines()
