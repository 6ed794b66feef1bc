"""The page in Chromium: page_client.py URL SCENARIO [KEY].

No scenario may leave an error in the console or ask anything of another origin.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
URL, SCENARIO = sys.argv[1:3]
WAIT = 240_000  # milliseconds for what takes seconds, where others use the machine as well
HURTS = "<img src=nowhere onerror='window.hurt=1'><script>window.hurt=1</script>"


@contextmanager
def opened(
    browser: Browser, at: str = "/", refused: bool = False, **options: Any
) -> Iterator[Page]:
    """A fresh tab at a place of the server's; ``refused``: errors of HTTP are part of it."""
    context = browser.new_context(**options)
    page, wrong = context.new_page(), []

    def on_console(message: ConsoleMessage) -> None:
        expected = refused and "status of 4" in message.text
        if message.type in ("error", "warning") and not expected:
            wrong.append(message.text)

    page.on("console", on_console)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if is_ours(asked.url) else wrong.append(asked.url))
    page.goto(f"{URL}{at}")
    yield page
    assert not wrong, wrong
    context.close()


def is_ours(url: str) -> bool:
    """Whether a request stays here; Swagger UI's own icons are in its style sheet."""
    return url.startswith((f"{URL}/", "data:"))


def ask(page: Page, message: str, tokens: int = 24) -> None:
    """Send a message."""
    page.fill("#max-tokens", str(tokens))
    page.fill("#message", message)
    page.click("#send")


def chat(browser: Browser) -> None:
    """An answer streams, with the digest that the API gives; a seed is kept; a stop stops."""
    with opened(browser) as page:
        question = "Why is the sky blue?"
        ask(page, question)
        expect(page.locator(".told .digest code")).to_have_text(api_digest(page, question))
        expect(page.locator(".answer")).to_have_attribute("aria-busy", "false")
        assert len(page.inner_text(".answer")) > 20

        page.click("#new-chat")
        page.fill("#temperature", "1")
        ask(page, question)
        told = page.locator(".told")
        expect(told).to_contain_text("seed", timeout=WAIT)
        seed = int(told.inner_text().split("seed ")[1].split()[0])
        digest = api_digest(page, question, temperature=1, seed=seed)
        expect(told.locator(".digest code")).to_have_text(digest)

        page.click("#new-chat")
        page.fill("#temperature", "0")  # so that the answer is surely long
        ask(page, "Write a very long story about the sea.", tokens=2000)
        expect(page.locator(".answer")).not_to_be_empty(timeout=WAIT)
        page.click("#stop-chat")
        expect(page.locator(".told")).to_have_text("stopped")
        expect(page.locator("#send")).to_be_enabled()

    with opened(browser, refused=True) as page:
        ask(page, "hello", tokens=100_000)
        error = page.locator("#chat .error")
        expect(error).to_contain_text("max_tokens")
        assert "\n" not in error.inner_text()
        expect(page.locator("#message")).to_have_value("hello")


def api_digest(page: Page, message: str, **parameters: Any) -> str:
    """What the API gives for the same question, asked for without the page."""
    body = {
        "messages": [{"role": "user", "content": message}],
        "temperature": 0,
        "max_tokens": 24,
        **parameters,
    }
    answer = page.request.post(f"{URL}/v1/chat/completions", data=body, timeout=WAIT).json()
    digest: str = answer["choices"][0]["digest"]
    return digest


def completion(browser: Browser) -> None:
    """A model without a chat template continues the text."""

    def without_template(route: Route) -> None:
        info = route.fetch().json()
        route.fulfill(json={**info, "chat_template": None})

    with opened(browser, "/docs") as page:
        page.route("**/tokenizer_info", without_template)
        page.goto(f"{URL}/")
        with page.expect_request("**/v1/completions"):
            ask(page, "The capital of France is")
        expect(page.locator(".answer")).to_contain_text("Paris", timeout=WAIT)
        expect(page.locator(".told .digest code")).to_be_visible(timeout=WAIT)


