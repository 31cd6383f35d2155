"""A real browser, where one is installed: what a page does at a given width."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
"""The browser's program; None where there is none."""


def asked(page: Path, script: str, width: int) -> Any:
    """What the JavaScript expression ``script`` (it may await) gives in ``page``, shown ``width`` pixels wide.

    A window cannot be as narrow as a phone, a frame can. The page is opened as a copy whose Content-Security-Policy
    allows this one further script; what it forbids otherwise stays forbidden.
    """
    assert BROWSER is not None
    code = f"addEventListener('load', async () => parent.postMessage(JSON.stringify(await ({script})), '*'));"
    source = f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
    text = page.read_text().replace("script-src ", f"script-src {source} ", 1)
    copy, frame = (page.with_name(f"{page.stem}-{width}-{kind}.html") for kind in ("copy", "frame"))
    copy.write_text(text.replace("</body>", f"<script>{code}</script></body>"))
    frame.write_text(
        "<!doctype html><pre id=result></pre><script>"
        "addEventListener('message', e => { document.getElementById('result').textContent = e.data; });"
        f'</script><iframe width="{width}" height="800" style="border: 0" src="{copy.name}"></iframe>'
    )
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--window-size=1400,900"]
    profile = f"--user-data-dir={page.parent / 'browser'}"
    done = subprocess.run(
        [BROWSER, *words, profile, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120
    )
    answer = re.search(r'<pre id="result">(.+?)</pre>', done.stdout, re.DOTALL)
    assert answer, done.stderr[-2000:]
    return json.loads(html.unescape(answer[1]))
