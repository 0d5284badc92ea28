"""METEOR as its own program says it; and whatever is missing leaves a metric out with a reason."""

import importlib.util
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from captionmill.stages.scoring.bootstrap import estimate
from captionmill.stages.scoring.java import measure_with_java

WORDS = ["a", "dog", "dogs", "runs", "running", "quick", "fast", "the", "on", "grass", "with", "red", "ball", "snow"]
CAPTIONS = {"1.jpg": "A dog runs.", "2.jpg": "Two men ride bikes."}
REFERENCES = {"1.jpg": ["A dog runs!", "The dog is running."], "2.jpg": ["Some men are riding"]}

# What pycocoevalcap 1.2 says of the captions drawn below, the corpus and each of them:
# score, each = pycocoevalcap.meteor.meteor.Meteor().compute_score(references, {key: [text] for key, text in ...})
METEOR = 0.433858485071
METEOR_EACH = """
0.37426 0.242979 1 0.080537 1 1 0.418397 1 0.136666 0 1 1 1 1 1 0.359657 1 1 0.072289 1 1 1 0.51952 1 1 1 0
0.0553 0.407511 1 1 0.423963 0.136666 0.35209 0.080537 1 0.561609 1 0 0.2582 0.090909 0 0.355773 1 0.156738
0.313894 1 1 1 1 0.51952 1 1 0.354628 1 1 1 1 1 1
"""


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_meteor_equals_that_of_pycocoevalcap_for_each_image_and_the_corpus() -> None:
    pytest.importorskip("pycocoevalcap")
    generator = random.Random(0)
    references, captions = {}, {}
    for key in map(str, range(60)):
        references[key] = [" ".join(generator.choices(WORDS, k=generator.randint(1, 12))) for _ in range(3)]
        captions[key] = " ".join(generator.choice(references[key]).split()[: generator.randint(0, 12)])
    # Starting Java takes seconds: what it could stumble over goes along, after the others.
    odd = {"empty": "", "letters": "café", "mark": "a ||| dog\nruns", "nothing": ""}
    odd_references = {"empty": ["a dog"], "letters": ["cafe", "café"], "mark": ["a ||| dog runs"], "nothing": ["."]}

    metrics, left_out = measure_with_java(captions | odd, references | odd_references, ["meteor"])

    assert left_out == []
    assert [metric.name for metric in metrics] == ["meteor"]
    each = [float(number) for number in METEOR_EACH.split()]
    np.testing.assert_allclose(metrics[0].each, [*each, 0, 1, 1, 0], rtol=0, atol=1e-6)
    first = replace(metrics[0], rows=metrics[0].rows[:60])
    assert first.value == pytest.approx(METEOR, abs=1e-12)
    found = estimate([first])["meteor"]
    assert found.low < found.value < found.high


def test_without_java_both_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", "")
    assert measure_with_java(CAPTIONS, REFERENCES) == (
        [],
        ["METEOR is left out: Java is not installed here", "SPICE is left out: Java is not installed here"],
    )


def test_without_the_package_both_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = "pycocoevalcap is not installed here; pip install 'captionmill[java]'"
    assert measure_with_java(CAPTIONS, REFERENCES)[1] == [
        f"{name} is left out: {reason}" for name in ("METEOR", "SPICE")
    ]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo no heap >&2; exit 1", "its Java program failed (no heap)"),
        ("echo hello", "it printed something other than numbers"),
        ("echo 1.0 2.0", "it printed 1 lines for 2 captions"),
    ],
)
def test_a_java_that_fails_leaves_meteor_out(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycocoevalcap")
    java_path = tmp_path / "java"
    java_path.write_text(f"#!/bin/sh\n{script}\n")
    java_path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert measure_with_java(CAPTIONS, REFERENCES, ["meteor"]) == ([], [f"METEOR is left out: {reason}"])


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_spice_without_its_models_and_without_a_network_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(*pytest.importorskip("pycocoevalcap").__path__) / "spice"
    if (folder / "lib" / "stanford-corenlp-3.6.0-models.jar").exists():
        pytest.skip("the models were downloaded")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    metrics, left_out = measure_with_java(CAPTIONS, REFERENCES, ["spice"])
    assert metrics == []
    assert len(left_out) == 1
    assert left_out[0].startswith("SPICE is left out: its models cannot be downloaded (")
    assert capsys.readouterr().out == ""
