import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tase import config
from tase.clustering import aligned, centred, directions, spherical_kmeans
from tase.guidance import Guidance
from tase.pseudo_labels import (
    ESTIMATORS,
    PseudoLabels,
    Quantity,
    _mean_largest,
    _percentiles,
    by_crowding,
    by_density,
    by_merged_size,
    by_size,
    clipped_rank,
    quality,
    responsibilities,
    values_behind,
)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(sizes=(500, 100, 20), d=16, noise=0.15, seed=0):
    """Planted, well separated directions -> features [n, d] with an offset as after a ReLU, labels [n]."""
    g = gen(seed)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    centres = torch.linalg.qr(torch.randn(d, d, generator=g))[0][: len(sizes)]
    x = centres[labels] + noise * torch.randn(len(labels), d, generator=g) / d**0.5
    order = torch.randperm(len(labels), generator=g)
    return (x + 2)[order] * 3, labels[order]


def random_p(n=200, k=8, seed=0):
    return torch.softmax(3 * torch.randn(n, k, generator=gen(seed)) + torch.arange(k) / 2, dim=1)


# --- k-means ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.15])
@pytest.mark.parametrize("seed", range(5))
def test_kmeans_finds_planted_clusters(noise, seed):
    x, truth = mixture(noise=noise, seed=seed)
    labels, centres = spherical_kmeans(centred(x), 3, generator=gen(seed))
    assert quality(labels, torch.zeros(len(x)), truth)["nmi"] > 0.95
    assert labels.dtype == torch.int64 and centres.shape == (3, 16)
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(3))


def test_kmeans_is_as_good_as_scikit_learn():
    from sklearn.cluster import KMeans

    h = centred(torch.randn(1000, 8, generator=gen()))
    labels, centres = spherical_kmeans(h, 20, generator=gen())
    theirs = KMeans(20, n_init=3, random_state=0).fit(h.numpy())
    their_centres = F.normalize(torch.from_numpy(theirs.cluster_centers_).float(), dim=1)
    assert (h * centres[labels]).sum() > 0.99 * (h @ their_centres.T).amax(1).sum()


def test_moves_of_single_centres_only_help():
    h = centred(torch.randn(1000, 8, generator=gen()))
    lloyd, moved = (spherical_kmeans(h, 20, h[:20], moves=moves) for moves in (0, 20))
    assert (h * moved[1][moved[0]]).sum() > (h * lloyd[1][lloyd[0]]).sum()
    assert all(torch.equal(a, b) for a, b in zip(moved, spherical_kmeans(h, 20, h[:20])))


def test_kmeans_is_a_fixed_point_and_a_function_of_the_generator():
    x, _ = mixture(noise=1.0)
    first, again, other = (spherical_kmeans(x, 10, restarts=1, generator=gen(s)) for s in (0, 0, 1))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    h = F.normalize(x, dim=1)
    assert torch.equal((h @ first[1].T).argmax(1), first[0])
    labels, centres = spherical_kmeans(x, 10, first[1])
    assert torch.equal(labels, first[0])
    torch.testing.assert_close(centres, first[1])


def test_kmeans_sees_directions_only():
    x = mixture(noise=0.5)[0] - 6
    length = torch.rand(len(x), 1, generator=gen()) + 0.5
    assert torch.equal(spherical_kmeans(x, 5, generator=gen())[0], spherical_kmeans(length * x, 5, generator=gen())[0])


def test_an_empty_cluster_is_filled_again():
    x, truth = mixture((50, 50, 50))
    h = centred(x)
    start = torch.stack([h[truth == 0].mean(0), h[truth == 1].mean(0), h[truth == 1].mean(0)])  # two alike, one missing
    labels, _ = spherical_kmeans(h, 3, start)
    assert quality(labels, torch.zeros(len(x)), truth)["nmi"] > 0.95


@pytest.mark.parametrize("features", [torch.zeros(12, 4), torch.ones(12, 4) * 0.3, torch.eye(12)])
@pytest.mark.parametrize("k", [1, 2, 12])
def test_kmeans_survives_degenerate_features(features, k):
    labels, centres = spherical_kmeans(centred(features), k, generator=gen())
    assert torch.isfinite(centres).all() and labels.min() >= 0 and labels.max() < k
    p = responsibilities(centred(features), centres)
    torch.testing.assert_close(p.sum(1), torch.ones(12))


