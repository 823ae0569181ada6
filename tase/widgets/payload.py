"""What the front end shows of runs, one or two of them at a time, as one block of bytes.

    data = payload([run, other], points=2000)        # for the explorer, and for the file that `page` writes

The block is a JSON header and the typed arrays it refers to: {"@": [offset, kind, count]} stands for an array, with
"low" and "high" for one of floats in 16 bits. `front.js` unpacks it in a dozen lines.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from ..clustering import centred
from ..data import GROUPS
from ..figures.style import THEMES
from ..files import RunError, printable
from ..layouts import Layouts, snapshot_layouts
from ..pseudo_labels import LEAST_SPREAD, clipped_rank
from ..runs import Run, steered
from .base import images_of, picture_of
from .rarity import listed, sentences
from .what_if import saved_quantity

TILE = 40  # pixels: the side of a picture in the file, at most
PICTURES = 2500  # images that have a picture, at most, besides those that are listed
PER_SHEET = 1024  # pictures in one sprite sheet
NEAR = 6  # neighbours of an image at each snapshot


class Packer:
    """Gathers arrays behind a JSON header."""

    def __init__(self):
        self.parts: list[bytes] = []
        self.size = 0

    def raw(self, data: bytes, kind: str, count: int) -> dict[str, Any]:
        """Add the bytes of an array of `kind` (i1 u1 i2 u2 i4 f4, as in numpy); returns what stands for it."""
        ref = {"@": [self.size, kind, count]}
        data += bytes(-len(data) % 8)  # typed arrays begin at multiples of their item's size
        self.parts.append(data)
        self.size += len(data)
        return ref

    def whole(self, values: Any, kind: str) -> dict[str, Any]:
        """Add an array of whole numbers, or of floats as they are."""
        array = np.ascontiguousarray(values, dtype=f"<{kind}")
        return self.raw(array.tobytes(), kind, array.size)

    def scaled(self, values: Any) -> dict[str, Any]:
        """Add floats as 16-bit steps between the smallest and the largest; the last code is NaN."""
        x = np.asarray(values, dtype=np.float64)
        known = np.isfinite(x)
        low, high = (float(x[known].min()), float(x[known].max())) if known.any() else (0.0, 1.0)
        code = np.full(x.shape, 65535, dtype=np.uint16)
        code[known] = np.round((x[known] - low) / max(high - low, 1e-12) * 65534)
        return self.whole(code, "u2") | {"low": low, "high": high}

    def block(self, header: dict[str, Any]) -> bytes:
        """Join the header and the arrays: length of the header, header, arrays."""
        text = json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
        text += b" " * (-(len(text) + 8) % 8)
        return len(text).to_bytes(8, "little") + text + b"".join(self.parts)


def payload(
    runs: Sequence[Run],
    points: int = 2000,
    kinds: Sequence[str] = ("tsne", "pca"),
    progress: Callable[[str], None] = lambda text: None,
    wanted: Callable[[], bool] = lambda: True,
) -> bytes:
    """Gather what the front end shows of runs.

    At most `points` images are laid out. Runs that keep the same images of one training set are linked: they
    show the same images. Raises RunError where a run has no snapshot.
    """
    rare, places = [listed(run) for run in runs], _places(runs, kinds, points, progress, wanted)
    subsets = [_subset(run) for run in runs]
    of_set = {subset: [i for i, own in enumerate(subsets) if own == subset] for subset in subsets}
    pack, sets, found = Packer(), [], [{} for _ in runs]
    for members in of_set.values():
        named = np.unique(np.concatenate([_listed_images(rare[i]) for i in members]))
        index = functools.reduce(np.union1d, [_images_shown(runs[i], places[i], points) for i in members], named)
        for i in members:
            found[i] = {"set": len(sets), "rare": rare[i], **_run(pack, runs[i], index, places[i])}
        sets.append(_shown_set(pack, runs[members[0]], index, named))
    colours = {name: theme.groups for name, theme in THEMES.items()}  # of head, mid, tail
    return pack.block({"sets": sets, "runs": found, "colours": colours})


def _subset(run: Run) -> tuple[str, bytes]:
    """What tells the images of a run's snapshots from those of others."""
    recorded = run.history.recorded
    return run.environment.get("subset", run.name), b"" if recorded is None else recorded.tobytes()


