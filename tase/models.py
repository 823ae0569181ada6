"""Backbone, projection head, and `encode`: the features of a whole set of images.

network = build(config.model, channels=3, size=32)
h = network.backbone(x)                                  # float [b, c, s, s] -> features [b, d]
z = network(x)                                           # -> projections [b, head_dim], not normalised
backbone = load_backbone("runs/first/encoder.pt")        # a trained encoder, in eval mode
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from .config import Config, ModelConfig
from .data import batches
from .files import load_pt, save_pt
from .networks import build_backbone
from .streams import generator


class Network(nn.Module):
    """A backbone and the projection head in whose space the loss is taken (SimCLR, arXiv 2002.05709)."""

    def __init__(self, backbone: nn.Module, projector: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, x: Float[Tensor, "b c s s"]) -> Float[Tensor, "b z"]:
        return self.projector(self.backbone(x))


def build(model: ModelConfig, channels: int, size: int) -> Network:
    """Build a network for images of `channels` x `size` x `size` pixels, its weights from the global generator."""
    backbone, about = build_backbone(model, channels, size)
    d = about["feature_dim"]
    hidden = model.head_hidden or d
    projector = nn.Sequential(
        nn.Linear(d, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, model.head_dim, bias=False),
        nn.BatchNorm1d(model.head_dim),
    )
    return Network(backbone, projector)


def initial_network(config: Config, channels: int, size: int, device: torch.device | str = "cpu") -> Network:
    """Build the network as the run with this seed starts it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(config.seed, "network").initial_seed())
        network = build(config.model, channels, config.views.size or size)
    return network.to(device, memory_format=torch.channels_last)


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
    rows: slice | None = None,
) -> Float[Tensor, "n d"]:
    """Compute features of all images, or of `rows`, without augmentation; the module in eval mode, and put back after.

    `size` is the side of the views in pixels (0: as the images); the result is float32 in autocast too.
    """
    first, last, _ = (rows or slice(None)).indices(len(images))
    parts = batches(images, (slice(i, min(i + batch, last)) for i in range(first, last, batch)))
    device = torch.device(device) if device is not None else next(module.parameters()).device
    was_training = module.training
    module.eval()
    try:
        return torch.cat([module(resized(part.to(device), size)).float() for part in parts])
    finally:
        module.train(was_training)


def save_backbone(path: str | Path, network: Network, model: ModelConfig, channels: int, size: int) -> None:
    """Write the backbone with what is needed to build it again (read by `load_backbone`)."""
    meta = {"model": dataclasses.asdict(model), "channels": channels, "size": size}
    save_pt(path, {"meta": meta, "weights": network.backbone.state_dict()})


def load_backbone(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Read a saved backbone, in eval mode: float [b, c, s, s] in [0, 1] -> features [b, d].

    Raises ValueError where the file is cut off or altered, or holds something else.
    """
    try:
        saved = load_pt(path, device=device)
        meta = saved["meta"]
        backbone = build(ModelConfig(**meta["model"]), meta["channels"], meta["size"]).backbone
        backbone.load_state_dict(saved["weights"], strict=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # anything that foreign bytes can cause
        raise ValueError(f"{path} is damaged, or no backbone of this library") from error
    return backbone.to(device).eval()