def test_more_clusters_than_images_names_the_field():
    with pytest.raises(config.ConfigError, match=r"guidance\.clusters = 13: .*12"):
        spherical_kmeans(torch.randn(12, 4, generator=gen()), 13)
    with pytest.raises(config.ConfigError, match=r"guidance\.clusters = 13"):
        PseudoLabels(12, clusters=13)


def test_centred():
    x, _ = mixture()
    h = centred(x)
    torch.testing.assert_close(h, F.normalize(x - x.mean(0), dim=1))
    torch.testing.assert_close(centred(x + 5), h, atol=1e-4, rtol=0)
    assert centred(torch.full((1000, 3), 0.7)).abs().max() == 0
    assert centred(x.half()).dtype == torch.float32 and centred(x.double()).dtype == torch.float64
    with pytest.raises(ValueError, match="finite"):
        centred(torch.tensor([[1.0, torch.nan], [0.0, 1.0]]))


def test_directions():
    x = torch.rand(20, 5, generator=gen())
    torch.testing.assert_close(directions(x), F.normalize(x.sqrt(), dim=1))  # after a ReLU
    assert torch.equal(directions(x - 0.5), centred(x - 0.5))
    torch.testing.assert_close(directions(-x, "sqrt"), -directions(x))
    torch.testing.assert_close(directions(x.half(), "plain"), F.normalize(x, dim=1), atol=1e-3, rtol=0)
    for space in Guidance.Options.__dataclass_fields__["space"].metadata["choices"]:
        with pytest.raises(ValueError, match="finite"):
            directions(torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), space)


# --- responsibilities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.99])
def test_responsibilities_have_the_confidence(confidence):
    h = centred(torch.randn(500, 8, generator=gen()))
    labels, centres = spherical_kmeans(h, 10, generator=gen())
    p = responsibilities(h, centres, confidence)
    assert p.amax(1).mean().item() == pytest.approx(confidence, abs=1e-4)
    assert torch.equal(p.argmax(1), labels)
    torch.testing.assert_close(p.sum(1), torch.ones(500))


def test_clear_clusters_are_assigned_surely():
    """At the confidence asked for, the head's 500 would lend the tail more than its own 20."""
    x, truth = mixture()
    pseudo = PseudoLabels(len(x), clusters=3, generator=gen())
    pseudo.update(x)
    assert pseudo.p.amax(1).mean() > 0.95
    np.testing.assert_allclose(pseudo.sizes.sort().values, [20, 100, 500], rtol=0.1)
    p = responsibilities(directions(x), pseudo.centres, 0.8)
    assert p.amax(1).mean().item() == pytest.approx(0.8, abs=1e-4)
    assert p.sum(0).min() > 40


def test_hard_responsibilities():
    h = centred(torch.randn(50, 8, generator=gen()))
    labels, centres = spherical_kmeans(h, 4, generator=gen())
    assert torch.equal(responsibilities(h, centres, 1.0), F.one_hot(labels, 4).float())


def test_mean_largest_falls_with_temperature():
    gap = -torch.rand(100, 7, generator=gen()) * (torch.arange(7) > 0)
    values = [_mean_largest(gap, t) for t in (0.01, 0.1, 1.0, 10.0)]
    assert values == sorted(values, reverse=True)
    assert values[1] == pytest.approx(torch.softmax(gap / 0.1, 1).amax(1).mean().item(), abs=1e-6)


# --- quantity ---------------------------------------------------------------------------------------------------------


def test_estimators_are_the_ones_a_config_can_name():
    assert set(ESTIMATORS) == set(config.ESTIMATORS)


def test_size_is_equation_4():
    p = random_p().double()
    sizes = p.sum(0)
    quantity = by_size(None, p.float(), None)
    np.testing.assert_allclose(quantity.a, (p * sizes.log()).sum(1), atol=1e-6)
    np.testing.assert_allclose(quantity.log_sizes, sizes.log(), atol=1e-6)
    low, high = (np.quantile(sizes.log().numpy(), s, method="inverted_cdf") for s in (0.05, 0.95))
    q, spread = clipped_rank(quantity)
    np.testing.assert_allclose(q, np.clip((quantity.a.numpy() - low) / (high - low), 0, 1), atol=1e-6)
    assert spread == pytest.approx(high - low, abs=1e-6)


def test_empty_clusters_do_not_count():
    p = F.one_hot(torch.tensor([0] * 30 + [2] * 3), 5).float()
    quantity = by_size(None, p, None)
    assert torch.isfinite(quantity.a).all()
    np.testing.assert_allclose(quantity.log_sizes.exp(), [30, 3])
    assert clipped_rank(quantity)[0].tolist() == [1.0] * 30 + [0.0] * 3


