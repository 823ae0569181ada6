"""`evaluate`: the protocols on a run and on its baselines, geometry and push, results.json."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .. import presets, probes
from ..config import PROTOCOLS, Config, check_choice
from ..data import ImageSet, Splits
from ..losses import nt_xent
from ..models import Network
from ..runs import Run, load_checkpoint, load_json, load_kept, save_json, save_npz, tidy
from ..training import choose_device, generator, initial_network
from ..views import two_views
from ._protocols import Bench, Lists, keys, load_lists, measured, missing

FORMAT = 1
PIXELS = 32  # side to which larger images are reduced for the probe on raw pixels
FILES = {"test": "results.json", "val": "results_val.json"}  # by the list that is judged
ALIGNMENT_IMAGES = 2000  # test images of which two views are drawn


class Pixels(nn.Module):
    """The image itself as its features, in [0, 1]; sides over 32 pixels are averaged down to 32."""

    def forward(self, x: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d"]:
        return (F.adaptive_avg_pool2d(x, PIXELS) if x.shape[-1] > PIXELS else x).flatten(1)


# ----------------------------------------------------------------------------------------------------------- baselines


def _signature(kind: str, config: Config, splits: Splits, lists: Lists) -> str:
    """What a baseline's scores depend on: images, few labels, and for the untrained network how it is made."""
    sets = [lists.tail] + [None if s is None else s.hash for s in (splits.probe, splits.val, splits.test)]
    parts = [FORMAT, kind, sets, splits.eval_classes.tolist(), config.data.groups, config.data.few_shot_per_class]
    parts += [config.data.min_per_class, splits.train.groups.tolist(), config.evaluation.draws]
    parts += [config.views.size, config.views.flip > 0]
    parts += [lists.on] if lists.on != "test" else []
    if kind == "untrained":
        parts += [config.to_dict()["model"], config.seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _baseline(kind: str, run: Run, lists: Lists, names: Sequence[str], force: bool, bar) -> dict[str, Any]:
    """Scores of raw pixels or of the untrained network; runs side by side share them through a hidden folder."""
    path = run.path.parent / ".baselines" / f"{kind}-{_signature(kind, run.config, run.splits, lists)}.json"
    saved = {} if force else load_kept(path)
    todo = missing(saved, names, run.config)
    bar.update(len(names) - len(todo))
    if todo:
        shape = lists.images["tail"].shape
        module = (
            Pixels()
            if kind == "pixels"
            else initial_network(run.config, shape[1], min(shape[2:]), lists.device).backbone
        )
        bar.set_description(f"{run.name}: {kind}")
        saved |= measured(Bench(module.eval(), lists), todo, bar)
        path.parent.mkdir(exist_ok=True)
        save_json(path, saved)
    return {key: saved[key] for name in names for key in keys(name, run.config)}


# --------------------------------------------------------------------------------------------------- geometry and push


@torch.no_grad()
def _geometry(b: Bench) -> dict[str, Any]:
    """Geometry of the test features, and the alignment of two views of the same image."""
    config, device, images = b.lists.config, b.lists.device, b.lists.images["test"]
    rng = generator(0, "alignment", device)
    parts = [
        [b.module(view).float() for view in two_views(part.to(device), config.views, rng)]
        for part in images[:: -(-len(images) // ALIGNMENT_IMAGES)].split(500)
    ]
    first, second = (torch.cat(features) for features in zip(*parts, strict=True))
    measured = probes.geometry(b.x("test"), b.lists.labels["test"], b.lists.classes)
    return {**measured, "alignment": probes.alignment(first, second)}


@torch.no_grad()
def push_per_class(
    network: Network,
    images: ImageSet,
    tau: Float[Tensor, "n"],
    weight: Float[Tensor, "n"],
    config: Config,
    scale: Float[Tensor, "n"] | None = None,
) -> Float[Tensor, "C"]:
    """Each class's share of all push on negatives, (w_i / sum w)(1 - p_ap) / tau_i summed over its anchors.

    The training images pass once through two views and the network in eval mode, in batches as in training (the last
    one is filled up with images already seen, which then count by their mean). `scale` multiplies as in the loss.
    """
    device, n, batch = tau.device, len(images), config.optim.batch
    rng = generator(0, "push", device)
    order = torch.randperm(n, generator=generator(0, "push"))
    order = torch.cat([order, order[: -n % batch]])
    network.eval()
    total, seen = torch.zeros(2, n, device=device)
    for index in order.split(batch):
        view1, view2 = two_views(images.images[index].to(device), config.views, rng)
        index = index.to(device)
        t, w = tau[index], weight[index]
        out = nt_xent(network(view1), network(view2), t, w, chunk=config.optim.loss_chunk or None)
        push = probes.anchor_push(out.positive_similarity, out.logsumexp, t, w)
        total.index_add_(0, index, push if scale is None else push * scale[index])
        seen.index_add_(0, index, torch.ones_like(push))
    return probes.class_shares(total / seen, images.labels.to(device), len(images.classes))


def _push(run: Run, images: ImageSet, device: torch.device) -> dict[str, Any] | None:
    """Push with the last temperatures and weights; None where the checkpoint or the snapshots are gone."""
    state = load_checkpoint(run.path, run.config.identity)
    if state is None or not len(run.history):
        return None
    shape = images.images.shape
    network = initial_network(run.config, shape[1], min(shape[2:]), device)
    network.load_state_dict(state["network"], strict=True)
    tau, weight = (torch.from_numpy(values[-1]).to(device) for values in (run.history.tau, run.history.weight))
    scale = run.config.guidance_class.loss_scale(run.config.guidance, tau)
    return {"per_class": push_per_class(network, images, tau, weight, run.config, scale).tolist()}


# ------------------------------------------------------------------------------------------------------------ evaluate


def changes(config: Config) -> list[str]:
    """The fields that decide the result and differ from the preset and method, as "field=value"; not seed and split."""
    return [f"{name.partition('.')[2]}={value}" for name, value in presets.changes(config).items()]


def _header(run: Run, splits: Splits, lists: Lists) -> dict[str, Any]:
    config, train = run.config, splits.train
    return {
        "format": FORMAT,
        "identity": config.identity,
        "preset": config.preset,
        "method": config.method,
        "seed": config.seed,
        "split": config.split,
        "balanced": config.data.balanced,
        "changes": changes(config),
        "commit": run.commit,
        "subset": train.hash,
        "tail": lists.tail,
        "classes": list(train.classes),
        "counts": train.counts.tolist(),
        "groups": train.groups.tolist(),
        "eval_classes": splits.eval_classes.tolist(),
        "draws": config.evaluation.draws,
        "protocols": {},
        "baselines": {"pixels": {}, "untrained": {}},
    }


def _usable(run: Run, on: str) -> dict[str, Any]:
    """What the results' file holds, where it was measured on this run; else nothing."""
    saved = load_kept(run.path / FILES[on])
    same = (saved.get("format"), saved.get("identity")) == (FORMAT, run.config.identity)
    known = "tail" in saved or not run.config.data.balanced  # once, a control's `lt` protocols had its own neighbours
    return saved if same and known else {}


def _names(protocols: Iterable[str] | None, config: Config) -> list[str]:
    chosen = [protocols] if isinstance(protocols, str) else list(protocols or config.evaluation.protocols)
    for name in chosen:
        check_choice("protocol", name, PROTOCOLS)
    return list(dict.fromkeys(chosen))


def lacking(run: Run, protocols: Iterable[str] | None = None, on: str = "test") -> list[str]:
    """The protocols (default: the configuration's) that the run's results do not have yet."""
    names, saved = _names(protocols, run.config), _usable(run, on)
    same = saved.get("draws") == run.config.evaluation.draws
    return missing(saved.get("protocols", {}) if same else {}, names, run.config)


def evaluate(
    run: Run | str | Path,
    protocols: Iterable[str] | None = None,
    force: bool = False,
    progress: bool = True,
    on: str = "test",
) -> dict[str, Any]:
    """Measure a finished run by the protocols (default: its configuration's); returns what results.json then holds.

    `on="val"` judges on the validation images instead, for choices that must not see the test; these results are a file
    of their own, results_val.json. (Validation then also picks the probe's regularisation, alike for all runs.)

    Protocols that results.json already has are not measured again unless `force`, and none is lost. Writes the features
    of the test images too. Every protocol is also measured on raw pixels and on the network as initialised; these are
    kept in `.baselines` beside the run's folder, for the runs that share them. Only evaluated classes are seen by any
    probe. Raises ConfigError for unknown protocols and where labels or test images are missing (it names what),
    RunError for a run that has not finished.
    """
    from tqdm.auto import tqdm

    check_choice("on", on, FILES)
    run = run if isinstance(run, Run) else Run(run)
    names = _names(protocols, run.config)
    saved = _usable(run, on)
    if force or saved.get("draws") != run.config.evaluation.draws:
        names = list(dict.fromkeys([*names, *(key.split("@")[0] for key in saved.get("protocols", {}))]))
        saved = {}
    todo = missing(saved.get("protocols", {}), names, run.config)
    if not todo:
        return saved
    device = choose_device(run.config.optim)
    trained = run.encoder(device)
    splits = run.splits
    lists = load_lists(run.config, splits, device, on)
    results = saved or {**_header(run, splits, lists), "on": on}
    with tqdm(total=3 * len(todo) + 2, desc=run.name, disable=not progress, dynamic_ncols=True) as bar:
        bench = Bench(trained, lists)
        results["protocols"] |= measured(bench, todo, bar)
        results["geometry"] = results.get("geometry") or _geometry(bench)
        bar.update()
        results["push"] = results.get("push") or _push(run, splits.train, device)
        bar.update()
        for kind in ("pixels", "untrained"):
            results["baselines"][kind] |= _baseline(kind, run, lists, todo, force, bar)
        bar.set_description(run.name)
        bar.set_postfix_str(_headline(results))
    tidy(run.path), tidy(run.path.parent / ".baselines")
    _save(run, results, bench, splits)
    return load_json(run.path / FILES[on])


def _headline(results: dict[str, Any]) -> str:
    shown = {name: scores["all"] for name, scores in results["protocols"].items() if scores["all"] is not None}
    return ", ".join(f"{name} {score:.1f}" for name, score in shown.items() if not math.isnan(score))


def _save(run: Run, results: dict[str, Any], bench: Bench, splits: Splits) -> None:
    if bench.lists.on == "test":
        ids = splits.eval_classes.to(bench.lists.device)[bench.lists.labels["test"]].cpu().numpy()
        save_npz(run.path / "features_test.npz", features=bench.x("test").half().cpu().numpy(), labels=ids)
    save_json(run.path / FILES[bench.lists.on], results)
