"""A chat in Open WebUI whose model calls a tool: open_webui_tool_client.py URL PICTURE."""

from __future__ import annotations

import re
import sys

from open_webui_client import CHROMIUM, WAIT
from playwright.sync_api import Page, expect, sync_playwright

TOOL = '''
class Tools:
    def get_weather(self, city: str) -> str:
        """
        Get the weather of a city.

        :param city: The city.
        """
        return f"Sunny in {city}, 21 degrees."
'''
# A small model calls a tool once it has been shown how.
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
QUESTION = f"Repeat: <tool_call>{CALL}</tool_call>"


def main(url: str, picture: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(url)
        page.get_by_text("Okay, Let's Go!").click(timeout=WAIT)  # what is new in it
        set_up(page, url)
        page.goto(f"{url}/?models=weather")
        page.locator("#chat-input").fill(QUESTION)
        page.keyboard.press("Enter")
        answer = page.locator("#response-content-container").last
        expect(answer).to_contain_text("get_weather", timeout=WAIT)
        answer.get_by_text("get_weather").locator("visible=true").first.click()
        expect(page.get_by_text("Sunny in Paris, 21 degrees.").first).to_be_visible(timeout=WAIT)
        expect(answer).to_have_text(re.compile(r"\w+ \w+ \w+"), timeout=WAIT)
        page.screenshot(path=picture)
        print(answer.inner_text()[:400])
        browser.close()


def set_up(page: Page, url: str) -> None:
    """Make a tool, a model that has it and no other, and an input field that leaves quotes be."""
    token = page.evaluate("localStorage.token")

    def post(route: str, **body: object) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        answered = page.request.post(f"{url}/api/v1{route}", headers=headers, data=body)
        assert answered.ok, f"{route}: {answered.text()}"

    post("/tools/create", id="weather", name="Weather", content=TOOL, meta={"description": "It"})
    post(
        "/models/create",
        id="weather",
        base_model_id="SmolLM2-135M-Instruct",
        name="Weather",
        meta={"toolIds": ["weather"], "capabilities": {"builtin_tools": False}},
        params={"temperature": 0, "max_tokens": 60},
    )
    post("/users/user/settings/update", ui={"richTextInput": False})


if __name__ == "__main__":
    main(*sys.argv[1:])
