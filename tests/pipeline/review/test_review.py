"""Captions are reviewed in the page: typed into a browser, saved, merged, and on the disk in the end."""

import csv
import http.client
import json
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from browser import Browser
from builders import draw_photos, listen_to_ctrl_c, make_model
from click.testing import CliRunner
from PIL import Image

from captionmill.cli import main
from captionmill.data.errors import InputError
from captionmill.data.features.log import ExtractionRecord, append_record
from captionmill.data.features.store import cache_path_for
from captionmill.data.images.find import find_images
from captionmill.data.images.read import ImageFile
from captionmill.data.tables.decisions import DecisionSummary, apply_decisions
from captionmill.data.tables.formats import read_captions
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import WantedTable, update_captions
from captionmill.pipeline.pages.gallery import write_gallery
from captionmill.pipeline.review.images import images_of_table
from captionmill.pipeline.review.server import MOST_BYTES, ReviewServer, SavedCounts, serve_review
from captionmill.stages.encoding.encoder import build_encoder
from captionmill.stages.settings import ExtractConfig

MACHINE = ["--engine", "torch", "--precision", "fp32", "--device", "cpu"]
HOSTILE = '=1+1, "quoted"; \'<img src=x onerror="document.title=1">\''
CAPTIONS = {"a.png": "a dog", "b.png": HOSTILE, "c.png": "a cat", "d.png": "a boat", "e.png": ""}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def rows_of(table: Path) -> dict[str, CaptionRow]:
    return {row.path: row for row in read_captions(table)}


def make_table(folder: Path, made_with: str = "first", **changes: str) -> Path:
    """`CAPTIONS`, with changes, as a run of a model writes them, the first one the least sure; e.png failed."""
    captions = CAPTIONS | {f"{name}.png": caption for name, caption in changes.items()}

    def make_rows(keys: Sequence[str]) -> Iterator[CaptionRow]:
        for number, key in enumerate(keys):
            is_failed = key == "e.png"
            confidence = None if is_failed else (number + 1) / 10
            others = ("another", "a third") if key == "c.png" else ()
            yield CaptionRow(
                key,
                captions[key],
                confidence,
                others,
                status="failed" if is_failed else "ok",
                error="empty" * is_failed,
            )

    wanted = WantedTable(
        list(captions), np.arange(len(captions), dtype=np.uint32), {"model": made_with}, with_alternatives=True
    )
    update_captions(folder / "captions.csv", wanted, make_rows)
    return folder / "captions.csv"


def make_page(table: Path) -> str:
    """The address of a page of the table."""
    images = [ImageFile(key, table.parent / "photos" / key) for key in CAPTIONS]
    rows = list(read_captions(table))
    write_gallery(table.parent / "page.html", "reviewed", images, rows, table=table, workers=1)
    return (table.parent / "page.html").as_uri()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for key in list(CAPTIONS)[:-1]:
        Image.new("RGB", (12, 9), "teal").save(tmp_path / "photos" / key)
    return make_table(tmp_path)


def decisions_in(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "decision", "caption", "shown"]
    return rows


