import importlib.util
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from builders import FLICKR8K

from captionmill.stages.scoring.tokens import tokenize_ptb

FLICKR8K_PATH = FLICKR8K / "Flickr8k.token.txt"

# Every right-hand side is what Stanford CoreNLP 3.4.1 printed, less pycocoevalcap's punctuation.
SENTENCES = [
    ("A man doesn't like it 's dog .", "a man does n't like it 's dog"),
    (
        "I'm sure they've seen what he'd do; we'll see, you're right.",
        "i 'm sure they 've seen what he 'd do we 'll see you 're right",
    ),
    (
        "The dogs' toys and James's bone: can't, won't, CANNOT, gonna, wanna.",
        "the dogs toys and james 's bone ca n't wo n't can not gon na wan na",
    ),
    ("Don’t touch the girl’s hat – it’s hers — “really”.", "do n't touch the girl 's hat it 's hers really"),
    ("A boy says, \"Hello!\" and 'goodbye'.", "a boy says hello and goodbye"),
    ('He said "stop." (Then he left...)', "he said stop -lrb- then he left -rrb-"),
    (
        "A well-dressed man -- with a red-and-white t-shirt -- runs - fast",
        "a well-dressed man with a red-and-white t-shirt runs fast",
    ),
    (
        "1,000 people, 3.5 miles, 10:30 p.m., 50% off, $5 or $1,000.50",
        "1,000 people 3.5 miles 10:30 p.m. 50 % off $ 5 or $ 1,000.50",
    ),
    (
        "Mr. Smith and Dr. Jones of St. Louis, U.S., met J. K. Rowling Jr.",
        "mr. smith and dr. jones of st. louis u.s. met j. k. rowling jr.",
    ),
    ("He lives in the U.S. The dog is from Washington, D.C.", "he lives in the u.s. the dog is from washington d.c."),
    ("Plan B. The dog runs to gate B. quickly", "plan b the dog runs to gate b. quickly"),
    ("the No. 5 shirt, no. The dog", "the no. 5 shirt no the dog"),
    ("black & white AT&T truck and R&B music, a&b", "black & white at&t truck and r&b music a & b"),
    ("a boy and/or girl, black/white, 1/2 of 2 1/2 cakes", "a boy and/or girl black/white 1/2 of 2 1/2 cakes"),
    ("A dog [left] {right} <b>bold</b>", "a dog -lsb- left -rsb- -lcb- right -rcb- <b> bold </b>"),
    ("café naïve Beyoncé jalapeño 日本語", "café naïve beyoncé jalapeño 日本語"),
    ("a 😀 smile👍🏽 here ❤ :) ;-) :D", "a smile here ❤ :-rrb- ;--rrb- :d"),
    ("Wait... what?! No!! Yes. . . ok…", "wait what ?! no !! yes ok"),
    (
        "rock 'n' roll at five o'clock with ma'am O'Brien and y'all",
        "rock 'n' roll at five o'clock with ma'am o'brien and y' all",
    ),
    ("'Tis the '90s, the 1950s, the 50's and '05", "'t is the '90s the 1950s the 50 's and '05"),
    ("a 6' 2\" man with a 6-foot board at 5'10\"", "a 6 2 man with a 6-foot board at 5 10"),
    ("mp3 4x4 2nd 49ers k2 T-Shirt #23 #fun @home", "mp3 4x4 2nd 49ers k2 t-shirt # 23 #fun @home"),
    (
        "visit www.nike.com, statefarm.com or http://a.b/c. or mail me@x.org today",
        "visit www.nike.com statefarm.com or http://a.b/c or mail me@x.org today",
    ),
    ("a dog,a cat;a bird:a fish.The end", "a dog a cat a bird a fish.the end"),
    ("a dog., a cat", "a dog. a cat"),
    ("a -5 +5 x-5 5-6 -----", "a -5 +5 x-5 5-6 -----"),
    ("it`s a ``quoted'' word", "it s a quoted word"),
    ("a*b a_b a+b a=b a~b a\\b a|b ** __", "a * b a_b a + b a = b a ~ b a \\ b a | b ** __"),
    ("£5 €5 ¢ 20°C ½ © ™ •", "# 5 $ 5 cents 20 ° c 1/2 © ™ •"),
    ("AT&amp;T &lt; &gt; &quot;x&quot;", "at&t < > x"),
    ("soft\xadhyphen and zero\u200bwidth   spaces\tand tabs", "softhyphen and zero width spaces and tabs"),
    ("-lrb- a token again -rrb-", "-lrb- a token again -rrb-"),
    ("red,black-and-white shirt", "red,black-and-white shirt"),
    ("A GIRL ISN'T HERE, SHE'S THERE", "a girl is n't here she 's there"),
    ("playin' fishin' rod of ol' Tom", "playin fishin rod of ol' tom"),
    ("gov't s'mores jack-o'-lantern more'n rock'n'roll", "gov t s'mores jack-o lantern more 'n rock 'n' roll"),
    ("children's bird's-eye view", "children 's bird 's eye view"),
]


@pytest.mark.parametrize(("sentence", "tokens"), SENTENCES)
def test_tokens_are_those_of_the_java_tokenizer(sentence: str, tokens: str) -> None:
    assert " ".join(tokenize_ptb(sentence)) == tokens


@pytest.mark.parametrize("sentence", ["", "   ", ".", " . , ! ", "\n", "\N{DOG FACE}"])
def test_nothing_but_punctuation_leaves_no_tokens(sentence: str) -> None:
    assert tokenize_ptb(sentence) == []


def test_a_line_break_is_a_space() -> None:
    assert tokenize_ptb("a dog\nruns\r\nfast") == ["a", "dog", "runs", "fast"]


def test_a_long_caption_has_the_tokens_of_its_sentences_in_time_that_grows_with_its_length() -> None:
    started = time.process_time()
    assert tokenize_ptb("A man's dog runs, fast. " * 100) == ["a", "man", "'s", "dog", "runs", "fast"] * 100
    assert set(tokenize_ptb("&#1" * 20_000)) == {"&", "#", "1"}
    assert time.process_time() - started < 2


def test_every_flickr8k_caption_matches_the_java_tokenizer() -> None:
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pycocoevalcap is not installed")
    if shutil.which("java") is None:
        pytest.skip("java is not installed")
    if not FLICKR8K_PATH.exists():
        pytest.skip(f"{FLICKR8K_PATH} is not here")
    captions = [line.split("\t", 1)[1] for line in FLICKR8K_PATH.read_text(encoding="utf-8").splitlines()]

    jar_path = Path(package.submodule_search_locations[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    command = ["java", "-cp", str(jar_path), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    completed = subprocess.run(command, input="\n".join(captions).encode(), capture_output=True, check=True)
    lines = completed.stdout.decode().split("\n")[: len(captions)]

    dropped = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:-;", "--", "..."}
    expected = [[token for token in line.split() if token not in dropped] for line in lines]
    assert [tokenize_ptb(caption) for caption in captions] == expected
