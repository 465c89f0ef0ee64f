"""A page opened in headless Chromium, in a frame of a given width, and what a script in it found."""

import json
import re
import subprocess
from html import escape
from pathlib import Path
from typing import Any


def measured(html: str, folder: Path, scheme: str, width: int) -> dict[str, Any]:
    """What the page's script printed as JSON; in a frame, as Chromium makes no window narrower than 500 pixels."""
    inside = escape(html)
    frame = f'<iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{inside}"></iframe>'
    page = folder / "frame.html"
    page.write_text(f'<meta charset="utf-8"><meta name="color-scheme" content="light dark">{frame}', encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900", "--virtual-time-budget=2000"]
    flags += ["--blink-settings=preferredColorScheme=" + {"light": "1", "dark": "0"}[scheme]]
    done = subprocess.run(["chromium", *flags, page.as_uri()], check=True, capture_output=True, text=True, timeout=120)
    return json.loads(re.search(r'\{"inner.*\}', done.stdout)[0])  # type: ignore[index]
