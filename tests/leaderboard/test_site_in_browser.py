"""The site in a real browser, opened from files: sort, filter, keyboard, contrast, narrow screens, and no scripts."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import made_up_boards as made
import pytest

from robustbench_vlm.core.files import write_text
from robustbench_vlm.leaderboard.site import open_server, pages, texts, write_site

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_QUIET = ("disable-quic", "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync")
HOSTILE = texts.slug(made.SCRIPT)
PAGES = (
    "index.html",
    "reading.html",
    "mini/index.html",
    "mini/protocol.html",
    "mini/models/gladiator.html",
    "mini/models/agft.html",
    "zeroshot15/index.html",
    f"{HOSTILE}/index.html",
    f"{HOSTILE}/protocol.html",
    f"{HOSTILE}/models/{texts.slug(made.HOSTILE_NAME)}.html",
    f"{HOSTILE}/models/{texts.slug('w' * 10_000)}.html",
)
MOST_MILLISECONDS = 20_000  # the test machine may be busy with other tests
Open = Callable[..., "sync_api.Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on this machine: install Chromium to test the site in it")
    arguments = [f"--{name}" for name in _QUIET] + (["--no-sandbox"] if os.geteuid() == 0 else [])
    sync_api.expect.set_options(timeout=MOST_MILLISECONDS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    entries = {("mini", model): made.entry(model) for model in made.NUMBERS}
    entries[made.SCRIPT, made.HOSTILE_NAME] = made.hostile_entry()
    board = made.dataclasses.replace(made.board(), reported=made.reported(3, 100))
    write_site([board, made.unmeasured_board(), made.hostile_board()], folder, entries=entries)
    return folder


@pytest.fixture
def open_page(browser: "sync_api.Browser", site: Path) -> Iterator[Open]:
    """Return a function that opens a page from its file. Any warning or error of the browser fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(name: str, *, site: Path = site, **options: object) -> "sync_api.Page":
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(MOST_MILLISECONDS)
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url[:200]}"))
        page.on("request", lambda request: _is_inside(request.url) or complaints.append(f"asked: {request.url[:200]}"))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto((site / name).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def _is_inside(url: str) -> bool:
    return url.startswith(("file:", "data:", "http://127.0.0.1:"))


def _follow(page: "sync_api.Page", link: "sync_api.Locator", address: str) -> None:
    """Click a link and wait until its page is loaded, because evaluate, url and all_inner_texts do not wait."""
    link.click()
    page.wait_for_url(f"**/{address}")


def _models(page: "sync_api.Page") -> list[str]:
    return page.locator("#measured-rows tbody tr:visible th a").all_inner_texts()


def test_a_click_on_a_header_sorts_and_a_second_click_reverses_the_order(open_page: Open) -> None:
    page = open_page("mini/index.html")
    assert _models(page) == list(made.NUMBERS)
    by_clean = sorted(made.NUMBERS, key=lambda name: made.NUMBERS[name][0])
    header = page.locator("#measured-rows th", has_text="Clean")
    header.get_by_role("button").click()
    assert (_models(page), header.get_attribute("aria-sort")) == (by_clean[::-1], "descending")
    header.get_by_role("button").click()
    assert (_models(page), header.get_attribute("aria-sort")) == (by_clean, "ascending")
    assert page.locator("#measured-rows th[aria-sort]").count() == 1
    page.get_by_role("button", name="Passes").click()
    assert _models(page) == list(made.NUMBERS)
    page.get_by_role("button", name="Model", exact=True).click()
    assert _models(page) == sorted(made.NUMBERS)


def test_filters_hide_rows_and_show_the_number_of_visible_rows(open_page: Open) -> None:
    page = open_page("mini/index.html")
    form = page.locator("form[data-filters=measured-rows]")
    form.get_by_label("Filter").fill("RECONSTRUCTION scenes")
    assert (_models(page), form.locator("output").inner_text()) == (["gladiator"], "1 of 8 rows")
    form.get_by_role("button", name="Reset").click()
    sync_api.expect(form.locator("output")).to_have_text("8 rows")
    form.get_by_label("Status").select_option("verified")
    assert _models(page) == ["pmg-aft", "tecoa", "clip"]
    form.get_by_label("without warnings").check()
    assert _models(page) == ["pmg-aft", "tecoa"]
    page.get_by_role("button", name="Clean", exact=True).first.click()
    assert _models(page) == ["pmg-aft", "tecoa"]


@pytest.fixture(scope="module")
def large_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the pages of a board of 1000 models, without the pages of the models."""
    folder = tmp_path_factory.mktemp("large")
    for file in pages._files([made.large_board(1000)], {}, {}):
        if file.name in ("mini/index.html", "mini/page-2.html"):
            write_text(folder / file.name, file.make())
    return folder


def test_a_table_of_1000_models_is_sorted_filtered_and_paged(open_page: Open, large_site: Path) -> None:
    page = open_page("mini/index.html", site=large_site)
    form, nav = page.locator("form[data-filters=measured-rows]"), page.locator("#measured-pages")
    sync_api.expect(page.locator("#measured-rows tbody tr")).to_have_count(1000)
    names = [f"model-{number:04d}" for number in range(1000)]
    assert (_models(page), form.locator("output").inner_text()) == (names[:30], "1000 rows")
    nav.get_by_role("button", name="Next").click()
    assert (_models(page), nav.locator("span").inner_text()) == (names[30:60], "31\u201360 of 1000")
    page.locator("#measured-rows th", has_text="Robust").get_by_role("button").click()
    page.locator("#measured-rows th", has_text="Robust").get_by_role("button").click()
    assert _models(page) == names[:-31:-1] and nav.get_by_role("button", name="Previous").is_disabled()
    form.get_by_label("Filter").fill("model-09 gladiator")
    assert len(_models(page)) == 13 and form.locator("output").inner_text() == "13 of 1000 rows"
    assert nav.get_by_role("button", name="Next").is_disabled()
    form.get_by_role("button", name="Reset").click()
    sync_api.expect(form.locator("output")).to_have_text("1000 rows")
    assert len(_models(page)) == 30


def test_without_a_script_a_large_table_has_links_to_its_pages(open_page: Open, large_site: Path) -> None:
    page = open_page("mini/index.html", site=large_site, java_script_enabled=False)
    assert page.locator("#measured-rows tbody tr").count() == 30
    _follow(page, page.locator("#measured-pages a", has_text="2").first, "mini/page-2.html")
    assert page.locator("#measured-rows tbody th a").first.inner_text() == "model-0030"
    assert page.get_by_text("This page has the models 31 to 60 of 1000.").is_visible()


def test_reported_numbers_are_folded_until_a_filter_finds_them(open_page: Open) -> None:
    page = open_page("mini/index.html")
    section = page.locator("section.reported")
    assert section.locator("tbody tr:visible").count() == 0
    section.get_by_label("Filter").fill("paper 3 tecoa stl10 cifar")
    assert section.locator("tbody tr:visible").count() == 0
    assert section.locator("output").inner_text() == "0 of 300 rows"
    section.get_by_label("Filter").fill("tecoa stl10")
    shown = section.locator("tbody tr:visible").all_inner_texts()
    assert len(shown) == 27 and all("TeCoA" in row and "STL10" in row for row in shown)
    assert len(_models(page)) == 8


def test_a_track_without_models_has_a_table_of_reported_numbers_with_filters(open_page: Open) -> None:
    page = open_page("zeroshot15/index.html")
    table, rows = page.locator("#reported-table"), page.locator("#reported-table tbody tr:visible")
    form = page.locator("form[data-filters=reported-table]")
    assert table.locator("thead th").all_inner_texts()[1:3] == ["cifar10", "stl10"]
    count = rows.count()
    form.get_by_label("Paper").select_option("Paper 2 (ICML 2024)")
    form.get_by_label("Attack").select_option("AutoAttack")
    shown = rows.all_inner_texts()
    assert 0 < len(shown) < count and all("Paper 2" in row and "AutoAttack" in row for row in shown)
    form.get_by_role("button", name="Reset").click()
    sync_api.expect(rows).to_have_count(count)
    table.get_by_role("button", name="cifar10").click()
    # A number with a doubt has a letter, and is sorted by its value.
    cells = rows.locator("td:nth-of-type(1)").all_inner_texts()
    values = [float(text.rstrip("abc")) for text in cells if text[0].isdigit()]
    assert len(values) > 10 and values == sorted(values, reverse=True)


def test_a_model_page_explains_its_warnings_and_links_back(open_page: Open) -> None:
    page = open_page("index.html")
    _follow(page, page.get_by_role("link", name="mini", exact=True).first, "mini/index.html")
    _follow(page, page.get_by_role("link", name="gladiator").first, "mini/models/gladiator.html")
    assert page.get_by_role("heading", level=1).inner_text() == "gladiator"
    assert "attack the model with gradients that account for the defense" in page.locator("main").inner_text()
    _follow(page, page.get_by_role("link", name="black-box-wins"), "reading.html#black-box-wins")
    assert page.locator("tr:target").inner_text().startswith("black-box-wins")
    page.go_back()
    _follow(page, page.locator(".crumbs a"), "mini/index.html")
    assert len(_models(page)) == 8


def test_the_keyboard_reaches_the_content_and_sorts_with_a_visible_focus(open_page: Open) -> None:
    page = open_page("mini/index.html")
    focus = page.locator(":focus")
    page.keyboard.press("Tab")
    assert focus.inner_text() == "Skip to the content" and focus.bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for _ in range(30):
        page.keyboard.press("Tab")
        style = focus.evaluate("each => [getComputedStyle(each).outlineStyle, getComputedStyle(each).outlineWidth]")
        assert style[0] != "none" and style[1] != "0px"
        if focus.inner_text() == "Robust":
            break
    page.keyboard.press("Enter")
    assert page.locator("th", has=focus).get_attribute("aria-sort") == "descending"
    page.keyboard.press("Space")
    assert page.locator("th", has=focus).get_attribute("aria-sort") == "ascending"
    assert _models(page)[0] == "clip"


def test_colours_follow_the_system_until_the_user_chooses_a_scheme(open_page: Open, site: Path) -> None:
    page = open_page("mini/index.html", color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_role("button", name="Light colours").click()
    light = page.evaluate(background)
    assert light != dark
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) == light
    with open_server(site, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/index.html")
        page.get_by_role("button", name="Dark colours").click()
        _follow(page, page.get_by_role("link", name="How to read the boards").first, "reading.html")
        assert page.evaluate(background) == dark
        server.shutdown()
        thread.join()


_CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const kept = (make) => {
    const known = new Map();
    return (key) => { if (!known.has(key)) known.set(key, make(key)); return known.get(key); };
  };
  const rgba = kept((color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((each) => each / 255);
  });
  const over = ([r, g, b, a], under) => [r, g, b].map((each, at) => each * a + under[at] * (1 - a));
  const channel = (each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = kept((element) => {
    const above = element.parentElement ? ground(element.parentElement) : [1, 1, 1];
    return over(rgba(getComputedStyle(element).backgroundColor), above);
  });
  document.querySelectorAll("details").forEach((each) => { each.open = true; });
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = element.closest("svg") ? style.fill : style.color;
    const under = ground(element);
    const values = [luminance(over(rgba(ink), under)), luminance(under)].sort((a, b) => b - a);
    found.push([(values[0] + 0.05) / (values[1] + 0.05), walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(open_page: Open, scheme: str) -> None:
    page = open_page(PAGES[0], color_scheme=scheme)
    for name in PAGES[1:8]:
        page.goto(_neighbour(page, name))
        found = page.evaluate(_CONTRASTS)
        assert len(found) > 20
        assert [each for each in found if each[0] < 4.5] == [], name


def test_no_page_is_wider_than_a_narrow_phone(open_page: Open) -> None:
    page = open_page(PAGES[0], viewport={"width": 360, "height": 740}, has_touch=True)
    for name in PAGES:
        page.goto(_neighbour(page, name))
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        sizes = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
        assert sizes == [360, 360, 360], name


def test_on_a_phone_the_model_stays_in_view_and_texts_are_legible(open_page: Open) -> None:
    page = open_page("mini/index.html", viewport={"width": 375, "height": 812}, has_touch=True)
    name = page.locator("#measured-rows tbody th").first
    page.evaluate("document.querySelector('#measured-rows').scrollLeft = 200")
    box, table = name.bounding_box(), page.locator("#measured-rows").bounding_box()
    assert box["x"] == table["x"] and box["width"] < table["width"] / 2
    value, interval = page.locator("#measured-rows tbody td.number").first.locator(".value, small").all()
    assert interval.bounding_box()["y"] > value.bounding_box()["y"]
    sizes = page.evaluate(
        """[...document.querySelectorAll(".plot text")].map(
          (each) => parseFloat(getComputedStyle(each).fontSize) * each.ownerSVGElement.getScreenCTM().a)"""
    )
    assert len(sizes) > 30 and min(sizes) > 9.5
    page.goto(_neighbour(page, "reading.html"))
    cells = page.locator("#black-box-wins > *").all()
    assert len(cells) == 3 and all(each.bounding_box()["width"] > 300 for each in cells)


def test_markup_in_texts_adds_no_element_link_or_dialog(open_page: Open) -> None:
    page = open_page(PAGES[0])
    for name in PAGES[-4:]:
        page.goto(_neighbour(page, name))
        found = page.evaluate(
            """() => ({
              scripts: document.scripts.length,
              images: document.querySelectorAll("img, iframe, object, embed, b:not(.warning), svg [href]").length,
              handlers: [...document.querySelectorAll("*")].flatMap(
                (each) => [...each.attributes].filter((one) => one.name.startsWith("on"))).length,
              protocols: [...new Set([...document.links].map((each) => each.protocol))].sort(),
            })"""
        )
        assert found["scripts"] == 1 and found["images"] == found["handlers"] == 0
        assert set(found["protocols"]) <= {"file:", "https:"}
        assert "<script>alert(1)</script>" in page.locator("body").inner_text()


def test_the_policy_blocks_scripts_that_are_added_to_a_page(browser: "sync_api.Browser", site: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((site / "mini/index.html").as_uri())
    title = page.title()
    page.evaluate(
        """() => {
          document.body.insertAdjacentHTML("beforeend", "<img src='index.html' onerror='document.title = 1'>");
          const script = document.createElement("script");
          script.textContent = "document.title = 2";
          document.body.append(script);
        }"""
    )
    page.wait_for_timeout(200)
    assert page.title() == title
    assert len([each for each in refused if "Content Security Policy" in each]) >= 2
    context.close()


def test_without_scripts_only_the_controls_are_missing(open_page: Open) -> None:
    page = open_page("mini/index.html", java_script_enabled=False)
    assert _models(page) == list(made.NUMBERS)
    assert page.locator("form:visible, button:visible").count() == 0
    page.locator("summary", has_text="Paper 2").click()
    assert page.locator("section.reported tbody tr:visible").count() == 100


def test_pages_do_not_move_if_the_system_asks_for_reduced_motion(open_page: Open) -> None:
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert open_page("index.html", reduced_motion="reduce").evaluate(behaviour) == "auto"
    assert open_page("index.html", reduced_motion="no-preference").evaluate(behaviour) == "smooth"


def _neighbour(page: "sync_api.Page", name: str) -> str:
    root = page.evaluate("document.querySelector('a.name').href")
    return f"{root.removesuffix('index.html')}{name}"
