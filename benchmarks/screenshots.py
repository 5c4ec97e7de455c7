r"""The README's two screenshots, of a real page and a real report.

    python recipes/train_clip_style.py
    python benchmarks/screenshots.py runs/clip_style

Indexes the synthetic catalog with the run's model, serves it on loopback, and looks at the page with Chromium
(`CHROMIUM`, or the one on the path); the report's lines are those of the run's report.md.
"""

from __future__ import annotations

import argparse
import html
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from service import serving

IMAGES = Path(__file__).parent / "images"
CARD = Path(__file__).parent.parent / "data_cards" / "synthetic.md"
STYLE = """
body { font: 16px sans-serif; color: #222 } table { border-collapse: collapse }
th { text-align: left; padding: 8px } td { padding: 8px; border-top: 1px solid #ddd }
td:first-child { min-width: 230px } td:last-child { text-align: center } img { height: 120px; display: block }
"""
LINES = 4


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of recipes/train_clip_style.py")
    parser.add_argument("--text", default="blue striped mug", help="what is searched for")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        save("search_page", search_page(browser, args.run / "model", args.text))
        save("report", report(browser, args.run))
        browser.close()


def search_page(browser: Any, model: Path, text: str) -> bytes:
    """What a visitor sees who has searched for some words."""
    with tempfile.TemporaryDirectory() as folder:
        catalog = Path(folder) / "shop.catalog"
        command = [sys.executable, "-m", "dualtower", "index", model, "--data.card", CARD, "--out", catalog]
        subprocess.run([str(word) for word in command], check=True)
        with serving(catalog) as service:
            page = browser.new_page(viewport={"width": 1180, "height": 540})
            page.goto(f"http://127.0.0.1:{service.port}")
            page.wait_for_selector("#filters fieldset")
            page.fill("#text", text)
            page.keyboard.press("Enter")
            page.wait_for_selector("#hits .score")
            page.locator("#hits h2").first.click()  # so that the search field is no longer framed
            page.wait_for_load_state("networkidle")
            return bytes(page.screenshot())


def report(browser: Any, run: Path) -> bytes:
    """The first lines of the report's random queries and their best hits."""
    lines = re.findall(
        r"^\| (.+?) +\| +!\[.*?\]\((.+?text_to_image_random.+?)\) \| +(\d+) \|$",
        (run / "report.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )[:LINES]
    rows = [
        f"<tr><td>{html.escape(query)}<td><img src='{(run / image).resolve().as_uri()}'><td>{rank}"
        for query, image, rank in lines
    ]
    head = "<tr><th>query<th>best hits, and right answers beyond them<th>first right"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        file.write_text(f"<meta charset=utf-8><style>{STYLE}</style><table>{head}{''.join(rows)}</table>")
        page = browser.new_page(viewport={"width": 1700, "height": 100})
        page.goto(file.as_uri())
        return bytes(page.locator("table").screenshot())


def save(name: str, png: bytes) -> None:
    """Write an image that loads fast."""
    IMAGES.mkdir(exist_ok=True)
    Image.open(io.BytesIO(png)).convert("RGB").save(IMAGES / f"{name}.webp", quality=82, method=6)


if __name__ == "__main__":
    main()