def test_an_edit_in_the_page_ends_in_the_file_beside_the_image(
    browser: Browser, thin_weights: Path, tmp_path: Path
) -> None:
    photos, table, page = draw_photos(tmp_path / "photos"), tmp_path / "captions.csv", tmp_path / "page.html"
    backbone = ExtractConfig("scenes-resnet14", weights=str(thin_weights), image_size=32, engine="torch", device="cpu")
    model = make_model(tmp_path / "model", build_encoder(backbone).spec)
    command = ["caption", photos, "--model", model, "--output", table, "--gallery", page, "--sidecar", ".txt", *MACHINE]
    run(*command)
    before = rows_of(table)
    browser.open(page.as_uri() + "#sort=path&show=captioned")
    browser.press("j", "e")
    browser.run("document.querySelector('textarea').select()")
    browser.type("Zwei  Hunde\nauf Gras")
    browser.press("Enter", "a", "Control+s")
    saved = browser.downloaded()
    assert saved.name == "captions.decisions.csv"
    assert "captionmill apply captions.decisions.csv --to captions.csv" in browser.text("#notice")
    assert browser.complaints() == []
    first, second, *_ = (key for key in before if before[key].caption)
    assert decisions_in(saved) == [
        [first, "corrected", "Zwei Hunde auf Gras", before[first].caption],
        [second, "accepted", "", before[second].caption],
    ]
    assert "1 caption corrected, 1 accepted" in run("apply", saved, "--to", table)
    run(*command)
    assert (photos / first).with_suffix(".txt").read_text(encoding="utf-8") == "Zwei Hunde auf Gras\n"
    assert rows_of(table)[first] == CaptionRow(first, "Zwei Hunde auf Gras", None, status="corrected")
    browser.open(page.as_uri() + "#show=corrected")
    assert browser.text(".card .caption") == "Zwei Hunde auf Gras"
    assert browser.text(".progress") == "2 of 8 reviewed"
    assert browser.run("Object.keys(localStorage).filter(key => key.includes('decision')).length") == 0
    assert browser.open("about:blank") == []


def test_decisions_are_counted_filtered_undone_and_redone(browser: Browser, table: Path) -> None:
    browser.open(make_page(table))
    states = "[...document.querySelectorAll('.card')].map(card => card.dataset.review ?? '').join()"
    assert browser.text(".progress") == "0 of 4 reviewed"
    browser.press("a")  # nothing is looked at yet: the first card is
    assert browser.run(states) == ",,,,"
    browser.press("a", "e")
    browser.run("document.querySelector('textarea').select()")
    browser.type("two dogs")
    browser.press("Enter", "l")
    assert browser.text("#large .place") == "4 of 5"
    browser.press("Escape")
    assert browser.run(states) == "accepted,corrected,later,,"
    assert browser.text(".progress") == "2 of 4 reviewed"
    browser.press("u", "u")
    assert browser.run(states) == "accepted,,,,"
    assert browser.text(".said") == "Undone: b.png"
    assert browser.run("document.activeElement.title") == "b.png"
    browser.press("U", "Control+y")
    assert browser.run(states) == "accepted,corrected,later,,"
    browser.press("Delete")  # the card of the last one that was redone
    assert browser.run(states) == "accepted,corrected,,,"
    browser.run("location.hash = 'show=unreviewed'; new Promise(requestAnimationFrame)")
    assert browser.text("#status") == "2 of 5 images"
    browser.press("j", "a")
    assert browser.text("#status") == "2 of 5 images, 1 no longer unreviewed"
    assert browser.text("[data-show=unreviewed] span") == "1"
    browser.press("n", "Enter", "Enter")  # the large view, its field
    browser.press("Escape")
    assert browser.run("document.querySelector('#large').open") is True
    assert browser.text("#large .caption") == "a boat"


@pytest.mark.parametrize("width", [390, 1280])
def test_what_is_shown_for_some_seconds_covers_no_notice(browser: Browser, table: Path, width: int) -> None:
    with browser.window(width):
        browser.open(make_page(table))
        browser.press("j", "a", "Control+s")
        browser.downloaded()
        close, line, notice = (
            browser.run(
                f"(({{ top, bottom }}) => [top, bottom])(document.querySelector({selector!r}).getBoundingClientRect())"
            )
            for selector in ("#notice button", "body > .said, #foot .said", "#notice")
        )
        assert browser.text(".said") == "Saved: 0 corrected, 1 accepted, 0 for later"
        assert line[0] < line[1] <= notice[0] < close[0] < close[1] <= notice[1] <= 800
        browser.open("about:blank")


