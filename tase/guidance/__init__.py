"""Which temperature and which weight has each sample now? That is a method, and all that training needs of it.

    guide = TASE(n=len(images), clusters=100)
    guide.update(features, epoch=10)            # backbone features of all images, without augmentation [n, d]
    guide.tau[index], guide.weight[index], guide.scale(index)           # for the loss of a batch

A method of your own is a subclass with its `Options`, which sets `tau` and `weight` in any of the hooks. Here, the
closer a sample is to its centre, the lower its temperature, and samples whose loss stays high count more:

    class Centred(Guidance):
        title, per_sample, uses_features = "Centred", True, True
        SAVED = (*Guidance.SAVED, "loss")                               # restored on resume, with tau and weight

        @dataclass(frozen=True)
        class Options(Guidance.Options):                                # guidance.low=0.05 on the command line
            low: float = option(0.1, "temperature of a sample at its centre", above=0)
            high: float = option(0.4, "temperature of a sample between centres", above=0)

        def __init__(self, n, **common):
            super().__init__(n, **common)
            self.loss = torch.ones(n, device=self.device)

        def update(self, features, epoch):                              # every few epochs
            super().update(features, epoch)                             # the pseudo-labels
            low, high = self.options.low, self.options.high
            self.tau = high - (high - low) * self.pseudo.p.amax(1)      # (above 65,536 images p is None)

        def after_step(self, index, out):                               # every step; out is the loss's NTXent
            now = out.per_anchor.detach().reshape(2, -1).mean(0)
            self.loss[index] = 0.9 * self.loss[index] + 0.1 * now
            self.weight[index] = self.loss[index] / self.loss.mean()

    METHODS["centred"] = Method(Centred)                                # tase.preset("digits-lt", method="centred")

Nothing else names a method: configuration, command line, figures and widgets ask its class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import METHODS, Config
from .base import Guidance, Method, compose
from .parts import BCL, GH, SDCLR
from .temperatures import (
    MMTS,
    TASE,
    Constant,
    ISogCLRTau,
    TemperatureSchedule,
    guided,
    says_nothing,
    temperature_and_weight,
)

if TYPE_CHECKING:
    import torch
    from jaxtyping import Int64
    from torch import Tensor

METHODS.update(
    {
        "simclr": Method(Constant),
        "ts": Method(TemperatureSchedule),
        "mm-ts": Method(MMTS),
        "isogclr-tau": Method(ISogCLRTau),
        "tase": Method(TASE),
        "tase-tau": Method(TASE, "TASE, τ only", {"guidance.gamma": 0.0}),
        "tase-weight": Method(TASE, "TASE, w only", {"guidance.tau_min": 0.2, "guidance.tau_max": 0.2}),
        "oracle": Method(TASE, "TASE, oracle", {"guidance.labels": "oracle"}),
        "shuffled": Method(TASE, "TASE, shuffled", {"guidance.shuffled": True}),
        "reversed": Method(TASE, "TASE, reversed", {"guidance.reversed": True}),
        "crowding": Method(TASE, "TASE, crowding", {"guidance.labels": "oracle", "guidance.estimator": "crowding"}),
    }
)

# Parts (parts.py) on SimCLR and on TASE; the control of a part says what it takes away.
_SDCLR, _BCL, _GH = (compose(part, Constant) for part in (SDCLR, BCL, GH))
_DUAL = {"guidance.bcl_operations": 2, "guidance.bcl_low": 5.0, "guidance.bcl_random": True}
METHODS.update(
    {
        "sdclr": Method(_SDCLR),
        "bcl-i": Method(_BCL),
        "bcl-d": Method(compose(BCL, SDCLR, Constant), "BCL-D", _DUAL),
        "gh": Method(_GH),
        "sdclr+gh": Method(compose(GH, SDCLR, Constant)),
        "bcl-i+gh": Method(compose(GH, BCL, Constant)),
        "tase+sdclr": Method(compose(SDCLR, TASE)),
        "tase+gh": Method(compose(GH, TASE)),
        "tase+bcl-i": Method(compose(BCL, TASE)),
        "bcl-constant": Method(_BCL, "BCL-I, strength 0.5", {"guidance.bcl_constant": 0.5}),
        "bcl-shuffled": Method(_BCL, "BCL-I, shuffled", {"guidance.bcl_shuffled": True}),
        "sdclr-random": Method(_SDCLR, "SDCLR, random masks", {"guidance.sdclr_random": True}),
        "gh-uniform": Method(_GH, "GH, uniform marginals", {"guidance.gh_uniform": True}),
    }
)


def build_guidance(
    config: Config,
    n: int,
    labels: Int64[Tensor, "n"] | None = None,
    device: str | torch.device = "cpu",
    generator: torch.Generator | None = None,
    groups: Int64[Tensor, "n"] | None = None,
) -> Guidance:
    """Build the guidance of `config.method` for n images; true `labels` are used by guidance.labels=oracle only.

    `groups` [n]: 0 head, 1 mid, 2 tail, of the true classes. `generator` serves the clustering. Raises ConfigError for
    an oracle without labels and more clusters than images.
    """
    return config.guidance_class(
        n,
        options=config.guidance,
        labels=labels if config.guidance.labels == "oracle" else None,
        groups=groups,
        epochs=config.optim.epochs,
        device=device,
        generator=generator,
    )
