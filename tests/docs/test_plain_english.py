"""Texts for people are in plain English: these tests find words of our own dialect and name better ones.

`CHECKED` lists the files: pages are read without their fenced code, except for the program's help; of modules the
docstrings, the comments and the other texts are read, of templates what is left without their tags.
"""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKED = (
    *(
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "docs/**/*.md",
        "benchmarks/**/*.py",
        "scripts/*.py",
    ),
    *("*.py", "data/**/*.py", "stages/**/*.py", "pipeline/**/*.py", "pipeline/pages/assets/*.html"),
)
FILES = [path for pattern in CHECKED for path in sorted(ROOT.glob(pattern))]
HELP = ROOT / "docs" / "cli.md"  # all of it is in fences
CAPTION_WORDING = "{first}"  # marks the wordings of the demo's captions, which a network was trained on
COUNTED = (
    "nat|number|image|picture|photograph|caption|word|row|byte|step|epoch|process|thread|second|seed|line|file|set"
)
UNIT = "image|picture|caption|optimizer|step|word|row|second|line|epoch|GPU|CPU|core|process|task|stage|seed|page|frame"
DIALECT = {  # what is looked for, in any case: what to write
    r"anew": "again, from scratch",
    r"alone": "only, by itself",
    r"pictures?": "image (photograph where one is meant)",
    r"(goes|go|went|gone|going) on": "resumes, continues, is resumed",
    r"in the place of|in \w+'s place": "instead of",
    r"(hang|hangs|hung) (less |more )?on": "depends on",
    r"(is|are|was|were) to be": "must be, will be, should be",
    r"(?<!Show\sand\s)tells?|told": "shows, reports, returns",
    r"(is|are|was|were) said": "is printed, is reported",
    r"a killed (one|run|training|extraction)": "one that was interrupted",
    r"mend(s|ed|ing)?": "fix, correct, repair",
    r"(is|are|was|were) worth (0|\d)": "adds",
    r"(make|makes|made) 0\.\d": "scores",
    r"(?<!there\s)(is|are|was|were) (?-i:none)": "is missing, are not significant",
    r"of (such(?=[,.;:)])|(its|their|his|our) own)": "such, its own",
    r"(a|an) \w+ of its own": "its own",
    r"side by side": "in parallel, beside each other",
    rf"({COUNTED})s? an? ({UNIT})": "per",
    r"(images|rows|captions|numbers|examples)(/s)? a (second|core|row|line)": "images/s, per core",
    r"(stands?|stood) (in|under|beside|there)": "is in, is there",
    r"(images?|cosines?|CIDEr-D|captioner|logits|rankers) (say|says|said)": "shows, counts, decides",
    r"slip of the pen": "misspelt",
    r"dearer": "costs more",
    r"in no other way|what is (killed|stopped|gone|broken|damaged)": "name the thing",
}
PATTERNS = {re.compile(rf"\b({words})\b".replace(" ", r"\s+"), re.I): better for words, better in DIALECT.items()}
PHOTOGRAPHS = ("README.md", "docs/index.md", "docs/tutorial.md", "docs/benchmarks.md", "benchmarks/decode.py")


@functools.cache
def texts_of(path: Path) -> tuple[tuple[int, str], ...]:
    """The texts of a page or a module, each with its line."""
    return tuple(find_texts(path))


def find_texts(path: Path) -> Iterator[tuple[int, str]]:
    content = path.read_text(encoding="utf-8")
    if path == HELP:
        yield 1, content
        return
    if path.suffix == ".md":
        yield 1, re.sub(r"^```.*?^```$", lambda fence: "\n" * fence[0].count("\n"), content, flags=re.M | re.S)
        return
    if path.suffix == ".html":
        yield 1, re.sub(r"\{%.*?%\}|<.*?>", lambda tag: "\n" * tag[0].count("\n"), content, flags=re.S)
        return
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield from [] if CAPTION_WORDING in node.value else [(node.lineno, node.value)]
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def dialect_in(text: str) -> Iterator[tuple[int, str, str]]:
    """Line from 0, words and what to write instead, for all words of the dialect in `text`."""
    for pattern, better in PATTERNS.items():
        for found in pattern.finditer(text):
            yield text.count("\n", 0, found.start()), " ".join(found[0].split()), better


def test_no_dialect() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{first + line}: {words!r}: write {better}"
        for path in FILES
        for first, text in texts_of(path)
        for line, words, better in dialect_in(text)
    ]
    assert not found, "\n" + "\n".join(found)


def test_what_is_processed_is_an_image_and_no_photograph() -> None:
    for path in {*FILES} - {ROOT / name for name in PHOTOGRAPHS}:
        for _, text in texts_of(path):
            assert not re.search(r"\bphotographs?\b", text, re.I), (path, text)


@pytest.mark.parametrize(
    ("sentence", "better"),
    [
        ("What is stopped is gone on with by the next run.", "resumes"),
        ("Begin anew.", "from scratch"),
        ("2,048 numbers an image", "per"),
        ("captions an optimizer\nstep", "per"),
        ("It is to be at least 1.", "must be"),
        ("in the place of a folder", "instead of"),
        ("cached features alone", "only"),
        ("an ensemble is worth 0.02", "adds"),
    ],
)
def test_the_dialect_is_found(sentence: str, better: str) -> None:
    assert any(better in advice for _, _, advice in dialect_in(sentence))