def test_a_failed_image_is_captioned_and_another_caption_chosen(browser: Browser, table: Path) -> None:
    browser.open(make_page(table) + "#image=e.png")
    browser.press("a")
    assert browser.text("#large .said") == "There is no caption to accept: write one (e)."
    browser.press("e")
    browser.type("a lake")
    browser.press("Enter")
    assert browser.text(".progress") == "1 of 5 reviewed"
    browser.open(make_page(table) + "#image=c.png")
    browser.press("2")
    browser.run("document.querySelector('#large .next').click()")  # leaving keeps what is in the field
    browser.press("Control+s")
    saved = browser.downloaded()
    assert decisions_in(saved) == [
        ["c.png", "corrected", "a third", "a cat"],
        ["e.png", "corrected", "a lake", ""],
    ]
    assert apply_decisions(saved, table) == DecisionSummary(2, 0, 0, 0, ())
    assert rows_of(table)["e.png"] == CaptionRow("e.png", "a lake", None, status="corrected")


def test_a_page_made_again_continues_and_sets_aside_what_was_decided_about_other_captions(
    browser: Browser, table: Path
) -> None:
    browser.open(make_page(table))
    browser.press("j", "a", "a", "e")
    browser.type(" sleeps")
    browser.press("Enter")
    assert browser.text("#save") == "Save 3"
    make_table(table.parent, "second", a="a wolf", c="a lynx")
    assert browser.open(make_page(table)) == ["beforeunload"]  # three decisions are not saved yet
    assert browser.text(".progress") == "1 of 4 reviewed"
    assert browser.text("#notice span").startswith("2 decisions from before are about captions that have changed since")
    assert browser.text("#save") == "Save 1"  # the others do not count
    browser.open(make_page(table) + "#show=outdated&image=c.png")
    assert browser.text("#large .outdated span") == "Before, “a cat” was corrected to “a cat sleeps”."
    browser.run("document.querySelector('#large .again').click()")
    browser.press("Control+s")
    saved = browser.downloaded()
    assert decisions_in(saved) == [
        ["b.png", "accepted", "", f"'{HOSTILE}"],
        ["c.png", "corrected", "a cat sleeps", "a lynx"],
    ]
    assert browser.run("document.title") == "reviewed"
    assert apply_decisions(saved, table) == DecisionSummary(1, 1, 0, 0, ())
    assert rows_of(table)["b.png"] == CaptionRow("b.png", HOSTILE, 0.2, status="accepted")
    assert browser.open(make_page(table)) == []
    assert browser.text(".progress") == "2 of 4 reviewed"


