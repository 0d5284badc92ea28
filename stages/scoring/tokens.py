"""Caption tokens as the COCO caption evaluation makes them, without Java.

Published BLEU, ROUGE-L and CIDEr values depend on the tokens as much as on the formulas. The reference is the tokenizer
of pycocoevalcap: Stanford CoreNLP 3.4.1, `PTBTokenizer -preserveLines -lowerCase`, after which it drops the tokens
'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ; only. That list has capitals and single marks, so a bracket
stays (as "-lrb-" and so on), and a run such as "?!" stays too.

Compared with that program, line by line: the same on all 40,460 captions of Flickr8k (also in capitals, and
without the spaces before punctuation) and on 40,000 captions of random words of its vocabulary; on 99.9% of 120,000
such captions with contractions, numbers, quotes, dashes, brackets, abbreviations and emoji inserted at random; and on
99.6% of 60,000 random strings of letters, digits, quotes and punctuation.

Known to differ: a word of `_REWRITTEN` before 's ("cannot's"); curly quotes in a row (“‘ gives "```", here nothing);
faces in brackets ("(--)"); HTML comments and entities other than the usual ones; odd web addresses; "a@b.c" between
angle brackets; some symbols beyond the Latin script. A Java token with a no-break space in it ("2 1/2", <a b>) is
two tokens here, as in pycocoevalcap's BLEU and CIDEr. In Java, the next line decides whether a period at the end of a
line is part of "plan B." or "no."; here, it has no influence.
"""

import re
from collections.abc import Iterator

from captionmill.data.captions.words import FIRST_RULE, WORD_RULE, split_for_scores

# Every rule below was checked against the output of the Java program.
_LETTERS = (
    r"A-Za-zªµºÀ-ÖØ-öø-\u037dΆΈ-\u0481\u048a-\u0587\u0591-\u0e3e\u0e40-\u17ff\u1810-\u1fbc\u1fc2-\u1ffcⁱⁿⰀ-\u2dff々-〇"
    r"\u3040-\u30fa\u30fc-\ua4cf\ua500-\ud7ff\uf900-\ufdfb\ufe70-\ufefc０-９Ａ-Ｚａ-ｚｦ-ￜ"
)
_SYMBOLS = (
    r"฿$#*+/<=>@\\^|~%&()\[\]{}¡¢-©¬®-´¶-¹¼-¿×÷‖‗‚„-\u2023‰-‸※‾-⁂⁄⁰⁴-⁾₀-₎€₤℀-℆℈℉№℘℞-℣℥℧℮⅓-⅞←-⯿、。〒・"
    "！-／：-＠［-｀｛-･￠-￦"
)
_CHARACTER = f"[{_LETTERS}0-9]"
_QUOTE = "['’]"
_SHORT_FORM = rf"(?:(?<!')'|(?<!’)’)(?i:[sdm]|ll|re|ve)(?![{_LETTERS}])"  # 's, 'll
_INITIALS = r"(?:[A-Za-z]\.){2,}(?![A-Za-z])"  # U.S.
# These keep their period everywhere. All words of up to four letters, and those of Flickr8k, were tried.
_ABBREVIATIONS = """adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bhd bldg blvd brig bros calif capt cf
    cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga
    gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn
    mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty pres prof pte ptes
    pty ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs tue
    tues univ va vs vt wed wis wisc wm wyo"""
_CAPITALIZED_ABBREVIATIONS = "ark az del ill la mass miss ore pa tex wash"
_NUMBER_ABBREVIATIONS = "art ca figs? nos? op pp prop"  # only before a number
# After "plan B." these words begin a new sentence, so the period is not part of "B.".
_SENTENCE_STARTERS = r"""a about according additionally after an as at but earlier he her here however if in it last
    many more mr\. ms\. now once one other our she since so some such that the their then there these they this we what
    when while yet you"""


def _either(words: str) -> str:
    return "|".join(words.split())