@pytest.mark.parametrize("how", ["log", "rank"])
def test_order_of_clusters_and_duplicates_change_nothing(how):
    p = random_p()
    centres = F.normalize(torch.randn(8, 4, generator=gen()), dim=1)
    order = torch.randperm(8, generator=gen())
    for estimate in (by_size, by_merged_size):
        a = estimate(p[:, :4], p, centres)
        q, spread = clipped_rank(a, how)
        permuted = estimate(p[:, :4], p[:, order], centres[order])
        torch.testing.assert_close(clipped_rank(permuted, how)[0], q, atol=1e-6, rtol=0)
        torch.testing.assert_close(permuted.a, a.a, atol=1e-6, rtol=0)
        twice = estimate(p[:, :4].repeat(2, 1), p.repeat(2, 1), centres)
        torch.testing.assert_close(clipped_rank(twice, how)[0], q.repeat(2), atol=1e-6, rtol=0)
        torch.testing.assert_close(twice.a - twice.a.mean(), (a.a - a.a.mean()).repeat(2), atol=1e-6, rtol=0)
        assert spread > 0.1


@pytest.mark.parametrize("m", [1, 2, 19, 20, 21, 39, 40, 41, 100])
def test_percentiles_are_the_inverted_cdf(m):
    x = torch.randn(m, generator=gen(m), dtype=torch.float64)
    expected = [np.quantile(x.numpy(), s, method="inverted_cdf") for s in (0.05, 0.95)]
    assert _percentiles(x) == pytest.approx(expected)


def test_equal_clusters_say_nothing():
    q, spread = clipped_rank(by_size(None, F.one_hot(torch.arange(40) % 4).float(), None))
    assert spread == 0 and (q == 0.5).all()


def test_rank_map():
    a = torch.tensor([3.0, 1.0, 2.0, 2.0]).double()
    assert clipped_rank(Quantity(a, None), "rank")[0].tolist() == [0.875, 0.125, 0.5, 0.5]


def test_merging_puts_a_cut_class_together():
    """A large class in six clusters and a small one in two: own sizes 50 and 40, merged 300 and 80."""
    g = gen()
    angles = torch.cat([torch.linspace(0, 1.2, 6), torch.tensor([3.0, 3.2])])
    centres = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.repeat_interleave(torch.arange(8), torch.tensor([50] * 6 + [40] * 2))
    p = F.one_hot(labels, 8).float()
    shuffle = torch.randperm(8, generator=g)
    for linkage in ("single", "average"):
        quantity = by_merged_size(centres, p[:, shuffle], centres[shuffle], merge_to=2, linkage=linkage)
        np.testing.assert_allclose(quantity.log_sizes.exp().sort().values, [80] * 2 + [300] * 6)
        np.testing.assert_allclose(quantity.a.exp(), [300.0] * 300 + [80.0] * 80)


def test_merged_edge_cases():
    p = torch.ones(5, 1)
    assert by_merged_size(p, p, torch.ones(1, 1)).log_sizes.exp().tolist() == pytest.approx([5])
    same = by_merged_size(p, random_p(30, 24), torch.zeros(24, 3))  # all centres at one point
    np.testing.assert_allclose(same.log_sizes.exp(), 30, rtol=1e-6)
    few = by_merged_size(p, random_p(30, 11), torch.zeros(11, 3))  # too few to be joined
    np.testing.assert_allclose(few.log_sizes, by_size(p, random_p(30, 11), None).log_sizes)


def test_density_is_the_soft_number_of_neighbours():
    h = centred(torch.randn(60, 5, generator=gen()))
    kernel = ((h.double() @ h.double().T - 1) / 0.1).exp()
    expected = (1 + kernel.sum(1) - kernel.diagonal()).log()
    np.testing.assert_allclose(by_density(h, None, None).a, expected, atol=1e-5)
    h = centred(torch.randn(1000, 4, generator=gen()) * torch.tensor([4.0, 2.0, 1.0, 0.5]))
    some, every = (by_density(h, None, None, bandwidth=0.3, references=m) for m in (300, 1000))
    assert np.corrcoef(some.a, every.a)[0, 1] > 0.8 and some.log_sizes is None
    assert some.a.mean().item() == pytest.approx(every.a.mean().item(), abs=0.1)