def test_where_the_browser_keeps_nothing_a_saved_file_is_loaded(browser: Browser, table: Path, tmp_path: Path) -> None:
    rows = [("a.png", "later", "", "a dog"), ("b.png", "corrected", HOSTILE + "!", HOSTILE)]
    rows += [("c.png", "accepted", "", "another"), ("x.png", "accepted", "", "x")]
    lines = ["\t".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    (tmp_path / "d.csv").write_text("\ufeffpath\tdecision\tcaption\tshown\r\n" + "\r\n".join(lines) + "\r\n")
    (tmp_path / "no.csv").write_text("path,caption\na.png,a dog\n")
    name = browser.before_pages("Object.defineProperty(window, 'localStorage', { get() { throw new Error('none'); } })")
    try:
        browser.open(make_page(table))
        assert browser.run("document.querySelector('#lost').hidden") is False
        for path, notice in {
            "no.csv": "no.csv is not loaded: it is no file of decisions: it needs the columns path, decision, caption, "
            "shown",
            "d.csv": "Loaded from d.csv: 2 decisions; 1 about captions that have changed since, which do not count; 1 "
            "about images that are not on this page.",
        }.items():
            browser.run("document.querySelector('#notice').hidden = true")
            browser.choose_file("#file", tmp_path / path)
            browser.run(
                "new Promise(done => { const wait = () => document.querySelector('#notice').hidden"
                " ? requestAnimationFrame(wait) : done(); wait(); })"
            )
            assert browser.text("#notice span") == notice
        assert browser.text("#save") == "Save "
        browser.press("Control+s")
        assert decisions_in(browser.downloaded()) == [
            ["a.png", "later", "", "a dog"],
            ["b.png", "corrected", f"'{HOSTILE}!", f"'{HOSTILE}"],
        ]
        browser.press("u")
        assert browser.text("#save") == "Save 3"
    finally:
        browser.no_more(name)


@pytest.fixture
def server(table: Path) -> Iterator[ReviewServer]:
    """A server of the table that answers."""
    with ReviewServer(table, port=0) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def test_the_page_that_is_served_saves_into_the_table_and_shows_conflicts(
    browser: Browser, server: ReviewServer, table: Path
) -> None:
    browser.complaints()
    browser.open(server.address)
    loaded = "new Promise(done => { const image = document.querySelector('.card img'); image.decode().then(() => "
    assert browser.run(loaded + "done(image.naturalWidth)); })") == 12
    make_table(table.parent, "second", c="a lynx")  # another run, while the page is open
    browser.press("j", "a", "j", "e")
    browser.type(" sleeps")
    browser.press("Enter", "Control+s")
    saved = (
        "new Promise(done => { const wait = () => document.querySelector('.said').textContent.startsWith('Saved in')"
    )
    browser.run(saved + " ? done() : requestAnimationFrame(wait); wait(); })")
    counts = "0 captions corrected, 1 accepted, 0 for later, 0 as before, 1 conflict"
    assert browser.text(".said") == f"Saved in captions.csv: {counts}"
    reason = "decided about 'a cat', but the table says 'a lynx'"
    assert browser.text("#notice span") == f"Not saved: 1 conflict. c.png: {reason}"
    assert rows_of(table)["a.png"] == CaptionRow("a.png", "a dog", 0.1, status="accepted")
    assert server.saved == SavedCounts(0, 1, 0)
    browser.run("location.hash = 'image=c.png'; new Promise(requestAnimationFrame)")
    assert browser.text("#large .caption") == "a lynx"
    browser.run("document.querySelector('#large .again').click()")
    browser.press("Control+s")
    browser.run(saved + ".valueOf() && !document.querySelector('#save span').textContent"
                " ? done() : requestAnimationFrame(wait); wait(); })")  # fmt: skip
    assert rows_of(table)["c.png"] == CaptionRow("c.png", "a cat sleeps", None, status="corrected")
    assert browser.text(".progress") == "2 of 4 reviewed"
    browser.press("u", "u")  # beyond what was saved
    assert browser.text("#large .caption") == "a dog"
    assert browser.text(".progress") == "0 of 4 reviewed"
    browser.press("Control+s")
    browser.run(saved + ".valueOf() && !document.querySelector('#save span').textContent"
                " ? done() : requestAnimationFrame(wait); wait(); })")  # fmt: skip
    assert browser.text(".said").endswith("0 for later, 2 taken back, 0 as before, 0 conflicts")
    assert {row.status for row in rows_of(table).values()} == {"ok", "failed"}
    assert rows_of(table)["c.png"].caption == "a lynx"
    assert server.saved == SavedCounts(1, 1, 0, 2)
    browser.press("U", "U")  # what was taken back in the table too
    assert browser.text(".progress") == "2 of 4 reviewed"
    browser.press("Control+s")
    browser.run(saved + ".valueOf() && !document.querySelector('#save span').textContent"
                " ? done() : requestAnimationFrame(wait); wait(); })")  # fmt: skip
    assert rows_of(table)["a.png"] == CaptionRow("a.png", "a dog", 0.1, status="accepted")
    assert rows_of(table)["c.png"] == CaptionRow("c.png", "a cat sleeps", None, status="corrected")
    browser.press("u", "u")
    assert browser.text(".progress") == "0 of 4 reviewed"
    browser.press("Control+s")
    browser.run(saved + ".valueOf() && !document.querySelector('#save span').textContent"
                " ? done() : requestAnimationFrame(wait); wait(); })")  # fmt: skip
    browser.open(server.address)
    assert browser.text(".progress") == "0 of 4 reviewed"
    assert [complaint for complaint in browser.complaints() if "favicon" not in complaint] == []
    assert browser.open("about:blank") == []


def ask(server: ReviewServer, method: str, place: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """The status and the content of an answer; `place` begins after the token, or with / at the root."""
    path = place if place.startswith("/") else f"/{server.token}/{place}"
    connection = http.client.HTTPConnection(str(server.server_address[0]), server.server_port)
    connection.putrequest(method, path, skip_host=True)
    named = {"Host": f"127.0.0.1:{server.server_port}", "Content-Type": "text/csv", "Content-Length": str(len(body))}
    for name, value in {**named, **{name.replace("_", "-"): value for name, value in headers.items()}}.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    with connection.getresponse() as response:
        return response.status, response.read()


def test_only_this_machine_and_who_knows_the_address_is_answered(server: ReviewServer, table: Path) -> None:
    before = table.read_bytes()
    good = b"path,decision,caption,shown\na.png,accepted,,a dog\n"
    assert server.server_address[0] == "127.0.0.1"
    assert [status for status, _ in (ask(server, "GET", place) for place in ("", "images/a.png"))] == [200, 200]
    token = server.token
    for place in (
        "/",
        f"/{token}",
        f"/{token[:-1]}/",
        f"/{'x' * len(token)}/",
        "/ä/",
        "../",
        "images/..%2Fcaptions.csv",
    ):
        assert ask(server, "GET", quote(place, safe="/%"))[0] == 404, place
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1", ""):
        assert ask(server, "GET", "", Host=host)[0] == 403, host
        assert ask(server, "POST", "decisions", good, Host=host)[0] == 403, host
    assert ask(server, "POST", "/decisions", good)[0] == 404
    assert ask(server, "POST", "", good)[0] == 404
    assert ask(server, "POST", "decisions", good, Origin="http://evil.example")[0] == 403
    assert ask(server, "POST", "decisions", good, Content_Type="text/plain")[0] == 415
    assert ask(server, "POST", "decisions", good, Content_Length="x")[0] == 411
    assert ask(server, "POST", "decisions", b"", Content_Length=str(MOST_BYTES + 1))[0] == 413
    assert ask(server, "PUT", "decisions", good)[0] == 501
    status, answer = ask(server, "POST", "decisions", b"path,caption\n")
    assert status == 409
    assert json.loads(answer)["error"].startswith("the decisions: not a file of decisions; it needs the columns path, ")
    assert table.read_bytes() == before
    assert ask(server, "POST", "decisions", good, Origin=f"http://127.0.0.1:{server.server_port}")[0] == 200
    assert rows_of(table)["a.png"].status == "accepted"


def test_a_disk_without_room_is_named_without_a_file_that_there_is_not(server: ReviewServer) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # bytes
    try:
        status, answer = ask(server, "POST", "decisions", b"path,decision,caption,shown\na.png,accepted,,a dog\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (status, json.loads(answer)) == (500, {"error": "File too large"})


def test_nothing_that_is_no_image_is_served(tmp_path: Path) -> None:
    Image.new("RGB", (12, 9), "teal").save(tmp_path / "a b?.png")
    (tmp_path / "secret.png").write_text("a secret")
    (tmp_path / "t.jsonl").write_bytes(b"")
    keys = ["a b?.png", "secret.png", "gone.png"]
    wanted = WantedTable(keys, np.arange(3, dtype=np.uint32), {})
    update_captions(tmp_path / "t.csv", wanted, lambda keys: [CaptionRow(key, "x", 0.5) for key in keys])
    with ReviewServer(tmp_path / "t.csv", port=0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        assert ask(server, "GET", "images/a%20b%3F.png") == (200, (tmp_path / "a b?.png").read_bytes())
        status, content = ask(server, "GET", "images/a%20b%3F.png?small")
        assert (status, content[8:12]) == (200, b"WEBP")
        for place in ("images/secret.png", "images/secret.png?small", "images/gone.png", "images/t.csv"):
            assert ask(server, "GET", place)[0] == 404
        (tmp_path / "t.csv").write_text("no table")
        assert ask(server, "GET", "")[0] == 500
        server.shutdown()


def test_the_command_ends_in_words(table: Path) -> None:
    command = [sys.executable, "-m", "captionmill", "review", str(table), "--no-browser", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", preexec_fn=listen_to_ctrl_c
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{table}: 5 images, 4 of them found\n"
        found = re.fullmatch(
            r"http://127\.0\.0\.1:(\d+)(/\S+/) shows them, on this machine only; Ctrl-C ends this\n",
            process.stdout.readline(),
        )
        assert found
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]))
        head = "path,decision,caption,shown\n"
        for decisions, answer in (
            (
                "a.png,corrected,a wolf,a dog\nb.png,later,,x\nc.png,accepted,,a cat\n",
                b'"conflicts": [{"path": "b.png"',
            ),
            ("c.png,undecided,,a cat\n", b"1 taken back"),
        ):
            connection.request("POST", f"{found[2]}decisions", head + decisions, {"Content-Type": "text/csv"})
            with connection.getresponse() as response:
                assert answer in response.read()
        process.send_signal(signal.SIGINT)
        told, errors = process.communicate()
    assert (process.returncode, errors) == (0, "\n")
    assert told == f"Ended. Saved in {table}: 1 caption corrected, 1 accepted, 0 for later, 1 taken back\n"
    assert rows_of(table)["a.png"].caption == "a wolf"


def test_a_connection_that_is_closed_before_it_is_read_is_no_error(
    server: ReviewServer, capfd: pytest.CaptureFixture[str]
) -> None:
    closed = socket.socket()
    closed.close()
    server.process_request_thread(closed, ("127.0.0.1", 1))
    assert capfd.readouterr().err == ""
    with socket.socket() as unconnected:
        server.process_request_thread(unconnected, ("127.0.0.1", 1))
    assert "Exception occurred during processing" in capfd.readouterr().err


def test_what_cannot_be_served_is_refused_in_one_line(table: Path, server: ReviewServer, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    lone = make_table(tmp_path / "elsewhere")
    (tmp_path / "no.csv").write_text("image,caption\n")
    refused: dict[str, Callable[[], object]] = {
        f"port {server.server_port}: .*; pass another `port`": lambda: serve_review(table, port=server.server_port),
        "not a table of captions": lambda: serve_review(tmp_path / "no.csv"),
        "none of its images is in its folder or in the folders there; pass `images`": lambda: serve_review(lone),
        "holds no image of": lambda: serve_review(table, draw_photos(tmp_path / "others")),
    }
    for message, serve in refused.items():
        with pytest.raises(InputError, match=message):
            serve()
    result = CliRunner().invoke(main, ["review", str(lone)])
    assert (result.exit_code, "pass --images" in result.stderr) == (1, True)


def test_the_images_are_where_the_run_found_them_or_near_the_table(table: Path, tmp_path: Path) -> None:
    keys = list(CAPTIONS)
    near = images_of_table(table, keys)
    assert near == {key: ImageFile(key, tmp_path / "photos" / key) for key in keys[:-1]}
    assert images_of_table(table, keys, str(tmp_path / "photos")) == near
    url = "https://example.org/x.jpg"
    assert images_of_table(table, [*keys, url]) == {**near, url: ImageFile(url, url)}
    (tmp_path / "photos").rename(tmp_path / ".away")
    record = ExtractionRecord("2026-01-01", str(tmp_path / ".away"), 5, 0, 4, 1, 1.0, "", 0.0, 0.0, 0.0, 0.0, "")
    append_record(cache_path_for(table), record)
    found = images_of_table(table, keys)
    assert found == {image.key: image for image in find_images(tmp_path / ".away")}
    (tmp_path / ".away").rename(tmp_path / "photos")
    assert images_of_table(table, keys) == near
