"""Probes against scikit-learn and hand-made cases; scores, geometry and statistics against values by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tase import probes, tables


def blobs(counts, d=8, spread=0.6, seed=0):
    """Gaussian classes around random centres: features [n, d], classes [n], in shuffled order."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(counts), d, generator=torch.Generator().manual_seed(99))
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    x = centres[y] + spread * torch.randn(len(y), d, generator=g)
    order = torch.randperm(len(y), generator=g)
    return x[order], y[order]


# -------------------------------------------------------------------------------------------------- logistic regression


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_logistic_regression_is_scikit_learns(l2):
    from sklearn.linear_model import LogisticRegression

    x, y = blobs([60, 40, 30, 20], spread=1.5)
    x = x.double()
    ours = probes.fit_logistic(x, y, 4, l2, tolerance=1e-9, max_iter=2000)
    theirs = LogisticRegression(C=1 / (len(x) * l2), tol=1e-10, max_iter=10000, solver="newton-cg").fit(
        x.numpy(), y.numpy()
    )
    np.testing.assert_allclose(ours.weight.T.numpy(), theirs.coef_, atol=1e-5)
    # Scores see the bias only up to a constant over classes.
    np.testing.assert_allclose(
        (ours.bias - ours.bias.mean()).numpy(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-5
    )


def test_float32_gives_the_predictions_of_float64_and_a_warm_start_the_same_optimum():
    x, y = blobs([100] * 5, d=16, spread=1.5)
    exact = probes.fit_logistic(x.double(), y, 5, 1e-3, tolerance=1e-9, max_iter=2000)
    quick = probes.fit_logistic(x, y, 5, 1e-3)
    start = probes.fit_logistic(x, y, 5, 1e-1)
    warm = probes.fit_logistic(x, y, 5, 1e-3, start=start)
    assert (quick.predict(x) == exact.predict(x.double())).float().mean() > 0.995
    torch.testing.assert_close(warm.weight, exact.weight.float(), atol=5e-3, rtol=0)
    assert start.weight.norm() < warm.weight.norm()  # the start itself is left alone


def test_linear_works_inside_no_grad():
    x, y = blobs([20] * 3)
    with torch.no_grad():
        assert (probes.linear_probe(x, y, x, y, x, 3).predicted == y).float().mean() > 0.95


def test_penalty_is_picked_on_validation_and_ties_go_to_the_stronger():
    x, y = blobs([50] * 4, spread=0.01)  # every penalty is perfect
    probe = probes.linear_probe(x, y, x, y, x, 4, grid=(1e-1, 1e-2, 1e-3))
    assert probe.l2 == 1e-1 and probe.validation == 100
    noisy_x, noisy_y = blobs([12] * 4, d=60, spread=3.0)
    val_x, val_y = blobs([200] * 4, d=60, spread=3.0, seed=1)
    test_x, test_y = blobs([500] * 4, d=60, spread=3.0, seed=2)
    picked = probes.linear_probe(noisy_x, noisy_y, val_x, val_y, test_x, 4)
    train, val = probes.standardise(noisy_x, val_x)
    by_hand = {
        l2: probes.mean_accuracy(probes.fit_logistic(train, noisy_y, 4, l2).predict(val), val_y, 4)
        for l2 in probes.GRID
    }
    assert picked.validation == pytest.approx(max(by_hand.values()), abs=1.0)
    assert probes.mean_accuracy(picked.predicted, test_y, 4) > 40


def test_test_images_do_not_choose():
    x, y = blobs([30] * 3, spread=1.0)
    val_x, val_y = blobs([30] * 3, spread=1.0, seed=1)
    one = probes.linear_probe(x, y, val_x, val_y, x, 3)
    other = probes.linear_probe(
        x, y, val_x, val_y, 100 * torch.randn(7, 8, generator=torch.Generator().manual_seed(0)), 3
    )
    assert (one.l2, one.validation) == (other.l2, other.validation)


def test_without_validation_a_fixed_fifth_of_each_class_is_held_out():
    y = torch.tensor([0, 1, 0, 0, 1, 0, 0, 2])
    assert probes.held_out(y).tolist() == [False, False, False, False, True, False, True, False]
    x, y = blobs([25, 25, 25], spread=0.3)
    probe = probes.linear_probe(x, y, None, None, x, 3)
    assert probe.validation > 95 and (probe.predicted == y).float().mean() > 0.95
    single = torch.eye(3)  # one label per class: nothing to choose with, still a classifier
    probe = probes.linear_probe(single, torch.arange(3), None, None, single, 3)
    assert math.isnan(probe.validation) and probe.predicted.tolist() == [0, 1, 2]


def test_standardised_features_have_unit_norm_and_dead_ones_stay_small():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=g) * torch.tensor([1, 10, 100, 1, 1, 0.0]) + 3
    z, other = probes.standardise(x, x + torch.tensor([0, 0, 0, 0, 0, 1.0]))
    assert float(z.square().sum(1).mean()) == pytest.approx(5 / 6, rel=1e-3)
    assert torch.isfinite(z).all() and float(z[:, 5].abs().max()) == 0
    assert float(other[:, 5].abs().max()) < 5


