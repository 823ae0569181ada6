"""Network (backbone and projection head), `encode`, and encoders that are saved and loaded.

network = build(config.model, channels=3, size=32)
h = network.backbone(x)                                  # float [b, c, s, s] -> features [b, d]
z = network(x)                                           # -> projections [b, head_dim], not normalised
encoder = load_encoder("runs/first")                     # a trained backbone, in eval mode; also of uint8 images

A saved encoder is `encoder.safetensors`, the backbone's weights, and `encoder.json`, which says how to build it, also
without this library (tase/README.md). The JSON stands in the weights' file as well, so that this file is enough.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from .config import Config, ConfigError, ModelConfig, check, encoder_file, override, unknown
from .data import batches
from .files import RunError, load_json, load_pt, save_json, write_atomic
from .networks import build_backbone, check_weights, load_weights, published_weights
from .streams import generator

ENCODER_FORMAT = 1  # of encoder.json
# What the published weights of torchvision's and timm's networks take.
GENERAL_SIZE, IMAGENET_MEAN, IMAGENET_STD = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Network(nn.Module):
    """A backbone and the projection head in whose space the loss is taken (SimCLR, arXiv 2002.05709).

    `about` is what encoder.json says of the backbone. Parameters of the backbone that match a pattern of `freeze` are
    not trained, and their batch norms stay in eval mode; raises ConfigError for a pattern that matches none.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module, about: dict[str, Any], freeze: Sequence[str] = ()):
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.about, self.freeze = about, tuple(freeze)
        names = dict(backbone.named_parameters())
        for pattern in self.freeze:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise unknown(f"parameter in model.freeze of {about['architecture']}:", pattern, names)
        for name, parameter in names.items():
            parameter.requires_grad_(not self._is_frozen(name))

    def _is_frozen(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.freeze)

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        for name, layer in self.backbone.named_modules() if self.freeze else ():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and self._is_frozen(f"{name}.weight"):
                layer.eval()
        return self

    def forward(self, x: Float[Tensor, "b c s s"]) -> Float[Tensor, "b z"]:
        return self.projector(self.backbone(x))


def build(model: ModelConfig, channels: int, size: int) -> Network:
    """Build a network for images of `channels` x `size` x `size` pixels, its weights from the global generator."""
    backbone, about = build_backbone(model, channels, size)
    d = about["feature_dim"]
    widths = [d] + [model.head_hidden or d] * (model.head_layers - 1)
    inner = [(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(inplace=True)) for a, b in pairwise(widths)]
    last = (nn.Linear(widths[-1], model.head_dim, bias=False), nn.BatchNorm1d(model.head_dim))
    projector = nn.Sequential(*(layer for block in (*inner, last) for layer in block))
    network = Network(backbone, projector, about, model.freeze)
    _normalise(network, model, (), ())
    return network


