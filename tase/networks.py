"""Backbones by name: conv4, and every classification network of torchvision and timm, without its classifier.

    net, about = build_backbone(config.model, channels=3, size=32)      # [b, 3, 32, 32] -> features [b, d]


`about` says how to make the same network without this library: it becomes encoder.json (see tase/README.md). The
classifier, and a dropout directly before it, become identities. Small images get a 3x3 first convolution of stride 1
and no pooling after it, where the network's own reduces by overlapping windows; patches, as of a ViT, stay.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from .config import ConfigError, ModelConfig, check

SMALL_IMAGE = 64  # pixels; up to here the stem `auto` is the small one
TRY_SIZES = (64, 96, 128, 160, 192, 224, 256, 299, 384)  # of which an error names one that works
FAILURES = (RuntimeError, ValueError, AssertionError, IndexError)  # by which networks refuse a size, each in its way


def conv4(channels: int, widths: tuple[int, ...], strides: tuple[int, ...]) -> nn.Module:
    """Stack 3x3 convolutions with batch norm and ReLU, then the mean over positions: small enough for a CPU."""
    layers: list[nn.Module] = []
    for before, after, stride in zip((channels, *widths), widths, strides):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def build_backbone(model: ModelConfig, channels: int, size: int) -> tuple[nn.Module, dict[str, Any]]:
    """Build a backbone for images of `channels` x `size` x `size` pixels, its weights from the global generator.

    Returns it and what encoder.json says of it; "feature_dim" is d. Raises ConfigError where the library is missing
    or the network cannot take images of that size.
    """
    try:
        net, about = _built(model, channels, size)
    except ConfigError:
        raise
    except FAILURES as error:
        fits = next((s for s in TRY_SIZES if s > size and _takes(model, channels, s)), None)
        hint = f"views.size={fits} works" if fits else "try a larger views.size"
        why = str(error).partition("\n")[0]
        raise ConfigError(
            f"model.backbone = '{model.backbone}' cannot take images of {size} pixels ({why}); {hint}"
        ) from error
    return net, about


def _takes(model: ModelConfig, channels: int, size: int) -> bool:
    try:
        with torch.device("meta"):  # shapes only
            _built(model, channels, size)
        return True
    except (*FAILURES, NotImplementedError):  # a constructor that reads values
        return False


def _built(model: ModelConfig, channels: int, size: int) -> tuple[nn.Module, dict[str, Any]]:
    library, _, name = model.backbone.rpartition(":")
    if model.backbone == "conv4":
        options: dict[str, Any] = {"channels": list(model.channels), "strides": list(model.strides)}
        net, replaced = conv4(channels, model.channels, model.strides), {}
    else:
        net, options = _from_timm(name, channels, size) if library == "timm" else _from_torchvision(name, size)
        small = model.stem == "cifar" or (model.stem == "auto" and size <= SMALL_IMAGE)
        # The networks known by a bare name draw their first convolution once more: so they always did.
        replaced = _without_classifier(net) if library != "timm" else {}
        replaced |= _with_stem(net, channels, small, redraw=not library)
    with torch.no_grad():
        h = net.eval()(torch.zeros(1, channels, size, size))
    check(h.ndim == 2, "model.backbone", model.backbone, f"a network that gives features [b, d], not {list(h.shape)}")
    prefix = "" if model.backbone == "conv4" else f"{library or 'torchvision'}:"
    about = {"architecture": prefix + name, "options": options, "replaced": replaced}
    about |= {"channels": channels, "image_size": size, "feature_dim": h.shape[1]}
    return net.train(), about


def _from_torchvision(name: str, size: int) -> tuple[nn.Module, dict[str, Any]]:
    """Build a network of torchvision, made for `size` where its constructor has a place for that."""
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    if name.startswith("vit_"):
        options["image_size"] = size
    if name.startswith("maxvit"):
        options["input_size"] = (size, size)
    return models.get_model(name, **options), options


def _from_timm(name: str, channels: int, size: int) -> tuple[nn.Module, dict[str, Any]]:
    """Build a network of timm without its classifier, made for `size` where its constructor has a place for that."""
    timm = import_timm()
    options = {"num_classes": 0, "in_chans": channels}
    try:
        return timm.create_model(name, img_size=size, **options), {**options, "img_size": size}
    except TypeError:  # a network for any size
        return timm.create_model(name, **options), options


def import_timm():
    """Import timm; raises ConfigError where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        raise ConfigError("model.backbone = 'timm:...' needs timm: pip install tase[timm]")
    import timm

    return timm


def _without_classifier(net: nn.Module) -> dict[str, Any]:
    """Replace the last layer with weights, and a dropout before it, by identities; return what was replaced."""
    layers = [(name, m) for name, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Dropout))]
    last = max(i for i, (_, m) in enumerate(layers) if not isinstance(m, nn.Dropout))
    (before, dropout), (name, _) = layers[last - 1 : last + 1]
    together = isinstance(dropout, nn.Dropout) and before.rpartition(".")[0] == name.rpartition(".")[0]
    return dict(_replace(net, name, "Identity") for name in ([before, name] if together else [name]))


def _with_stem(net: nn.Module, channels: int, small: bool, redraw: bool) -> dict[str, Any]:
    """Fit the first convolution to the images' channels, and to small images; return what was replaced."""
    layers = [(name, m) for name, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d))][:2]
    if not layers or not isinstance(layers[0][1], nn.Conv2d):
        return {}
    name, conv = layers[0]
    small = small and conv.kernel_size[0] > conv.stride[0] > 1
    if not (small or redraw or conv.in_channels != channels):
        return {}
    shape = ([3, 3], [1, 1], [1, 1]) if small else (conv.kernel_size, conv.stride, conv.padding)
    how = {"in_channels": channels, "out_channels": conv.out_channels, "bias": conv.bias is not None}
    how |= dict(zip(("kernel_size", "stride", "padding"), map(list, shape)))
    replaced = dict([_replace(net, name, "Conv2d", **how)])
    nn.init.kaiming_normal_(net.get_submodule(name).weight, mode="fan_out", nonlinearity="relu")
    if small and isinstance(layers[-1][1], nn.MaxPool2d):
        replaced |= [_replace(net, layers[-1][0], "Identity")]
    return replaced


def _replace(net: nn.Module, name: str, kind: str, **options: Any) -> tuple[str, list[Any]]:
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, getattr(nn, kind)(**options))
    return name, [kind, options]
