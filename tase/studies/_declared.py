"""The declared studies, and the published figures that are printed beside ours."""

from __future__ import annotations

from typing import NamedTuple

from ..config import ESTIMATORS
from ._grid import BALANCED, CONTROLS, SIMCLR, Study, Times, cross, methods, over

_PAIR = {**CONTROLS, **methods("tase")}  # what shows whether a gain depends on a setting
_SIMCLR = methods(SIMCLR)
_TAUS = (0.1, 0.2, 0.5)

_ALL = (
    Study(
        "six-benchmarks",
        "Does TASE help on the benchmarks of the paper, against the methods that move temperatures?",
        rows={**_PAIR, **methods("ts", "mm-ts", "isogclr-tau", "shuffled", "oracle")},
        reference=SIMCLR,
        presets=("cifar10-lt", "cifar100-lt", "imagenet100-lt"),
        protocols=("linear", "few-shot"),
    ),
    Study(
        "constant-tau",
        "Which constant temperature is best for SimCLR? A fair baseline is a tuned one.",
        rows=over("guidance.tau_0", 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
        extras={BALANCED: CONTROLS[BALANCED]},
        base={"method": SIMCLR},
        reference="tau_0=0.2",
        figure="curve",
    ),
    Study(
        "group-tau",
        "Which temperature is best for whom? True groups, temperature only, mid at 0.2.",
        rows={
            f"head {tau}": {"method": "oracle", "guidance.gamma": 0.0, "guidance.group_tau": (tau,)} for tau in _TAUS
        },
        columns={f"tail {tau}": {"guidance.group_tau": (0.2, tau)} for tau in _TAUS},
        extras=CONTROLS,
        reference="head 0.2",
        reference_column="tail 0.2",
        figure="heat",
    ),
    Study(
        "ablation",
        "Temperature, weight, or both: what helps, how near is it to true labels, and is it the guidance at all?",
        rows={
            **CONTROLS,
            **methods("tase-tau", "tase-weight", "tase"),
            "tase, scale_by_tau": {"method": "tase", "guidance.scale_by_tau": True},
            **methods("shuffled", "reversed", "oracle"),
        },
        reference=SIMCLR,
    ),
    Study(
        "tau-range",
        "How wide should the range of temperatures be?",
        rows=over("guidance.tau_min", 0.07, 0.1),
        columns=over("guidance.tau_max", 0.2, 0.5, 1.0),
        extras=_SIMCLR,
        reference=SIMCLR,
        figure="heat",
    ),
    Study(
        "clusters",
        "Which clusters and which estimator of quantity follow the true class sizes best?",
        rows={
            **cross(
                {name: {"guidance.estimator": name} for name in ESTIMATORS},
                {space: {"guidance.space": space, "guidance.memory": 0.7} for space in ("centred", "sqrt")},
            ),
            "merged, sqrt, hard": {
                "guidance.estimator": "merged",
                "guidance.space": "sqrt",
                "guidance.memory": 0.7,
                "guidance.assignment_confidence": 1.0,
            },
            "merged, sqrt, no memory": {
                "guidance.estimator": "merged",
                "guidance.space": "sqrt",
                "guidance.memory": 0.0,
            },
        },
        columns=over("guidance.clusters", 10, 30, 100),
        base={"method": SIMCLR},
        reference="size, centred",
        protocols=(),
        figure="heat",
        on_features=True,
    ),
    Study(
        "gamma",
        "How strong should the weights be, alone and beside the temperatures?",
        rows=methods("tase", "tase-weight"),
        columns=over("guidance.gamma", 0.0, 0.25, 0.5, 1.0),
        extras=_SIMCLR,
        reference=SIMCLR,
        figure="curve",
    ),
    Study(
        "imbalance",
        "Does the gain grow with the imbalance, as the harm of the long tail does?",
        rows=_PAIR,
        columns=over("data.rho", 10, 50, 100, 200),
        reference=SIMCLR,
        figure="curve",
    ),
    Study(
        "schedule",
        "How long should the guidance wait, and how often should it look again?",
        rows=over("guidance.warmup", 0.0, 0.1, 0.2, 0.4),
        columns=over("guidance.refresh", 5, 10, 20, 40),
        extras=_SIMCLR,
        reference=SIMCLR,
        figure="heat",
    ),
    Study(
        "label-noise",
        "How much of the gain is left when a share of the pseudo-labels is wrong?",
        rows=methods("tase", "oracle"),
        columns=over("guidance.label_noise", 0.0, 0.1, 0.25, 0.5, 1.0),
        extras=_SIMCLR,
        reference=SIMCLR,
        figure="curve",
    ),
    Study(
        "epochs-batch",
        "Does the gain outlive longer training and other batches (learning rate in proportion)?",
        rows=_PAIR,
        columns={
            f"epochs x{epochs:g}, batch x{batch:g}": {
                "optim.epochs": Times(epochs),
                "optim.batch": Times(batch),
                "optim.lr": Times(batch),
            }
            for epochs in (0.5, 1, 2)
            for batch in (0.5, 1, 2)
        },
        reference=SIMCLR,
    ),
    Study(
        "backbone",
        "Does the gain depend on the network?",
        rows=_PAIR,
        columns={
            "conv4": {"model.backbone": "conv4"},
            "conv4, twice as wide": {"model.backbone": "conv4", "model.channels": Times(2)},
            "resnet18": {"model.backbone": "resnet18"},
            "resnet50": {"model.backbone": "resnet50"},
        },
        reference=SIMCLR,
    ),
)

STUDIES: dict[str, Study] = {study.name: study for study in _ALL}


class Published(NamedTuple):
    """A figure that others have published, under their own protocol, on one run unless the source says otherwise."""

    preset: str
    method: str
    protocol: str
    value: float  # accuracy in %
    source: str


_BCL = "BCL's README, CIFAR100-LT split 1; cached features, Adam 500 epochs"
_TS = "TS's notebooks, split 1"
_BCL_FIGURES = {
    "SimCLR": (50.7, 46.3, 42.4),
    "SDCLR": (55.0, 49.7, 45.6),
    "BCL-I": (55.7, 50.1, 45.8),
    "BCL-D": (58.7, 52.6, 48.7),
}
_TS_FIGURES = {
    "cifar10-lt": (61.21, 61.20, 71.49, 62.92),
    "cifar100-lt": (29.12, 28.11, 27.02, 32.29),
    "imagenet100-lt": (38.38, 38.98, 45.18, 47.26),
}
_DKOBAK = "dkobak/simclr-cifar10, balanced CIFAR-10 of 50,000 images, 1000 epochs, batch 512, tau 0.5"
_LIGHTLY = "lightly's documentation, balanced CIFAR-10 of 50,000 images, ResNet-18, batch 512, 200 epochs"

PUBLISHED: tuple[Published, ...] = (
    *(
        Published("cifar100-lt", method, protocol, value, _BCL)
        for method, values in _BCL_FIGURES.items()
        for protocol, value in zip(("full", "100-shot", "50-shot"), values)
    ),
    *(
        Published(preset, "SimCLR+TS", protocol, value, _TS)
        for preset, values in _TS_FIGURES.items()
        for protocol, value in zip(("kNN@1", "kNN@10", "FS", "LT"), values)
    ),
    Published("cifar10-lt", "SimCLR, balanced", "kNN", 84.8, _LIGHTLY),
    Published("cifar10-lt", "SimCLR, balanced", "kNN10 cosine", 91.4, _DKOBAK),
    Published("cifar10-lt", "SimCLR, balanced", "linear (lowest of 3 runs)", 91.7, _DKOBAK),
    Published("cifar10-lt", "SimCLR, balanced", "linear (highest of 3 runs)", 91.9, _DKOBAK),
)