def are_linked(runs: Sequence[Run]) -> bool:
    """Tell whether the runs were trained on the same images, and keep the same of them."""
    return len({_subset(run) for run in runs}) == 1


def _places(runs, kinds, points, progress, wanted) -> list[dict[str, Layouts]]:
    """Layouts of each run by kind, turned to the first run's; none where it keeps no features."""
    found: list[dict[str, Layouts]] = [{} for _ in runs]
    for kind in kinds:
        for i, run in enumerate(runs):
            tell = lambda done, of, i=i, kind=kind: progress(f"{kind}: run {i + 1}, snapshot {done} of {of}")  # noqa: E731
            try:
                layout = snapshot_layouts(run, kind, points, tell, wanted)
            except RunError:
                continue
            found[i][kind] = layout.turned_to(found[0][kind]) if i and kind in found[0] else layout
    return found


def _images_shown(run: Run, found: dict[str, Layouts], points: int) -> Int64[np.ndarray, " m"]:
    """Numbers of the images laid out, else a fixed sample."""
    placed = next((layout.index for layout in found.values()), None)
    if placed is None:
        placed = np.random.default_rng(0).permutation(run.history.tau.shape[1])[:points]
    return placed.astype(np.int64)


def _listed_images(lists: dict[str, Any]) -> Int64[np.ndarray, " r"]:
    """The images that the lists name."""
    named = [*lists["rare"], *lists["common"], *lists["blank"], *(i for pair in lists["duplicates"] for i in pair)]
    return np.unique(np.array(named + [i for c in lists["clusters"] for i in c["images"]], dtype=np.int64))


# ----------------------------------------------------------------------------------------------------------- the images


def _shown_set(
    pack: Packer, run: Run, index: Int64[np.ndarray, " m"], named: Int64[np.ndarray, " r"]
) -> dict[str, Any]:
    """Numbers, classes, file names and pictures of the images shown."""
    h, (images, why) = run.history, images_of(run)
    group = h.sample_groups[index]
    return {
        "index": pack.whole(index, "i4"),
        "total": int(h.tau.shape[1]),
        "tiles": None if images is None else _tiles(pack, images, index, named),
        "label": None if h.labels is None else pack.whole(h.labels[index], "i4"),
        "classes": list(h.classes),
        "counts": [] if h.labels is None else [int(c) for c in h.counts],
        "group": pack.whole(group, "i1") if (group >= 0).any() else None,
        "groups": list(GROUPS),
        "paths": None if images is None or images.paths is None else [printable(images.paths[i]) for i in index],
        "remark": why,
    }