def test_density_sees_the_planted_sizes():
    x, truth = mixture(noise=0.05)
    quantity = by_density(centred(x), None, None)
    means = [quantity.a[truth == c].mean() for c in range(3)]
    assert means[0] > means[1] > means[2]


# --- quality ----------------------------------------------------------------------------------------------------------


def test_quality_is_that_of_scikit_learn_and_scipy():
    from scipy.stats import spearmanr
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    g = gen()
    truth = torch.randint(5, (300,), generator=g) ** 2 // 4
    labels = (truth + torch.randint(3, (300,), generator=g)) % 7
    headness = torch.randn(300, generator=g).round(decimals=1)
    counts = torch.tensor([70, 40, 33, 21, 5])
    got = quality(labels, headness, truth, counts)
    assert got["nmi"] == pytest.approx(normalized_mutual_info_score(truth, labels), abs=1e-9)
    assert got["purity"] == pytest.approx(contingency_matrix(truth, labels).max(0).sum() / 300)
    assert got["spearman_samples"] == pytest.approx(spearmanr(headness, counts[truth]).statistic, abs=1e-9)
    present = truth.unique()
    means = [headness[truth == c].mean().item() for c in present]
    assert got["spearman_classes"] == pytest.approx(spearmanr(means, counts[present]).statistic, abs=1e-9)


def test_quality_edge_cases():
    truth = torch.arange(4).repeat(5)
    got = quality(torch.zeros(20, dtype=torch.int64), torch.rand(20, generator=gen()), truth)
    assert got["nmi"] == pytest.approx(0, abs=1e-12) and got["purity"] == 0.25 and np.isnan(got["spearman_samples"])
    assert quality(truth * 0, torch.zeros(20), truth * 0)["nmi"] == 1


# --- all together -----------------------------------------------------------------------------------------------------


def test_update_sets_everything():
    x, truth = mixture()
    pseudo = PseudoLabels(len(x), clusters=3, generator=gen())
    assert (pseudo.labels == -1).all() and len(pseudo.sizes) == 0
    pseudo.update(x)
    assert pseudo.sizes.sum().item() == pytest.approx(len(x), abs=1e-2)
    assert pseudo.p.shape == (len(x), 3) and pseudo.centres.shape == (3, 16)
    means = [pseudo.q[truth == c].mean() for c in range(3)]
    assert means[0] > means[1] > means[2]
    assert PseudoLabels(57).clusters == 5 and PseudoLabels(5).clusters == 1 and PseudoLabels(9999).clusters == 100


def test_identities_are_kept():
    x, _ = mixture((60, 50, 40, 30), noise=0.5)
    pseudo = PseudoLabels(len(x), clusters=8, space="centred", generator=gen())
    pseudo.update(x)
    before = pseudo.labels
    turned = x @ torch.linalg.qr(torch.randn(16, 16, generator=gen(3)))[0]  # the network moved on
    pseudo.update(turned + 0.01 * torch.randn(x.shape, generator=gen(4)))
    assert (pseudo.labels == before).float().mean() > 0.95
    h = centred(turned)
    assert (h * pseudo.centres[pseudo.labels]).sum(1).mean() > 0.5  # centres go by the same names


def test_headness_remembers():
    x, _ = mixture(noise=0.6)
    later = x + 0.3 * torch.rand(x.shape, generator=gen(5))
    pseudo, forgetful = (PseudoLabels(len(x), clusters=15, memory=m, generator=gen()) for m in (0.75, 0.0))
    for each in (pseudo, forgetful):
        each.update(x)
    first = pseudo.headness
    assert torch.equal(first, forgetful.headness)
    pseudo.update(later), forgetful.update(later)
    torch.testing.assert_close(pseudo.headness, 0.75 * first + 0.25 * forgetful.headness)


def test_merging_over_many_levels_finds_the_sizes_that_clusters_hide():
    """A class of 600 in ten clusters as large as those of the classes of 60: sizes say nothing, joined ones do."""
    g = gen()
    truth = torch.tensor([0] * 600 + [1] * 60 + [2] * 60)
    x = torch.randn(720, 6, generator=g) * torch.tensor([0.3]) + 4 * F.one_hot(truth, 6)
    own, joined = (
        PseudoLabels(720, clusters=24, estimator=e, space="centred", generator=gen()) for e in ("size", "merged")
    )
    for pseudo in (own, joined):
        pseudo.update(x)
    apart = [(p.headness[truth == 0].mean() - p.headness[truth > 0].mean()).item() for p in (own, joined)]
    assert apart[0] < 0.4 and 1.2 < apart[1] < 2.8  # log 10 = 2.3 is true
    assert quality(joined.labels, joined.headness, truth)["spearman_classes"] > 0.8


