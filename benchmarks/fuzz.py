"""Files from strangers: each damaged one is read, or refused with one of captionmill's own errors, in time.

python benchmarks/fuzz.py [--seconds 300] [--count 0] [--seed 0] [--kinds weights bundles ...] [--show]

A tiny training makes one real file of each kind. Copies of it are damaged at random: bytes are changed, cut off, left
out or doubled; in JSON, TOML and tables a value is replaced by one of another type or size, such as a number of 5,000
digits, infinity or brackets that are 100,000 deep. Held is a copy that is read, or refused by an error that the command
line shows as one line. Prints how many were tried and held; `--show` prints the tracebacks of the others.
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


from strangers import Kind, make_files

from captionmill.data.errors import CaptionmillError

SECONDS = 20  # for one file
MEMORY = 12_000_000_000  # bytes, of the whole process
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**23, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"))
TEXTS = ("", "a", "\0", "../../etc/passwd", "\ud800", "\\udce9", "=1+1", "a" * 10_000, "雪", "\n", "nan", "1e999")
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": None}, [1, "a"], {"a": {"b": 1}})
DEEP = 100_000


class TookTooLongError(Exception):
    """A file took more than SECONDS."""


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TookTooLongError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def damage(path: Path, drawn: random.Random) -> bytes:
    """Another content for the file at `path`."""
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl", ".toml") and drawn.random() < 0.7:
        return damage_values(path, content, drawn)
    if path.suffix in (".csv", ".tsv") and drawn.random() < 0.5:
        lines = content.decode().split("\n")
        line = drawn.randrange(len(lines))
        mark = "\t" if path.suffix == ".tsv" else ","
        cells = lines[line].split(mark)
        cells[drawn.randrange(len(cells))] = draw_text(drawn)
        lines[line] = mark.join(cells)
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    return damage_bytes(content, drawn)


def damage_bytes(content: bytes, drawn: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(drawn.choice((1, 1, 2, 5, 20))):
        start = drawn.randrange(len(changed) + 1)
        end = min(len(changed), start + drawn.choice((1, 1, 4, 50, 1000)))
        way = drawn.randrange(5)
        if way == 0:
            changed[start:end] = drawn.randbytes(end - start)
        elif way == 1:
            del changed[start:]
        elif way == 2:
            del changed[start:end]
        elif way == 3:
            changed[start:start] = changed[start:end]
        elif end > start:
            changed[start] ^= 1 << drawn.randrange(8)
    return bytes(changed)


def damage_values(path: Path, content: bytes, drawn: random.Random) -> bytes:
    if path.suffix == ".toml":
        lines = content.decode().split("\n")
        place = drawn.choice([number for number, line in enumerate(lines) if " = " in line])
        lines[place] = f"{lines[place].partition(' = ')[0]} = {toml_value(drawn)}"
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    if path.suffix == ".json":
        return replace_in(content, drawn)
    lines_of = content.split(b"\n")
    place = drawn.randrange(len(lines_of) - 1)
    line = replace_in(lines_of[place], drawn)
    if path.name == "journal.jsonl":  # with the right checksum, as an attacker would
        body, _, _ = line.rpartition(b', "crc"')
        body = body or line.rstrip(b"}")
        line = b'%s, "crc": %d}' % (body, zlib.crc32(body))
    lines_of[place] = line
    return b"\n".join(lines_of)


def replace_in(text: bytes, drawn: random.Random) -> bytes:
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
    inside, name = drawn.choice(places)
    way = drawn.randrange(5)
    if way == 0:
        del inside[name]
    elif way == 1:
        inside[name] = "@raw@"
        raw = drawn.choice(("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "9" * 5000, "1e999", "-", ""))
        return json.dumps(value).encode().replace(b'"@raw@"', raw.encode(), 1)
    else:
        inside[name] = drawn.choice((drawn.choice(NUMBERS), drawn.choice(TEXTS), drawn.choice(OTHERS)))
    return json.dumps(value).encode()


def toml_value(drawn: random.Random) -> str:
    raws = ("[" * DEEP + "]" * DEEP, "9" * 5000, "inf", "nan", "1" + "0" * 23, "1979-05-27", "{}", "[]", "true", "'''")
    return drawn.choice((drawn.choice(raws), json.dumps(draw_text(drawn)), str(drawn.choice(NUMBERS))))


def draw_text(drawn: random.Random) -> str:
    return drawn.choice((drawn.choice(TEXTS), str(drawn.choice(NUMBERS)), '"', '"a""', "1" * 200_000))


def attempt(kind: Kind, drawn: random.Random) -> str:
    """What went wrong with one damaged file; "" if it held."""
    source = drawn.choice(kind.sources)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / source.parent.name
        folder.mkdir()
        if kind.is_folder:
            for other in source.parent.iterdir():
                if other.is_file():
                    (folder / other.name).write_bytes(other.read_bytes())
        path = folder / source.name
        path.write_bytes(damage(source, drawn))
        try:
            with time_limit():
                kind.read(path)
        except (CaptionmillError, OSError):
            return ""
        except BaseException as exc:
            if isinstance(exc, KeyboardInterrupt):
                raise
            where = traceback.extract_tb(exc.__traceback__)[-1]
            return f"{type(exc).__name__} in {Path(where.filename).name}:{where.lineno}\n{traceback.format_exc()}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="over all kinds")
    parser.add_argument("--count", type=int, default=0, help="files per kind; 0: as many as there is time for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=[])
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as name:
        kinds = make_files(Path(name))
        chosen = arguments.kinds or list(kinds)
        tried, held = Counter[str](), Counter[str]()
        failures = Counter[tuple[str, str]]()
        for kind_name in chosen:
            drawn = random.Random(f"{arguments.seed} {kind_name}")
            end = time.monotonic() + arguments.seconds / len(chosen)
            while time.monotonic() < end and not 0 < arguments.count <= tried[kind_name]:
                failure = attempt(kinds[kind_name], drawn)
                tried[kind_name] += 1
                held[kind_name] += not failure
                if failure:
                    title = failure.partition("\n")[0]
                    failures[kind_name, title] += 1
                    if arguments.show and failures[kind_name, title] == 1:
                        print(failure[-4000:], file=sys.stderr)
            print(f"{kind_name:9} tried {tried[kind_name]:6,}  held {held[kind_name]:6,}", flush=True)
        for (kind_name, title), count in failures.most_common():
            print(f"  {kind_name}: {title} ({count})")
        sys.exit(bool(failures))


if __name__ == "__main__":
    main()
