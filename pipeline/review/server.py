"""Serves the page of one table of captions on this machine, and merges into the table what a person decides there.

Only 127.0.0.1 is listened to, and only requests that know the token in the address are answered: other users of the
machine do not, nor do pages of the web that a browser has open (DNS rebinding: their Host is another). Nothing is
written but decisions, by the same function as that of `captionmill apply`.
"""

import contextlib
import json
import logging
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import unquote

from captionmill.data.errors import CaptionmillError, ImageError, InputError
from captionmill.data.images.decode import is_image_header
from captionmill.data.images.formats.kinds import HEADER_BYTES
from captionmill.data.images.read import ImageFile, read_image
from captionmill.data.paths import AnyPath
from captionmill.data.tables.decisions import apply_decisions
from captionmill.data.tables.edits import read_edited
from captionmill.data.tables.formats import is_caption_table, read_captions
from captionmill.data.tables.review import LATER, is_decision
from captionmill.data.tables.rows import CaptionRow
from captionmill.pipeline.pages.gallery import render_thumbnail, served_gallery
from captionmill.pipeline.review.images import images_of_table
from captionmill.pipeline.summaries import decision_line
from captionmill.pipeline.words import show_error

HOST = "127.0.0.1"
USUAL_PORT = 8642
"""The same each time, as a browser keeps unsaved decisions by address and port."""
MOST_BYTES = 64_000_000
"""Of decisions that are sent at once: those about 100,000 images."""

_TIMEOUT_S = 60  # for a browser to send or take something
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # the page has its own policy, which cannot name this one
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_TYPES = {".png": "png", ".gif": "gif", ".webp": "webp", ".bmp": "bmp", ".tif": "tiff", ".tiff": "tiff"}

_logger = logging.getLogger(__name__)


@dataclass
class SavedCounts:
    """What was saved in the table while the page was served."""

    corrected: int = 0
    accepted: int = 0
    later: int = 0
    taken_back: int = 0


