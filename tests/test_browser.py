"""The widgets in a real JupyterLab in headless Chromium: drag, choose, play, select, start, steer, stop; then look.

Screenshots are left in test-artefacts/.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import _needed

import tase

ROOT = Path(__file__).parent.parent
ARTEFACTS = ROOT / "test-artefacts"
PARAMETERS = {"optim.epochs": 40, "optim.warmup_epochs": 2, "guidance.refresh": 5}
# JupyterLab's and Chromium's own: a page asks for news, a favicon, a font; none of them is ours.
FOREIGN = re.compile(
    r"favicon|net::ERR_|Failed to load resource|GroupMarkerNotSet|GL Driver|plugin|deprecated",
    re.I,
)

# Every cell is on the page, whether it is in view or not; no question about news lies over it.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false"},
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(360)]


def chromium():
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def set_parameters(path, **values):
    """Write values into the notebook's cell of parameters."""
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", ()):
            text = "".join(cell["source"])
            for name, value in values.items():
                text, found = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", text, flags=re.M)
                assert found == 1, f"{path.name} has no parameter {name}"
            cell["source"] = text
    path.write_text(json.dumps(notebook))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Copies of the notebooks, with short trainings in a folder of their own."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("02_samples_over_time", "03_temperature_ranges"):
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", folder)
        set_parameters(folder / f"{name}.ipynb", RUNS=str(folder / "runs"), OVERRIDES=PARAMETERS)
    return folder


@pytest.fixture(scope="module")
def lab(folder):
    """Address of a JupyterLab of our own on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{kind}_DIR": str(folder / ".jupyter" / kind) for kind in ("CONFIG", "RUNTIME")}
    own["JUPYTERLAB_SETTINGS_DIR"] = str(folder / ".jupyter" / "settings")
    for plugin, settings in SETTINGS.items():
        path = Path(own["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab", f"{plugin}.jupyterlab-settings")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    words = ["--no-browser", "--allow-root", f"--port={port}", "--ServerApp.token=test", f"--notebook-dir={folder}"]
    words += ["--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True"]
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **own, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api?token=test", server, folder / "lab.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def _wait_for(address, server, log):
    for _ in range(120):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=5).read()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not answer in a minute: {log.read_text()}")


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    _needed(sync_playwright is not None, "playwright (pip install playwright)")
    _needed(chromium() is not None, "Chromium (apt-get install chromium)")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-unsafe-swiftshader"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=flags)
        yield browser
        browser.close()


class Page:
    """A notebook in the browser."""

    def __init__(self, browser, lab, name):
        self.name, self.errors = name, []
        self.page = browser.new_page(viewport={"width": 1280, "height": 1600})
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{lab}/lab/tree/{name}.ipynb?token=test&reset")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
        self.page.wait_for_function("window.jupyterapp !== undefined", timeout=60_000)
        self.command("application:toggle-left-area")
        kernel = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.connectionStatus"
        self.page.wait_for_function(f"{kernel} === 'connected'", timeout=60_000)

    def command(self, name, **arguments):
        self.page.evaluate("([name, given]) => { window.jupyterapp.commands.execute(name, given); }", [name, arguments])

    def theme(self, name):
        """Change JupyterLab's theme to Light or Dark."""
        self.command("apputils:change-theme", theme=f"JupyterLab {name}")
        light = str(name == "Light").lower()
        self.page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached", timeout=30_000)

    def run_all(self):
        self.command("notebook:run-all-cells")

    def widget(self, kind, seconds=120):
        """The first widget of this kind, scrolled into view."""
        try:
            until(lambda: self.page.locator(f".tase-{kind}").count() or self.failed(), f"the widget {kind}", seconds)
        finally:
            self.shot(kind)
        widget = self.page.locator(f".tase-{kind}").first
        widget.scroll_into_view_if_needed()
        return widget

    def failed(self):
        """Raise where a cell has an error."""
        found = self.page.locator('[data-mime-type="application/vnd.jupyter.error"]')
        assert not found.count(), found.first.inner_text()

    def shot(self, what):
        ARTEFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{self.name}_{what}.png")

    def check(self):
        """No cell has an error, nothing of ours is in the console."""
        output = self.page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]')
        texts = " ".join(output.all_inner_texts())
        assert "Traceback" not in texts, texts
        self.failed()
        assert not self.page.get_by_text("Click to show javascript error").count()
        assert not [text for text in self.errors if not FOREIGN.search(text)]


def until(look, what, seconds=30):
    """Wait for the page to show something; returns what `look` found."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"not seen within {seconds} s: {what}"
        time.sleep(0.2)
    return found


def picture(widget):
    return widget.locator(".tase-picture").first.inner_html()


def drag(page, handle, dx):
    """Drag a slider's handle by dx pixels."""
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y, steps=5)
    page.mouse.move(x + dx, y, steps=5)
    page.mouse.up()


