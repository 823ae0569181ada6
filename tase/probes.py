"""Measure features: linear probes, neighbours, SVMs, scores by group, the geometry of the space.

No network is trained here, linear layers are. Features [n, d] and classes [n] come in, predictions and numbers go out:
the training loop may call the k-NN while it runs. Classes are numbered 0..C-1, in `tase.evaluation` the evaluated ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from .data import GROUPS, rank_in_class
from .models import resized

# Strength of the L2 penalty, strongest first, half a decade a step. Features are scaled so that one image has about
# unit norm; on digits, Fashion-MNIST, and untrained networks the best lies between 1e-3 and 1e-6.
GRID = tuple(10 ** (-i / 2) for i in range(15))
GRID_PATIENCE = 4  # steps down the grid without a better validation accuracy, after which it is left


# -------------------------------------------------------------------------------------------------- logistic regression


class Probe(NamedTuple):
    """Predictions on the judged images, and what was chosen to make them."""

    predicted: Int64[Tensor, "m"]
    l2: float  # the penalty chosen
    validation: float  # its validation accuracy in %, mean over classes (NaN: nothing could be held out)


class Linear(NamedTuple):
    """A linear classifier: scores are x @ weight + bias."""

    weight: Float[Tensor, "d C"]
    bias: Float[Tensor, "C"]

    def predict(self, x: Float[Tensor, "n d"]) -> Int64[Tensor, "n"]:
        return (x @ self.weight + self.bias).argmax(1)


def fit_logistic(
    x: Float[Tensor, "n d"],
    y: Int64[Tensor, "n"],
    classes: int,
    l2: float,
    start: Linear | None = None,
    tolerance: float = 1e-5,
    max_iter: int = 200,
) -> Linear:
    """Fit multinomial logistic regression: the minimum of mean cross-entropy + l2/2 |W|^2, by full-batch L-BFGS.

    The bias carries no penalty, so this is scikit-learn's `LogisticRegression(C=1/(n l2))`. `start` is a warm start,
    `tolerance` bounds the largest entry of the gradient. Dtype and device are those of `x`.
    """
    target = F.one_hot(y, classes).to(x.dtype)
    theta = x.new_zeros(x.shape[1] + 1, classes)  # the last row is the bias
    if start is not None:
        theta.copy_(torch.cat([start.weight, start.bias[None]]))
    optimiser = torch.optim.LBFGS(
        [theta],
        max_iter=max_iter,
        history_size=10,
        tolerance_grad=tolerance,
        tolerance_change=0.01 * tolerance**2,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        # The gradient by hand, X^T (p - y) / n + l2 W: quicker than autograd at these sizes, and works under no_grad.
        log_p = torch.log_softmax(x @ theta[:-1] + theta[-1], dim=1)
        error = (log_p.exp() - target) / len(x)
        theta.grad = torch.cat([x.T @ error + l2 * theta[:-1], error.sum(0, keepdim=True)])
        return l2 / 2 * theta[:-1].square().sum() - (log_p * target).sum() / len(x)

    optimiser.step(objective)
    return Linear(theta[:-1], theta[-1])


def standardise(train: Float[Tensor, "n d"], *others: Float[Tensor, "m d"]) -> list[Float[Tensor, "m d"]]:
    """Subtract the training mean from each set, divide each feature by its training deviation and by sqrt(d).

    An image then has about unit norm, so one grid of penalties serves any backbone. Deviations below a thousandth of
    the largest are raised to it: what is constant in training stays small elsewhere.
    """
    mean, deviation = train.mean(0), train.std(0, correction=0)
    scale = deviation.clamp_min(1e-3 * deviation.max().clamp_min(1e-12)) * math.sqrt(train.shape[1])
    return [(x - mean) / scale for x in (train, *others)]


def held_out(y: Int64[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """Mark a fixed validation part: the last fifth of each class in list order, at least one of two or more."""
    counts = torch.bincount(y)[y]
    held = (counts * 0.2).long().clamp_min(1) * (counts > 1)
    return rank_in_class(y) >= counts - held


def linear_probe(
    train_x: Float[Tensor, "n d"],
    train_y: Int64[Tensor, "n"],
    val_x: Float[Tensor, "v d"] | None,
    val_y: Int64[Tensor, "v"] | None,
    judged_x: Float[Tensor, "m d"],
    classes: int,
    grid: Sequence[float] = GRID,
) -> Probe:
    """Fit logistic regression on standardised features, its penalty picked on validation images, and predict.

    The penalty goes down the grid, each fit started from the one before, until `GRID_PATIENCE` bring nothing; the best
    validation accuracy (mean over classes) wins, ties go to the stronger penalty. The classifier is fitted on the
    training images alone, the validation images only choose, and the judged images are used once. Without validation
    images a fixed fifth of the training images chooses, and the classifier is then fitted on all of them.
    """
    if val_x is not None and val_y is not None:
        train_x, val_x, judged_x = standardise(train_x, val_x, judged_x)
        model, l2, best = _best_of_path(train_x, train_y, val_x, val_y, classes, grid)
        return Probe(model.predict(judged_x), l2, best)
    out = held_out(train_y)
    l2, best = grid[len(grid) // 2], math.nan  # where every class has one image nothing can be held out
    if out.any():
        fit_x, held_x = standardise(train_x[~out], train_x[out])
        _, l2, best = _best_of_path(fit_x, train_y[~out], held_x, train_y[out], classes, grid)
    train_x, judged_x = standardise(train_x, judged_x)  # the held-out images are trained on too
    return Probe(fit_logistic(train_x, train_y, classes, l2).predict(judged_x), l2, best)


def _best_of_path(x, y, val_x, val_y, classes: int, grid: Sequence[float]) -> tuple[Linear, float, float]:
    """Go down the grid; return the best classifier, its penalty and its validation accuracy."""
    model, chosen, best, since = None, None, -1.0, 0
    for l2 in grid:
        model = fit_logistic(x, y, classes, l2, start=model)  # warm start: neighbours on the path are close
        accuracy = mean_accuracy(model.predict(val_x), val_y, classes)
        since += 1
        if accuracy > best:
            chosen, best, since = (model, l2), accuracy, 0
        if since >= GRID_PATIENCE:
            break
    return *chosen, best


# ------------------------------------------------------------------------------------------- neighbours and linear SVMs


@torch.no_grad()
def knn_classes(
    train_x: Float[Tensor, "n d"],
    train_y: Int64[Tensor, "n"],
    judged_x: Float[Tensor, "m d"],
    k: int,
    chunk: int = 1024,
) -> Int64[Tensor, "m"]:
    """Vote among the k nearest training images (cosine; every vote counts the same), on the features' device.

    Ties go to the tied class that has the nearest neighbour; more neighbours than training images means all of them.
    `chunk` judged images are compared at a time. (Protocol `lt-knn` of Kukleva et al., arXiv 2303.13664.)
    """
    k, classes = min(k, len(train_x)), int(train_y.max()) + 1
    bank = F.normalize(train_x.float(), dim=1)
    # A vote is worth 1; the nearest adds up to k/(k+1) < 1, the farthest 1/(k+1), which only decides ties.
    nearness = torch.arange(k, 0, -1, device=bank.device) / (k + 1)
    predicted = []
    for part in judged_x.split(chunk):
        # Classes of the k nearest, nearest first: [chunk, k].
        near = train_y[(F.normalize(part.float(), dim=1) @ bank.T).topk(k, dim=1).indices]
        votes = bank.new_zeros(len(part), classes).scatter_add_(1, near, bank.new_ones(near.shape))
        bonus = torch.zeros_like(votes).scatter_reduce_(1, near, nearness.expand(near.shape), "amax")
        predicted.append((votes + bonus).argmax(1))
    return torch.cat(predicted)


def svm_classes(
    train_x: Float[Tensor, "n d"], train_y: Int64[Tensor, "n"], judged_x: Float[Tensor, "m d"]
) -> Int64[Tensor, "m"]:
    """Classify by scikit-learn's LinearSVC (C = 1) on the L2-normalised features of all training images (CPU).

    Of one class alone there is nothing to learn: all are of it.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    if len(train_y.unique()) == 1:
        return train_y[:1].to(judged_x.device).expand(len(judged_x))
    train, judged = (F.normalize(x.float(), dim=1).cpu().numpy() for x in (train_x, judged_x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LinearSVC(C=1.0, dual="auto", random_state=0).fit(train, train_y.cpu().numpy())
    return torch.from_numpy(model.predict(judged)).to(judged_x.device)


def balanced_subset(y: Int64[Tensor, "n"], generator: torch.Generator) -> Int64[Tensor, "s"]:
    """Draw indices with as many images of every present class as the rarest has, by `generator` (on the CPU)."""
    counts = torch.bincount(y)
    order = torch.randperm(len(y), generator=generator).to(y.device)
    return order[rank_in_class(y[order]) < counts[counts > 0].min()]


def knn_accuracy(
    train_x: Float[Tensor, "n d"],
    train_y: Int64[Tensor, "n"],
    test_x: Float[Tensor, "m d"],
    test_y: Int64[Tensor, "m"],
    eval_classes: Int64[Tensor, "e"],
    k: int = 1,
) -> float:
    """Measure the accuracy of `knn_classes` in %, mean over the evaluated classes: the training loop's monitor."""
    train_y, test_y = renumbered(train_y, eval_classes), renumbered(test_y, eval_classes)
    train, test = train_y >= 0, test_y >= 0
    predicted = knn_classes(train_x[train], train_y[train], test_x[test], k)
    return mean_accuracy(predicted, test_y[test], len(eval_classes))


# ------------------------------------------------------------------------------------------ SDCLR's linear layer by SGD

SGD_LR, SGD_MOMENTUM, SGD_BATCH = 30.0, 0.9, 128
SGD_PADDING = 8  # random shifts go up to an eighth of the side: 4 of 32 pixels
SGD_FULL = (30, (10, 20))  # epochs, and those after which the learning rate drops to a tenth
SGD_FEW = (100, (40, 60))


def sgd_probe(
    backbone: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    y: Int64[Tensor, "n"],
    val_x: Float[Tensor, "v d"],
    val_y: Int64[Tensor, "v"],
    judged_x: Float[Tensor, "m d"],
    classes: int,
    schedule: tuple[int, tuple[int, ...]],
    generator: torch.Generator,
    size: int = 0,
    flip: bool = True,
) -> tuple[Int64[Tensor, "m"], int]:
    """Train a linear layer on the frozen backbone's features of augmented images, and predict the judged ones.

    Returns classes [m] by the epoch that is best on validation (the first such), and that epoch. Learning rate 30,
    momentum 0.9, batch 128, `pad_crop_flip`. (Jiang et al. 2021, arXiv 2106.02990; the field's older protocol, slower
    and less certain than `linear_probe`.)
    """
    epochs, drops = schedule
    weight = 0.01 * torch.randn(judged_x.shape[1], classes, generator=generator, device=judged_x.device)
    layer = Linear(weight.requires_grad_(), torch.zeros_like(weight[0]).requires_grad_())
    optimiser = torch.optim.SGD(layer, SGD_LR, SGD_MOMENTUM)
    best, chosen, epoch_chosen = -1.0, None, 0
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = SGD_LR * 0.1 ** sum(epoch >= drop for drop in drops)
        for index in torch.randperm(len(y), generator=generator, device=y.device).split(SGD_BATCH):
            x = resized(images[index.to(images.device)].to(y.device), size)
            with torch.no_grad():
                x = backbone(pad_crop_flip(x, flip, generator)).float()  # [b, d]
            with torch.enable_grad():
                loss = F.cross_entropy(x @ layer.weight + layer.bias, y[index])
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
        with torch.no_grad():
            accuracy = mean_accuracy(layer.predict(val_x), val_y, classes)
            if accuracy > best:
                best, chosen, epoch_chosen = accuracy, layer.predict(judged_x), epoch + 1
    return chosen, epoch_chosen


def pad_crop_flip(x: Float[Tensor, "b c s s"], flip: bool, generator: torch.Generator) -> Float[Tensor, "b c s s"]:
    """Shift each image by up to an eighth of its side (4 of 32 pixels) into black; mirror half of them if `flip`."""
    b, _, height, width = x.shape
    border = max(1, round(min(height, width) / SGD_PADDING))
    shift = torch.randint(2 * border + 1, (2, b, 1), generator=generator, device=x.device)
    mirrored = (torch.rand(b, 1, generator=generator, device=x.device) < 0.5) & flip
    row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    column = torch.where(mirrored, width - 1 - column, column)
    image = torch.arange(b, device=x.device)[:, None, None]
    row, column = (row + shift[0])[:, :, None], (column + shift[1])[:, None, :]  # [b, h, 1], [b, 1, w]
    # Indices around the slice put the channels last.
    return F.pad(x, (border,) * 4)[image, :, row, column].permute(0, 3, 1, 2).contiguous()


# --------------------------------------------------------------------------------------------------------------- scores


def renumbered(y: Int64[Tensor, "n"], eval_classes: Int64[Tensor, "e"]) -> Int64[Tensor, "n"]:
    """Number class ids by their place in `eval_classes` (0..e-1); -1 for classes that are not evaluated."""
    place = torch.full((max(int(y.max()), int(eval_classes.max())) + 1,), -1, dtype=torch.int64, device=y.device)
    place[eval_classes.to(y.device)] = torch.arange(len(eval_classes), device=y.device)
    return place[y]


def class_accuracies(predicted: Int64[Tensor, "m"], y: Int64[Tensor, "m"], classes: int) -> Float[Tensor, "C"]:
    """Count the images of each class that are predicted right, in % (float64, CPU); NaN for a class without images."""
    right = torch.bincount(y[predicted == y], minlength=classes)
    return (100 * right.double() / torch.bincount(y, minlength=classes).double()).cpu()


def mean_accuracy(predicted: Int64[Tensor, "m"], y: Int64[Tensor, "m"], classes: int) -> float:
    """Average the accuracies per class in %, over the classes that have images."""
    return float(class_accuracies(predicted, y, classes).nanmean())


def group_scores(per_class: Float[Tensor, "C"], groups: Int64[Tensor, "C"]) -> dict[str, float | None]:
    """Compute the field's scores from the accuracies per class (in %; NaN: not evaluated) and their groups (0, 1, 2).

    all: mean over classes; head, mid, tail: mean over the group's classes; std: population standard deviation of the
    three group accuracies; std_classes, range_classes: the same and max - min over classes (the paper's Figure 1).
    A group without an evaluated class is None, and so is then std.
    """
    there = ~per_class.isnan()
    values, groups = per_class[there].double(), groups.to(per_class.device)[there]
    if not len(values):
        return dict.fromkeys(("all", *GROUPS, "std", "std_classes", "range_classes"))
    means = [float(values[groups == g].mean()) if (groups == g).any() else None for g in range(3)]
    return {
        "all": float(values.mean()),
        **dict(zip(GROUPS, means, strict=True)),
        "std": None if None in means else float(torch.tensor(means, dtype=torch.float64).std(correction=0)),
        "std_classes": float(values.std(correction=0)),
        "range_classes": float(values.max() - values.min()),
    }


# ------------------------------------------------------------------------------------------------ geometry of the space


def _angles(h: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    return torch.rad2deg((h @ h.T).clamp(-1, 1).acos())


def mean_angle(h: Float[Tensor, "n d"]) -> float:
    """Average the angle in degrees over the pairs of n unit vectors; NaN below two."""
    n = len(h)
    return float(_angles(h).fill_diagonal_(0).sum() / (n * (n - 1))) if n > 1 else math.nan


def _variation(values: Float[Tensor, "n"]) -> float:
    """Divide the population standard deviation by the mean; NaN entries are left out."""
    values = values[~values.isnan()]
    return float(values.std(correction=0) / values.mean()) if len(values) else math.nan


@torch.no_grad()
def space_geometry(features: Float[Tensor, "n d"], y: Int64[Tensor, "n"], classes: int) -> dict[str, Any]:
    """Measure the space that each class occupies, how far apart the classes are, and how even both are (Figure 2).

    Features are centred and brought to unit length as for the clustering, equation (3): after a ReLU all of them share
    one direction, which says nothing about classes. spread [C]: mean pairwise angle within the class (of at most its
    first 2000 images); centre_angle [C]: mean angle from its centre to the other centres, both in degrees;
    cv_spread over classes and cv_centres over pairs of centres: coefficients of variation (0: even); uniformity.
    NaN for a class without images (a spread needs two).
    """
    h = F.normalize((features - features.mean(0)).double(), dim=1)
    present = torch.bincount(y, minlength=classes) > 0
    # Angles between class centres [C, C]; NaN where there is nothing to measure, so that nanmean leaves it out.
    sums = h.new_zeros(classes, h.shape[1]).index_add_(0, y, h)
    angles = _angles(F.normalize(sums, dim=1)).fill_diagonal_(math.nan)
    angles[~present], angles[:, ~present] = math.nan, math.nan
    spread = torch.tensor([mean_angle(h[y == c][:2000]) for c in range(classes)])
    return {
        "spread": spread.tolist(),
        "centre_angle": angles.nanmean(1).tolist(),
        "cv_spread": _variation(spread),
        "cv_centres": _variation(angles[tuple(torch.triu_indices(classes, classes, 1))]),
        "uniformity": uniformity(features),
    }


def alignment(view1: Float[Tensor, "n d"], view2: Float[Tensor, "n d"]) -> float:
    """Average the squared distance of two views' unit features, 0 to 4 (Wang & Isola, arXiv 2005.10242)."""
    return float((F.normalize(view1, dim=1) - F.normalize(view2, dim=1)).square().sum(1).mean())


def uniformity(features: Float[Tensor, "n d"]) -> float:
    """Compute log mean exp(-2 |f - g|^2) over pairs of unit features, 0 (a point) to -4 (Wang & Isola 2020).

    Of more than 4000 images an even stride is taken. Features are not centred here: the definition is kept.
    """
    step = -(-len(features) // 4000)
    h = F.normalize(features[::step].float(), dim=1)
    n = len(h)
    if n < 2:
        return math.nan
    closeness = (4 * (h @ h.T - 1)).fill_diagonal_(-math.inf)  # -2 |f - g|^2 of unit vectors
    return float(closeness.double().logsumexp((0, 1)) - math.log(n * (n - 1)))


def anchor_push(
    positive: Float[Tensor, "2b"],
    logsumexp: Float[Tensor, "2b"],
    tau: Float[Tensor, "b"],
    weight: Float[Tensor, "b"],
    scale: Float[Tensor, "b"] | None = None,
) -> Float[Tensor, "b"]:
    """Sum the push of each image's two anchors on their negatives, (w_i / sum w) c_i (1 - p_up) / tau_i, c the scale.

    `positive` holds the similarities s_up, `logsumexp` the log of sum_v exp(s_uv / tau), of view 1 then of view 2.
    """
    both_tau, both_weight = tau.repeat(2), weight.repeat(2)
    p = (positive / both_tau - logsumexp).exp()  # softmax probability of the positive
    push = (both_weight / both_weight.sum() * (1 - p) / both_tau).view(2, -1).sum(0)
    return push if scale is None else push * scale


def class_shares(push: Float[Tensor, "n"], y: Int64[Tensor, "n"], classes: int) -> Float[Tensor, "C"]:
    """Divide the sum of `push` over all images among the classes; the fractions sum to 1."""
    total = push.new_zeros(classes).index_add_(0, y, push)
    return total / total.sum()
