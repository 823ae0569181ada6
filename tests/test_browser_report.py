"""The report in a real Chromium from a file, with the network off: time, lasso, click, search, why, CSV, keys, themes.

Screenshots are left in test-artefacts/.
"""

import csv
import io
import os
import re

import nbformat
import pytest
import torch
from PIL import Image
from test_browser import ARTEFACTS, FOREIGN, Page, browser, folder, lab, until  # noqa: F401 (fixtures)
from test_notebooks import script as _notebook_script
from test_report import planted

import tase
from tase.config import applicable
from tase.probes import anchor_push, class_shares

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """Reports of one run, of two and of five, by number of runs; the last are of methods that know more of a sample."""
    home = tmp_path_factory.mktemp("reports")
    balanced, simclr, ours = trained
    options = {"optim.epochs": 4, "model.channels": "8,8,8,8", "guidance.refresh": 2, "guidance.gh_classes": 5}
    parts = (tase.preset("digits-lt", method, overrides=applicable(options, method)) for method in ("bcl-i", "gh"))
    more = [tase.train(config, home / config.method, progress=False) for config in parts]
    return {
        1: tase.report(ours, out=home / "one.html", progress=False),
        2: tase.report(ours, simclr, out=home / "two.html", progress=False),
        5: tase.report(ours, simclr, *more, balanced, out=home / "five.html", layout="pca", progress=False),
    }


class Shown:
    """The front end on a page; `app` is its object in the browser."""

    def __init__(self, page, app):
        self.page, self.app = page, app

    def get(self, expression):
        return self.page.evaluate(f"() => {{ const t = {self.app}; return {expression}; }}")

    def gallery(self):
        return self.page.locator(".tase-gallery h2").first.inner_text()

    def selected(self):
        return self.get("t.selected(0).map((r) => t.data.sets[0].index[r])")

    def point(self, row, which=0):
        """Where on the page a point is, in pixels."""
        self.page.locator(".tase-over").nth(which).scroll_into_view_if_needed()
        box = self.page.locator(".tase-over").nth(which).bounding_box()
        x, y = self.get(f"[...t.maps[{which}].screen().slice({2 * row}, {2 * row} + 2)]")
        return box["x"] + x, box["y"] + y

    def placed(self):
        """Rows of the points that are on the map and lie on top of no other."""
        return self.get(
            "[...t.maps[0].state.keys()].filter((r) => t.maps[0].screen()[2 * r] >= 0 && "
            "t.maps[0].nearest(...t.maps[0].screen().slice(2 * r, 2 * r + 2), 9) === r)"
        )

    def lasso(self):
        """Draw round the middle of the first map; returns the numbers of the images selected."""
        over = self.page.locator(".tase-over").first
        over.scroll_into_view_if_needed()
        box = over.bounding_box()
        mouse, (x, y) = self.page.mouse, (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        mouse.move(x - 140, y - 150)
        mouse.down()
        for dx, dy in ((140, -150), (150, 150), (-150, 150), (-150, -140)):
            mouse.move(x + dx, y + dy, steps=5)
        mouse.up()
        chosen = self.selected()
        assert len(chosen) > 3 and self.gallery().startswith(f"{len(chosen)} images selected: head")
        assert self.get("t.maps.map((m) => m.state.filter((s) => s === 2).length)") == [len(chosen)] * 2
        assert self.page.locator(".tase-gallery .tase-picture").count() == min(48, len(chosen))
        assert "selection" in self.page.locator(".tase-key").inner_text()
        return chosen

    def why(self, row):
        """Click a point; returns the text of the card with its chain of numbers."""
        self.page.mouse.click(*self.point(row))
        card = self.page.locator(".tase-why")
        text = until(lambda: card.is_visible() and card.inner_text(), "why this temperature")
        for word in ("cluster", "joined group", "headness", "q", "τ", "w", "nearest now", "at epoch 0"):
            assert word in text
        return text

    def table(self, path):
        """Press CSV; returns the rows of the file, saved as `path`."""
        with self.page.expect_download() as download:
            self.page.locator(".tase-bar").get_by_role("button", name="CSV").click()
        download.value.save_as(path)
        rows = list(csv.DictReader(path.open()))
        selected = self.get("t.data.sets.flatMap((set, s) => t.selected(s).map((r) => set.index[r]))")
        assert [int(row["image"]) for row in rows] == selected
        return rows

    def tab_to(self, what):
        """Press Tab until the focus is on an element of this selector."""
        for _ in range(60):
            if self.page.evaluate("(s) => document.activeElement.matches(s)", what):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {what}")


class Report(Shown):
    """A report on the page."""

    def __init__(self, browser, path, width=1280, height=900, **context):  # noqa: F811
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, offline=True, accept_downloads=True, **context
        )
        super().__init__(self.context.new_page(), "window.tase")
        self.errors = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"file://{path}")
        self.page.wait_for_function("window.tase?.frames > 0")

    def shot(self, name, **options):
        ARTEFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"report_{name}.png", **options)

    def close(self):
        self.context.close()
        assert not [text for text in self.errors if not FOREIGN.search(text)]