def test_temperature_ranges(browser, lab, folder):
    page = Page(browser, lab, "03_temperature_ranges")
    page.run_all()
    explorer = page.widget("temperature")
    _vary(page, explorer)
    _follows_theme(page, "temperature")
    live = page.widget("live")
    _train(page, live, folder)
    _follows_theme(page, "live")
    page.check()


def _vary(page, explorer):
    """Drag the range, change the map, cluster anew."""
    until(lambda: explorer.locator("svg").count(), "the picture")
    first, readout = picture(explorer), explorer.locator(".tase-tau .widget-readout")
    before = readout.inner_text()
    drag(page.page, explorer.locator(".tase-tau .noUi-handle").nth(1), 30)
    until(lambda: readout.inner_text() != before, "the range has moved")
    high = re.findall(r"[\d.]+", readout.inner_text())[1]
    second = until(lambda: (p := picture(explorer)) != first and p, "a new picture")
    command = explorer.locator(".tase-command textarea")
    until(lambda: f"guidance.tau_max={float(high):g}" in command.input_value(), "the line to copy")
    until(lambda: explorer.locator(".tase-changed img").count(), "images whose tau changes")
    explorer.locator(".tase-headness-map select").select_option(label="rank")
    until(lambda: picture(explorer) != second, "another map, another picture")
    until(lambda: "guidance.headness_map=rank" in command.input_value(), "the map in the line to copy")
    page.shot("explorer")
    clusters = explorer.locator(".tase-clusters input")
    clusters.fill("99999")
    clusters.press("Enter")
    message = explorer.locator(".tase-message").first
    until(lambda: "at most the number of images" in message.inner_text(), "k too large gives a line")
    clusters.fill("8")
    clusters.press("Enter")
    until(lambda: "guidance.clusters=8" in command.input_value(), "clustered anew")
    page.shot("clusters")


# Mean of the red, green and blue of a colour of an element; null where it is transparent.
BRIGHTNESS = """([selector, what]) => {
    const parts = getComputedStyle(document.querySelector(selector))[what].match(/[\\d.]+/g).map(Number);
    return parts[3] === 0 ? null : (parts[0] + parts[1] + parts[2]) / 3;
}"""
BEYOND = "(selector) => { const e = document.querySelector(selector); return e.scrollWidth - e.clientWidth; }"


def _follows_theme(page, kind):
    """Text is dark on light and light on dark, no picture has a ground of its own, and a narrow page holds all."""
    widget = f".tase-{kind}"

    def light_text():
        return page.page.evaluate(BRIGHTNESS, [f"{widget} svg text", "fill"]) > 128

    for theme, width in (("Light", 1280), ("Dark", 1600), ("Dark", 1280), ("Light", 1600)):
        page.page.set_viewport_size({"width": width, "height": 1600})
        page.theme(theme)
        until(light_text if theme == "Dark" else lambda: not light_text(), f"text for the theme {theme}")
        for part in (widget, f"{widget} .tase-picture", f"{widget} svg"):
            assert page.page.evaluate(BRIGHTNESS, [part, "backgroundColor"]) is None
        assert page.page.evaluate(BEYOND, widget) <= 0
        page.shot(f"{kind}_{theme.lower()}_{width}")
    page.page.set_viewport_size({"width": 1280, "height": 1600})


def _train(page, live, folder):
    """Start, pause, steer, run on, stop."""
    status, message = live.locator(".tase-status"), live.locator(".tase-message").first
    live.locator("button.tase-start").click()
    until(lambda: status.inner_text().startswith("training"), "the training runs", 60)
    live.locator("button.tase-pause").click()
    until(lambda: status.inner_text().startswith("paused"), "the training pauses")
    drag(page.page, live.locator(".tase-tau .noUi-handle").nth(1), 40)
    readout = live.locator(".tase-tau .widget-readout").inner_text()
    live.locator("button.tase-steer").click()
    until(lambda: "takes effect at the next refresh" in message.inner_text(), "the steering waits")
    page.shot("paused")
    live.locator("button.tase-run").click()
    until(lambda: "steered, identity" in status.inner_text(), "the run is marked as steered", 60)
    live.locator("button.tase-stop").click()
    ended = until(lambda: re.match("stopped|finished", status.inner_text()), "the training has stopped", 60)
    page.shot("live")
    runs = [tase.Run(path.parent) for path in (folder / "runs").glob("*/events.jsonl")]
    assert len(runs) == 1 and runs[0].events[0]["set"].keys() == {"guidance.tau_max"}
    assert runs[0].events[0]["set"]["guidance.tau_max"] == float(re.findall(r"[\d.]+", readout)[1])
    assert runs[0].status["state"] == ended.group()
