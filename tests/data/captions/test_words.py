"""The words of a caption in every script, and the caption of words."""

import pytest
from builders import FLICKR8K

from captionmill.data.captions.vocabulary import Vocabulary, WordCounts
from captionmill.data.captions.words import FIRST_RULE, decode_entities, has_words, join_words, tokenize
from captionmill.stages.scoring.tokens import tokenize_for_scores

SENTENCES = [  # a caption, its words, and the caption that is written for these
    (
        "Tom &amp; Jerry &quot;a dog&quot; isn&#39;t 3.5 m",
        ["tom", "jerry", "a", "dog", "isn't", "3.5", "m"],
        "tom jerry a dog isn't 3.5 m",
    ),
    ("1,000 people, 2 dogs, v2.0", ["1,000", "people", "2", "dogs", "v2.0"], "1,000 people 2 dogs v2.0"),
    ("the end.3 cats ran 3. then", ["the", "end", "3", "cats", "ran", "3", "then"], "the end 3 cats ran 3 then"),
    ("beach\xadball co\u200dop \ufeffwo\u2060rd", ["beachball", "coop", "word"], "beachball coop word"),
    ("红色的狗第10次奔跑。", [*"红色的狗第", "10", *"次奔跑"], "红色的狗第10次奔跑"),
    ("一只 iPhone X 在 3.5 米", ["一", "只", "iphone", "x", "在", "3.5", "米"], "一只iphone x在3.5米"),
    ("男の子がｶﾞﾑを「食べる」", ["男", "の", "子", "が", "ｶﾞ", "ﾑ", "を", "食", "べ", "る"], "男の子がｶﾞﾑを食べる"),
    ("か\u3099っこう 𠮷野家", ["か\u3099", "っ", "こ", "う", "𠮷", "野", "家"], "か\u3099っこう𠮷野家"),
    ("สุนัข น้ำ 2 ตัว beach", ["สุ", "นั", "ข", "น้ำ", "2", "ตั", "ว", "beach"], "สุนัขน้ำ 2 ตัว beach"),
    ("ខ្មែរ មួយ", ["ខ្មែ", "រ", "មួ", "យ"], "ខ្មែរមួយ"),
    ("မြန်မာ", ["မြ", "န်", "မာ"], "မြန်မာ"),
    ("한국 사람 大韓民國 국민", ["한국", "사람", *"大韓民國", "국민"], "한국 사람 大韓民國 국민"),
    ("می\u200cروم خانه", ["می\u200cروم", "خانه"], "می\u200cروم خانه"),
    ("एक हिन्दी कुत्ता, दौड़ता है", ["एक", "हिन्दी", "कुत्ता", "दौड़ता", "है"], "एक हिन्दी कुत्ता दौड़ता है"),
]


@pytest.mark.parametrize(("caption", "words", "written"), SENTENCES)
def test_words_are_found_and_written_as_people_write_them(caption: str, words: list[str], written: str) -> None:
    assert tokenize(caption) == words
    assert join_words(words) == written
    assert tokenize(written) == words


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("&amp;quot;hi&amp;quot;", '"hi"'),
        ("R&D at AT&T, fish &chips; &notit;", "R&D at AT&T, fish &chips; &notit;"),
        ("&#x1F600; &#128512; &nbsp;&lt;b&gt; &quot x &amp y", '😀 😀 \xa0<b> " x & y'),
    ],
)
def test_entities_are_decoded_and_other_ampersands_stay(text: str, decoded: str) -> None:
    assert decode_entities(text) == decoded


@pytest.mark.parametrize("caption", ["🐕❤️", "...", "&quot;&amp;", "👩\u200d👩\u200d👧", "。、", "\xad", "-"])
def test_signs_are_no_words(caption: str) -> None:
    assert not has_words(caption)
    assert tokenize(caption) == []


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man doesn't like 3.5 &quot;dogs&quot;.", "a man does n't like 3.5 dogs"),
        ("红色的狗, doesn't 跑。", "红 色 的 狗 does n't 跑"),
        ("「𠮷」は、ｶﾞ！", "𠮷 は ｶﾞ"),
        ("สุนัข 2 ตัวฯ", "สุ นั ข 2 ตั ว ฯ"),
        ("می\u200cروم", "میروم"),
    ],
)
def test_captions_are_scored_by_the_words_that_are_learned(caption: str, tokens: str) -> None:
    assert " ".join(tokenize_for_scores(caption)) == tokens


def test_a_vocabulary_of_the_first_rule_goes_on_by_it() -> None:
    captions = ["红色的狗 &quot;3.5&quot;"]
    old = Vocabulary.of(WordCounts.of(captions, FIRST_RULE), min_count=1)
    assert old.words[4:] == ("quot", "3", "5", "红色的狗")
    assert old.decode(old.encode(captions[0])) == "红色的狗 quot 3 5 quot"
    assert tokenize_for_scores("红色的狗", FIRST_RULE) == ["红色的狗"]


def test_a_rule_of_a_later_version_is_refused() -> None:
    with pytest.raises(ValueError, match="word rule 3 is not known"):
        Vocabulary(["<pad>", "<start>", "<end>", "<unk>"], 3)


def test_flickr8k_has_the_words_that_it_had() -> None:
    if not FLICKR8K.exists():
        pytest.skip(f"{FLICKR8K} is not here")
    lines = (FLICKR8K / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    captions = [line.split("\t", 1)[1] for line in lines]
    assert [caption for caption in captions if tokenize(caption) != tokenize(caption, FIRST_RULE)] == []
