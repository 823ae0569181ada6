"""A run over training time as one HTML file: opened from disk, by anyone, without a kernel or a network."""

from __future__ import annotations

import base64
import gzip
import io
from html import escape
from pathlib import Path

from ..config import check, check_choice
from ..files import write_atomic
from ..layouts import LAYOUTS
from ..runs import Run
from .base import HERE, opened
from .payload import payload

MOST_EMBEDDED = 5000  # points that t-SNE and UMAP lay out in bearable time; more are laid out by PCA
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel='icon' href='data:,'>
<style>
{css}</style>
</head>
<body class="tase-page">
<main id="tase"><p class="tase-wait">Opening …</p></main>
<section class="tase-figures">{figures}</section>
<script id="tase-data" type="text/plain">{data}</script>
<script type="module">
{js}
openPage(document.getElementById("tase"), document.getElementById("tase-data").textContent);
</script>
</body>
</html>
"""


def report(
    run: Run | str | Path,
    *others: Run | str | Path,
    out: str | Path = "report.html",
    points: int = 2000,
    layout: str = "tsne",
    progress: bool = True,
) -> Path:
    """Write a page that shows one run, or two side by side; returns its path.

    At most `points` images are laid out, by `layout` (tsne, umap or pca), for all snapshots so that points move and do
    not jump. Below are the figures that `tase figures` has drawn in the run's folder. A run without labels, features
    or images is shown with what it has, and says what is missing. Raises RunError where a run has no snapshot, and
    ConfigError for more than two runs.
    """
    from tqdm.auto import tqdm

    check(len(others) < 2, "number of runs", 1 + len(others), "one, or two to be shown side by side")
    check_choice("layout", layout, LAYOUTS)
    runs = [opened(r) for r in (run, *others)]
    kinds = ("pca",) if points > MOST_EMBEDDED or layout == "pca" else (layout, "pca")
    with tqdm(bar_format="{desc}", disable=not progress) as bar:
        data = payload(runs, points, kinds, progress=bar.set_description_str)
    page = PAGE.format(
        title=escape(" and ".join(r.name for r in runs)),
        css=(HERE / "front.css").read_text(),
        js=(HERE / "front.js").read_text(),
        figures="".join(small_figure(r, path) for r in runs for path in sorted((r.path / "figures").glob("*.png"))),
        data=base64.b64encode(gzip.compress(data, 6, mtime=0)).decode(),
    )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.encode())
    return Path(out)


def small_figure(run: Run, path: Path) -> str:
    """Return one of a run's figures as HTML, as a PNG of few colours and at most 1280 pixels."""
    from PIL import Image

    picture, buffer = Image.open(path).convert("RGB"), io.BytesIO()
    picture.thumbnail((1280, 1280))
    picture.quantize(64).save(buffer, "png", optimize=True)
    name = escape(f"{run.name}: {path.stem.replace('_', ' ')}", quote=True)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<figure><img alt="{name}" src="{source}"><figcaption>{name}</figcaption></figure>'
