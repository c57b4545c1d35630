"""A headless Chromium for tests of pages, driven by the DevTools protocol over a pipe.

There is no driver to install. Where there is no Chromium, tests skip: `needs_chromium`.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # containers run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-pipe",
)


class Page:
    """One tab. Errors of its scripts fail the test."""

    def __init__(self, reading: Any, writing: Any) -> None:
        self._reading, self._writing = reading, writing
        self._number = 0
        self._session = ""
        self.errors: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime"):
            self._call(f"{domain}.enable")

    def open(self, path: Path) -> None:
        """Open a file and wait until it has loaded."""
        self._call("Page.navigate", url=path.resolve().as_uri())
        self.run(
            "new Promise(done => document.readyState === 'complete' ? done()"
            " : addEventListener('load', () => done()))"
        )

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        answer = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        assert not self.errors, self.errors
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press and release keys, by the names of KeyboardEvent.key."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
            self._call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self._call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def resize(self, width: int, height: int, *, dark: bool = False, mobile: bool = False) -> None:
        """The size in CSS pixels, and the colour scheme."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def downloads(self, folder: Path) -> None:
        """Save what the page offers for download to a folder."""
        self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to an input of type file."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def wait(self, condition: str) -> None:
        """Wait until an expression is true, up to ten seconds."""
        self.run(
            "new Promise((done, fail) => { const end = Date.now() + 10000; const look = () =>"
            f" ({condition}) ? done() : Date.now() > end ? fail(Error('waited in vain'))"
            " : setTimeout(look, 20); look(); })"
        )

    def screenshot(self, path: Path) -> None:
        """What the window shows, as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._writing.write(json.dumps(message).encode() + b"\0")
        self._writing.flush()
        while True:
            answer = json.loads(_until_zero(self._reading))
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]["exceptionDetails"]))
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                found: dict[str, Any] = answer["result"]
                return found


def _until_zero(stream: Any) -> bytes:
    """The next message; EOFError if the browser has ended."""
    parts = []
    while (byte := stream.read(1)) != b"\0":
        if not byte:
            raise EOFError("Chromium has ended")
        parts.append(byte)
    return b"".join(parts)


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A tab of a new browser, whose storage lies in `profile`; it ends with the block."""
    assert CHROMIUM is not None
    to_browser, from_us = os.pipe()
    from_browser, to_us = os.pipe()

    def as_three_and_four() -> None:
        high = [os.dup2(to_browser, 103), os.dup2(to_us, 104)]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    process = subprocess.Popen(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(3, 4),
        preexec_fn=as_three_and_four,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(to_browser)
    os.close(to_us)
    with os.fdopen(from_browser, "rb") as reading, os.fdopen(from_us, "wb") as writing:
        try:
            page = Page(reading, writing)
            yield page
            page._session = ""
            page._call("Browser.close")
            process.wait(10)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
