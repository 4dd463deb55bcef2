"""The page of `tea-runtime serve`, over the real server and model, and in a real browser where there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytestmark = pytest.mark.real
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def address(real_model: Path) -> Iterator[str]:
    program = "from tea_runtime.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", str(real_model), "--name", "smol", "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        text = ""
        while "}" not in text:
            line = process.stdout.readline()
            assert line, "it ended"
            text += line
        yield json.loads(text)["url"].removesuffix("v1")
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def test_the_page_loads_nothing_from_elsewhere(address: str) -> None:
    answer = httpx2.get(address, timeout=30)
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"""(src|href|url\()\s*=?\s*["']?(https?:)?//""", answer.text)
    assert httpx2.get(address, headers={"Host": "elsewhere.example"}, timeout=30).status_code == 403


def test_what_it_shows_are_the_numbers_of_the_plan(address: str) -> None:
    about: dict[str, Any] = httpx2.get(address + "about", params={"model": "smol"}, timeout=60).json()
    plan = about["plan"]
    assert about["facts"]["context now"] == plan["settings"]["n_ctx"]
    at = {point["n_ctx"]: point for point in about["curve"]}
    here = at[plan["settings"]["n_ctx"]]
    assert here["kv_cache"] == plan["memory"]["kv_cache"]
    assert here["total"] == pytest.approx(plan["memory"]["total"], rel=0.01)
    assert httpx2.get(address + "about", params={"model": "none"}, timeout=30).status_code == 404
    busy = httpx2.get(address + "about", params={"live": "1"}, timeout=30).json()["busy"]
    assert (busy["running"], busy["waiting"]) == (0, 0)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_person_chats_stops_and_looks_at_contexts(address: str) -> None:
    driver = pytest.importorskip("playwright.sync_api", reason="pip install playwright to drive the browser")
    with driver.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(address)
        page.wait_for_selector("#parts dd")
        page.fill("#system", "You answer in one short sentence.")
        page.fill("#temperature", "0")
        page.fill("#text", "What is the capital of France?")
        page.press("#text", "Enter")
        page.wait_for_selector(".assistant small", timeout=60_000)
        assert "Paris" in page.inner_text(".assistant")
        if folder := os.environ.get("SCREENSHOTS_TO"):
            page.screenshot(path=str(Path(folder) / "serve.png"))
        page.fill("#text", "Tell me a long story.")
        page.press("#text", "Enter")
        page.wait_for_selector(".assistant:last-child:not(:empty)", timeout=60_000)
        page.keyboard.press("Escape")
        page.wait_for_selector(".assistant:last-child small", timeout=30_000)
        assert page.inner_text(".assistant:last-child small") == "stopped"
        before = page.inner_text("#verdict")
        page.evaluate("$('context').value = 1024; $('context').dispatchEvent(new Event('input'))")
        assert page.inner_text("#verdict") != before
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert not wrong
