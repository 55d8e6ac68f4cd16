"""Headless Chromium, driven through the DevTools protocol over a pipe: no port, no network, no further package."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 120.0


def find_browser() -> str | None:
    """Return the path of Chromium, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of a headless Chromium."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers, self._buffer = requests, answers, b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        self.shown: tuple[Path, int, int, bool] | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to a command; events that come before it are kept."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == number:
                assert "error" not in found, (method, found["error"])
                return found["result"]
            self.events.append(found)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._answers], [], [], PATIENCE)[0], "Chromium does not answer"
            part = os.read(self._answers, 1 << 16)
            assert part, "Chromium ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, after its promise if it is one."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, page: Path, width: int = 1200, height: int = 900, *, phone: bool = False) -> None:
        """Show a file and wait until its pictures are drawn."""
        self.events.clear()
        self.shown = page, width, height, phone
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("document.readyState == 'complete' && document.documentElement.dataset.drawn == 'all'")

    def show(self, page: Path, width: int = 1200, height: int = 900, *, phone: bool = False) -> None:
        """Show a file as `open` does, or leave it as it is where it is the file and size that was opened last."""
        if self.shown != (page, width, height, phone):
            self.open(page, width, height, phone=phone)

    def wait(self, expression: str) -> None:
        """Return when the expression is true."""
        limit = time.monotonic() + PATIENCE
        while not self.run(expression):
            assert time.monotonic() < limit, f"never true: {expression}"
            time.sleep(0.1)

    def wait_for_event(self, method: str) -> None:
        """Return when the event has happened since the events were last cleared."""
        while not any(event["method"] == method for event in self.events):
            self.events.append(self._read())

    def complaints(self) -> list[str]:
        """Return what the page wrote on the console as warning or error, and what it threw."""
        found = []
        for event in self.events:
            name, told = event["method"], event["params"]
            if name == "Runtime.exceptionThrown" or (
                name == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert")
            ):
                found.append(json.dumps(told))
            if name == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
                found.append(json.dumps(told["entry"]))
        return found

    def requests(self) -> list[str]:
        """Return the addresses the page asked for, apart from those inside it."""
        urls = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def hover(self, x: float, y: float) -> None:
        """Move the pointer to a place of the window."""
        for step in (3, 0):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x - step, y=y)

    def screenshot(self, path: Path, *, whole: bool = True) -> Path:
        """Return `path` after a picture of the page was written there."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
        return path

    def pdf(self) -> bytes:
        """Return the page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Yield a browser with a new profile in `profile`, ended afterwards."""
    path = find_browser()
    assert path is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # Chromium reads commands from descriptor 3 and answers on 4.
    command = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", path, *FLAGS]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={profile}"], pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        page = Browser(ours_out, ours_in)
        yield page
        page._session = None
        page.call("Browser.close")
    finally:
        os.close(ours_out)
        os.close(ours_in)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