def test_aligned_undoes_a_renaming():
    now = torch.randint(6, (500,), generator=gen())
    names = torch.randperm(6, generator=gen(1))
    assert torch.equal(aligned(names[now], now, 6), names)


def test_label_noise_permutes_the_share():
    x, _ = mixture()
    clean, noisy = (
        PseudoLabels(len(x), clusters=20, space="centred", label_noise=s, generator=gen()) for s in (0.0, 0.3)
    )
    clean.update(x), noisy.update(x)
    moved = (clean.p != noisy.p).any(1).float().mean().item()
    assert moved == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(noisy.sizes, clean.sizes)
    assert torch.equal(noisy.labels, noisy.p.argmax(1)) and torch.equal(noisy.assigned, clean.labels)


def test_label_noise_is_the_same_at_each_update():
    """Else the memory would average it away: after 16 updates a quarter had been as good as none."""
    x, truth = mixture()
    noisy = PseudoLabels(len(x), labels=truth, label_noise=0.25, memory=0.7, generator=gen())
    noisy.update(x)
    first = noisy.headness.clone()
    for _ in range(3):
        noisy.update(x)
    torch.testing.assert_close(noisy.headness, first)
    assert not torch.equal(first, torch.bincount(truth)[truth].double().log())


def test_label_noise_permutes_a_quantity_that_is_given():
    x, _ = mixture()
    pseudo = PseudoLabels(len(x), clusters=20, space="centred", label_noise=0.3, generator=gen())
    a = torch.arange(len(x)).double()
    pseudo.update(x, Quantity(a, None))
    moved = pseudo.headness != a
    assert moved.double().mean().item() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(pseudo.labels, pseudo.assigned[pseudo.headness.long()])  # as the labels


def test_oracle_takes_the_true_labels():
    x, truth = mixture()
    pseudo = PseudoLabels(len(x), labels=truth, estimator="density")
    pseudo.update(x)
    assert torch.equal(pseudo.labels, truth) and pseudo.sizes.tolist() == [500, 100, 20]
    np.testing.assert_allclose(pseudo.headness.exp(), pseudo.sizes[truth])
    for wrong in (truth[:-1], truth - 1, truth.float()):
        with pytest.raises(ValueError, match="labels must be 620 whole numbers"):
            PseudoLabels(len(x), labels=wrong)


def test_state_continues_bit_for_bit(tmp_path):
    x, _ = mixture(noise=0.6)
    later = x + 0.3 * torch.randn(x.shape, generator=gen(5))
    pseudo = PseudoLabels(len(x), clusters=9, label_noise=0.2, generator=gen())
    pseudo.update(x)
    torch.save(pseudo.state_dict(), tmp_path / "state.pt")
    restored = PseudoLabels(len(x), clusters=9, label_noise=0.2, generator=gen(77))
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(restored.headness, pseudo.headness) and torch.equal(restored.labels, pseudo.labels)
    pseudo.update(later), restored.update(later)
    for name in PseudoLabels.SAVED:
        ours, theirs = getattr(pseudo, name), getattr(restored, name)
        assert torch.equal(ours, theirs) if torch.is_tensor(ours) else ours == theirs
    with pytest.raises(ValueError, match="not of 3"):
        PseudoLabels(3).load_state_dict(pseudo.state_dict())


def test_wrong_features_and_names():
    pseudo = PseudoLabels(20, clusters=2)
    with pytest.raises(ValueError, match=r"\[20, d\]"):
        pseudo.update(torch.zeros(19, 3))
    with pytest.raises(config.ConfigError, match="did you mean 'density'"):
        PseudoLabels(20, estimator="densty")


def test_crowding_ranks_clusters_by_their_neighbours_whatever_their_sizes():
    angle = torch.deg2rad(torch.tensor([0.0, 8.0, 17.0, 90.0, 200.0]))
    centres = torch.stack([angle.cos(), angle.sin()], dim=1)
    for counts, ratio in (((4, 4, 4, 4, 4), 100), ((2, 8, 4, 40, 5), 20)):
        labels = torch.repeat_interleave(torch.arange(5), torch.tensor(counts))
        found = by_crowding(centres[labels], F.one_hot(labels, 5).float(), centres)
        order = found.log_sizes.argsort().tolist()
        assert order[-1] == 1 and order[0] == 4 and order[1] == 3  # between two near ones; alone; less alone
        assert found.log_sizes.max().item() == pytest.approx(math.log(ratio)) and found.log_sizes.min() == 0
        assert torch.equal(found.a, found.log_sizes[labels])