# --------------------------------------------------------------------------------------------------- neighbours and SVM


def test_nearest_neighbours_against_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    x, y = blobs([50, 30, 10], spread=1.5)
    test, _ = blobs([20, 20, 20], spread=1.5, seed=1)
    for k in (1, 3):
        theirs = KNeighborsClassifier(k, metric="cosine").fit(x.numpy(), y.numpy()).predict(test.numpy())
        ours = probes.knn_classes(x, y, test, k, chunk=7).numpy()
        if k == 1:
            np.testing.assert_array_equal(ours, theirs)
        assert (ours == theirs).mean() > 0.85  # k = 3: they break ties by class number


def test_neighbour_ties_go_to_the_nearest_and_votes_count_the_same():
    angles = torch.tensor([1.0, 2.0, 3.0, 4.0]).deg2rad()
    bank = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor(
        [[1.0], [5.0], [0.1], [2.0]]
    )  # lengths do not count
    query = torch.tensor([[1.0, 0.0]])
    assert probes.knn_classes(bank, torch.tensor([2, 0, 0, 2]), query, 1).item() == 2
    assert probes.knn_classes(bank, torch.tensor([2, 0, 0, 1]), query, 3).item() == 0
    assert probes.knn_classes(bank, torch.tensor([2, 0, 0, 2]), query, 4).item() == 2
    assert probes.knn_classes(bank, torch.tensor([1, 0, 0, 1]), query, 99).item() == 1  # more than there are: all


def test_monitor_counts_evaluated_classes_only():
    x, y = blobs([30, 30, 3], spread=0.1)
    ids = torch.tensor([5, 7, 9])[y]
    assert probes.knn_accuracy(x, ids, x, ids, torch.tensor([5, 7]), k=1) == 100
    assert probes.renumbered(ids[:0].new_tensor([9, 5, 7]), torch.tensor([7, 9])).tolist() == [1, -1, 0]


def test_balanced_subset_and_svms():
    x, y = blobs([60, 30, 6], spread=0.3)
    index = probes.balanced_subset(y, torch.Generator().manual_seed(0))
    assert torch.bincount(y[index]).tolist() == [6, 6, 6] and len(index.unique()) == 18
    assert torch.equal(index, probes.balanced_subset(y, torch.Generator().manual_seed(0)))
    assert (probes.svm_classes(x, y, x) == y).float().mean() > 0.95
    assert (probes.svm_classes(x[index], y[index], x) == y).float().mean() > 0.9
    assert probes.svm_classes(x[y == 2], y[y == 2], x[:4]).tolist() == [2] * 4


# --------------------------------------------------------------------------------------------------------------- scores


def test_accuracy_per_class_by_hand():
    y, predicted = torch.tensor([0, 0, 0, 0, 1, 1, 3]), torch.tensor([0, 0, 0, 1, 1, 0, 3])
    accuracy = probes.class_accuracies(predicted, y, 4)
    assert accuracy[[0, 1, 3]].tolist() == [75, 50, 100] and accuracy[2].isnan()
    assert probes.mean_accuracy(predicted, y, 4) == 75


def test_group_scores_by_hand():
    scores = probes.group_scores(torch.tensor([90.0, 80, 70, 50, 40, 30]), torch.tensor([0, 0, 0, 1, 1, 2]))
    assert (scores["all"], scores["head"], scores["mid"], scores["tail"]) == (60, 80, 45, 30)
    assert scores["std"] == pytest.approx(np.std([80, 45, 30]))
    assert scores["std_classes"] == pytest.approx(np.std([90, 80, 70, 50, 40, 30]))
    assert scores["range_classes"] == 60


def test_group_scores_leave_out_what_was_not_evaluated():
    scores = probes.group_scores(torch.tensor([90.0, math.nan, 70, math.nan]), torch.tensor([0, 0, 1, 2]))
    assert (scores["all"], scores["head"], scores["mid"]) == (80, 90, 70)
    assert scores["tail"] is None and scores["std"] is None and scores["range_classes"] == 20
    assert set(probes.group_scores(torch.tensor([math.nan]), torch.tensor([0])).values()) == {None}


# ------------------------------------------------------------------------------------------------------------- geometry


def test_geometry_of_a_square_by_hand():
    # Four classes at 0, 90, 180, 270 degrees, each two points 2a apart: mean 0, so centring changes nothing.
    a, middle = 10.0, torch.tensor([0.0, 90, 180, 270])
    angle = torch.stack([middle - a, middle + a], 1).flatten().deg2rad()
    x, y = torch.stack([angle.cos(), angle.sin()], 1), torch.arange(4).repeat_interleave(2)
    measured = probes.space_geometry(x, y, 4)
    assert measured["spread"] == pytest.approx([20.0] * 4, abs=1e-3)
    assert measured["centre_angle"] == pytest.approx([120.0] * 4, abs=1e-3)
    assert measured["cv_spread"] == pytest.approx(0, abs=1e-5)
    assert measured["cv_centres"] == pytest.approx(np.std([90, 90, 90, 90, 180, 180]) / 120, abs=1e-5)