@pytest.fixture
def report(browser, files):  # noqa: F811
    """report(runs=1, ...): the report of so many runs, opened; closed and checked for errors at the end."""
    opened = []

    def show(runs=1, **options):
        opened.append(Report(browser, files[runs], **options))
        return opened[-1]

    yield show
    for one in opened:
        one.close()


def test_it_opens_at_the_last_epoch_and_plays_through(report):
    shown = report(2)
    assert shown.page.locator(".tase-epoch").inner_text() == "epoch 8"
    assert shown.page.locator(".tase-map").count() == 2
    shown.page.locator(".tase-play").click()
    seen = set()
    until(lambda: seen.add(round(shown.get("t.epoch"), 1)) or len(seen) > 6, "epochs between the snapshots", 20)
    assert any(epoch % 2 for epoch in seen)  # snapshots are at 0, 2, 4, 6, 8: points move smoothly between
    until(lambda: shown.page.locator(".tase-play").inner_text() == "Play", "the end", 20)
    assert shown.get("t.epoch") == 8
    shown.shot("two_1280", full_page=True)


def test_points_fill_the_map_and_two_maps_stay_side_by_side(report):
    for width in (820, 1280, 1600):
        shown = report(2, width=width)
        first, second = (shown.page.locator(".tase-map").nth(i).bounding_box() for i in (0, 1))
        assert first["y"] == second["y"] and first["width"] > 240
        curves = shown.page.locator(".tase-curves").bounding_box()
        assert curves["y"] + 100 < 900, "the curves are above the fold"
        x, y = (shown.get(f"(() => {{ const p = [...t.maps[0].screen()].filter((v, i) => i % 2 === {i} && v >= 0);"
                          " return Math.max(...p) - Math.min(...p); })()") for i in (0, 1))  # fmt: skip
        assert max(x / first["width"], y / first["height"]) > 0.7
        shown.shot(f"wide_{width}")


def test_lasso_selects_in_both_maps_and_shows_images_and_curves(report):
    shown = report(2)
    shown.lasso()
    shown.shot("lasso")
    shown.page.keyboard.press("Escape")
    assert shown.selected() == []


def test_click_shift_click_and_the_chain_of_numbers(report, trained):
    shown = report(2)
    a, b = shown.placed()[:2]
    text, why = shown.why(a), shown.page.locator(".tase-why")
    h, image = trained[2].history, shown.selected()[0]
    assert f"{h.tau[-1][image]:.3f}" in text and str(h.pseudo_label[-1][image]) in text
    assert "the same for all images" in text  # SimCLR, next to it
    assert "losses at different τ do not compare" in shown.page.locator(".tase-key").inner_text()
    bottom = "document.querySelector('.tase-{}').getBoundingClientRect().bottom"
    assert shown.get(f"{bottom.format('stage')} - {bottom.format('gallery')}") < 40, "a hole below the images"
    shown.page.mouse.move(*shown.point(b))
    shown.page.keyboard.down("Shift")
    shown.page.mouse.click(*shown.point(b))
    shown.page.keyboard.up("Shift")
    assert len(shown.selected()) == 2
    shown.shot("why")
    why.get_by_text("select it and its neighbours").click()
    assert len(shown.selected()) == 7


def test_an_image_appears_on_hover(report):
    shown = report()
    row = shown.placed()[0]
    shown.page.mouse.move(*shown.point(row))
    tip = shown.page.locator(".tase-tip")
    until(lambda: tip.is_visible(), "the image")
    assert tip.locator(".tase-picture").count() == 1 and "cluster" in tip.inner_text()
    shown.page.mouse.move(2, 2)
    until(lambda: not tip.is_visible(), "it goes")


