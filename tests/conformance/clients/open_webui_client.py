"""A chat in Open WebUI, by Chromium: open_webui_client.py URL PICTURE."""

from __future__ import annotations

import re
import sys

from playwright.sync_api import expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
WAIT = 240_000  # milliseconds: its tools make a prompt of seven thousand tokens


def main(url: str, picture: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(url)
        page.get_by_text("Okay, Let's Go!").click(timeout=WAIT)  # what is new in it
        page.locator("#chat-input").click()
        page.keyboard.type("Why is the sky blue? Answer in one sentence.")
        with page.expect_response(
            lambda response: response.url.endswith("/api/chat/completions"), timeout=WAIT
        ) as answered:
            page.keyboard.press("Enter")
        assert answered.value.ok, answered.value.text()
        answer = page.locator("#response-content-container").last
        expect(answer).to_have_text(re.compile(r"\w+ \w+ \w+"), timeout=WAIT)
        page.screenshot(path=picture)
        print(answer.inner_text()[:200])
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