def test_geometry_is_blind_to_a_shift_and_leaves_out_absent_classes():
    x, y = blobs([30, 30, 30, 1], spread=0.5)
    plain, shifted = probes.space_geometry(x, y, 5), probes.space_geometry(x + 7, y, 5)
    assert plain["spread"][:3] == pytest.approx(shifted["spread"][:3], abs=1e-2)
    assert math.isnan(plain["spread"][3]) and math.isnan(plain["spread"][4])
    assert math.isnan(plain["centre_angle"][4]) and not math.isnan(plain["centre_angle"][3])
    assert math.isfinite(plain["cv_spread"]) and math.isfinite(plain["cv_centres"])


def test_mean_angle_by_hand():
    assert probes.mean_angle(torch.eye(3)) == pytest.approx(90, abs=1e-4)
    assert math.isnan(probes.mean_angle(torch.eye(3)[:1]))


def test_alignment_and_uniformity_by_their_definitions():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 6, generator=g), torch.randn(50, 6, generator=g)
    ha, hb = F.normalize(a.double(), dim=1), F.normalize(b.double(), dim=1)
    assert probes.alignment(a, b) == pytest.approx(float((ha - hb).norm(dim=1).pow(2).mean()), rel=1e-5)
    assert probes.alignment(a, 3 * a) == pytest.approx(0, abs=1e-9)
    by_definition = float(torch.pdist(ha).pow(2).mul(-2).exp().mean().log())
    assert probes.uniformity(a) == pytest.approx(by_definition, rel=1e-5)
    assert probes.uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-5)


def test_push_of_anchors_by_a_double_loop():
    g = torch.Generator().manual_seed(0)
    b = 6
    z = F.normalize(torch.randn(2 * b, 4, generator=g, dtype=torch.float64), dim=1)
    tau = torch.linspace(0.1, 0.5, b, dtype=torch.float64)
    weight = torch.linspace(2, 0.5, b, dtype=torch.float64)
    similarity = z @ z.T
    expected, positive, lse = (torch.zeros(m, dtype=torch.float64) for m in (b, 2 * b, 2 * b))
    for u in range(2 * b):
        i, p = u % b, (u + b) % (2 * b)
        others = [v for v in range(2 * b) if v != u]
        e = [math.exp(float(similarity[u, v] / tau[i])) for v in others]
        share = math.exp(float(similarity[u, p] / tau[i])) / sum(e)
        expected[i] += weight[i] / (2 * weight.sum()) * (1 - share) / tau[i]
        positive[u], lse[u] = similarity[u, p], math.log(sum(e))
    torch.testing.assert_close(probes.anchor_push(positive, lse, tau, weight), expected)


def test_class_shares_sum_to_one():
    shares = probes.class_shares(torch.tensor([1.0, 2, 3, 4]), torch.tensor([0, 1, 1, 3]), 4)
    assert shares.tolist() == pytest.approx([0.1, 0.5, 0, 0.4])


# ----------------------------------------------------------------------------------------------------------- statistics


def test_summary_by_hand():
    n, mean, std, ci = tables.summary([1.0, 2.0, 3.0, None])
    assert (n, mean, std) == (3, 2, 1)
    assert ci == pytest.approx(4.302652729911275 / math.sqrt(3))  # t(0.975; 2)
    one = tables.summary([5.0])
    assert one.mean == 5 and math.isnan(one.std) and math.isnan(one.ci95)
    assert tables.summary([None]).n == 0 and math.isnan(tables.summary([]).mean)


def test_paired_difference_by_hand():
    a, b = {0: 10.0, 1: 20.0, 2: None, 3: 31.0, 4: 7.0}, {3: 28.0, 1: 18.0, 0: 9.0, 2: 5.0, 5: 1.0}
    difference = tables.paired_difference(a, b)  # seeds 0, 1, 3: 1, 2, 3; 4 and 5 have no partner, 2 has no value
    assert (difference.n, difference.mean, difference.std) == (3, 2, 1)
    assert tables.paired_difference(a, {}).n == 0


def test_statistics_are_scipys():
    from scipy import stats

    rng = np.random.default_rng(0)
    a, b = rng.normal(50, 5, 7), rng.normal(52, 5, 7)
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    difference = tables.paired_difference(dict(enumerate(a)), dict(enumerate(b)))
    assert difference.mean - difference.ci95 == pytest.approx(interval.low, rel=1e-12)
    assert difference.mean + difference.ci95 == pytest.approx(interval.high, rel=1e-12)
    assert tables.summary(a).std == pytest.approx(stats.tstd(a), rel=1e-12)