@pytest.mark.parametrize(
    "what, rule",
    [
        ("17", "t.data.sets[0].index[r] === 17"),
        ("tail", "t.data.sets[0].group[r] === 2"),
        ("cluster 3", "t.data.runs[0].cluster.at(r - t.maps[0].m) === 3"),
    ],
)
def test_search_by_number_group_and_cluster(report, what, rule):
    shown = report()
    expected = shown.get(f"[...t.maps[0].state.keys()].filter((r) => {rule}).length")
    shown.page.locator("input[type=search]").fill(what)
    assert len(shown.selected()) == expected
    number = f"{expected} image matches" if expected == 1 else f"{expected} images match"
    assert shown.gallery().startswith(number)
    assert shown.page.locator(".tase-live").inner_text().startswith(number)  # read aloud


def test_nothing_found_shows_nothing(report):
    shown = report()
    shown.page.locator("input[type=search]").fill("no such image")
    assert shown.gallery() == "0 images match"
    assert shown.page.locator(".tase-gallery .tase-tile").count() == 0


def test_legend_and_histograms_filter_the_map(report):
    shown = report()
    first = shown.page.locator(".tase-entries button").first
    count = int(first.locator("small").inner_text())
    first.click()
    assert shown.get("t.maps[0].state.filter((s) => s > 0).length") == count
    assert first.get_attribute("aria-pressed") == "true" and shown.gallery().startswith(f"{count} images match")
    shown.page.get_by_role("button", name="Clear").click()
    handle = shown.page.get_by_label("largest temperature τ")
    handle.fill("10")
    low, high = shown.get("t.filters.tau.map((v) => v === -Infinity ? null : v)")
    assert low is None
    inside = shown.get(f"[...t.data.runs[0].tau.slice(-t.maps[0].m)].filter((v) => v <= {high}).length")
    assert shown.get("t.maps[0].state.filter((s) => s > 0).length") == inside
    shown.shot("filtered")


def test_csv_of_the_selection(report, tmp_path, trained):
    shown = report(2)
    shown.page.locator("input[type=search]").fill("tail")
    rows = shown.table(tmp_path / "selection.csv")
    assert {row["group"] for row in rows} == {"tail"}
    h = trained[2].history
    assert all(abs(float(row["tase:tau"]) - h.tau[-1][int(row["image"])]) < 1e-3 for row in rows)
    assert {row["simclr:tau"] for row in rows} == {"0.2000"}


def test_the_keyboard_alone_is_enough(report):
    shown = report(2)
    keys = shown.page.keyboard
    keys.press("[")
    until(lambda: shown.get("t.epoch") == 6, "one snapshot back")
    keys.press("]")
    until(lambda: shown.get("t.epoch") == 8, "and forward")
    keys.press("/")
    assert shown.page.evaluate("document.activeElement.type") == "search"
    keys.type("head")
    keys.press("Escape")
    assert shown.selected() == [] and shown.page.locator("input[type=search]").input_value() == ""
    shown.tab_to(".tase-over")
    seen = []
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        keys.press(key)
        seen.append(shown.get("t.looked.row"))
    assert len(set(seen)) > 1 and min(seen) >= 0
    assert re.match(
        r"image \d+, class \d \((head|mid|tail)\), cluster \d+, τ 0\.\d+", shown.page.locator(".tase-live").inner_text()
    )
    keys.press("Enter")
    assert len(shown.selected()) == 1 and shown.page.locator(".tase-why").is_visible()
    before = shown.get("t.view.zoom")
    for key in ["+"] * 4 + ["ArrowRight"] * 12:
        keys.press(key)
    assert shown.get("t.view.zoom") > before
    x, y, width, height = shown.get(
        "(m => [...m.screen().slice(2 * t.looked.row, 2 * t.looked.row + 2), m.width, m.height])(t.maps[0])"
    )
    assert 0 <= x <= width and 0 <= y <= height, "what is looked at stays in view"
    looked = shown.get("t.looked.row")
    shown.tab_to(".tase-near .tase-tile")
    keys.press("Enter")
    assert shown.get("t.looked.row") != looked, "a neighbour is looked at"
    assert shown.page.evaluate("document.activeElement.matches('.tase-near .tase-tile')"), "the focus stays there"
    shown.page.evaluate("document.activeElement.blur()")
    keys.press(" ")
    until(lambda: shown.get("t.playing"), "space plays")
    keys.press(" ")
    assert not shown.get("t.playing")
    for what in (".tase-gallery .tase-tile", ".tase-entries button", ".tase-range input", "[role=tab]"):
        shown.tab_to(what)


