"""A headless Chromium that the tests type into, by its DevTools protocol over two pipes: no port, no more packages."""

import base64
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CONTROL, _SHIFT = 2, 8
_START = """import os, sys
pipes = [os.dup(int(number)) for number in sys.argv[1:3]]
for number, pipe in zip((3, 4), pipes):  # Chromium reads from 3 and writes to 4
    os.dup2(pipe, number)
    os.set_inheritable(number, True)
os.execv(sys.argv[3], sys.argv[3:])"""
_CODES = {"Enter": 13, "Escape": 27, "Delete": 46}


class Browser:
    """One browser with one page; `with` ends it. Every call returns when the page has done what it asks for."""

    def __init__(self, program: str, folder: Path) -> None:
        """Files that are downloaded go to `folder`/downloads."""
        self.downloads = folder / "downloads"
        from_browser, to_us = os.pipe()
        from_us, to_browser = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        words = [program, *options, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "about:blank"]
        start = [sys.executable, "-Sc", _START, str(from_us), str(to_us), *words]
        self._process = subprocess.Popen(
            start, pass_fds=(from_us, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(from_us)
        os.close(to_us)
        self._sink, self._source = os.fdopen(to_browser, "wb", 0), os.fdopen(from_browser, "rb")
        self._sent, self._rest = 0, b""
        self._events: deque[dict[str, Any]] = deque()
        self._session: dict[str, str] = {}
        downloads = {"behavior": "allow", "downloadPath": str(self.downloads), "eventsEnabled": True}
        self._send("Browser.setDownloadBehavior", **downloads)
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self._send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._sink.close()
        self._source.close()

    def open(self, address: str) -> list[str]:
        """Load the page; the questions that the page before asked of somebody who leaves it, which are answered Yes."""
        asked = self._leave("about:blank")  # or another place in the same page would be no new page
        return asked if address == "about:blank" else asked + self._leave(address)

    def _leave(self, address: str) -> list[str]:
        asked = []
        number = self._start("Page.navigate", url=address)
        while True:
            message = self._receive()
            if message.get("method") == "Page.javascriptDialogOpening":
                asked.append(message["params"]["type"])
                self._start("Page.handleJavaScriptDialog", accept=True)
            elif message.get("id") == number:
                break
        self._wait("Page.loadEventFired")
        return asked

    def run(self, expression: str) -> Any:
        """The value of JavaScript in the page."""
        answer = self._send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """The text of the first element."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).textContent"))

    def document(self) -> str:
        """The document as HTML, once the page has drawn what it has to draw."""
        self.settle()
        return str(self.run("document.documentElement.outerHTML"))

    def settle(self) -> None:
        """Wait until the page has drawn twice: what watches sizes is told of them the first time, and may ask again."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))")

    @contextmanager
    def window(self, width: int, height: int = 800) -> Iterator[None]:
        """As long as it lasts, pages have this many pixels, none of them for the bars that scroll."""
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._send("Emulation.setScrollbarsHidden", hidden=True)
        try:
            yield
        finally:
            self._send("Emulation.setScrollbarsHidden", hidden=False)
            self._send("Emulation.clearDeviceMetricsOverride")

    def print(self) -> bytes:
        """The page on paper, as PDF."""
        return base64.b64decode(self._send("Page.printToPDF")["data"])

    def press(self, *keys: str) -> None:
        """Press keys one after the other: "a", "U", "Enter", "Control+s"."""
        for name in keys:
            key = name.removeprefix("Control+")
            modifiers = _CONTROL if key != name else _SHIFT if key.isupper() and len(key) == 1 else 0
            code = _CODES.get(key) or ord(key.upper())
            event = {"key": key, "modifiers": modifiers, "windowsVirtualKeyCode": code}
            if key == "Enter":
                event["text"] = "\r"
            elif len(key) == 1 and key == name:
                event["text"] = key
            self._send("Input.dispatchKeyEvent", type="keyDown", **event)
            self._send("Input.dispatchKeyEvent", type="keyUp", **event)
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")  # an event may follow the key's

    def type(self, text: str) -> None:
        """Put text where the cursor is."""
        self._send("Input.insertText", text=text)

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in an `<input type="file">`."""
        root = self._send("DOM.getDocument")["root"]["nodeId"]
        node = self._send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def downloaded(self) -> Path:
        """The file of the download that was started last, once it is whole."""
        begun = self._wait("Browser.downloadWillBegin")
        while self._wait("Browser.downloadProgress")["state"] != "completed":
            pass
        return self.downloads / str(begun["suggestedFilename"])

    def before_pages(self, script: str) -> str:
        """Run a script before those of each page that is opened from now on; returns its name for `no_more`."""
        return str(self._send("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"])

    def no_more(self, name: str) -> None:
        """Do not run the script `name` any more."""
        self._send("Page.removeScriptToEvaluateOnNewDocument", identifier=name)

    def complaints(self) -> list[str]:
        """What pages wrote to the console since the last call: errors, and whatever a policy forbade."""
        self.run("0")
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        found = [event for event in self._events if event["method"] in kinds]
        self._events = deque(event for event in self._events if event not in found)
        return [json.dumps(event["params"]) for event in found]

    def shoot(self, path: Path) -> None:
        """Write what is seen to `path`, as PNG."""
        path.write_bytes(base64.b64decode(self._send("Page.captureScreenshot")["data"]))

    def _start(self, method: str, **parameters: Any) -> int:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters, **self._session}
        self._sink.write(json.dumps(message).encode() + b"\0")
        return self._sent

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = self._start(method, **parameters)
        while (message := self._receive()).get("id") != number:
            pass
        assert "error" not in message, f"{method}: {message['error']}"
        result: dict[str, Any] = message["result"]
        return result

    def _wait(self, method: str) -> dict[str, Any]:
        """What the next event of this kind says; those before it are kept."""
        while True:
            for event in self._events:
                if event["method"] == method:
                    self._events.remove(event)
                    params: dict[str, Any] = event["params"]
                    return params
            self._receive()

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._source.fileno(), 1 << 16)
            assert read, "the browser has ended"
            self._rest += read
        content, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(content)
        if "method" in message:
            self._events.append(message)
        return message
