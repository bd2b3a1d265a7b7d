"""Clicks through the web page in chromium (run by the script `page` beside this file)."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error, expect, sync_playwright

from served import served

KEY = "a key for the page"


class Page:
    """The page in a fresh profile of the browser."""

    def __init__(self, browser, url, key=KEY, **context):
        self.context = browser.new_context(viewport={"width": 1100, "height": 800}, **context)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        self.page = self.context.new_page()
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and "401" not in message.text and
                     self.errors.append(message.text))
        self.page.on("request", lambda request: request.url.startswith((url, "data:", "blob:")) or
                     self.errors.append(f"loads {request.url}"))
        self.page.goto(url)
        if key:
            self.give_key(key)

    def give_key(self, key):
        expect(self.page.locator("#key")).to_be_focused()  # the dialog opens where the key is wanted
        self.page.keyboard.type(key)
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#model option")).not_to_have_count(0)

    def send(self, text, wait=True):
        self.page.locator("#draft").fill(text)
        self.page.keyboard.press("Enter")
        if wait:
            self.done()

    def done(self):
        expect(self.page.locator("[aria-busy=true]")).to_have_count(0, timeout=60000)
        expect(self.page.locator("#send")).to_be_visible()

    def turns(self):
        return self.page.locator(".turn")

    def last(self):
        return self.page.locator(".turn .text").last.inner_text()

    def check_barriers(self, where):
        found = Axe().run(self.page).response["violations"]
        assert not found, f"{where}: " + "; ".join(
            f"{v['id']} ({v['help']}): {v['nodes'][0]['html'][:120]} {v['nodes'][0].get('failureSummary', '')[:300]}" for v in found)

    def close(self):
        assert not self.errors, self.errors
        self.context.close()


def settings(page, **values):
    """Fills in fields of the settings by their ids, with _ for the first -."""
    page.page.locator("#show-settings").click()
    for name, value in values.items():
        page.page.locator("#" + name.replace("_", "-", 1)).fill(value)
    page.page.locator("#settings button[type=submit]").click()


def check_talk(browser, url):
    p = Page(browser, url)
    settings(p, set_temperature="1.2", set_max_tokens="40", system="Be brief.")
    p.send("The cat saw")
    expect(p.turns()).to_have_count(2)
    first = p.last()
    assert first, "no reply"
    about = p.page.locator(".turn .about").last.inner_text()
    assert re.search(r"\d+ \+ \d+ tokens", about) and "tokens/s" in about, about
    p.page.get_by_role("button", name="Regenerate").click()
    p.done()
    expect(p.turns()).to_have_count(2)
    expect(p.turns().last).to_contain_text("2/2")
    second = p.last()
    p.page.get_by_role("button", name="Version before").click()
    assert p.last() == first, "the first version is not there any more"
    p.page.get_by_role("button", name="Version after").click()
    assert p.last() == second
    # An edited turn begins a branch; the old one stays with its reply.
    p.page.get_by_role("button", name="Edit").first.click()
    p.page.locator("#edited").fill("The dog met")
    p.page.get_by_role("button", name="Send", exact=True).first.click()
    p.done()
    expect(p.turns().first).to_contain_text("The dog met")
    expect(p.turns().first).to_contain_text("2/2")
    p.page.get_by_role("button", name="Version before").first.click()
    expect(p.turns().first).to_contain_text("The cat saw")
    assert p.last() == second
    # It is all there after a reload, the settings too.
    p.page.reload()
    assert p.last() == second
    p.page.locator("#show-settings").click()
    assert p.page.locator("#set-temperature").input_value() == "1.2"
    assert p.page.locator("#system").input_value() == "Be brief."
    p.page.keyboard.press("Escape")
    p.close()


def check_stop(browser, url):
    p = Page(browser, url)
    settings(p, set_max_tokens="3000")
    p.send("a long one", wait=False)
    expect(p.page.locator("#stop")).to_be_visible()
    expect(p.page.locator(".turn .text").last).not_to_have_text("")
    p.page.locator("#stop").click()
    p.done()
    expect(p.turns().last).to_contain_text("stopped")
    p.send("a long one again", wait=False)
    expect(p.page.locator(".turn .text").last).not_to_have_text("")
    p.page.keyboard.press("Escape")
    p.done()
    expect(p.turns()).to_have_count(4)
    # A reload in the middle of a reply loses what came so far at most.
    p.send("a long one, interrupted", wait=False)
    expect(p.page.locator(".turn .text").last).not_to_have_text("")
    p.page.reload()
    expect(p.turns().first).to_contain_text("a long one")
    p.send("still there?", wait=False)
    p.page.keyboard.press("Escape")
    p.done()
    p.close()


def check_conversations(browser, url, folder):
    p = Page(browser, url)
    settings(p, set_max_tokens="10")
    p.send("The hen met")
    one = p.last()
    p.page.locator("#title").fill("About hens")
    p.page.keyboard.press("Enter")
    p.page.get_by_role("button", name="New conversation").first.click()
    expect(p.turns()).to_have_count(0)
    p.send("The fox saw")
    expect(p.page.locator("#conversations li")).to_have_count(2)
    with p.page.expect_download() as download:
        p.page.get_by_role("button", name="Export all").click()
    exported = folder / "conversations.json"
    download.value.save_as(exported)
    data = json.loads(exported.read_text(encoding="utf8"))
    assert len(data["conversations"]) == 2, len(data["conversations"])
    p.page.get_by_role("button", name="About hens").click()
    assert p.last() == one
    p.page.locator("#delete").click()
    p.page.locator("#ask-yes").click()
    expect(p.page.locator("#conversations li")).to_have_count(1)
    p.page.locator("#import-file").set_input_files(exported)
    expect(p.page.locator("#conversations li")).to_have_count(3)
    p.page.get_by_role("button", name="About hens").click()
    assert p.last() == one
    # A conversation that is deleted while a reply comes to it does not come back.
    p.page.get_by_role("button", name="New conversation").first.click()
    settings(p, set_max_tokens="3000")
    p.send("a long one, deleted", wait=False)
    expect(p.page.locator(".turn .text").last).not_to_have_text("")
    p.page.locator("#delete").click()
    p.page.locator("#ask-yes").click()
    p.done()
    p.page.reload()
    expect(p.page.locator("#conversations li")).to_have_count(3)
    expect(p.page.locator("#conversations")).not_to_contain_text("deleted")
    # Files that are none change nothing, and say why; a hostile one shows text and no more.
    for text, reason in (("no JSON", "not JSON"), ("{}", "no conversations"),
                         (json.dumps({**data, "conversations": [{"title": 5}]}), "no turns")):
        bad = folder / "bad.json"
        bad.write_text(text)
        p.page.locator("#import-file").set_input_files(bad)
        expect(p.page.locator("#problem")).to_contain_text(reason)
    expect(p.page.locator("#conversations li")).to_have_count(3)
    hostile = "<img src=x onerror='window.broken=1'><script>window.broken=1</script>[a](javascript:window.broken=1)\n```html\n<b>\n```"
    bad.write_text(json.dumps({"format": data["format"], "version": 1, "conversations": [{
        "title": hostile, "system": "", "chosen": {"": "a", "a": "b"}, "turns": {
            "a": {"id": "a", "parent": "", "role": "user", "text": hostile, "created": 1},
            "b": {"id": "b", "parent": "a", "role": "assistant", "text": hostile, "created": 2, "model": hostile}}}]}))
    p.page.locator("#import-file").set_input_files(bad)
    expect(p.turns()).to_have_count(2)
    expect(p.turns().last).to_contain_text("<img src=x")
    expect(p.turns().last.locator("pre code")).to_have_text("<b>")
    assert p.page.locator(".turn img, .turn script, .turn a").count() == 0
    assert p.page.evaluate("window.broken") is None
    p.close()


def check_experts(browser, url, folder):
    p = Page(browser, url)
    settings(p, set_max_tokens="12", set_temperature="1")
    p.send("The hen saw")
    p.page.get_by_role("tab", name="Experts").click()
    expect(p.page.locator("#load-summary")).to_contain_text("tokens")
    layers = p.page.locator("#heat tbody tr").count() - 1
    experts = p.page.locator("#heat thead th").count() - 1
    assert layers > 0 and experts > 0
    for row in p.page.locator("#heat tbody tr").all():
        total = sum(float(cell) for cell in row.locator("td").all_inner_texts())
        assert abs(total - 200) < 2, f"shares of two experts a token add up to {total} percent"
    tokens = p.page.locator("#tokens button")
    assert 0 < tokens.count() <= 12, tokens.count()
    assert p.page.locator("#token table").count() == 2
    assert p.page.locator("#token table").last.locator("tbody tr").count() == layers
    tokens.first.focus()
    p.page.keyboard.press("ArrowRight")
    expect(p.page.locator("#token")).to_contain_text("Token 2")
    expect(tokens.nth(1)).to_be_focused()
    p.check_barriers("the experts, light")
    p.page.screenshot(path=folder / "experts-light.png")
    p.page.emulate_media(color_scheme="dark")
    p.check_barriers("the experts, dark")
    p.page.screenshot(path=folder / "experts-dark.png")
    p.page.set_viewport_size({"width": 360, "height": 700})
    p.page.screenshot(path=folder / "experts-360.png")
    assert fits(p.page), "wider than 360 pixels"
    p.close()


def fits(page):
    return page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth")


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")


def check_keyboard(browser, url):
    """A conversation without a mouse: every control is reached with Tab, and the focus is never lost."""
    p = Page(browser, url)
    page = p.page
    settings(p, set_max_tokens="8")
    page.reload()
    page.keyboard.press("Tab")
    assert "Skip" in focused(page), focused(page)
    page.keyboard.press("Enter")
    assert focused(page) == "draft"
    page.keyboard.type("The dog")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("saw")
    page.keyboard.press("Enter")
    p.done()
    assert page.locator(".turn .text").first.inner_text() == "The dog\nsaw"
    assert focused(page) == "draft", focused(page)

    def tab_to(what):
        for _ in range(40):
            if focused(page) == what:
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {what}")

    page.evaluate("document.activeElement.blur()")
    for name in ("Copy", "Edit", "Regenerate", "export-one", "delete", "title", "model", "show-settings", "tab-chat", "new", "scroll", "draft"):
        tab_to(name)
    tab_to("Regenerate")
    page.keyboard.press("Enter")
    p.done()
    assert focused(page) == "Regenerate", focused(page)
    tab_to("Edit")
    page.keyboard.press("Enter")
    assert focused(page) == "edited"
    page.keyboard.press("Escape")
    assert focused(page) == "Edit", focused(page)
    tab_to("tab-chat")
    page.keyboard.press("ArrowRight")
    assert focused(page) == "tab-experts"
    expect(page.locator("#view-experts")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#view-chat")).to_be_visible()
    tab_to("show-settings")
    page.keyboard.press("Enter")
    expect(page.locator("#settings")).to_be_visible()
    page.keyboard.press("Escape")
    assert focused(page) == "show-settings", focused(page)
    p.close()


def check_aloud(browser, url):
    """Screen readers get each part of a reply once, and hear that it ended."""
    p = Page(browser, url)
    settings(p, set_max_tokens="60")
    p.page.evaluate("""() => {
      window.heard = '';
      new MutationObserver((all) => all.forEach((m) => m.addedNodes.forEach((n) => window.heard += n.textContent)))
        .observe(document.getElementById('said'), {childList: true});
    }""")
    p.send("The fox met")
    strip = lambda text: re.sub(r"[\s*`#>]|\d+\.|python|Copy|code", "", text)
    heard, shown = strip(p.page.evaluate("window.heard")), strip(p.last())
    assert heard == shown, f"heard {heard!r}, shown {shown!r}"
    expect(p.page.locator("#status")).to_contain_text("ended")
    p.close()


def check_looks(browser, url, folder):
    for scheme in ("light", "dark"):
        for width in (1100, 360):
            p = Page(browser, url, color_scheme=scheme)
            settings(p, set_max_tokens="30")
            p.page.set_viewport_size({"width": width, "height": 700})
            p.send("The cat met the goose at the gate, and wrote this down: `x = 1`.")
            assert fits(p.page), f"wider than {width} pixels"
            p.check_barriers(f"{scheme}, {width} pixels")
            p.page.screenshot(path=folder / f"chat-{scheme}-{width}.png")
            p.page.locator("#show-settings").click()
            p.check_barriers(f"settings, {scheme}, {width} pixels")
            p.page.screenshot(path=folder / f"settings-{scheme}-{width}.png")
            p.page.keyboard.press("Escape")
            if width == 360:
                p.page.locator("#show-list").click()
                p.check_barriers(f"list, {scheme}")
                p.page.screenshot(path=folder / f"list-{scheme}-360.png")
                p.page.keyboard.press("Escape")
                expect(p.page.locator("#list")).to_be_hidden()
            p.close()


def check_refusals(browser, url):
    """What the server refuses is shown in its words; the conversation stays usable."""
    p = Page(browser, url, key=None)
    expect(p.page.locator("#key")).to_be_focused()
    p.page.keyboard.type("a wrong key")
    p.page.keyboard.press("Enter")
    expect(p.page.locator("#settings")).to_be_visible()  # asked again
    p.page.locator("#key").fill(KEY)
    p.page.keyboard.press("Enter")
    expect(p.page.locator("#model option")).not_to_have_count(0)
    p.close()


def main():
    target, folder = sys.argv[1], sys.argv[2]
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        raise SystemExit("chromium is missing: install it, or name one with CHROMIUM")
    with contextlib.ExitStack() as stack:
        shots = pathlib.Path(folder or stack.enter_context(tempfile.TemporaryDirectory()))
        shots.mkdir(parents=True, exist_ok=True)
        url = target if "://" in target else stack.enter_context(
            served(pathlib.Path(target).resolve(), "--api-key", KEY, "--context", "4096"))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        checks = {"talk": lambda: check_talk(browser, url), "stop": lambda: check_stop(browser, url),
                  "conversations": lambda: check_conversations(browser, url, shots),
                  "experts": lambda: check_experts(browser, url, shots), "keyboard": lambda: check_keyboard(browser, url),
                  "aloud": lambda: check_aloud(browser, url), "looks": lambda: check_looks(browser, url, shots),
                  "refusals": lambda: check_refusals(browser, url)}
        failed = 0
        for name, check in checks.items():
            try:
                check()
                print(f"{name}: holds")
            except (AssertionError, Error) as error:
                failed += 1
                print(f"{name}: {str(error)[:600]}")
        browser.close()
    print(f"{len(checks) - failed} of {len(checks)} hold")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
