"""A real Chromium without a window, spoken to over a pipe: keys, pictures, what it wrote and asked for."""

import base64
import gzip
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEYS = {"Enter": 13, "Tab": 9, "ArrowDown": 40, "ArrowUp": 38, "Escape": 27, "End": 35, "Home": 36, "PageDown": 34}
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip


class Tab:
    """A page: ``problems`` are errors on its console, ``requests`` what it asked for beyond itself."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._number, self._rest = 0, b""
        self.session = ""
        self.problems: list[str] = []
        self.requests: list[str] = []

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == self._number:
                assert "error" not in found, (method, found)
                return found["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        found = json.loads(text)
        about = found.get("params", {})
        match found.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(str(about["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning", "assert"):
                self.problems.append(str(about["args"]))
            case "Log.entryAdded" if about["entry"]["level"] in ("error", "warning"):
                self.problems.append(str(about["entry"]))
            case "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"])
        return found

    def open(self, path: Path, *, width: int = 1280, height: int = 900, scheme: str = "light", media: str = "") -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        self.send("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete'")
        assert self.requests.pop(0) == path.as_uri()

    def wait(self, expression: str) -> None:
        assert self.run(
            f"new Promise(resolve => {{ let left = 400; const ask = () => ({expression}) ? resolve(true) : left-- ? "
            "setTimeout(ask, 25) : resolve(false); ask(); })"
        ), expression

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise's is waited for."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, *, text: str = "") -> None:
        """A key as from a keyboard."""
        code: Mapping[str, Any] = {"key": key}
        if key in KEYS:
            code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        typed = "\r" if key == "Enter" else text or (key if len(key) == 1 else "")
        self.send("Input.dispatchKeyEvent", type="keyDown", **code, **({"text": typed} if typed else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **code)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        more = {"captureBeyondViewport": True, "clip": clip} if whole else {}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png", **more)["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own; it is closed at the end."""
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()

    # the browser reads from file descriptor 3 and writes to 4
    line = f'exec chromium "$@" 3<&{theirs_in} 4>&{theirs_out}'
    command = ["bash", "-c", line, "chromium", *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
    os.close(theirs_in)
    os.close(theirs_out)
    tab = Tab(ours_out, ours_in)
    try:
        targets = tab.send("Target.getTargets")["targetInfos"]
        page = next(each for each in targets if each["type"] == "page")
        tab.session = tab.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            tab.send(f"{domain}.enable")
        yield tab
    finally:
        process.terminate()
        process.wait(20)
        os.close(ours_out)
        os.close(ours_in)


def packed(html: str, name: str) -> dict[str, Any]:
    """The data behind a browser of rows on a page."""
    text = re.search(rf'id="{name}-data">([^<]*)<', html)
    assert text
    return json.loads(gzip.decompress(base64.b64decode(text[1])))
