"""The pages as people see and touch them, in both languages, in a real browser on a running hub."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hub.dashboard.language import Language
from hub.dashboard.shell import BLIND
from hub.dashboard.style import ASSETS, BUTTON
from lineside import topics
from tests.line_broker import wait
from tests.line_pages import DEVICES, scene
from tests.test_dashboard import ROOT, Device, Hub

SCREENS = ROOT / "docs" / "screens"
MOST_BYTES = 300_000
PAGES = {
    **{"line": "/", "alarms": "/alarms", "station": "/station/press-3", "releases": "/releases", "fleet": "/fleet"},
    "day": f"/alarms/{date.today()}",  # as the plant's clocks show it
}
LOOKS = {"en": "light", "ja": "dark"}
LOCALES = {"en": "en-GB", "ja": "ja-JP"}
CRAMPED = """() => {
  const touched = 'a[href], button, input, select, textarea, [role=button], [role=menuitem], .q-item--clickable';
  const bad = [];
  for (const one of document.querySelectorAll(touched)) {
    const area = one.tagName === 'INPUT' ? one.closest('label') ?? one : one;
    const box = area.getBoundingClientRect();
    if (!box.width || one.getAttribute('aria-hidden') === 'true') continue;
    const words = one.cloneNode(true);
    words.querySelectorAll('.q-icon').forEach((icon) => icon.remove());
    const name = one.getAttribute('aria-label') || words.textContent.trim() || area.textContent.trim();
    if (box.width < 47.9 || box.height < 47.9 || !name) bad.push([name, box.width, box.height]);
  }
  return bad;
}"""
WORDS = """() => {
  const words = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const parent = walk.currentNode.parentElement;
    if (!parent.closest('[lang=en], .q-icon, script, style, code, canvas, #popup, #too_long_message_popup'))
      words.push(walk.currentNode.textContent);
  }
  for (const one of document.querySelectorAll('[title], [aria-label]'))
    if (!one.closest('[lang=en], code')) words.push(one.title, one.getAttribute('aria-label') ?? '');
  return words;
}"""
# Names and units, which are the same in every language.
SAME = re.compile(
    r"lineside|line1|(press|oven|belt)[ -]\d|(cam|mic|vib)\d|EEMUA|ISA|API|api|nat|AUROC|CPU|fp32|int8|Hz|ppm|camera-3|"
    r"timestamp|snapshot|targets|root|camera$|`[^`]*`|log|rate_hz|channels"
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, int]]:
    """A running hub and its process."""
    made = Hub(tmp_path_factory.mktemp("plant"), DEVICES)
    process = made.run()
    assert process.stdout is not None
    assert process.stdout.readline().strip() == f"dashboard on {made.url}"
    yield made, process.pid
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors


@pytest.fixture(scope="module")
def line(hub: tuple[Hub, int]) -> Iterator[dict[str, Device]]:
    made = scene(hub[0])
    assert wait(lambda: hub[0].get("/api/status")["counts"]["alarms"] == 3)
    assert wait(lambda: hub[0].get("/api/status")["devices"]["oven-1"]["live"])
    yield made
    for device in made.values():
        device.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        launched = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield launched
        launched.close()


class Visitor:
    """A browser of somebody, which notes every request that leaves the machine and every error."""

    def __init__(self, browser: Any, url: str, language: str = "en", **more: Any) -> None:
        self.t, self._url = Language(language), url  # type: ignore[arg-type]
        size = {"width": 1280, "height": 900}
        self.context = browser.new_context(
            viewport=size, locale=LOCALES[language], color_scheme=LOOKS[language], reduced_motion="reduce", **more
        )
        self.page = self.context.new_page()
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.page.route("**/*", self._local_only)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)

    def _local_only(self, route: Any) -> None:
        address = urlsplit(route.request.url)
        if address.hostname == "127.0.0.1" or address.scheme in ("data", "blob"):
            route.continue_()
        else:
            self.foreign.append(route.request.url)
            route.abort()

    def go(self, path: str) -> Any:
        self.page.goto(self._url + path)
        self.page.locator(".l-clock").wait_for()
        return self.page

    def to(self, path: str) -> None:
        """By the navigation."""
        self.page.locator(f'.l-nav a[href="{path}"]').click()
        self.page.wait_for_url(f"**{path}")
        self.page.locator(".l-clock").wait_for()

    def button(self, phrase: str, **values: object) -> Any:
        return self.page.get_by_role("button", name=self.t(phrase, **values), exact=True)

    def sees(self, phrase: str, **values: object) -> None:
        self.page.get_by_text(self.t(phrase, **values)).first.wait_for(timeout=60_000)

    def leave(self) -> None:
        self.context.close()
        assert (self.foreign, self.errors) == ([], [])


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("language", LOOKS)
def test_a_page_is_large_enough_to_touch_named_and_in_its_language(
    hub: tuple[Hub, int],
    line: dict[str, Device],
    browser: Any,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    name: str,
    language: str,
) -> None:
    visitor = Visitor(browser, hub[0].url, language)
    page = visitor.go(PAGES[name])
    page.wait_for_timeout(2500)  # what pages read by themselves has come
    assert page.evaluate("document.documentElement.lang")[:2] == language
    assert page.evaluate(CRAMPED) == []
    left = [word for text in page.evaluate(WORDS) for word in re.findall("[A-Za-z]{3,}", SAME.sub("", text.strip()))]
    if language == "ja":
        assert left == []
    else:
        assert len(left) > 20  # it is words that are looked at
    folder = SCREENS if request.config.getoption("--accept") else tmp_path
    folder.mkdir(exist_ok=True)
    picture = folder / f"{name}-{language}.png"
    page.mouse.move(0, 0)
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size < MOST_BYTES
    for width in (800, 390):
        page.set_viewport_size({"width": width, "height": 1100})
        page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)  # charts follow
    assert page.evaluate(CRAMPED) == []
    assert page.locator(".l-head").bounding_box()["height"] <= 110  # of a phone's 700
    visitor.leave()


@pytest.mark.browser
@pytest.mark.slow
def test_on_a_phone_a_table_scrolls_beside_the_first_cell_of_its_rows(
    hub: tuple[Hub, int], line: dict[str, Device], browser: Any
) -> None:
    visitor = Visitor(browser, hub[0].url)
    page = visitor.go("/releases")
    page.set_viewport_size({"width": 390, "height": 800})
    scrolled = """() => {
      const [table] = document.querySelectorAll('.l-of-7'), box = table.closest('.l-scroll');
      const at = (n) => table.children[n].getBoundingClientRect().x;
      const before = [at(7), at(8)];
      box.scrollLeft = 150;
      return [at(7) - before[0], at(8) - before[1], at(14) - at(7)];
    }"""
    page.locator(".l-of-7 > :nth-child(21)").wait_for()  # the last cell of its second row
    assert page.evaluate(scrolled) == [0, -150, 0]
    visitor.leave()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("language", LOOKS)
def test_an_operator_does_the_work_of_a_shift(
    hub: tuple[Hub, int], line: dict[str, Device], browser: Any, language: str
) -> None:
    visitor = Visitor(browser, hub[0].url, language)
    t, page = visitor.t, visitor.go("/")
    assert page.locator(".l-tile").first.get_by_text(t("ALARM"), exact=True).is_visible()  # worst first
    waiting = visitor.button("Acknowledge").count()
    visitor.button("Acknowledge").first.click()
    page.wait_for_function(f"document.querySelectorAll('.l-open-row .l-solid').length === {waiting - 1}")
    visitor.sees("{n} per hour and operator", n="2.0")
    visitor.to("/alarms")
    event = page.locator(".l-event", has_text="press 3").first
    event.get_by_role("button", name=t("Silence")).click()
    page.get_by_text(t("{n} min", n=10), exact=True).click()
    event.get_by_role("button", name=t("Hear again")).click()
    event.get_by_role("button", name=t("Silence")).wait_for()
    assert event.locator("img").evaluate("async (one) => { await one.decode(); return one.naturalWidth; }") == 160
    page.get_by_role("link", name=t("Alarms of another day")).click()
    visitor.sees("Alarms on {day}: {n}", n=0, day=t.day(time.time_ns() - 86_400 * 10**9))
    page.get_by_role("link", name=t("the day after")).click()
    page.locator(".l-event", has_text="press 3").get_by_role("link", name=t("Open")).first.click()
    page.wait_for_url("**/alarm/**")
    visitor.to("/")
    page.locator(".l-tile", has_text="press-3").click()
    page.wait_for_url("**/station/press-3")
    page.wait_for_function("document.body?.dataset.drawn?.startsWith('600000:')")
    visitor.button("{n} h", n=1).click()
    page.wait_for_function("document.body?.dataset.drawn?.startsWith('3600000:')")
    assert visitor.button("{n} h", n=1).get_attribute("aria-pressed") == "true"
    drawn = page.evaluate(
        "[...document.querySelectorAll('.nicegui-echart')].map(e => getElement(+e.id.slice(1)).chart.getOption()"
        ".series.map(s => [s.name, s.data.length]))"
    )
    score, share, agreement = (dict(series) for series in drawn)
    assert score[t("score")] > 10
    assert score[t("at or beyond the limit")] > 0
    assert {"cam0", "mic0", "vib0"} == set(share)
    assert agreement["cam0+mic0"] > 10
    visitor.sees("moving")
    before = len(line["press-3"].commands)
    page.get_by_role("button", name=t("Dirty lens")).click()
    visitor.sees("{device}: {what}: done", device="press-3", what=t("Dirty lens"))
    assert line["press-3"].commands[before:] == ["fault {'kind': 'dirty_lens', 'seconds': '20'}"]
    visitor.leave()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("language", LOOKS)
def test_an_engineer_looks_after_releases_and_fleet(
    hub: tuple[Hub, int], line: dict[str, Device], browser: Any, language: str
) -> None:
    visitor = Visitor(browser, hub[0].url, language)
    t, page = visitor.t, visitor.go("/releases")
    visitor.sees("devices are taking it")
    page.locator("li.here", has_text="press-4").wait_for()
    visitor.sees("not verified")
    command = "lineside deploy rollout abort --config plant.toml --modality camera"
    assert page.get_by_text(command, exact=True).is_visible()
    before = len(line["press-3"].commands)
    visitor.button("Roll back {modality} of {device}", modality=t("camera"), device="press-3").click()
    visitor.button("Cancel").click()
    visitor.button("Roll back {modality} of {device}", modality=t("camera"), device="press-3").click()
    visitor.button("Roll back now").click()
    visitor.sees("{device}: {what}: done", device="press-3", what=t("roll back {modality}", modality=t("camera")))
    assert line["press-3"].commands[before:] == ["rollback {'modality': 'camera'}"]
    visitor.to("/fleet")
    names = page.locator("a.l-cell-link")
    page.wait_for_function("document.querySelectorAll('a.l-cell-link').length === 4")
    assert names.first.inner_text() == "press-3"  # worst first
    visitor.button("Device").click()
    page.wait_for_function("document.querySelector('a.l-cell-link')?.textContent === 'belt-2'")
    visitor.button("Device").click()
    page.wait_for_function("document.querySelector('a.l-cell-link')?.textContent === 'press-4'")
    page.get_by_label(t("Filter by device or station")).fill("oven")
    page.wait_for_function("document.querySelectorAll('a.l-cell-link').length === 1")
    assert names.first.inner_text() == "oven-1"
    visitor.sees("ends now")
    line["press-4"].client.publish(topics.name("line1", "press-4", "score"), b"{", qos=1)
    visitor.sees("refused: no messages of ours")
    page.get_by_text(re.compile(r"^press-4: \d+$")).wait_for(timeout=60_000)
    visitor.leave()


@pytest.mark.browser
@pytest.mark.slow
def test_language_and_appearance_are_chosen_and_kept(
    hub: tuple[Hub, int], line: dict[str, Device], browser: Any
) -> None:
    visitor = Visitor(browser, hub[0].url)
    page = visitor.go("/fleet")
    page.get_by_role("link", name="日本語").click()
    page.get_by_role("link", name="リリース").click()
    page.wait_for_url("**/releases")
    assert page.evaluate("document.documentElement.lang") == "ja"
    page.get_by_role("button", name="表示").click()
    box = page.get_by_role("link", name="ダーク").bounding_box()
    assert box is not None
    assert min(box["width"], box["height"]) >= 48
    page.get_by_role("link", name="ダーク").click()
    page.locator("body.body--dark").wait_for()
    page.goto(hub[0].url)
    page.locator("body.body--dark").wait_for()
    page.get_by_text("正常", exact=True).first.wait_for()
    visitor.leave()


@pytest.mark.browser
@pytest.mark.slow
def test_a_hub_that_is_not_heard_is_named_on_the_page_and_comes_back(
    hub: tuple[Hub, int], line: dict[str, Device], browser: Any
) -> None:
    visitor = Visitor(browser, hub[0].url)
    page = visitor.go("/")
    page.wait_for_timeout(1000)
    page.wait_for_function("!document.getElementById('l-connection')")
    os.kill(hub[1], signal.SIGSTOP)
    try:
        page.get_by_text(re.compile(r"No connection to the hub since \d\d:\d\d:\d\d")).wait_for(timeout=60_000)
        word = page.locator(".l-tile .l-word").first
        assert "line-through" in word.evaluate("e => getComputedStyle(e).textDecorationLine")
        assert "grayscale" in page.locator(".l-content").evaluate("e => getComputedStyle(e).filter")
    finally:
        os.kill(hub[1], signal.SIGCONT)
    page.get_by_text("The connection to the hub is back.").wait_for(timeout=60_000)
    page.wait_for_function("!document.body.classList.contains('l-lost')")
    visitor.leave()


@pytest.mark.browser
@pytest.mark.slow
def test_what_is_stale_is_never_shown_as_live(hub: tuple[Hub, int], line: dict[str, Device], browser: Any) -> None:
    """The last test: a device falls silent."""
    visitor = Visitor(browser, hub[0].url)
    page = visitor.go("/")
    tile = page.locator(".l-tile", has_text="oven-1")
    tile.get_by_text("NORMAL", exact=True).wait_for()
    never = page.locator(".l-tile", has_text="belt-2")
    assert never.get_by_text("OFFLINE", exact=True).is_visible()
    assert "no data yet" in never.inner_text()
    line["oven-1"].stop.set()
    tile.get_by_text("NO DATA", exact=True).wait_for(timeout=15_000)
    assert re.search(r"no data since \d\d:\d\d:\d\d", tile.inner_text())
    assert "l-stale" in (tile.get_attribute("class") or "")
    assert not re.search(r"\d s ago", tile.inner_text())
    tile.click()
    page.get_by_text(re.compile("no data since")).first.wait_for()
    page.locator(".l-chart.l-stale").first.wait_for()
    page.goto(f"{hub[0].url}/station/nowhere")
    page.get_by_text("no device nowhere is known here").wait_for()
    visitor.errors = [error for error in visitor.errors if "404" not in error]
    visitor.leave()


@pytest.mark.browser
@pytest.mark.slow
def test_an_address_where_nothing_is_and_a_page_that_cannot_be_shown(tmp_path: Path, browser: Any) -> None:
    made = Hub(tmp_path, DEVICES)
    process = made.run()
    assert process.stdout is not None
    assert process.stdout.readline().startswith("dashboard on")
    visitor = Visitor(browser, made.url, "ja")
    visitor.go("/nowhere")
    visitor.sees("There is no page {path}.", path="/nowhere")
    _rename(tmp_path / "hub.db", "scores", "elsewhere")
    time.sleep(1)  # looks that follow at once share one
    visitor.page.goto(made.url)
    visitor.sees("This page cannot be shown now")
    visitor.sees(BLIND)
    visitor.page.goto(f"{made.url}/nowhere")
    visitor.sees("This page cannot be shown now")
    assert visitor.page.locator(".l-head").count() == 1
    _rename(tmp_path / "hub.db", "elsewhere", "scores")
    visitor.sees("There is no page {path}.", path="/nowhere")  # by itself
    assert [error for error in visitor.errors if "404" not in error and "500" not in error] == []
    visitor.errors = []
    visitor.leave()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


def _rename(path: Path, old: str, new: str) -> None:
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as database, database:
        database.execute(f"ALTER TABLE {old} RENAME TO {new}")


def variables() -> dict[str, dict[str, str]]:
    """The style sheet's colours, light and dark."""
    css = (ASSETS / "line.css").read_text()
    blocks = {"light": r":root \{(.*?)\}", "dark": r"body\.body--dark \{(.*?)\}"}
    found = {}
    for name, pattern in blocks.items():
        block = re.search(pattern, css, re.DOTALL)
        assert block is not None
        found[name] = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block[1]))
    return {"light": found["light"], "dark": {**found["light"], **found["dark"]}}


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


TONES = ("good", "warn", "bad", "busy", "off")
TEXTS = [
    *itertools.product(("ink", "soft", "button", *TONES), ("paper", "card")),
    *(("card", tone) for tone in TONES),  # on solid tags and banners
    ("on-button", "button"),
    ("on-danger", "danger"),
    *(("on-bar", modality) for modality in ("camera", "microphone", "series")),
]


@pytest.mark.parametrize("look", ["light", "dark"])
def test_text_on_every_tone_keeps_wcag_aa(look: str) -> None:
    colours = variables()[look]
    poor = {pair: round(ratio, 2) for pair in TEXTS if (ratio := contrast(*(colours[name] for name in pair))) < 4.5}
    assert poor == {}
    icons = {one: round(contrast(colours[one], colours["card"]), 2) for one in ("camera", "microphone", "series")}
    assert min(icons.values()) >= 3 or look == "light", icons
    assert contrast(BUTTON, "#ffffff") >= 4.5
