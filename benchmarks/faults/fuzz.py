"""Damaged files from strangers: each is read, or refused with one of captionmill's own errors, in time.

Copies of real files are damaged at random: bytes are changed, cut off, left out or doubled; in JSON, TOML and tables a
value is replaced by one of another type or size, such as a number of 5,000 digits, infinity or brackets that are
100,000 deep.
"""

import json
import random
import shutil
import tempfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from faults.attempts import Limits, Tally, refusals, try_many
from faults.strangers import MAKERS, Kind

NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**23, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"))
TEXTS = ("", "a", "\0", "../../etc/passwd", "\ud800", "\\udce9", "=1+1", "a" * 10_000, "雪", "\n", "nan", "1e999")
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": None}, [1, "a"], {"a": {"b": 1}})
DEEP = 100_000


def damage(path: Path, draw: random.Random) -> bytes:
    """Another content for the file at `path`."""
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl", ".toml") and draw.random() < 0.7:
        return damage_values(path, content, draw)
    if path.suffix in (".csv", ".tsv") and draw.random() < 0.5:
        lines = content.decode().split("\n")
        line = draw.randrange(len(lines))
        mark = "\t" if path.suffix == ".tsv" else ","
        cells = lines[line].split(mark)
        cells[draw.randrange(len(cells))] = draw_text(draw)
        lines[line] = mark.join(cells)
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    return damage_bytes(content, draw)


def damage_bytes(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        start = draw.randrange(len(changed) + 1)
        end = min(len(changed), start + draw.choice((1, 1, 4, 50, 1000)))
        way = draw.randrange(5)
        if way == 0:
            changed[start:end] = draw.randbytes(end - start)
        elif way == 1:
            del changed[start:]
        elif way == 2:
            del changed[start:end]
        elif way == 3:
            changed[start:start] = changed[start:end]
        elif end > start:
            changed[start] ^= 1 << draw.randrange(8)
    return bytes(changed)


def damage_values(path: Path, content: bytes, draw: random.Random) -> bytes:
    if path.suffix == ".toml":
        lines = content.decode().split("\n")
        place = draw.choice([number for number, line in enumerate(lines) if " = " in line])
        lines[place] = f"{lines[place].partition(' = ')[0]} = {toml_value(draw)}"
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    if path.suffix == ".json":
        return replace_in(content, draw)
    lines_of = content.split(b"\n")
    place = draw.randrange(len(lines_of) - 1)
    line = replace_in(lines_of[place], draw)
    if path.name == "journal.jsonl":  # with the right checksum, as an attacker would
        body, _, _ = line.rpartition(b', "crc"')
        body = body or line.rstrip(b"}")
        line = b'%s, "crc": %d}' % (body, zlib.crc32(body))
    lines_of[place] = line
    return b"\n".join(lines_of)


def replace_in(text: bytes, draw: random.Random) -> bytes:
    """The JSON `text` with one value, anywhere in it, replaced or left out."""
    value = json.loads(text)
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list):
            items = list(one.items() if isinstance(one, dict) else enumerate(one))
            places += [(one, name) for name, _ in items]
            waiting += [inner for _, inner in items]
    inside, name = draw.choice(places)
    way = draw.randrange(5)
    if way == 0:
        del inside[name]
    elif way == 1:
        inside[name] = "@raw@"
        raw = draw.choice(("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "9" * 5000, "1e999", "-", ""))
        return json.dumps(value).encode().replace(b'"@raw@"', raw.encode(), 1)
    else:
        inside[name] = draw.choice((draw.choice(NUMBERS), draw.choice(TEXTS), draw.choice(OTHERS)))
    return json.dumps(value).encode()


def toml_value(draw: random.Random) -> str:
    raws = ("[" * DEEP + "]" * DEEP, "9" * 5000, "inf", "nan", "1" + "0" * 23, "1979-05-27", "{}", "[]", "true", "'''")
    return draw.choice((draw.choice(raws), json.dumps(draw_text(draw)), str(draw.choice(NUMBERS))))


def draw_text(draw: random.Random) -> str:
    return draw.choice((draw.choice(TEXTS), str(draw.choice(NUMBERS)), '"', '"a""', "1" * 200_000))


def try_file(kind: Kind, draw: random.Random, folder: Path) -> None:
    source = draw.choice(kind.sources)
    path = folder / source.parent.name / source.name
    path.parent.mkdir()
    if kind.is_folder:
        for other in source.parent.iterdir():
            if other.is_file():
                shutil.copyfile(other, path.with_name(other.name))
    path.write_bytes(damage(source, draw))
    for read in kind.readers:
        with refusals():
            read(path)


def run(limits: Limits) -> Tally:
    with tempfile.TemporaryDirectory(dir=limits.work) as work:
        attempt = partial(try_file, MAKERS[limits.kind](Path(work)))
        return try_many(attempt, limits.from_now())
