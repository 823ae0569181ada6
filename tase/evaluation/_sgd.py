"""SDCLR's linear evaluation: a linear layer on the frozen backbone, trained by SGD on augmented images."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from .. import probes
from ..models import resized

LR, MOMENTUM, BATCH = 30.0, 0.9, 128
PADDING = 8  # random shifts go up to an eighth of the side: 4 of 32 pixels
FULL = (30, (10, 20))  # epochs, and those after which the learning rate drops to a tenth
FEW = (100, (40, 60))


def pad_crop_flip(x: Float[Tensor, "b c s s"], flip: bool, generator: torch.Generator) -> Float[Tensor, "b c s s"]:
    """Each image shifted by up to an eighth of its side (4 of 32 pixels) into black; half are mirrored if `flip`."""
    b, _, height, width = x.shape
    border = max(1, round(min(height, width) / PADDING))
    shift = torch.randint(2 * border + 1, (2, b, 1), generator=generator, device=x.device)
    mirrored = (torch.rand(b, 1, generator=generator, device=x.device) < 0.5) & flip
    row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    column = torch.where(mirrored, width - 1 - column, column)
    padded = F.pad(x, (border,) * 4)
    image = torch.arange(b, device=x.device)[:, None, None]
    # Indices around the slice put the channels last.
    return (
        padded[image, :, (row + shift[0])[:, :, None], (column + shift[1])[:, None, :]].permute(0, 3, 1, 2).contiguous()
    )


def sgd_probe(
    module: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    y: Int64[Tensor, "n"],
    val_x: Float[Tensor, "v d"],
    val_y: Int64[Tensor, "v"],
    test_x: Float[Tensor, "m d"],
    classes: int,
    schedule: tuple[int, tuple[int, ...]],
    generator: torch.Generator,
    size: int = 0,
    flip: bool = True,
) -> tuple[Int64[Tensor, "m"], int]:
    """Classes [m] of the test features by the epoch that is best on validation (the first such), and that epoch.

    `module` gives features in eval mode; learning rate 30, momentum 0.9, batch 128, `pad_crop_flip`.
    (Jiang et al. 2021, arXiv 2106.02990; the field's older protocol, slower and less certain than `linear`.)
    """
    epochs, drops = schedule
    weight = 0.01 * torch.randn(test_x.shape[1], classes, generator=generator, device=test_x.device)
    layer = probes.Linear(weight.requires_grad_(), torch.zeros_like(weight[0]).requires_grad_())
    optimiser = torch.optim.SGD(layer, LR, MOMENTUM)
    best, chosen, epoch_chosen = -1.0, None, 0
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = LR * 0.1 ** sum(epoch >= drop for drop in drops)
        order = torch.randperm(len(y), generator=generator, device=y.device)
        for index in order.split(BATCH):
            _step(
                layer, optimiser, module, images[index.to(images.device)].to(y.device), y[index], size, flip, generator
            )
        with torch.no_grad():
            accuracy = probes.mean_accuracy(layer.predict(val_x), val_y, classes)
            if accuracy > best:
                best, chosen, epoch_chosen = accuracy, layer.predict(test_x), epoch + 1
    return chosen, epoch_chosen


def _step(layer, optimiser, module, images, y, size: int, flip: bool, generator: torch.Generator) -> None:
    with torch.no_grad():
        features = module(pad_crop_flip(resized(images, size), flip, generator)).float()
    with torch.enable_grad():
        loss = F.cross_entropy(features @ layer.weight + layer.bias, y)
        optimiser.zero_grad()
        loss.backward()
    optimiser.step()