# Java takes the longest match; here the longer alternatives come first. Text that matches nothing is dropped.
_TOKEN = re.compile(
    rf"""
    \s+ | [.,](?!\S) | (
      (?:[A-Za-z]+\ )+                                                     # plain words: most of a caption in one match
    | (?i:https?://|(?:[A-Za-z0-9-]+\.)+(?:com|net|org|edu)/[^\s"<>()|])[^\s"<>()|]*[^\s"<>()|.,?!;:'-]
    | (?i:www)(?:\.[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)+
    | [A-Za-z0-9][^\s"<>|(){{}}]*@(?:[^\s"<>|(){{}}.]+\.)*[^\s"<>|(){{}}.]+
    | </?[A-Za-z_][\w:.-]*(?:\s[^<>]*)?/?>                                 # a tag
    | [<>]?[:;=][-o*']?[()@\[\]{{|\\dpDOP](?![A-Za-z0-9])                  # :-)
    | [-^xX=~<>'][_][-^xX=~<>']                                            # ^_^
    | [A-Z]+(?:(?:\+|&(?:amp;)?)[A-Z]+)+ | [A-Z]+\$ | [Cc]\+\+ | [CcFf]\#  # R&B, US$
    | \d+\.(?i:jpe?g|png|gif|bmp|html?|txt|pdf|doc|mp3|mov)(?![A-Za-z0-9])
    | \d+⁄\d+ | \d+\ \d+/\d+ | \(\d{{3}}\)\ ?\d{{3}}-\d{{4}}               # 2 1/2, (555) 555-1234
    | [A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*){{1,2}}
    | {_CHARACTER}+(?:[-_]{_CHARACTER}+)*\.(?=[,;:])                       # any word keeps its period before a comma
    | (?![A-Za-z0-9-]+_)[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:{_INITIALS}|[A-Za-z0-9]+))*
      -(?:[DOdo]{_QUOTE}[A-Za-z]{{2,}}|{_INITIALS}|[A-Za-z0-9]+(?!{_CHARACTER}))
    | {_CHARACTER}+(?:[-_‐‑]{_CHARACTER}+)+ | (?i:anti|pro)-
    | (?![A-Za-z]+{_SHORT_FORM})(?:
        [DOdo]{_QUOTE}[A-Za-z0-9]{{2,}}(?:-[A-Za-z0-9]+)+
      | [A-HJ-XZdlno]{_QUOTE}{_CHARACTER}{{2,}}                            # O'Neil, o'clock
      | [A-Za-z]+[aeiouyAEIOUY]{_QUOTE}[aeiouA-Z][A-Za-z]*                 # ma'am, Hallowe'en
      | (?i:c{_QUOTE}mon|s{_QUOTE}mores|e{_QUOTE}er|c{_QUOTE}est|ev{_QUOTE}ry|li{_QUOTE}l|nat{_QUOTE}l)
      | (?i:nor{_QUOTE}easter|(?:dunkin|somethin|ol){_QUOTE})
      | [DJLdjl]{_QUOTE} | [Yy]{_QUOTE}(?=[A-Za-z])                        # y'all
      )
    | (?i:cap{_QUOTE}n)
    | [A-Za-z]*[A-MO-Za-mo-z](?=[Nn]['’`‘‛][Tt]) | [Nn]['’`‘‛][Tt]         # do, n't
    | '(?i:tis|twas)
    | {_QUOTE}[Nn]{_QUOTE} | {_SHORT_FORM} | '[Nn](?!\S)
    | (?<!’)’(?i:[sdmn]|ll|re|ve)                                          # a curly one even inside a word
    | {_QUOTE}(?i:em|cause|till?) | {_QUOTE}[2-9]0[Ss] | {_QUOTE}\d\d(?!\S)
    | {_INITIALS} | (?i:ph\.d\.)
    | [{_LETTERS}]{_CHARACTER}*(?:[.!?][{_LETTERS}]{_CHARACTER}*)+         # node.js, but also "dog.The"
    | (?=[A-Za-z]{{2,6}}\.)(?:(?i:{_either(_ABBREVIATIONS)})|(?=[A-Z])(?i:{_either(_CAPITALIZED_ABBREVIATIONS)}))\.
    | (?i:{_either(_NUMBER_ABBREVIATIONS)})\.(?=\ ?\d)
    | [A-Za-z]\.(?!\ +(?=[A-Z])(?i:{_either(_SENTENCE_STARTERS)})(?!\S))
    | (?:\+|(?<!-)-)?(?:\d+|(?<!\.\.))(?:[.:,]\d+)+ | (?:\+|(?<!-)-)\d+    # 3.5, 1,000, 10:30, -5
    | {_CHARACTER}+
    | &(?:amp|lt|gt|nbsp|quot|apos|mdash|ndash|AMP|LT|GT|\#\d+);
    | -(?i:[lr][rcs]b)-                                                     # a bracket that is a token already
    | [!?]{{2,}} | -{{5,}} | _+ | \*+ | \\\* | << | >>
    | \#[{_LETTERS}]+ | \#{{2,}} | @[A-Za-z_][A-Za-z0-9_]* | @{{2,}}
    | [{_SYMBOLS}]
    )
    """,
    re.VERBOSE,
)

_LONGEST_PIECE = 1_000  # characters

# Tokens that Java spells differently or splits at the space, and entities of dropped punctuation.
_REWRITTEN = {
    "cannot": "can not",
    "gimme": "gim me",
    "gonna": "gon na",
    "gotta": "got ta",
    "lemme": "lem me",
    "wanna": "wan na",
    "'tis": "'t is",
    "'twas": "'t was",
    "n’t": "n't",
    "n‘t": "n`t",
    "n‛t": "n`t",
    **{f"’{ending}": f"'{ending}" for ending in ("s", "d", "m", "ll", "re", "ve")},
    **dict(zip("[]{}", ("-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True)),
    **dict(zip("£¢€¤", ("#", "cents", "$", "$"), strict=True)),
    **dict(zip("¼½¾⅓⅔", ("1/4", "1/2", "3/4", "1/3", "2/3"), strict=True)),
    "&lt;": "<",
    "&gt;": ">",
    **dict.fromkeys(("&nbsp;", "&quot;", "&apos;", "&mdash;", "&ndash;"), ""),
}


def tokenize_ptb(caption: str) -> list[str]:
    """The tokens of a caption in lower case, without punctuation, as pycocoevalcap's tokenizer returns them."""
    pieces = _pieces(caption.replace("\xad", ""))
    text = " ".join(token for piece in pieces for token in _TOKEN.findall(piece)).lower()
    words = text.replace("(", "-lrb-").replace(")", "-rrb-").replace("&amp;", "&").split()
    if _REWRITTEN.keys().isdisjoint(words):
        return words
    return " ".join([_REWRITTEN.get(word, word) for word in words]).split()


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces that end at a space, as the time for a piece may grow with the square of its length."""
    start = 0
    while len(text) - start > _LONGEST_PIECE:
        end = text.rfind(" ", start, start + _LONGEST_PIECE) + 1 or start + _LONGEST_PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def tokenize_for_scores(caption: str, word_rule: int = WORD_RULE) -> list[str]:
    """The tokens that a caption is scored by, segmented as a model of `word_rule` is trained.

    Those of `tokenize_ptb`, but each character of a script without spaces is a token, and HTML entities are decoded.
    """
    if word_rule == FIRST_RULE:
        return tokenize_ptb(caption)
    tokens: list[str] = []
    for part, is_word in split_for_scores(caption):
        tokens += [part] if is_word else tokenize_ptb(part)
    return tokens