def initial_network(config: Config, channels: int, size: int, device: torch.device | str = "cpu") -> Network:
    """Build the network as the run with this seed starts it: drawn, then `model.init` or `model.weights`, if given.

    Raises ConfigError where these weights are missing or of another network.
    """
    model = config.model
    with torch.random.fork_rng(devices=[]):
        # The weights are drawn on the CPU; torch.manual_seed would also seed the accelerators, for good.
        torch.default_generator.manual_seed(generator(config.seed, "network").initial_seed())
        network = build(model, channels, config.views.size or size)
    if model.weights:
        state, mean, std = published_weights(model, network.about)
        load_weights(
            network.backbone, network.about, state, f"model.weights = {model.weights!r}", model.stem == "cifar"
        )
        _normalise(network, model, mean, std)
    elif model.init:
        state, there = read_weights(model.init)
        names = f" ({there['architecture']})" if there else ""
        load_weights(network.backbone, network.about, state, f"model.init = {_init_path(model.init)!r}{names}")
        _normalise(network, model, there.get("mean", ()), there.get("std", ()))
    return network.to(device, memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------------------- images go in


def _normalise(network: Network, model: ModelConfig, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let the backbone take (images - mean) / std: the configuration's, else those given, else 0 and 1."""
    channels = network.about["channels"]
    for name, own, given, none in (("mean", model.mean, mean, 0.0), ("std", model.std, std, 1.0)):
        check(len(own) in (0, 1, channels), f"model.{name}", own, f"one value, or {channels}: one for each channel")
        values = [float(value) for value in own or given or (none,)]
        # Of colours, where the images have other channels: their mean.
        values = values if len(values) == channels else [sum(values) / len(values)] * channels
        network.about[name] = values
    set_input(network.backbone, network.about)


def set_input(backbone: nn.Module, about: Mapping[str, Any]) -> None:
    """Make the backbone subtract the mean and divide by the deviation that `about` has; nothing where they are 0, 1."""
    plain = not any(about["mean"]) and all(value == 1 for value in about["std"])
    if plain and not hasattr(backbone, "input_mean"):
        return
    if not hasattr(backbone, "input_mean"):
        backbone.register_forward_pre_hook(_normalised)
    for name in ("mean", "std"):  # they move with the network, and are no weights
        backbone.register_buffer(f"input_{name}", torch.tensor(about[name])[:, None, None], persistent=False)


def _normalised(backbone: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return ((inputs[0] - backbone.input_mean) / backbone.input_std,)


def _from_bytes(size: int, backbone: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (resized(inputs[0], size) if inputs[0].dtype == torch.uint8 else inputs[0],)


def resized(images: UInt8[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c s s"]:
    """Bring images to [0, 1] and the views' size without augmentation: shorter side resized, centre cropped."""
    x = images.float().div_(255)
    height, width = x.shape[-2:]
    size = size or min(height, width)
    if (height, width) == (size, size):
        return x
    factor = size / min(height, width)
    shape = (max(size, round(height * factor)), max(size, round(width * factor)))
    x = nn.functional.interpolate(x, shape, mode="bilinear", antialias=True)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return x[..., top : top + size, left : left + size]


@torch.no_grad()
def encode(
    module: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    size: int = 0,
    batch: int = 512,
    device: str | torch.device | None = None,
    rows: slice | Int64[Tensor, "m"] | None = None,
) -> Float[Tensor, "n d"]:
    """Compute features of all images, or of `rows`, without augmentation; the module in eval mode, and put back after.

    `size` is the side of the views in pixels (0: as the images); the result is float32 in autocast too.
    """
    if isinstance(rows, Tensor):
        picked = rows.to(images.device).split(batch)
    else:
        first, last, _ = (rows or slice(None)).indices(len(images))
        picked = [slice(i, min(i + batch, last)) for i in range(first, last, batch)]
    parts = batches(images, picked)
    device = torch.device(device) if device is not None else next(module.parameters()).device
    was_training = module.training
    module.eval()
    try:
        return torch.cat([module(resized(part.to(device), size)).float() for part in parts])
    finally:
        module.train(was_training)


def frozen_features(
    file: str,
    images: UInt8[Tensor, "n c h w"],
    device: str | torch.device = "cpu",
    rows: slice | None = None,
    network: str = "",
) -> Float[Tensor, "n d"]:
    """Compute the features of `guidance.features`, FILE#HASH: an encoder that does not train.

    With `network`, torchvision:NAME or timm:NAME, the file is a state dict of it, which takes images of 224 pixels.
    Raises ConfigError where the file is missing, altered, of another network, or takes images of other channels.
    """
    check_init(file, "guidance.features")
    channels = images.shape[1]
    with torch.random.fork_rng(devices=[]):  # weights are drawn before they are loaded
        encoder = _general_encoder(file, network, channels) if network else load_encoder(_init_path(file))
    takes, size = encoder.about["channels"], encoder.about["image_size"]
    fits = f"an encoder of images of {channels} channels (it takes {takes})"
    check(takes == channels, "guidance.features", file, fits)
    return encode(encoder.to(device), images, size, device=device, rows=rows)


def _general_encoder(file: str, network: str, channels: int) -> nn.Module:
    """Build a network of torchvision or timm with the weights of FILE#HASH, which take colours as ImageNet's do."""
    model = override(Config(), {"model.backbone": network, "model.stem": "imagenet"}).model
    backbone, about = build_backbone(model, channels, GENERAL_SIZE)
    state, _ = read_weights(file, "guidance.features")
    load_weights(backbone, about, state, f"guidance.features = '{_init_path(file)}'")
    how = getattr(backbone, "default_cfg", {})
    whole = Network(backbone, nn.Identity(), about)
    _normalise(whole, model, how.get("mean", IMAGENET_MEAN), how.get("std", IMAGENET_STD))
    backbone.about = about
    return backbone.eval()


# ------------------------------------------------------------------------------------------------- saved and loaded


def save_encoder(folder: str | Path, network: Network, model: ModelConfig) -> None:
    """Write the backbone into the folder: encoder.safetensors, its weights, and encoder.json, how to build it."""
    from safetensors.torch import save

    about = {"format": ENCODER_FORMAT, **network.about, "model": dataclasses.asdict(model)}
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.backbone.state_dict().items()}
    data = save(state, {"tase": json.dumps(about)})
    write_atomic(Path(folder) / "encoder.safetensors", data)
    save_json(Path(folder) / "encoder.json", {**about, "sha256": hashlib.sha256(data).hexdigest()})


def load_encoder(source: Any, device: str | torch.device = "cpu") -> nn.Module:
    """Load a trained backbone in eval mode: float [b, c, s, s] in [0, 1], or uint8 [b, c, h, w] -> features [b, d].

    `source` is a Run, its folder, its encoder.safetensors or encoder.json, or the encoder.pt of an older run. uint8
    images are resized and cut to the s x s pixels of training; `encoder.about` has s and d. Raises ValueError where the
    file is cut off or altered, or holds something else.
    """
    path = encoder_file(getattr(source, "path", source))
    try:
        state, about = _load_pt_encoder(path) if path.suffix == ".pt" else _load_safetensors(path)
        model = override(Config(), {f"model.{name}": value for name, value in about["model"].items()}).model
        backbone, made = build_backbone(model, about["channels"], about["image_size"])
        backbone.load_state_dict(state, strict=True)
        backbone.about = {**made, **about}
        size = about["image_size"]
        backbone.register_forward_pre_hook(partial(_from_bytes, size))
        set_input(backbone, about)
    except FileNotFoundError:
        raise
    except Exception as error:  # anything that foreign bytes can cause
        why = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged, or no encoder of this library ({why})") from error
    return backbone.to(device).eval()


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an encoder's weights, and what is said of it next to them, else in their file ({}: a file of others)."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads((file.metadata() or {}).get("tase", "{}"))
    if about and path.with_suffix(".json").exists():
        about = load_json(path.with_suffix(".json"))
        if about.get("sha256") != hashlib.sha256(path.read_bytes()).hexdigest():
            raise RunError(f"it does not have the checksum of {path.with_suffix('.json').name}")
    return state, about


def _load_pt_encoder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the encoder of a run before there was encoder.safetensors."""
    saved = load_pt(path)
    meta = saved["meta"]
    about = {"model": meta["model"], "channels": meta["channels"], "image_size": meta["size"]}
    return saved["weights"], {**about, "mean": [0.0], "std": [1.0]}


def _init_path(init: str) -> Path:
    """Return the path in `model.init`, without the hash."""
    return Path(init.rpartition("#")[0])


def read_weights(init: str, field: str = "model.init") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights of a backbone from `field`, FILE#HASH, and what encoder.json says of them ({}: nothing).

    An encoder or checkpoint of this library, or a state dict as torch or safetensors save it, also one level down.
    Raises ConfigError where the file is missing, altered, or none of these.
    """
    check_init(init, field)
    path = _init_path(init)
    try:
        if path.suffix == ".safetensors":
            state, about = _load_safetensors(path)
        else:
            state, about = torch.load(path, map_location="cpu", weights_only=True), {}
            about = {"architecture": state["meta"]["model"]["backbone"]} if "meta" in state else {}
            inner = next(
                (k for k in ("weights", "network", "state_dict", "model") if isinstance(state.get(k), dict)), None
            )
            state = state[inner] if inner else state
    except Exception as error:  # anything that foreign bytes can cause
        why = re.split(r"\n|\. ", str(error))[0]  # torch's error is a page on how to trust the file
        raise ConfigError(f"{field} = '{path}' holds no weights that can be read: {why}") from error
    state = {name.removeprefix("module."): t for name, t in state.items() if isinstance(t, Tensor)}
    own = {name[9:]: tensor for name, tensor in state.items() if name.startswith("backbone.")}
    return own or state, about


def check_init(init: str, field: str = "model.init") -> None:
    """Raise ConfigError where the file of `field`, FILE#HASH, is not there, or is not what it was."""
    path, _, digest = init.rpartition("#")
    check(Path(path).is_file(), field, path, "a file that is there: the run needs its weights")
    now = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
    check(now == digest, field, path, f"the file that the run was configured with ({digest}, and it is {now})")


def check_start(model: ModelConfig) -> None:
    """Raise ConfigError, before any image is read, where the weights to start from are not there."""
    check_weights(model)
    if model.init:
        check_init(model.init)
