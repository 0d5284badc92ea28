"""Correct a table of captions in LibreOffice (as .xlsx, and back to CSV); show that further runs keep every correction.

python benchmarks/spreadsheet.py IMAGES MODEL [--corrections 50] [--soffice soffice] [--separators comma semicolon tab]

IMAGES is a folder of at least 50 images, or a feature store. LibreOffice (libreoffice-calc) reads the table that
`caption` wrote and saves it as .xlsx, in which captions are replaced; it reads that and saves a CSV under the table's
own name, once for each separator. Then `caption` runs three times, each time with another search.
"""

import argparse
import random
import subprocess
import tempfile
import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

from captionmill.data.tables.formats import read_captions
from captionmill.data.tables.rows import CaptionRow
from captionmill.pipeline.captioning.folder import caption_folder
from captionmill.pipeline.captioning.source import CacheConfig
from captionmill.stages.settings import SearchConfig

CSV_FILTER = "Text - txt - csv (StarCalc)"
SEPARATORS = {"comma": 44, "semicolon": 59, "tab": 9}
CORRECTIONS = (
    'a dog, number {}, that says "hello"; it waits',
    "ein großer Hund läuft über die Straße {}",
    "=1+1 is what sign {} shows",
    "'tis the boat {} of a man",
    "two women {}  sit <here> & there",
)
SEARCHES = (SearchConfig(beam_size=1), SearchConfig(beam_size=3, max_length=6), SearchConfig())


def convert(soffice: str, source: Path, kind: str, folder: Path) -> None:
    """Let LibreOffice save `source` as `kind` in `folder`; it has no exit code that shows a failure."""
    command = [soffice, "--headless", "--norestore", f"-env:UserInstallation={(folder / 'profile').as_uri()}"]
    if source.suffix == ".csv":
        command.append(f"--infilter={CSV_FILTER}:44,34,76,1")
    done = subprocess.run(
        [*command, "--convert-to", kind, "--outdir", folder, source], capture_output=True, text=True, check=True
    )
    if not (folder / source.with_suffix(f".{kind[:4].rstrip(':')}").name).exists():
        raise SystemExit(f"{source}: LibreOffice did not save it as {kind}: {done.stderr}")


def replace_texts(workbook: Path, texts: dict[str, str]) -> None:
    """Put other texts into the cells of an .xlsx that hold the keys of `texts`."""
    with zipfile.ZipFile(workbook) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    strings = members["xl/sharedStrings.xml"].decode()
    for old, new in texts.items():
        if strings.count(f">{escape(old)}<") != 1:
            raise SystemExit(f"{old!r}: not once in the workbook")
        strings = strings.replace(f">{escape(old)}<", f">{escape(new)}<")
    members["xl/sharedStrings.xml"] = strings.encode()
    with zipfile.ZipFile(workbook, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def require(found: dict[str, CaptionRow], corrected: dict[str, str], when: str) -> None:
    """Stop unless these and only these captions are a person's."""
    kept = {row.path: row.caption for row in found.values() if row.status == "corrected"}
    if kept != corrected:
        missing = [path for path in corrected if kept.get(path) != corrected[path]]
        raise SystemExit(f"{when}: {len(missing)} corrections are lost ({missing[:3]}), {len(kept)} are there")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--corrections", type=int, default=50)
    parser.add_argument("--soffice", default="soffice")
    parser.add_argument("--separators", nargs="+", choices=[*SEPARATORS], default=[*SEPARATORS])
    arguments = parser.parse_args()
    version = subprocess.run([arguments.soffice, "--version"], capture_output=True, text=True, check=True).stdout
    for name in arguments.separators:
        with tempfile.TemporaryDirectory() as folder_name:
            folder = Path(folder_name)
            table = folder / "captions.csv"
            store = None if arguments.images.is_file() else folder / "features.h5"

            def caption(search: SearchConfig, table: Path = table, store: Path | None = store) -> int:
                summary = caption_folder(
                    arguments.images, arguments.model, table, search, cache=CacheConfig(features=store)
                )
                return summary.corrections

            caption(SEARCHES[-1])
            rows = {row.path: row for row in read_captions(table)}
            captions = [row.caption for row in rows.values()]
            single = [path for path, row in rows.items() if row.caption and captions.count(row.caption) == 1]
            chosen = random.Random(0).sample(single, arguments.corrections)
            corrected = {path: CORRECTIONS[place % 5].format(place) for place, path in enumerate(chosen)}
            convert(arguments.soffice, table, "xlsx", folder)
            guarded = {path: f"'{text}" if text[0] in "='" else text for path, text in corrected.items()}
            replace_texts(folder / "captions.xlsx", {rows[path].caption: guarded[path] for path in corrected})
            options = f"{SEPARATORS[name]},34,76,1,,0,false,true,false"
            convert(arguments.soffice, folder / "captions.xlsx", f"csv:{CSV_FILTER}:{options}", folder)
            corrected = {path: " ".join(text.split()) for path, text in corrected.items()}
            counts = []
            for number, search in enumerate(SEARCHES, 1):
                counts.append(caption(search))
                require({row.path: row for row in read_captions(table)}, corrected, f"{name}, run {number}")
            others = {row.path: row for row in read_captions(table) if row.path not in corrected}
            if any(row != rows[path] for path, row in others.items()):
                raise SystemExit(f"{name}: a row that nobody corrected is another one")
            if list(folder.glob("*.edited*")):
                raise SystemExit(f"{name}: more than corrections was found in the table")
            print(
                f"{name}: {len(corrected)} of {arguments.corrections} corrections found by the first run ({counts[0]}) "
                f"and kept by three; the other {len(others):,} rows are as they were",
                flush=True,
            )
    print(version.strip())


if __name__ == "__main__":
    main()
