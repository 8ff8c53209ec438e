"""A page in headless Chromium: its document after the scripts ran, and what the console said."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=3000",
)


@dataclass(frozen=True)
class Page:
    """The document as text, and every line of the console."""

    dom: str
    console: list[str]

    @property
    def data(self) -> dict[str, str]:
        """The data attributes of the body, where a probe leaves its findings."""
        body = re.search(r"<body([^>]*)>", self.dom)
        return {
            key: html.unescape(value) for key, value in re.findall(r'data-([\w-]+)="([^"]*)"', body[1] if body else "")
        }


def open_page(path: Path, *, probe: str = "", width: int = 1000, fragment: str = "") -> Page:
    """Open ``path`` from file://; ``probe`` is JavaScript that runs at the end of a copy of it.

    With a ``width`` below 500, which a window cannot have, the page is shown in a frame of that width; the
    probe then sees it as ``page`` (a document), as it does otherwise. ``fragment`` goes after the # of the address
    (of a window, not of a frame).
    """
    browser = shutil.which("chromium")
    assert browser is not None, "chromium is not installed; `make chromium` installs it"
    text = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        if width < 500:
            frame = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(text)}"></iframe>'
            shown = f"const page = event.target.contentDocument; {probe}"
            run = f"document.querySelector('iframe').onload = (event) => {{ {shown} }}"
            copy.write_text(
                f"<!doctype html><meta charset=utf-8><body>{frame}<script>{run}</script></body>", encoding="utf-8"
            )
        else:
            run = f"<script>(() => {{ const page = document; {probe} }})()</script></body>"
            copy.write_text(text.replace("</body>", run) if probe else text, encoding="utf-8")
        command = [browser, *FLAGS, f"--user-data-dir={folder}/profile", f"--window-size={max(width, 500)},900"]
        done = subprocess.run(
            [*command, "--dump-dom", copy.as_uri() + (fragment and f"#{fragment}")],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    return Page(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])
