"""What we are compared with: the plain formulas and loops of public code, and libraries where they are installed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ..config import ViewsConfig
from ..losses import nt_xent
from ..models import build
from ..training import Training
from ..views import _torchvision_transform
from ._measure import installed

CHUNK = 512  # rows of the chunked loss


def kornia_views(v: ViewsConfig, size: int) -> nn.Module:
    from kornia import augmentation as K

    return nn.Sequential(
        K.RandomResizedCrop((size, size), v.scale, v.ratio, resample=v.interpolation),
        K.RandomHorizontalFlip(p=v.flip),
        K.ColorJitter(v.brightness, v.contrast, v.saturation, v.hue, p=v.jitter),
        K.RandomGrayscale(p=v.grey),
    )


def plain_formula(z1: Float[Tensor, "b d"], z2: Float[Tensor, "b d"], tau: float = 0.2) -> Float[Tensor, ""]:
    """NT-Xent the way public SimCLR code writes it: masks over the whole matrix, made anew in each step."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    image = torch.arange(len(z1), device=z.device).repeat(2)
    same = (image[None, :] == image[:, None]).float()
    similarity = z @ z.T
    off_diagonal = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    same, similarity = same[off_diagonal].view(len(z), -1), similarity[off_diagonal].view(len(z), -1)
    positives = similarity[same.bool()].view(len(z), -1)
    negatives = similarity[~same.bool()].view(len(z), -1)
    logits = torch.cat([positives, negatives], dim=1) / tau
    return F.cross_entropy(logits, torch.zeros(len(z), dtype=torch.int64, device=z.device))


def loss_functions(b: int, device: torch.device) -> dict[str, tuple[Callable, float]]:
    """Name -> (function of z1 and z2, estimate of its peak in bytes); ours with tau and w per sample."""
    matrix = 4.0 * (2 * b) ** 2
    tau, weight = torch.linspace(0.1, 0.5, b, device=device), torch.linspace(0.5, 2, b, device=device)
    losses = {
        "tase": (lambda z1, z2: nt_xent(z1, z2, tau, weight).loss, 3 * matrix),
        f"tase, chunks of {CHUNK}": (
            lambda z1, z2: nt_xent(z1, z2, tau, weight, chunk=CHUNK).loss,
            3 * matrix * min(1, CHUNK / (2 * b)),
        ),
        "plain formula": (plain_formula, 8 * matrix),
    }
    if installed("lightly"):
        from lightly.loss import NTXentLoss

        losses["lightly"] = (NTXentLoss(temperature=0.2), 6 * matrix)
    if installed("pytorch_metric_learning"):
        from pytorch_metric_learning.losses import NTXentLoss as Pairs
        from pytorch_metric_learning.losses import SelfSupervisedLoss

        # It compares each of 2b positive pairs with all (2b)^2 negative ones.
        losses["pytorch-metric-learning"] = (SelfSupervisedLoss(Pairs(temperature=0.2)), 4 * 2 * b * matrix)
    return losses


class Pairs(Dataset):
    """Two views of an image by torchvision's transforms of PIL images, as public code has them."""

    def __init__(self, images: Tensor, views: ViewsConfig):
        self.images = images.permute(0, 2, 3, 1).numpy()
        self.transform = _torchvision_transform(views, images.shape[1], images.shape[-1])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        image = Image.fromarray(self.images[i])
        return self.transform(image), self.transform(image)


def reference_loop(t: Training, workers: int, loss: Callable = plain_formula) -> Callable[[], None]:
    """An epoch the way public code trains: workers that augment image by image, float32, the plain loss."""
    config, device = t.config, t.device
    data = Pairs(t.set.images, config.views)
    loader = DataLoader(
        data, config.optim.batch, True, num_workers=workers, drop_last=True, pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )  # fmt: skip
    network = build(config.model, t.images.shape[1], t.size).to(device).train()
    optimiser = torch.optim.SGD(network.parameters(), config.optim.lr, config.optim.momentum, weight_decay=1e-4)

    def epoch() -> None:
        for first, second in loader:
            z1, z2 = network(torch.cat([first, second]).to(device, non_blocking=True)).chunk(2)
            optimiser.zero_grad()
            loss(z1, z2).backward()
            optimiser.step()

    return epoch