def test_dark_by_the_systems_setting_and_every_control_has_a_name(report):
    shown = report(2, color_scheme="dark", width=1600, height=1000)
    assert shown.get("t.theme.dark")
    light = shown.page.evaluate("getComputedStyle(document.querySelector('.tase')).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", light)[:3])) < 120
    unnamed = shown.page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, canvas[tabindex], [role=img]')].filter((n) =>
        !(n.getAttribute('aria-label') || n.textContent.trim() || n.closest('label')?.textContent.trim() || n.title))
        .map((n) => n.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    shown.page.emulate_media(color_scheme="light")
    until(lambda: not shown.get("t.theme.dark"), "light when the system turns")
    shown.page.emulate_media(color_scheme="dark")
    shown.shot("dark_1600", full_page=True)


def test_colours_of_groups_and_classes_stand_out_on_both_grounds(report):
    def luminance(colour):
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in ("light", "dark"):
        shown = report(color_scheme=scheme)
        ground = shown.page.evaluate("getComputedStyle(document.querySelector('.tase')).backgroundColor")
        ground = luminance([int(c) for c in re.findall(r"\d+", ground)[:3]])
        for colour in shown.get("['group', 'label'].flatMap((by) => (t.by = by, t.colouring(t.data.runs[0]).colours))"):
            low, high = sorted((luminance(colour), ground))
            assert (high + 0.05) / (low + 0.05) >= 3, (scheme, colour)


def test_which_two_of_many_runs_are_shown(report, tmp_path):
    shown = report(5)
    names = shown.page.locator(".tase-run-map figcaption b")
    assert names.all_inner_texts() == ["TASE", "SimCLR"]
    shown.page.locator("input[type=search]").fill("tail")
    chosen = shown.selected()
    shown.page.get_by_label("Right").select_option(label="BCL-I · bcl-i")
    assert names.all_inner_texts() == ["TASE", "BCL-I"] and shown.selected() == chosen
    shown.page.get_by_label("Left").select_option(label="BCL-I · bcl-i")
    assert names.all_inner_texts() == ["BCL-I", "TASE"]  # they change sides
    shown.page.get_by_label("Right").select_option(label="SimCLR · balanced")  # of other images
    assert names.all_inner_texts() == ["BCL-I", "SimCLR"] and shown.get("t.data.sets.length") == 2
    assert "not linked" in shown.page.locator(".tase-remark").inner_text()
    shown.page.get_by_label("Colour", exact=True).select_option("group")  # which the balanced set does not have
    tones = shown.get("t.maps.map((m) => new Set(m.colour).size)")
    assert tones == [3, 1] and shown.page.locator(".tase-entries button").count() == 3
    shown.page.get_by_label("Left").select_option(label="SimCLR · balanced")
    assert shown.get("t.maps.map((m) => new Set(m.colour).size)") == [1, 3]
    assert shown.page.locator(".tase-entries button").count() == 3
    shown.page.get_by_label("Left").select_option(label="BCL-I · bcl-i")
    # What is looked at and selected goes with its images, not with its row.
    shown.get("t.select(1, [5, 6], 'replace', 5)")
    assert shown.page.locator(".tase-why").is_visible()
    images = shown.get("t.selected(1).map((r) => t.data.sets[1].index[r])")
    shown.page.get_by_label("Left").select_option(label="SimCLR · balanced")
    assert shown.get("t.selected(0).map((r) => t.data.sets[0].index[r])") == images and shown.get("t.looked.set") == 0
    shown.page.get_by_label("Left").select_option(label="TASE · tase")
    assert shown.get("t.looked.row") == -1 and shown.get("t.selected(0).length") == 0
    assert not shown.page.locator(".tase-why").is_visible()
    shown.page.get_by_label("Right").select_option(label="SimCLR · balanced")
    shown.page.locator("input[type=search]").fill("tail")
    assert len(shown.table(tmp_path / "tail.csv")) == shown.get("t.selected(0).length") > 0
    shown.get("t.select(1, [5, 6])")
    rows = shown.table(tmp_path / "right.csv")
    assert len(rows) == 2 and {"balanced:tau"} == {name for name in rows[0] if name.endswith(":tau")}
    shown.page.get_by_label("Colour", exact=True).select_option("label")
    shown.get("t.on.add(3)")
    shown.page.get_by_label("Right").select_option(label="SimCLR · simclr")
    assert shown.get("[...t.on]") == [3]
    assert shown.get("(t.goTo(t.steps[1]), t.state().epoch)") == 2  # a step that is on its way is kept
    shown.page.get_by_label("Left").select_option(label="GH · gh")
    until(lambda: shown.page.locator(".tase-epoch").inner_text() == "epoch 2", "the epoch chosen")
    shown.page.locator(".tase-play").click()
    until(lambda: shown.get("t.epoch > 0 && t.epoch < 8"), "it plays")


def test_what_a_method_knows_of_each_sample_is_shown_over_time(report):
    shown = report(5, width=1600)
    shown.page.get_by_label("Right").select_option(label="BCL-I · bcl-i")
    titles = shown.page.locator(".tase-curves figcaption").all_inner_texts()
    assert {"strength", "loss memory"} <= set(titles)
    shown.page.get_by_label("Colour", exact=True).select_option("strength")
    assert shown.page.locator(".tase-legend h2").inner_text() == "strength"
    soft, tones = shown.get("t.maps.map((m) => new Set(m.colour).size)")
    assert soft == 1 and tones > 20  # TASE has none
    shown.page.mouse.click(*shown.point(shown.placed()[0]))
    assert "what its method knows besides" in shown.page.locator(".tase-why").inner_text()
    shown.shot("bcl")
    shown.page.get_by_label("Right").select_option(label="GH · gh")
    shown.page.get_by_label("Colour", exact=True).select_option("surrogate")
    entry = shown.page.locator(".tase-entries button").first
    label = int(entry.locator("span").inner_text().removeprefix("surrogate "))
    values = "t.data.runs[1].surrogate.slice(-t.maps[1].m)"
    assert shown.get(f"[...{values}].filter((k) => k === {label}).length") == int(entry.locator("small").inner_text())
    shown.shot("gh")


def test_reduced_motion_is_respected(report):
    shown = report(reduced_motion="reduce")
    shown.page.keyboard.press("[")
    assert shown.get("t.motion") is None
    shown.page.locator(".tase-play").click()
    seen = {shown.get("t.epoch") for _ in range(20)}
    assert seen <= {0, 2, 4, 6, 8}


def test_points_are_drawn_where_they_are_in_their_colours(report):
    """The pixel in the middle of each point that touches no other, selected and not."""
    shown = report(device_scale_factor=2)
    pixel = """(r) => { const m = window.tase.maps[0], p = m.screen(), c = m.points.getContext('2d');
        return [...c.getImageData(2 * p[2 * r], 2 * p[2 * r + 1], 1, 1).data].slice(0, 3); }"""
    alone = """t.maps.slice(0, 1).map((m) => { const p = m.screen(), rows = [...m.state.keys()];
        return rows.filter((r) => p[2 * r] > 20 && rows.every((o) => o === r || !(Math.hypot(p[2 * r] - p[2 * o],
        p[2 * r + 1] - p[2 * o + 1]) < 1.5 * m.size))); })[0]"""
    rows = shown.get(alone)
    assert len(rows) > 5
    shown.get(f"t.select(0, {rows})")
    shown.page.wait_for_timeout(200)
    colours = shown.get("t.colouring(t.data.runs[0]).colours")
    for row in rows:
        expected = colours[shown.get(f"t.data.sets[0].label[{row}]")]
        assert max(abs(a - b) for a, b in zip(shown.page.evaluate(pixel, row), expected)) <= 2
    shown.get("t.clear()")
    shown.page.wait_for_timeout(200)
    assert shown.page.evaluate(pixel, rows[0]) not in colours  # half transparent over the ground
    drawn = "(p => p.filter((v) => v !== p[0]).length)(new Uint32Array(t.maps[0].image.data.buffer))"
    assert shown.get(drawn) > 500


def test_without_a_map_all_else_is_there(browser, trained, tmp_path):  # noqa: F811
    tase.report(trained[2].slim(tmp_path / "slim"), out=tmp_path / "slim.html", layout="umap", progress=False)
    shown = Report(browser, tmp_path / "slim.html")
    assert shown.page.locator(".tase-map").count() == 0
    assert "no map" in shown.page.locator(".tase-remark").inner_text()
    shown.page.locator("input[type=search]").fill("tail")
    assert shown.page.locator(".tase-gallery .tase-picture").count() > 3
    shown.page.locator(".tase-gallery .tase-tile").first.click()
    assert "headness" in shown.page.locator(".tase-why").inner_text()
    shown.page.keyboard.press("[")
    until(lambda: shown.get("t.epoch") == 6, "one snapshot back")
    shown.close()


def frames_per_second(shown, seconds=2):
    shown.page.locator(".tase-play").click()
    start, now = shown.get("t.frames"), shown.page.evaluate("performance.now()")
    shown.page.wait_for_timeout(1000 * seconds)
    return 1000 * (shown.get("t.frames") - start) / (shown.page.evaluate("performance.now()") - now)


def first_picture(shown):
    """Milliseconds from the opening of the file to the first picture."""
    return shown.page.evaluate("performance.getEntriesByName('first picture')[0].startTime")


def test_the_budget_two_thousand_images_over_twenty_snapshots(browser, tmp_path, capsys):  # noqa: F811
    """At most 5 MB, and a picture within a second; a machine that is shared with other work has eight."""
    run = planted(tmp_path / "run", 0)
    (run.path / "environment.json").write_text('{"subset": ""}')
    path = tase.report(run, out=tmp_path / "report.html", layout="pca", progress=False)
    assert path.stat().st_size <= 5e6
    best = float("inf")
    for _ in range(6):  # the best of some openings
        shown = Report(browser, path)
        assert shown.get("[t.data.sets[0].index.length, t.steps.length]") == [2000, 20]
        best = min(best, first_picture(shown))
        shown.close()
        if best < 1000:
            break
    with capsys.disabled():
        print(f"\n2,000 images, 20 snapshots: {path.stat().st_size / 1e6:.1f} MB, first picture after {best:.0f} ms")
    assert best < (1000 if os.environ.get("TASE_STRICT_TIMES") else 8000)


def test_pictures_and_csv_under_a_strict_content_policy(browser, files, tmp_path):  # noqa: F811
    """As in VS Code: styles in the page and data: addresses pass, blob: addresses do not."""
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = tmp_path / "strict.html"
    page.write_text(files[1].read_text().replace("<head>", f"<head>{meta}", 1))
    shown = Report(browser, page)
    shown.page.locator("input[type=search]").fill("tail")
    picture = shown.page.locator(".tase-gallery .tase-picture").first
    assert picture.evaluate("(e) => getComputedStyle(e).backgroundImage").startswith('url("data:image/webp;base64,')
    colours = Image.open(io.BytesIO(picture.screenshot())).convert("L").getextrema()
    assert colours[1] - colours[0] > 60, "the picture is seen"
    assert shown.table(tmp_path / "tail.csv")
    assert shown.page.locator("a[download]").count() == 0
    shown.close()  # no line of the console tells of something refused


def test_the_search_field_shows_its_whole_hint(report):
    room = """(e) => { const style = getComputedStyle(e), pen = document.createElement('canvas').getContext('2d');
        pen.font = style.font;
        return [pen.measureText(e.placeholder).width, e.clientWidth - parseFloat(style.paddingLeft) * 2]; }"""
    for width in (1280, 820):
        text, field = report(width=width).page.locator("input[type=search]").evaluate(room)
        assert text < field - 4


def test_frames_and_the_first_picture(report, browser, tmp_path, capsys):  # noqa: F811
    """Of two small runs, and of 100,000 points: on two shared cores without a graphics card."""
    many = tase.report(
        planted(tmp_path / "run", 0, 100_000, 3, side=8), out=tmp_path / "many.html", layout="pca", points=100_000
    )
    for name, shown in (("two runs", report(2)), ("100,000 points", Report(browser, many))):
        drawn = first_picture(shown)
        per_second = 0.0
        for _ in range(6):  # the machine is shared: the best of some seconds
            per_second = max(per_second, frames_per_second(shown))
            if per_second > 10:
                break
        with capsys.disabled():
            print(f"\n{name}: {per_second:.0f} frames a second playing, first picture after {drawn:.0f} ms")
        assert per_second > 5  # 27 to 37 were measured, other work running
    shown.close()


# -------------------------------------------------------------------------------------------------- the toy's page


@pytest.fixture
def toy(browser, tmp_path):  # noqa: F811
    context = browser.new_context(offline=True, color_scheme="dark", viewport={"width": 1280, "height": 700})
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"file://{tase.widgets.temperature_toy().save(tmp_path / 'toy.html')}")
    page.wait_for_function("window.toy?.round >= 300")
    yield page
    context.close()
    assert not errors


