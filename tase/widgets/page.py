"""A run over training time as one HTML file: opened from disk, by anyone, without a kernel or a network."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..config import check, check_choice
from ..files import write_atomic
from ..runs import Run
from .payload import payload

HERE = Path(__file__).parent
MOST_EMBEDDED = 5000  # points that t-SNE and UMAP lay out in bearable time; more are laid out by PCA


def report(
    run: Run | str | Path,
    *others: Run | str | Path,
    out: str | Path = "report.html",
    points: int = 2000,
    layout: str = "tsne",
    figures: bool = True,
    progress: bool = True,
) -> Path:
    """Write a page that shows one run, or two side by side; returns its path.

    At most `points` images are laid out, by `layout` (tsne, umap or pca), for all snapshots so that points move and do
    not jump. `figures` adds those that `tase figures` has drawn in the run's folder. A run without labels, features or
    images is shown with what it has, and says what is missing. Raises RunError where a run has no snapshot, and
    ConfigError for more than two runs.
    """
    from tqdm.auto import tqdm

    runs = [r if isinstance(r, Run) else Run(r) for r in (run, *others)]
    check(len(runs) <= 2, "number of runs", len(runs), "one, or two to be shown side by side")
    check_choice("layout", layout, ("tsne", "umap", "pca"))
    kinds = ("pca",) if points > MOST_EMBEDDED or layout == "pca" else (layout, "pca")
    with tqdm(bar_format="{desc}", disable=not progress) as bar:
        data = payload(runs, points, kinds, progress=bar.set_description_str)
    drawn = [picture for r in runs for picture in _small_figures(r)] if figures else []
    return page(data, out, " and ".join(r.name for r in runs), drawn)


def _small_figures(run: Run) -> list[tuple[str, bytes]]:
    """Name and a small PNG of each figure in the run's folder."""
    from PIL import Image

    found = []
    for path in sorted((run.path / "figures").glob("*.png")):
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((1280, 1280))
        buffer = io.BytesIO()
        picture.quantize(64).save(buffer, "png", optimize=True)
        found.append((f"{run.name}: {path.stem.replace('_', ' ')}", buffer.getvalue()))
    return found


def page(data: bytes, out: str | Path, title: str = "tase report", figures: Sequence[tuple[str, bytes]] = ()) -> Path:
    """Write one HTML file that shows `data` without a kernel or a network; `figures`: name and PNG, below the rest."""
    coded = base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()
    images = "".join(
        f'<figure><img alt="{escape(name, quote=True)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, png in figures
    )
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<link rel='icon' href='data:,'>\n"
        f"<style>\n{(HERE / 'front.css').read_text()}</style>\n</head>\n"
        '<body class="tase-page">\n<main id="tase"><p class="tase-wait">Opening …</p></main>\n'
        f'<section class="tase-figures">{images}</section>\n'
        f'<script id="tase-data" type="text/plain">{coded}</script>\n'
        f'<script type="module">\n{(HERE / "front.js").read_text()}\n'
        'openPage(document.getElementById("tase"), document.getElementById("tase-data").textContent);\n'
        "</script>\n</body>\n</html>\n"
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text.encode())
    return out