def injection(browser: Browser) -> None:
    """What would run if it were parsed is shown as it stands, in question, answer and error."""
    with opened(browser, "/docs") as page:
        # The control: on a page that lets HTML be parsed, it does run, even under its policy.
        page.goto("about:blank")
        page.evaluate("html => { document.body.innerHTML = html }", HURTS)
        page.wait_for_function("() => window.hurt === 1")

    code = f"```html\n{HURTS}\n```"
    said = f"{HURTS}\n\n{code}\n\n[link](javascript:window.hurt=1) `{HURTS}` **{HURTS}**"
    chunk = {"choices": [{"delta": {"content": said}}]}
    end = {"delta": {}, "finish_reason": "stop", "digest": "0" * 64, "deterministic": True}
    last = {"choices": [end], "usage": {"completion_tokens": 9}}
    events = "".join(f"data: {json.dumps(one)}\n\n" for one in (chunk, last))
    with opened(browser) as page:
        page.route("**/v1/chat/completions", lambda route: route.fulfill(body=events))
        ask(page, HURTS)
        expect(page.locator(".told .digest code")).to_be_visible()
        expect(page.locator(".asked")).to_have_text(HURTS)
        assert page.inner_text(".answer").count(HURTS) == 4
        assert page.inner_text(".answer pre") == HURTS
        assert page.locator("#log").locator("img, script, a, iframe").count() == 0
        assert page.evaluate("() => window.hurt") is None

    with opened(browser, refused=True) as page:
        refusal = {"error": {"message": HURTS}}
        page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json=refusal))
        ask(page, "hello")
        expect(page.locator("#chat .error")).to_have_text(HURTS)
        assert page.evaluate("() => window.hurt") is None


def side_by_side(browser: Browser) -> None:
    """Alone and beside others: one digest deterministic, several fast."""
    with opened(browser, "/#compare") as page:
        page.fill("#compare-runs", "3")
        page.fill("#compare-tokens", "4")
        page.click("#compare-form .main")
        columns = page.locator("#columns section")
        expect(columns.nth(0)).to_contain_text("1 digest in 3 of 3 runs", timeout=WAIT)
        expect(columns.nth(1)).to_contain_text("in 3 of 3 runs", timeout=WAIT)
        found = columns.nth(1).locator(".found")
        assert found.count() > 1, found.all_inner_texts()
        digests = columns.locator(".digest code").all_inner_texts()
        assert len({*digests}) == len(digests), digests


def check(browser: Browser) -> None:
    """A check tells how far it is and ends with one digest; its control finds more."""
    with opened(browser, "/#check") as page:
        page.fill("#check-runs", "4")
        page.fill("#check-tokens", "4")
        page.click("#check-form .main")
        verdicts = page.locator("#verdicts > section")
        expect(verdicts.nth(0)).to_contain_text("1 unique digest in 4", timeout=WAIT)
        expect(verdicts.nth(0).locator(".digest code")).to_have_count(1, timeout=WAIT)
        assert verdicts.nth(0).locator(".squares .same").count() == 4
        expect(verdicts.nth(1)).to_contain_text("First that differs")
        assert verdicts.nth(1).locator(".squares .other").count()


def puzzle(browser: Browser) -> None:
    """A board gets solved step by step, and the steps can be seen again."""
    with opened(browser, "/#puzzles") as page:
        expect(page.locator("#puzzle")).not_to_have_value("")  # the solvers have been asked for
        text = page.input_value("#puzzle")
        page.click("#puzzle-form .main")
        told = page.locator("#puzzle-told")
        expect(told).to_contain_text("solved after 4 steps")
        asked = {"grid": text, "model": page.input_value("#solver")}
        answer = page.request.post(f"{URL}/v1/solve", data=asked).json()
        expect(page.locator("#puzzle-digest code")).to_have_text(answer["digest"])
        cells = page.locator("#board input")
        assert "".join(cell.input_value() for cell in cells.all()) == answer["solution"]
        page.focus("#step")
        page.keyboard.press("ArrowLeft")
        expect(told).to_contain_text("step 3")
        assert page.locator("#board .changed").count()

    with opened(browser, "/#puzzles", refused=True) as page:
        page.fill("#puzzle", "11" + text[2:])
        page.press("#puzzle", "Enter")
        expect(page.locator("#puzzles .error")).to_contain_text("grid: row 1 has 1 more than once")