class ReviewServer(ThreadingHTTPServer):
    """Serves the page of the table from its creation on, once `serve_forever` runs, until its `with` block ends."""

    daemon_threads = True  # a browser that reads slowly does not keep the program from ending

    def __init__(self, table: AnyPath, images: AnyPath | None = None, *, port: int | None = None) -> None:
        """For the table of captions `table` of `images`; see `images_of_table` for where they are looked for.

        `port` 0 is a free one; None is `USUAL_PORT`, or a free one if that is taken. Raises InputError if `table` is
        not a table of captions, none of its images is found or `port` is taken.
        """
        self.table = Path(table)
        if not is_caption_table(self.table):
            raise InputError(f"{self.table}: not a table of captions; `captionmill caption` makes one")
        self.keys = [row.path for row in read_captions(self.table)]
        self.images: Mapping[str, ImageFile] = images_of_table(self.table, self.keys, images)
        self.token = secrets.token_urlsafe(24)
        self.saving = threading.Lock()
        self.saved = SavedCounts()
        try:
            super().__init__((HOST, USUAL_PORT if port is None else port), _Handler)
        except OSError as exc:
            if port is not None:
                raise InputError(f"port {port}: {exc.strerror}; pass another `port`, or 0 for a free one") from exc
            super().__init__((HOST, 0), _Handler)

    @property
    def address(self) -> str:
        """The address of the page, with the token."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def server_bind(self) -> None:
        """As its base's, without a question to a name server."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """As its base's, but without a word of a connection that Ctrl-C has closed before it was read."""
        if request.fileno() >= 0:
            super().handle_error(request, client_address)

    def merge(self, decisions: bytes) -> dict[str, Any]:
        """Merge a file of decisions into the table; the answer to the page. Raises as `apply_decisions` does."""
        with self.saving, tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "decisions.csv")
            path.write_bytes(decisions)
            try:
                summary = apply_decisions(path, self.table)
            except InputError as exc:
                raise InputError(str(exc).replace(str(path), "the decisions")) from exc
            self.saved.corrected += summary.corrected
            self.saved.accepted += summary.accepted
            self.saved.later += summary.later
            self.saved.taken_back += summary.taken_back
            missing = {conflict.path for conflict in summary.conflicts}
            rows = {row.path: row for row in read_captions(self.table) if row.path in missing} if missing else {}
        conflicts = [
            {"path": conflict.path, "reason": conflict.reason, "row": _shown_of(rows.get(conflict.path))}
            for conflict in summary.conflicts
        ]
        return {"summary": decision_line(summary), "conflicts": conflicts}


def _shown_of(row: CaptionRow | None) -> dict[str, str] | None:
    """What the page shows of the row now."""
    if row is None:
        return None
    later = LATER if LATER in row.flags else ""
    return {"caption": row.caption, "status": row.status if is_decision(row.status) else later}


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: ReviewServer
    timeout = _TIMEOUT_S
    server_version = "captionmill"
    sys_version = ""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):  # a browser that left needs no answer
            super().handle()

    def do_GET(self) -> None:
        """The page, or an image of the table."""
        place = self._place()
        if place == "":
            self._send_page()
        elif place is not None and place.startswith("images/"):
            key, _, size = place.removeprefix("images/").partition("?")
            self._send_image(self.server.images.get(unquote(key)), small=size == "small")
        elif place is not None:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Decisions, as a file of them."""
        place = self._place()
        if place is None:
            return
        length = self.headers.get("Content-Length", "")
        origins = {f"http://{host}" for host in self._hosts()}
        if place != "decisions":
            self._refuse(HTTPStatus.NOT_FOUND)
        elif self.headers.get("Origin", min(origins)) not in origins:
            self._refuse(HTTPStatus.FORBIDDEN)
        elif self.headers.get_content_type() != "text/csv":  # no form of another page can send it
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        elif not (length.isascii() and length.isdecimal()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED)
        elif len(length) > len(str(MOST_BYTES)) or int(length) > MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            self._merge(self.rfile.read(int(length)), int(length))

    def log_message(self, *message: Any, **_: Any) -> None:
        """Requests are nothing that a user needs to see."""
        _logger.debug(*message)

    def _hosts(self) -> set[str]:
        return {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}

    def _place(self) -> str | None:
        """What the request asks for, after the token; None if it was refused."""
        token, slash, place = self.path.removeprefix("/").partition("/")
        if self.headers.get("Host", "") not in self._hosts():
            self._refuse(HTTPStatus.FORBIDDEN)
        elif not secrets.compare_digest(token.encode(), self.server.token.encode()) or not slash:
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            return place
        return None

    def _refuse(self, status: HTTPStatus) -> None:
        self._send(status, "text/plain; charset=utf-8", [f"{status.phrase}\n".encode()])

    def _send_page(self) -> None:
        table = self.server.table
        try:
            rows = list(read_edited(table))
        except CaptionmillError as exc:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", [f"{exc}\n".encode()])
            return
        pieces = served_gallery(f"Captions of {table.name}", rows, self.server.images.keys(), table)
        self._send(
            HTTPStatus.OK,
            "text/html; charset=utf-8",
            (piece.encode("utf-8", "backslashreplace") for piece in pieces),
        )

    def _send_image(self, image: ImageFile | None, *, small: bool) -> None:
        """The image, or a thumbnail of it; nothing that is no image is sent, whatever its name is."""
        try:
            content = b"" if image is None else render_thumbnail(image) if small else read_image(image)[0]
        except ImageError:
            content = b""
        if image is None or not is_image_header(content[:HEADER_BYTES]):
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        name = "webp" if small else _TYPES.get(Path(image.key).suffix.lower(), "jpeg")
        self._send(HTTPStatus.OK, f"image/{name}", [content])

    def _merge(self, decisions: bytes, length: int) -> None:
        if len(decisions) < length:
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        status, answer = HTTPStatus.OK, {}
        try:
            answer = self.server.merge(decisions)
        except CaptionmillError as exc:
            status, answer = HTTPStatus.CONFLICT, {"error": str(exc)}
        except OSError as exc:
            status, answer = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": show_error(exc)}
        self._send(status, "application/json", [json.dumps(answer).encode()])

    def _send(self, status: HTTPStatus, content_type: str, pieces: Iterable[bytes]) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": content_type}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.writelines(pieces)


def serve_review(
    table: AnyPath,
    images: AnyPath | None = None,
    *,
    port: int | None = None,
    on_ready: Callable[[ReviewServer], None] = lambda server: None,
) -> SavedCounts:
    """Serve the page of `table` until Ctrl-C; returns what was saved in the table.

    `on_ready` gets the server, with its `address`, before it answers. Raises as `ReviewServer` does.
    """
    with ReviewServer(table, images, port=port) as server:
        on_ready(server)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        with server.saving:  # what is being saved now
            return server.saved