def _tiles(pack: Packer, image_set: Any, index: Int64[np.ndarray, " m"], named: Any) -> dict[str, Any]:
    """Pictures of the images shown, or of those named and a fixed sample of the others, in sheets of 1,024."""
    rows = np.random.default_rng(0).permutation(len(index))
    rows = rows[np.argsort(~np.isin(index[rows], named), kind="stable")]  # those named first
    rows = np.sort(rows[: max(PICTURES, len(named))])
    place = np.full(len(index), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    side = min(TILE, max(image_set.images.shape[2:]))
    sheets = []
    for start in range(0, len(rows), PER_SHEET):
        some = [picture_of(image_set.images[int(index[r])], side) for r in rows[start : start + PER_SHEET]]
        sheet = _sheet(some, side)
        sheets.append(pack.raw(sheet, "u1", len(sheet)))
    return {"side": side, "columns": 32, "per": PER_SHEET, "place": pack.whole(place, "i4"), "sheets": sheets}


def _sheet(pictures: list, side: int) -> bytes:
    """One WebP of pictures in rows of 32; tiny pictures keep every pixel."""
    from PIL import Image

    sheet = Image.new("RGB", (32 * side, -(-len(pictures) // 32) * side))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % 32 * side, i // 32 * side))
    buffer = io.BytesIO()
    sheet.save(buffer, "webp", lossless=side <= 16, quality=72, method=4)
    return buffer.getvalue()


# -------------------------------------------------------------------------------------------------------------- the run


def _run(pack: Packer, run: Run, index: Int64[np.ndarray, " m"], found: dict[str, Layouts]) -> dict[str, Any]:
    """Everything of one run over its snapshots, for the images `index`."""
    h, config = run.history, run.config
    (q, notes), own = quantities(run), _own(run)
    group = h.sample_groups
    parts = [group == g for g in range(len(GROUPS))] if (group >= 0).any() else [np.ones(len(group), dtype=bool)]
    return {
        "name": run.name,
        "preset": config.preset,
        "title": config.method_title,
        "epochs": [int(e) for e in h.epoch],
        "last": int(config.optim.epochs),
        "breaks": [[int(epoch), text] for epoch, text in run.loss_breaks.items()],
        "places": {kind: pack.whole(_in_16_bits(layout, h.epoch, index), "i2") for kind, layout in found.items()},
        **{name: pack.scaled(getattr(h, name)[:, index]) for name in ("tau", "weight", "headness", "loss")},
        "cluster": pack.whole(h.pseudo_label[:, index], "i2"),
        "q": pack.scaled(q[:, index]),
        "own": _own_quantities(pack, own, index),
        "means": {name: [_means(values[:, part]) for part in parts] for name, values in _curves(run, q, own).items()},
        "trust": None if np.isnan(h.trust).any() else [round(float(s), 2) for s in h.trust],
        "q_notes": notes,
        "sizes": [[round(float(x), 1) for x in sizes] for sizes in h.cluster_sizes],
        "joined": [_joined_sizes(run, t) for t in range(len(h))],
        "equation": _equation(run, q[-1]),
        "near": _neighbours(pack, run, index),
        "remarks": _remarks(run, found),
        **about(run),
    }


def _equation(run: Run, q: Float[np.ndarray, "n"]) -> list[float] | None:
    """tau_min, tau_max, tau_0, strength and since which epoch, where equation (5) gives what was saved last.

    That may still be on its ramp, at one share of the way for all samples. None for methods with rules of their own.
    """
    options, tau = steered(run.config, run.events).guidance, run.history.tau[-1]
    low, high = (getattr(options, name, None) for name in ("tau_min", "tau_max"))
    if low is None:
        return None
    strength = float(run.history.trust[run.trusted_at]) if getattr(options, "trust", False) else 1.0
    way = options.tau_0 * ((low + (high - low) * q) / options.tau_0) ** strength - options.tau_0
    done = np.clip((way * (tau - options.tau_0)).sum() / max((way**2).sum(), 1e-12), 0, 1)
    fits = np.allclose(options.tau_0 + done * way, tau, atol=3e-3)
    since = max([event["epoch"] for event in run.events], default=0)
    return [float(low), float(high), options.tau_0, round(strength, 2), since] if fits else None


def _curves(run: Run, q: Float[np.ndarray, "s n"], own: dict[str, np.ndarray]) -> dict[str, Float[np.ndarray, "s n"]]:
    """All that is shown over time of each sample."""
    known = {name: getattr(run.history, name) for name in ("tau", "weight", "headness", "loss")}
    return {**known, "q": q, **{name: x for name, x in own.items() if not np.issubdtype(x.dtype, np.integer)}}


def _means(values: Float[np.ndarray, "s m"]) -> list[float | None]:
    """Mean of the values that are known, at each snapshot; None where none is."""
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0).sum(1, dtype=np.float64), known.sum(1)
    return [float(f"{total / count:.5g}") if count else None for total, count in zip(sums, counts)]


def _own_quantities(pack: Packer, own: dict[str, np.ndarray], index: Int64[np.ndarray, " m"]) -> dict[str, Any]:
    """Of the images `index`, what the method knows of each sample besides; whole numbers are labels."""
    own = {name: values[:, index] for name, values in own.items()}
    return {name: pack.whole(x, "i2") if x.dtype.kind in "iu" else pack.scaled(x) for name, x in own.items()}


def _own(run: Run) -> dict[str, np.ndarray]:
    """What the run's method knows of each sample [s, n] besides, by name: BCL's strength; older runs lack it."""
    own = {}
    for name in run.config.guidance_class.SHOWN:
        with contextlib.suppress(RunError):
            own[name] = run.history.extra(name)
    return own


def _remarks(run: Run, found: dict[str, Layouts]) -> list[str]:
    """What one should know of the run before its pictures."""
    said = [] if found else ["This run keeps neither features nor layouts: there is no map, all else is here."]
    if run.steered:
        epochs = ", ".join(str(event["epoch"]) for event in run.events)
        said.append(f"{run.name} was steered at epoch {epochs}: losses before and after cannot be compared.")
    return said


def quantities(run: Run) -> tuple[Float[np.ndarray, "s n"], list[str]]:
    """q of equation (4) at each snapshot, and in words how it comes from headness."""
    rows, notes = [], []
    for t, epoch in enumerate(run.history.epoch):
        options = steered(run.config, [event for event in run.events if event["epoch"] <= epoch]).guidance
        quantity, how = saved_quantity(run.history, t, options), getattr(options, "headness_map", "log")
        q, spread = clipped_rank(quantity, how)
        low, high = quantity.ends
        rows.append(q.numpy())
        note = "by rank" if how == "rank" else f"0 up to a = {low:.1f}, 1 from {high:.1f}"
        notes.append("0.5 for all: the clusters are all about as large" if spread < LEAST_SPREAD else note)
    return np.stack(rows), notes


def _joined_sizes(run: Run, t: int) -> list[float] | None:
    """For each cluster, the number of images that its joined group stands for; None where it is not saved."""
    sizes, logs = run.history.cluster_sizes[t].astype(np.float64), run.history.log_sizes(t)
    full = np.flatnonzero(sizes > 1e-9 * run.history.tau.shape[1])
    if logs is None or len(logs) != len(full):
        return None
    joined = np.zeros(len(sizes))
    joined[full] = np.exp(logs.astype(np.float64))
    return [round(float(x), 1) for x in joined]


def _in_16_bits(layout: Layouts, epochs, index: Int64[np.ndarray, " m"]) -> np.ndarray:
    """Places [s, m, 2] at all epochs as whole numbers; an image that is not laid out has -32768 twice."""
    xy = np.stack([layout.at(int(e)) for e in epochs])  # [s, m', 2], root mean square radius 1
    codes = np.full((len(xy), len(index), 2), -32768, dtype=np.int64)
    _, here, there = np.intersect1d(index, layout.index, return_indices=True)
    codes[:, here] = np.clip(np.round(xy[:, there] * 8000), -32767, 32767)  # up to four radii
    return codes


def _neighbours(pack: Packer, run: Run, index: Int64[np.ndarray, " m"]) -> dict[str, Any] | None:
    """The nearest images by cosine at each snapshot, as rows among those shown; None without features, or with many."""
    h, m = run.history, len(index)
    if m > 5000:
        return None
    rows = np.full((len(h), m, NEAR), -1, dtype=np.int64)
    try:
        for t in range(len(h)):
            _, here, there = np.intersect1d(index, h.feature_index(t), return_indices=True)
            if len(here) > NEAR:
                unit = centred(torch.from_numpy(h.features(t)[there]))
                cosine = (unit @ unit.T).fill_diagonal_(-2)
                rows[t, here] = here[cosine.topk(NEAR).indices.numpy()]
    except RunError:
        return None
    return pack.whole(rows, "i2")


def about(run: Run) -> dict[str, Any]:
    """The run in words and numbers: settings, accuracies, and how far its rareness can be believed."""
    scores = {}
    for name, found in ((run.results or {}).get("protocols") or {}).items():
        kinds = ("all", "head", "mid", "tail")
        scores[name] = {key: round(found[key], 1) for key in kinds if found.get(key) is not None}
    settings = {key: text for key, text in run.describe().items() if key not in scores}
    return {"settings": settings, "scores": scores, "sentences": sentences(run)}