def test_true_labels_can_be_ranked_by_crowding():
    x, truth = mixture((60, 30, 10), noise=0.4)
    by_size_, by_neighbours = (PseudoLabels(100, labels=truth, estimator=name) for name in ("merged", "crowding"))
    by_size_.update(x), by_neighbours.update(x)
    assert by_size_.headness.unique().tolist() == pytest.approx([math.log(n) for n in (10, 30, 60)])
    assert by_neighbours.spread == pytest.approx(math.log(6))


# --- more images than are clustered -----------------------------------------------------------------------------------


class Rows:
    """Features that can only be read by rows; remembers how many at a time."""

    def __init__(self, x):
        self.x, self.read = x, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, rows):
        self.read.append(len(self.x[rows]))
        return self.x[rows]


@pytest.mark.parametrize("space", ["auto", "centred", "plain"])
@pytest.mark.parametrize("estimator", ["merged", "density"])  # own sizes of clusters differ by chance alone
def test_clusters_of_a_sample_are_those_of_all(estimator, space, monkeypatch):
    from sklearn.metrics import adjusted_rand_score

    monkeypatch.setattr("tase.pseudo_labels.STREAMED", 256)
    x, truth = mixture((1200, 500, 200, 100), noise=0.1)
    x = x.abs() if space == "auto" else x
    made = [PseudoLabels(len(x), 16, estimator=estimator, space=space, generator=gen(seed)) for seed in (0, 0, 1)]
    full, part, chance = made  # how much chance alone changes
    part.sample, rows = 1000, Rows(x)
    for _ in range(2):  # the second update starts from the clusters of the first
        full.update(x), chance.update(x), part.update(rows)
    assert max(rows.read) == 1000 and rows.read.count(256) == 14 and part.p is None
    assert part.sizes.sum().item() == pytest.approx(2000, rel=1e-4)
    off, by_chance = ((other.headness - full.headness).abs().mean() for other in (part, chance))
    assert off < 1.5 * by_chance + 0.1
    assert np.corrcoef(part.headness, full.headness)[0, 1] > 0.75
    assert adjusted_rand_score(truth, part.labels) > 0.8 * adjusted_rand_score(truth, full.labels)


def test_true_labels_of_many_images_give_what_they_give_of_few():
    x, truth = mixture((300, 100, 30))
    full, part = (PseudoLabels(len(x), labels=truth) for _ in range(2))
    part.sample = 400
    full.update(x)
    part.update(Rows(x))
    assert torch.equal(part.labels, truth) and torch.equal(part.sizes, full.sizes)
    # Class sizes are those of the sample, grown.
    torch.testing.assert_close(part.headness, full.headness, rtol=0, atol=0.15)


def test_a_class_of_which_no_image_is_drawn():
    x, truth = mixture((300, 100, 1))
    for seed in range(4):  # one in four draws has the rare image
        part = PseudoLabels(len(x), labels=truth, generator=gen(seed))
        part.sample = 100
        part.update(x)
        assert torch.equal(part.labels, truth) and part.sizes.tolist() == [300, 100, 1]
        assert part.headness.isfinite().all()


def test_values_behind_headness_are_found():
    p, value = random_p(300, 8), torch.rand(8, dtype=torch.float64, generator=gen())
    p[:, 3] = 0  # an empty cluster
    found = values_behind(p.double() @ value, p)
    torch.testing.assert_close(p.double() @ found, p.double() @ value, rtol=1e-6, atol=1e-8)


def test_noise_among_many_swaps_headness_too():
    x, _ = mixture((300, 100, 30))
    part = PseudoLabels(len(x), 12, label_noise=0.5, generator=gen())
    part.sample = 400
    part.update(x)
    swapped = part.labels != part.assigned
    assert 0.1 < swapped.float().mean() < 0.5
    means = [part.headness[part.labels == c].std() for c in part.labels.unique() if (part.labels == c).sum() > 5]
    assert np.nanmean(means) < 0.5 * part.headness.std()  # a swapped sample has the headness of its new cluster