def test_the_toy_computes_the_librarys_loss(toy):
    toy.evaluate("Object.assign(window.toy, { values: { tail: 0.07, head: 0.6, gamma: 0.8 }, scaled: true })")
    found = toy.evaluate(
        """() => { const t = window.toy, views = t.views(t.begin, t.random), s = t.settings();
        return { views, tau: s.tau, weight: s.weight, scale: s.scale,
            push: t.push(views), gradient: [...t.gradient(views)] }; }"""
    )
    angle = torch.tensor(found["views"], dtype=torch.float64).view(2, -1).requires_grad_()
    tau, weight, scale = (torch.tensor(found[name], dtype=torch.float64) for name in ("tau", "weight", "scale"))
    z1, z2 = (torch.stack([a.cos(), a.sin()], 1) for a in angle)
    out = tase.nt_xent(z1, z2, tau=tau, weight=weight, scale=scale)
    out.loss.backward()
    torch.testing.assert_close(torch.tensor(found["gradient"]), angle.grad.sum(0).float(), atol=1e-6, rtol=1e-4)
    counts = torch.tensor([60, 20, 6])
    group = torch.repeat_interleave(torch.arange(3), counts)
    push = anchor_push(out.positive_similarity, out.logsumexp, tau, weight, scale)
    torch.testing.assert_close(torch.tensor(found["push"]), class_shares(push, group, 3).float(), atol=1e-5, rtol=1e-4)
    assert abs(float(tau[0]) - 0.6) + abs(float(tau[-1]) - 0.07) < 1e-9


