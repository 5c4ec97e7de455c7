"""The page in a real browser, against a real server."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import factories
import pytest
from test_serving import Server, make_shop, start

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = os.environ.get("PAGE_SCREENSHOTS")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start(make_shop(tmp_path_factory.mktemp("page")))
    yield running
    running.process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, server: Server, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A fresh page that must end without an error in its console."""
    size = getattr(request, "param", {"width": 1200, "height": 900})
    opened = browser.new_page(viewport=size)
    problems: list[str] = []
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "request",
        lambda asked: problems.append(asked.url) if not asked.url.startswith((server.url, "data:", "blob:")) else None,
    )
    opened.goto(server.url)
    until(opened, "document.querySelector('#status').textContent.includes('rows')")
    yield opened
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        opened.screenshot(path=Path(SHOTS) / f"{request.node.name}.png", full_page=True)
    opened.close()
    assert problems == []


def until(page: Any, true: str) -> None:
    """Wait for an expression. (Playwright's own way evaluates it inside the page, which the page's policy forbids.)"""
    end = time.monotonic() + 10
    while not page.evaluate(true):
        assert time.monotonic() < end, f"still not: {true}"
        page.wait_for_timeout(30)


def hits(page: Any) -> list[str]:
    return page.locator("#hits h2").all_text_contents()


def settle(page: Any) -> None:
    until(page, "!document.querySelector('#status').textContent.startsWith('Searching')")


def search(page: Any, words: str) -> None:
    page.fill("#text", words)
    page.press("#text", "Enter")
    page.wait_for_selector(".hit")
    settle(page)


def test_words_find_products_and_more_of_them(page: Any) -> None:
    search(page, "red mug")
    first = hits(page)
    assert len(first) == 24 and "products so far" in page.text_content("#status")
    until(page, "[...document.querySelectorAll('.hit img')].slice(0, 4).every(i => i.naturalWidth > 0)")
    page.click("#more")
    until(page, "document.querySelectorAll('.hit').length > 24")
    assert hits(page)[:24] == first and len(hits(page)) == 30 and not page.is_visible("#more")


def test_an_image_is_dropped_blended_and_taken_away(page: Any) -> None:
    data = list(factories.png(factories.photo(9)))
    page.evaluate(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], 'photo.png', {type: 'image/png'}));
            document.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        data,
    )
    page.wait_for_selector(".hit")
    settle(page)
    assert page.is_visible("#preview") and float(page.locator(".score").first.text_content()) > 0.99
    by_image = hits(page)
    search(page, "navy blue tote bag")
    page.locator("#blend").evaluate("blend => { blend.value = 0; blend.dispatchEvent(new Event('change')); }")
    page.wait_for_timeout(300)
    settle(page)
    assert page.is_visible("#blend") and hits(page) != by_image
    page.click("#forget")
    settle(page)
    assert not page.is_visible("#preview") and not page.is_visible("#blend")


def test_filters_narrow_and_are_cleared(page: Any) -> None:
    search(page, "dress")
    page.get_by_label("green").check()
    until(page, "document.querySelectorAll('.hit').length < 24")
    settle(page)
    assert all("green" in facts for facts in page.locator(".facts").all_text_contents())
    page.get_by_label("to", exact=True).fill("10")
    page.get_by_label("to", exact=True).press("Tab")
    until(page, "document.querySelectorAll('.hit').length == 3")
    assert page.text_content("#filters-count") == "(2)"
    page.click("#clear")
    until(page, "document.querySelectorAll('.hit').length == 24")


def test_similar_products_and_reasons(page: Any) -> None:
    search(page, "red mug")
    page.locator(".reason").first.click()
    page.wait_for_selector(".why img")
    assert page.locator(".why mark").all_text_contents() == ["red", "mug"]
    title = hits(page)[0]
    page.locator(".similar").first.click()
    until(page, "document.querySelector('#status').textContent.includes('similar to')")
    assert title in page.text_content("#status") and len(hits(page)) == 24


def test_nothing_found_and_errors_are_said(page: Any, server: Server) -> None:
    page.press("#text", "Enter")
    assert page.text_content("#status").startswith("Type words")
    page.get_by_label("from", exact=True).fill("1000")
    page.get_by_label("from", exact=True).press("Tab")
    page.fill("#text", "mug")
    page.press("#text", "Enter")
    until(page, "document.querySelector('#status').textContent.startsWith('Nothing found')")


def test_a_server_that_is_gone_is_said(browser: Any, tmp_path: Path) -> None:
    running = start(make_shop(tmp_path, 6))
    page = browser.new_page()
    page.goto(running.url)
    until(page, "document.querySelector('#status').textContent.includes('rows')")
    running.process.kill()
    running.process.wait()
    page.fill("#text", "mug")
    page.press("#text", "Enter")
    page.wait_for_selector("#status.error")
    page.close()


def test_the_keyboard_is_enough(page: Any) -> None:
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type("white striped dress")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "similar":
            break
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#status').textContent.includes('similar to')")


@pytest.mark.parametrize("page", [{"width": 375, "height": 700}], indirect=True)
def test_a_phone_sees_it_whole(page: Any) -> None:
    search(page, "red mug")
    assert page.evaluate("document.documentElement.scrollWidth <= 375")
    assert page.locator("#filters-fold").get_attribute("open") is None
    page.click("#filters-fold summary")
    assert page.get_by_label("green").is_visible()


def test_what_a_catalog_says_is_text_never_markup(browser: Any, tmp_path: Path) -> None:
    from dualtower import Item
    from dualtower.models.dual_tower import DualTower
    from dualtower.search.ingest.embed import index_products, open_or_create

    factories.spread_model().save_pretrained(tmp_path / "model")
    model = DualTower.from_pretrained(tmp_path / "model")
    catalog = open_or_create(tmp_path / "shop", model, name=str(tmp_path / "model"), attributes={"<b>x</b>": "text"})
    evil = "<img src=x onerror=document.title='owned'> mug"
    index_products(
        catalog, model, [Item('"><script>', "p", (evil,), factories.png(factories.photo()), {"<b>x</b>": evil})]
    )
    running = start(tmp_path / "shop")
    page = browser.new_page()
    page.goto(running.url)
    search(page, "mug")
    assert hits(page) == [evil] and page.title() == "Product search"
    assert page.locator("#hits h2 img, #hits b, #filters img").count() == 0
    page.close()
    running.process.kill()
