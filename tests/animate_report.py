"""Make the animated picture of a report: python tests/animate_report.py report.html explorer.webp

The maps play over all snapshots in Chromium, and Pillow joins the screenshots; the suffix decides (.webp, .gif, .png).
"""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from test_browser import chromium

FRAMES, HOLD = 4, 1200  # pictures from one snapshot to the next, milliseconds at the last one
WIDTH, HEIGHT = 1250, 640


def frames(report: Path):
    """Yield a picture of the page's stage for each moment, from the first epoch to the last."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--enable-unsafe-swiftshader"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(f"file://{report.resolve()}")
        page.wait_for_function("window.tase?.frames > 0")
        page.add_style_tag(
            content=".tase-gallery, .tase-below, .tase header, .tase-remark { display: none !important }"
        )
        steps = page.evaluate("window.tase.steps")
        for i in range(FRAMES * (len(steps) - 1) + 1):
            before, part = steps[i // FRAMES], i % FRAMES / FRAMES
            after = steps[min(i // FRAMES + 1, len(steps) - 1)]
            page.evaluate("(e) => { tase.epoch = e; tase.refresh(); }", before + part * (after - before))
            page.wait_for_timeout(60)
            yield Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()


def main(report: str, out: str) -> None:
    pictures = list(frames(Path(report)))
    durations = [90] * (len(pictures) - 1) + [HOLD]
    options = {"save_all": True, "append_images": pictures[1:], "duration": durations, "loop": 0}
    pictures[0].save(out, **options, **({"quality": 60, "method": 4} if out.endswith("webp") else {}))
    print(f"{out}: {len(pictures)} pictures, {Path(out).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