def test_the_toys_sliders_answer_immediately(toy):
    tail = toy.evaluate("window.toy.arcs()[2]")
    assert abs(sum(toy.evaluate("window.toy.arcs()")) - 1) < 1e-9
    slider = toy.get_by_label("γ of the weight")
    assert (
        toy.evaluate(
            """async () => { const before = document.querySelector('.tase-bars').innerText, t = performance.now();
        const input = document.querySelector('[aria-label="γ of the weight"]');
        input.value = 1.5;
        input.dispatchEvent(new Event('input'));
        while (document.querySelector('.tase-bars').innerText === before) await new Promise(requestAnimationFrame);
        return performance.now() - t; }"""
        )
        < 400
    )  # some frames of a shared machine
    toy.wait_for_function("window.toy.round >= 300")
    assert toy.evaluate("window.toy.arcs()[2]") > tail + 0.1  # the weight gives the tail room
    assert slider.input_value() == "1.5"
    toy.get_by_label("anchor").select_option("of the mid")
    assert "of the mid sees" in toy.locator("[role=status]").inner_text()
    toy.locator("circle").nth(3).dispatch_event("click")  # points may lie on top of each other
    assert "of the head sees" in toy.locator("[role=status]").inner_text()
    assert "dark" in toy.locator(".tase-toy").get_attribute("class")
    ARTEFACTS.mkdir(exist_ok=True)
    toy.screenshot(path=ARTEFACTS / "toy_dark.png")


