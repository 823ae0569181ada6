"""Backbones by name: conv4, and every classification network of torchvision and timm, without its classifier.

    net, about = build_backbone(config.model, channels=3, size=32)      # [b, 3, 32, 32] -> features [b, d]
    state, mean, std = published_weights(config.model, about)                   # config.model.weights
    load_weights(net, about, state, source="model.weights")             # strictly: the first wrong key is named


`about` says how to make the same network without this library: it becomes encoder.json (see tase/README.md). The
classifier, and a dropout directly before it, become identities. Small images get a 3x3 first convolution of stride 1
and no pooling after it, where the network's own reduces by overlapping windows; patches, as of a ViT, stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .config import ConfigError, ModelConfig, check, check_choice
from .options import package

SMALL_IMAGE = 64  # pixels; up to here the stem `auto` is the small one
TRY_SIZES = (64, 96, 128, 160, 192, 224, 256, 299, 384)  # of which an error names one that works
FAILURES = (RuntimeError, ValueError, AssertionError, IndexError)  # by which networks refuse a size, each in its way

AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # classifiers of GoogLeNet and Inception that only help to train them


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
        small = model.stem == "cifar" or (model.stem == "auto" and size <= SMALL_IMAGE and not model.weights)
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
    return package("timm", "model.backbone = 'timm:...'", "timm")


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


# ------------------------------------------------------------------------------------------------------ trained weights


def published_weights(
    model: ModelConfig, about: Mapping[str, Any]
) -> tuple[dict[str, Tensor], Sequence[float], Sequence[float]]:
    """Return the published weights `model.weights`, and the mean and deviation of the channels they were trained with.

    Raises ConfigError for a name that does not exist, and for weights that cannot be fetched.
    """
    library, _, name = about["architecture"].rpartition(":")
    check_weights(model)
    try:
        if library == "timm":
            net = import_timm().create_model(f"{name}.{model.weights}", pretrained=True, **about["options"])
            return net.state_dict(), net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
        from torchvision import models

        weights = models.get_model_weights(name)[model.weights]
        state, how = models.get_model(name, weights=weights).state_dict(), weights.transforms()
    except (OSError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise ConfigError(f"model.weights = '{model.weights}' of {model.backbone} cannot be fetched: {why}") from error
    if name in ("googlenet", "inception_v3"):  # trained elsewhere, on images from -1 to 1
        return state, (0.5,), (0.5,)
    return state, how.mean, how.std


def check_weights(model: ModelConfig) -> None:
    """Raise ConfigError, before anything is read, where timm is missing or there are no such published weights."""
    library, _, name = model.backbone.rpartition(":")
    tags: list[str] = []
    if library == "timm":
        tags = [known.partition(".")[2] for known in import_timm().list_pretrained(f"{name}.*")]
    elif model.weights and name != "conv4":
        from torchvision import models

        tags = [known.name for known in models.get_model_weights(name)]
    if model.weights:
        check(bool(tags), "model.weights", model.weights, f"empty: none are published of {model.backbone}")
        check_choice("model.weights", model.weights, tags)


def load_weights(
    net: nn.Module, about: Mapping[str, Any], state: Mapping[str, Tensor], source: str, new_stem: bool = False
) -> None:
    """Load trained weights into a backbone, all of them but those of a classifier.

    A first convolution of colour takes images of other channels (its mean over the colours, as strong in sum), the
    positions of a vision transformer are interpolated to its size. `new_stem`: the first convolution may be another,
    and then stays as it was drawn. Raises ConfigError with the first key that is missing or has another shape, `source`
    and the network.
    """
    from torchvision.models import vision_transformer

    own, state = net.state_dict(), dict(state)
    stem = next((f"{name}.weight" for name, m in net.named_modules() if isinstance(m, nn.Conv2d)), "")
    if stem in state and state[stem].ndim == 4:
        fits, c = state[stem].shape[2:] == own[stem].shape[2:], own[stem].shape[1]
        if fits and state[stem].shape[1] == 3 != c:
            state[stem] = state[stem].mean(1, keepdim=True).repeat(1, c, 1, 1) * 3 / c
        elif new_stem and not fits:
            state[stem] = own[stem]
    if isinstance(net, vision_transformer.VisionTransformer) and state.get("encoder.pos_embedding") is not None:
        state = vision_transformer.interpolate_embeddings(net.image_size, net.patch_size, state)
    for key, tensor in own.items():
        if key.endswith("num_batches_tracked"):  # files from before 2018 lack it
            state.setdefault(key, tensor)
        there, here = list(state[key].shape) if key in state else None, list(tensor.shape)
        wrong = "is missing there" if there is None else f"is {there} there and {here} here" if there != here else ""
        _check_key(not wrong, source, about, f"{key} {wrong}")
    left = [key for key in state if key not in own and not key.startswith(_classifiers(net, about))]
    _check_key(not left, source, about, f"{left[:1]} is not in it")
    net.load_state_dict({key: state[key] for key in own})


def _classifiers(net: nn.Module, about: Mapping[str, Any]) -> tuple[str, ...]:
    """Return how the keys begin that the network has with its classifier only."""
    timms = getattr(net, "default_cfg", {}).get("classifier") or ()
    names = [name for name, (kind, _) in about["replaced"].items() if kind == "Identity"]
    names += [timms] if isinstance(timms, str) else timms
    return (*AUXILIARY, *(f"{name}." for name in names))


def _check_key(ok: bool, source: str, about: Mapping[str, Any], what: str) -> None:
    if not ok:
        here = f"{about['architecture']} ({about['channels']} channels, {about['image_size']} pixels)"
        raise ConfigError(f"{source} does not fit {here}: {what}")