def keyboard(browser: Browser) -> None:
    """Everything without a pointer: to the tabs, among them, into a board, to an answer."""
    with opened(browser) as page:
        press = page.keyboard.press
        expect(page.locator("#tab-chat")).to_be_visible()
        press("Tab")
        assert focused(page) == "tab-chat"
        for tab in ("compare", "check", "puzzles"):
            press("ArrowRight")
            assert focused(page) == f"tab-{tab}"
            expect(page.locator(f"#{tab}")).to_be_visible()
        page.focus("#puzzle")
        press("Tab")
        assert "row 1, column 1" in label(page)
        press("ArrowRight")
        press("ArrowDown")
        assert "row 2, column 2" in label(page)
        expect(page.locator("#puzzle")).not_to_have_value("")
        before = page.input_value("#puzzle")
        page.keyboard.type("2")
        assert page.input_value("#puzzle") == before[:7] + "2" + before[8:]
        press("Backspace")
        assert page.input_value("#puzzle") == before
        press("Shift+Tab")
        assert focused(page) == "puzzle"
        press("Enter")
        expect(page.locator("#puzzle-told")).to_contain_text("solved")
        page.focus("#tab-puzzles")
        press("Home")
        page.focus("#message")
        page.keyboard.type("Say hello")
        press("Shift+Enter")
        page.keyboard.type("twice")
        page.focus("#max-tokens")
        press("Control+A")
        page.keyboard.type("8")
        page.focus("#message")
        press("Enter")
        expect(page.locator(".asked")).to_have_text("Say hello\ntwice")
        expect(page.locator(".told .digest code")).to_be_visible(timeout=WAIT)


def focused(page: Page) -> str:
    """The id of what has the focus."""
    return str(page.evaluate("() => document.activeElement.id"))


def label(page: Page) -> str:
    """What a screen reader says of what has the focus."""
    return str(page.evaluate("() => document.activeElement.ariaLabel"))


def narrow(browser: Browser) -> None:
    """On a narrow screen nothing lies beside it, and every field has a label."""
    for scheme in ("light", "dark"):
        viewport = {"width": 360, "height": 740}
        with opened(browser, viewport=viewport, color_scheme=scheme) as page:
            ask(page, "Write a Python function that reverses a string.", tokens=60)
            expect(page.locator(".told .digest code")).to_be_visible(timeout=WAIT)
            for tab in ("chat", "compare", "check", "puzzles", "server"):
                page.click(f"#tab-{tab}")
                assert page.evaluate("() => document.documentElement.scrollWidth") == 360, tab
            paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
            assert (int(paper[4:].split(",")[0]) < 60) == (scheme == "dark"), paper
            nameless = "() => [...document.querySelectorAll('input, select, textarea')]"
            nameless += ".filter(one => !one.labels.length && !one.ariaLabel).map(one => one.id)"
            assert page.evaluate(nameless) == []


def server(browser: Browser) -> None:
    """The fingerprint is the API's, and what the engine does is told."""
    with opened(browser, "/#server") as page:
        info = page.request.get(f"{URL}/server_info").json()
        parts = page.locator("#fingerprints")
        expect(parts).to_contain_text(info["system_fingerprint"])
        for value in info["fingerprint"].values():
            expect(parts).to_contain_text(value)
        expect(page.locator("#meters")).to_contain_text("tokens/s")
        expect(page.locator("#pulse")).to_contain_text("0 waiting")


def docs(browser: Browser) -> None:
    """The description is shown."""
    with opened(browser, "/docs") as page:
        expect(page.locator(".opblock").first).to_be_visible()
        page.click("#operations-default-chat_completions .opblock-summary-control")
        expect(page.locator(".opblock.is-open")).to_contain_text("Responses")


def key(browser: Browser) -> None:
    """The page asks for the key that the server wants, and keeps it in the tab alone."""
    with opened(browser, refused=True) as page:
        expect(page.locator("#served")).to_contain_text("no API key was given")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        expect(page.locator("#served")).to_contain_text("the API key is not known")
        page.fill("#key", sys.argv[3])
        page.press("#key", "Enter")
        expect(page.locator("#puzzles")).to_be_visible()
        expect(page.locator("#key-form")).to_be_hidden()
        expect(page.locator("#tab-chat")).to_be_hidden()
        page.click("#puzzle-form .main")
        expect(page.locator("#puzzle-told")).to_contain_text("solved")
        assert page.evaluate("() => [sessionStorage.length, localStorage.length]") == [1, 0]
        assert page.context.cookies() == []
        page.goto(f"{URL}/docs")
        expect(page.locator(".opblock").first).to_be_visible()


SCENARIOS: dict[str, Callable[[Browser], None]] = {
    one.__name__: one
    for one in (
        chat, completion, injection, side_by_side, check, puzzle, keyboard, narrow, server, docs,
        key,
    )
}  # fmt: skip

if __name__ == "__main__":
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"]
        with playwright.chromium.launch(executable_path=CHROMIUM, args=arguments) as chromium:
            SCENARIOS[SCENARIO](chromium)