# --------------------------------------------------------------------------------------------------- in a notebook


def test_a_notebook_without_a_kernel_still_explores(browser, trained, tmp_path):  # noqa: F811
    """As `make notebooks` leaves it, exported to HTML by nbconvert, and opened with the network off."""
    nbconvert = pytest.importorskip("nbconvert")
    script, book = _notebook_script(), nbformat.v4.new_notebook()
    run = f"import tase\ntase.widgets.explore_run({str(trained[2].path)!r}, {str(trained[1].path)!r})"
    book.cells = [nbformat.v4.new_code_cell(source) for source in (run, "tase.widgets.temperature_toy()")]
    script.execute(book, tmp_path)
    script.clean(book)
    text, _ = nbconvert.HTMLExporter().from_notebook_node(book)
    (tmp_path / "book.html").write_text(text)
    page = browser.new_context(offline=True, viewport={"width": 1280, "height": 2000}).new_page()
    page.goto(f"file://{tmp_path / 'book.html'}", wait_until="domcontentloaded")
    explorer, toy = (page.frame_locator("iframe").nth(i) for i in (0, 1))
    explorer.locator("input[type=search]").fill("tail")
    until(lambda: "images match" in explorer.locator(".tase-gallery h2").first.inner_text(), "a selection")
    until(lambda: explorer.locator(".tase-map").count() == 2, "both maps")
    until(lambda: toy.locator(".tase-toy circle").count() == 87, "the toy")
    page.screenshot(path=ARTEFACTS / "exported.png")
    page.context.close()


def test_a_downloaded_notebook_says_how_to_see_its_page(browser, lab, folder):  # noqa: F811
    """JupyterLab takes the frame out of outputs that it does not trust; a line stands there until the cell has run."""
    html, book = tase.widgets.temperature_toy()._repr_html_(), nbformat.v4.new_notebook()
    output = nbformat.v4.new_output("execute_result", {"text/html": html}, execution_count=1)
    source = "import tase\ntase.widgets.temperature_toy()"
    book.cells = [nbformat.v4.new_code_cell(source, outputs=[output]) for _ in range(2)]
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}  # else JupyterLab asks for one
    nbformat.write(book, folder / "downloaded.ipynb")
    page = Page(browser, lab, "downloaded")
    lines, frames = page.page.locator(".tase-untrusted"), page.page.locator(".jp-OutputArea-output iframe")
    lines.last.wait_for(state="visible", timeout=60_000)
    assert "Trust Notebook" in lines.first.inner_text() and not frames.count()
    page.shot("untrusted")
    page.command("notebook:run-cell")  # the first; its style must not hide the other's line
    frames.wait_for(state="visible", timeout=120_000)
    assert [line.is_visible() for line in lines.all()] == [False, True]
    page.check()


@pytest.fixture(scope="module")
def notebook(browser, lab):  # noqa: F811
    """Notebook 02 in JupyterLab, run; its two runs are explored."""
    page = Page(browser, lab, "02_samples_over_time")
    page.run_all()
    page.widget("stage")
    return page


APP = "document.querySelector('.tase').parentNode.tase"


def front(page, expression):
    """What the explorer in the notebook says; `t` is it."""
    return Shown(page.page, APP).get(expression)


def test_the_explorer_in_jupyterlab(notebook, tmp_path):
    """The same as in the report: play, both runs, search, lasso, click, why, CSV, legend, keys."""
    page, shown = notebook.page, Shown(notebook.page, APP)
    until(lambda: shown.get("t.kinds.includes('tsne')"), "the t-SNE of both runs", 120)
    assert shown.get("t.maps.length") == 2 and shown.get("t.epoch === t.steps.at(-1)")
    page.locator(".tase-play").click()
    until(lambda: shown.get("t.epoch !== t.steps.at(-1) && t.epoch > t.steps[0]"), "it plays")
    page.locator(".tase-play").click()
    shown.get("t.goTo(t.steps.at(-1))")
    notebook.command("application:toggle-left-area")  # the sidebar is open
    page.wait_for_timeout(500)
    first, second = (page.locator(".tase-map").nth(i).bounding_box() for i in (0, 1))
    assert first["y"] == second["y"] and first["width"] > 240
    notebook.shot("explorer_sidebar")
    notebook.command("application:toggle-left-area")
    page.locator(".tase input[type=search]").fill("tail")
    until(lambda: "images match" in shown.gallery(), "a selection")
    assert {row["group"] for row in shown.table(tmp_path / "tail.csv")} == {"tail"}
    page.locator(".tase input[type=search]").fill("no such image")
    assert shown.gallery() == "0 images match" and page.locator(".tase-gallery .tase-tile").count() == 0
    page.locator(".tase-bar").get_by_role("button", name="Clear").click()
    shown.lasso()
    shown.why(shown.placed()[0])
    notebook.shot("explorer")
    page.locator(".tase-over").first.focus()
    looked = shown.get("t.looked.row")
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
        if shown.get("t.looked.row") != looked:
            break
    assert shown.get("t.looked.row") != looked
    page.keyboard.press("Escape")
    page.locator(".tase-entries button").first.click()
    assert 0 < shown.get("t.maps[0].counts[1]") < shown.get("t.maps[0].m") and "match" in shown.gallery()
    page.keyboard.press("Escape")
    notebook.check()


def test_the_explorer_follows_jupyterlabs_theme_and_keeps_its_keys(notebook):
    page = notebook.page
    assert not front(notebook, "t.theme.dark")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    until(lambda: front(notebook, "t.theme.dark"), "dark")
    until(lambda: not page.locator(".jp-Splash, #jupyterlab-splash").count(), "the new theme is there")
    page.locator(".tase").scroll_into_view_if_needed()
    notebook.shot("explorer_dark")
    words = page.locator(".jp-OutputArea-output img").evaluate_all("(all) => all.map((e) => e.alt)")
    assert len(words) >= 8 and all(len(alt) > 20 for alt in words), "every figure says what it shows"
    assert not page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count(), "nothing is red"
    page.locator(".jp-OutputArea-output img").first.scroll_into_view_if_needed()
    notebook.shot("figures_dark")
    page.evaluate("document.querySelector('.tase').parentNode.tase.theme = { dark: false }")
    page.set_viewport_size(
        {"width": 1270, "height": 1600}
    )  # as when it is opened in a dark page: known on the first size
    until(lambda: front(notebook, "t.theme.dark"), "dark again")
    cells = page.locator(".jp-Cell").count()
    page.locator(".tase-over").first.focus()
    before = front(notebook, "t.epoch")
    for key in ("a", "b", "x", "["):  # a and b add cells where the notebook has the keys, x cuts one
        page.keyboard.press(key)
    until(lambda: front(notebook, "t.epoch") != before or front(notebook, "t.motion"), "the explorer has the keys")
    assert page.locator(".jp-Cell").count() == cells
    notebook.check()
