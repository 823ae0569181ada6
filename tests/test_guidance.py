import dataclasses
import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from test_pseudo_labels import centred, gen, mixture, random_p
from torch.nn import functional as F

from tase import guidance as room
from tase.config import METHODS, ConfigError, option
from tase.guidance import MMTS, TASE, Constant, Guidance, ISogCLRTau, TemperatureSchedule, build_guidance
from tase.losses import nt_xent
from tase.presets import preset
from tase.pseudo_labels import PseudoLabels, by_size, quality


def given(p, **options):
    """A TASE whose pseudo-labels are given: p [n, k]."""

    class Given(PseudoLabels):
        def _cluster(self, h):
            self.assigned, self.centres = p.argmax(1), torch.zeros(p.shape[1], 2)

        def _soft(self, h):
            return p

    guide = TASE(len(p), pseudo=Given(len(p), clusters=1), **options)
    guide.update(torch.randn(len(p), 2, generator=gen()), epoch=0)
    return guide


def group_means(values, truth):
    return [values[truth == c].mean().item() for c in range(int(truth.max()) + 1)]


# --- TASE: equations (5) and (6) --------------------------------------------------------------------------------------


def test_public_example():
    x, _ = mixture()
    guide = TASE(n=len(x), clusters=100, tau_min=0.1, tau_max=0.5, gamma=0.5, warmup=0, ramp=0)
    guide.update(x, epoch=10)
    for values in (guide.tau, guide.weight, guide.headness):
        assert values.shape == (len(x),) and values.dtype == torch.float32
    assert guide.pseudo_label.dtype == torch.int64 and len(guide.cluster_sizes) == 100
    assert 0.1 <= guide.tau.min() < guide.tau.max() <= 0.5


def test_equations_5_and_6():
    p = random_p(100, 6)
    guide = given(p, tau_min=0.07, tau_max=0.4, gamma=0.7, w_max=1.5)
    a = by_size(None, p, None).a.numpy()
    sizes = np.log(p.double().sum(0).numpy())
    low, high = (np.quantile(sizes, s, method="inverted_cdf") for s in (0.05, 0.95))
    q = np.clip((a - low) / (high - low), 0, 1)
    np.testing.assert_allclose(guide.tau, 0.07 + 0.33 * q, atol=1e-6)
    np.testing.assert_allclose(guide.weight, np.clip(np.exp(-0.7 * (a - a.mean())), 1 / 1.5, 1.5), atol=1e-6)
    assert guide.weight.max().item() == pytest.approx(1.5)


def test_columns_of_p_may_be_permuted_and_samples_doubled():
    p = random_p()
    for how in ("log", "rank"):
        plain = given(p, headness_map=how)
        permuted = given(p[:, torch.randperm(p.shape[1], generator=gen())], headness_map=how)
        twice = given(p.repeat(2, 1), headness_map=how)
        for name in ("tau", "weight"):
            expected = getattr(plain, name)
            torch.testing.assert_close(getattr(permuted, name), expected, atol=1e-6, rtol=0)
            torch.testing.assert_close(getattr(twice, name), expected.repeat(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_planted_mixture(seed):
    x, truth = mixture(seed=seed)
    guide = TASE(len(x), clusters=3, warmup=2, ramp=4, generator=gen(seed))
    guide.update(x, epoch=6)
    assert quality(guide.pseudo_label, guide.headness, truth)["nmi"] > 0.95
    tau, weight = group_means(guide.tau, truth), group_means(guide.weight, truth)
    assert tau[0] > tau[1] > tau[2] and weight[0] < weight[1] < weight[2]


def test_oracle_is_tase_with_hard_one_hot_features():
    truth = torch.repeat_interleave(torch.arange(5), torch.tensor([60, 30, 20, 10, 5]))
    features = F.one_hot(truth, 5).float()
    oracle = TASE(len(truth), labels=truth)
    ours = TASE(len(truth), clusters=5, assignment_confidence=1.0, generator=gen())
    for guide in (oracle, ours):
        guide.update(features, epoch=0)
    torch.testing.assert_close(ours.tau, oracle.tau, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.weight, oracle.weight, atol=1e-6, rtol=0)
    assert quality(ours.pseudo_label, ours.headness, truth)["nmi"] == pytest.approx(1)
    np.testing.assert_allclose(oracle.tau.unique(), 0.1 + 0.4 * np.log([1, 2, 4, 6, 12]) / np.log(12), atol=1e-6)


def test_reversed_turns_tau_and_leaves_w():
    x, _ = mixture(noise=0.5)
    plain, turned = (TASE(len(x), clusters=12, reversed=r, generator=gen()) for r in (False, True))
    plain.update(x, 0), turned.update(x, 0)
    torch.testing.assert_close(turned.tau, 0.6 - plain.tau)
    assert torch.equal(turned.weight, plain.weight)


def test_shuffled_has_the_same_clusters_and_pairs():
    x, _ = mixture(noise=0.5)
    plain, mixed = (TASE(len(x), clusters=12, shuffled=s, generator=gen()) for s in (False, True))
    for epoch in (0, 1):
        plain.update(x, epoch), mixed.update(x, epoch)
        assert torch.equal(mixed.pseudo_label, plain.pseudo_label)
        assert not torch.equal(mixed.tau, plain.tau)
        assert torch.equal(mixed.tau, plain.tau[mixed.order]) and torch.equal(mixed.weight, plain.weight[mixed.order])
    assert torch.equal(mixed.order.sort().values, torch.arange(len(x)))


def test_gamma_zero_and_equal_taus():
    x, _ = mixture(noise=0.5)
    guide = TASE(len(x), clusters=12, gamma=0.0, generator=gen())
    guide.update(x, 0)
    assert (guide.weight == 1).all() and guide.tau.std() > 0.01
    guide = TASE(len(x), clusters=12, tau_min=0.3, tau_max=0.3, tau_0=0.2, warmup=5, ramp=5, generator=gen())
    guide.update(x, 10)
    assert (guide.tau == np.float32(0.3)).all() and guide.weight.std() > 0.01


def test_warmup_and_ramp():
    x, _ = mixture(noise=0.5)
    guide = TASE(len(x), clusters=12, warmup=10, ramp=4, tau_0=0.2, generator=gen())
    guide.update(x, epoch=0)
    target_tau, target_weight = guide.target_tau, guide.target_weight
    assert target_tau.std() > 0.01
    for epoch, share in ((0, 0), (9, 0), (10, 0), (11, 0.25), (12, 0.5), (14, 1), (99, 1)):
        guide.start_epoch(epoch)
        torch.testing.assert_close(guide.tau, 0.2 + share * (target_tau - 0.2))
        torch.testing.assert_close(guide.weight, 1 + share * (target_weight - 1))
    assert torch.equal(guide.tau, target_tau)


def test_without_an_update_nothing_is_guided():
    guide = TASE(20, clusters=2)
    guide.start_epoch(5)
    assert (guide.tau == np.float32(0.2)).all() and (guide.weight == 1).all() and (guide.pseudo_label == -1).all()


def test_scale_by_tau():
    x, _ = mixture()
    guide = TASE(len(x), clusters=12, tau_0=0.07)
    index = torch.tensor([3, 500, 7])
    assert (guide.scale(index) == 1).all()  # exactly: until it knows something it is SimCLR
    guide.update(x, 0)
    torch.testing.assert_close(guide.scale(index), guide.tau[index] / 0.07)
    assert TASE(20, clusters=2, scale_by_tau=False).scale(torch.tensor([3, 7])) is None


def test_equal_clusters_warn_and_do_not_guide():
    features = F.one_hot(torch.arange(40) % 4, 4).float()
    guide = TASE(40, clusters=4, assignment_confidence=1.0)
    with pytest.warns(UserWarning, match="say nothing about quantity"):
        guide.update(features, 0)
    torch.testing.assert_close(guide.tau, torch.full((40,), 0.2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simclr = Constant(40, clusters=4)
        simclr.update(features, 0)  # does not use it


def test_temperatures_of_groups_need_no_sizes():
    truth = torch.arange(40) % 4
    group = torch.tensor([0, 1, 1, 2])[truth]
    guide = TASE(40, labels=truth, groups=group, group_tau=(0.5, 0.2, 0.1), warmup=0, ramp=0)
    guide.update(F.one_hot(truth, 4).float(), 0)  # equal classes; no warning either
    assert torch.equal(guide.tau, torch.tensor([0.5, 0.2, 0.1])[group]) and (guide.weight == 1).all()


@pytest.mark.parametrize(
    ("name", "value"),
    {"tau_min": 0.3, "tau_max": 0.9, "gamma": 2.0, "w_max": 1.1, "headness_map": "rank", "reversed": True}.items(),
)
def test_each_steerable_option_acts_from_the_next_update_on(name, value):
    x, _ = mixture()
    guides = [TASE(len(x), clusters=20, warmup=0, ramp=0) for _ in range(2)]
    guides[1].steer(dataclasses.replace(guides[1].options, **{name: value}))
    for guide in guides:
        guide.update(x, 0)
    assert name in TASE.steerable and len(TASE.steerable) == 6
    assert not all(torch.equal(getattr(guides[0], of), getattr(guides[1], of)) for of in ("tau", "weight"))


def test_degenerate_features_survive():
    for features in (torch.zeros(30, 4), torch.ones(30, 4)):
        guide = TASE(30, clusters=3)
        with pytest.warns(UserWarning):
            guide.update(features, 0)
        assert torch.isfinite(guide.tau).all() and torch.isfinite(guide.weight).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tau_mix": 0.2}, "did you mean 'tau_min'"),
        ({"tau_min": 0.0}, r"guidance\.tau_min"),
        ({"tau_min": 0.6}, r"guidance\.tau_max"),
        ({"clusters": 31}, r"guidance\.clusters"),
        ({"warmup": -1}, "warmup"),
        ({"estimator": "sise"}, "size"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        TASE(30, **options)


# --- the others, each against plain Python numbers --------------------------------------------------------------------


def test_temperature_schedule():
    guide = TemperatureSchedule(4, epochs=100, periods=5, ts_range=(0.1, 1.0))
    for epoch in range(100):
        guide.start_epoch(epoch)
        expected = 0.1 + 0.9 * (1 + math.cos(2 * math.pi * epoch / 20)) / 2
        assert guide.tau.tolist() == pytest.approx([expected] * 4)
    assert (guide.weight == 1).all()


def test_schedule_of_2000_epochs_is_the_released_one():
    guide = TemperatureSchedule(1, epochs=2000)
    for epoch in (0, 100, 200, 333):
        guide.start_epoch(epoch)
        assert guide.tau.item() == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * epoch / 200)))


def test_mm_ts_against_a_scalar_reference():
    x, _ = mixture((30, 20, 10))
    guide = MMTS(60, epochs=50, pseudo=PseudoLabels(60, clusters=3, generator=gen()), periods=5)
    assert guide.tau.tolist() == pytest.approx([0.1 + (0.17 + 0.30) / 2] * 60)  # no clusters yet: the middle
    guide.update(x, epoch=3)
    for epoch in (3, 4, 9):
        guide.start_epoch(epoch)
        labels = guide.pseudo_label.tolist()
        for i in range(60):
            sizes = [labels.count(label) for label in labels]
            share = (sizes[i] - min(sizes)) / (max(sizes) - min(sizes))
            expected = 0.1 * math.cos(2 * math.pi * epoch / 10) + 0.17 + 0.13 * share
            assert guide.tau[i].item() == pytest.approx(expected, abs=1e-6)
    assert (guide.weight == 1).all()


def test_mm_ts_with_equal_clusters_is_the_middle():
    guide = MMTS(40, epochs=50, pseudo=PseudoLabels(40, clusters=4, generator=gen()))
    guide.update(F.one_hot(torch.arange(40) % 4, 4).float(), epoch=5)
    assert guide.tau.tolist() == pytest.approx([-0.1 + 0.235] * 40)


def test_isogclr_against_a_scalar_reference():
    n, b, r, step, momentum = 12, 5, 0.4, 0.03, 0.9
    guide = ISogCLRTau(n, iso_r=r, iso_step=step, iso_momentum=momentum)
    taus, gradients = [0.1] * n, [0.0] * n
    for turn in range(4):
        index = torch.randperm(n, generator=gen(turn))[:b]
        z = F.normalize(torch.randn(2 * b, 6, generator=gen(turn), dtype=torch.float64), dim=1)
        out = nt_xent(z[:b], z[b:], guide.tau[index])
        guide.after_step(index, out)
        s = (z @ z.T).tolist()
        for position, i in enumerate(index.tolist()):
            new = []
            for a in (position, position + b):
                h = [s[a][o] - s[a][(a + b) % (2 * b)] for o in range(2 * b) if o != a]
                e = [math.exp(v / taus[i]) for v in h]
                mean = sum(v * w for v, w in zip(h, e)) / sum(e)
                new.append(math.log(sum(e) / len(e)) + r - mean / taus[i])
            gradients[i] = momentum * gradients[i] + (1 - momentum) * sum(new) / 2
            taus[i] = min(1.0, max(0.05, taus[i] - step * gradients[i]))
        assert guide.tau.tolist() == pytest.approx(taus, abs=1e-6)
    assert len(set(taus)) > b


def test_isogclr_gradient_is_that_of_its_objective():
    """d/dtau of tau (log E exp(h / tau) + r): the robust objective of the paper, by finite differences."""
    z = F.normalize(torch.randn(8, 5, generator=gen(), dtype=torch.float64), dim=1)

    def objective(tau):
        out = nt_xent(z[:4], z[4:], tau)
        return tau * (out.per_anchor - math.log(out.others) + 0.4)

    numeric = (objective(0.3 + 1e-6) - objective(0.3 - 1e-6)) / 2e-6
    guide = ISogCLRTau(4, iso_start=0.3, iso_momentum=0.0)
    guide.after_step(torch.arange(4), nt_xent(z[:4], z[4:], 0.3))
    torch.testing.assert_close(guide.gradient.double(), numeric.reshape(2, 4).mean(0), atol=1e-5, rtol=1e-5)


def test_isogclr_is_clamped():
    guide = ISogCLRTau(2, iso_step=100.0)
    z = torch.eye(2)
    for r, bound in ((-5.0, 1.0), (50.0, 0.05)):
        guide.steer(ISogCLRTau.Options(iso_step=100.0, iso_r=r))
        guide.after_step(torch.arange(2), nt_xent(z, z, guide.tau))
        assert guide.tau.tolist() == pytest.approx([bound] * 2)


# --- all methods ------------------------------------------------------------------------------------------------------


def built(method, n, truth=None, seed=0, **overrides):
    config = preset("digits-lt", method=method, overrides={"guidance.clusters": 8, **overrides})
    return build_guidance(config, n, truth, generator=gen(seed))


def step(guide, turn):
    index = torch.randperm(guide.n, generator=gen(turn))[:16]
    z1, z2 = torch.randn(2, 16, 6, generator=gen(turn))
    out = nt_xent(z1, z2, guide.tau[index], guide.weight[index], scale=guide.scale(index))
    guide.after_step(index, out)
    return out.loss


@pytest.mark.parametrize("method", METHODS)
def test_every_method_clusters_steps_and_continues_bit_for_bit(method, tmp_path):
    x, truth = mixture((60, 30, 10), noise=0.4)
    guide = built(method, len(x), truth)
    for epoch in (0, 30, 36):
        guide.start_epoch(epoch)
        guide.update(x, epoch)
        assert (guide.pseudo_label >= 0).all() and guide.cluster_sizes.sum().item() == pytest.approx(100, abs=1e-3)
        assert torch.isfinite(step(guide, epoch)) and (guide.tau > 0).all() and (guide.weight > 0).all()
    torch.save(guide.state_dict(), tmp_path / "guidance.pt")
    restored = built(method, len(x), truth, seed=9)
    restored.load_state_dict(torch.load(tmp_path / "guidance.pt", weights_only=True))
    later = x + 0.1 * torch.randn(x.shape, generator=gen(4))
    for g in (guide, restored):
        g.start_epoch(37)
        step(g, 37)
        g.update(later, 40)
        step(g, 40)
    for name in ("tau", "weight", "pseudo_label", "headness", "cluster_sizes"):
        assert torch.equal(getattr(guide, name), getattr(restored, name))


def test_simclr_and_tase_see_the_same_clusters():
    x, truth = mixture((60, 30, 10), noise=0.4)
    guides = [built(method, len(x), truth) for method in ("simclr", "tase", "shuffled", "mm-ts")]
    for guide in guides:
        guide.update(x, 0)
        assert torch.equal(guide.pseudo_label, guides[0].pseudo_label)


def test_build_reads_the_config():
    guide = built("tase", 100, **{"guidance.warmup": 0.2, "guidance.ramp": 0.05, "optim.epochs": 100})
    assert (guide.warmup, guide.ramp, guide.pseudo.clusters) == (20, 5, 8)
    assert built("simclr", 200, **{"guidance.clusters": 0, "guidance.tau_0": 0.3}).pseudo.clusters == 20
    assert built("ts", 100).epochs == 150 and built("ts", 100).options.periods == 5


def test_oracle_needs_labels():
    for build in (lambda: built("oracle", 100), lambda: TASE(100, labels=None, options=TASE.Options(labels="oracle"))):
        with pytest.raises(ConfigError, match=r"guidance\.labels = 'oracle'.*no labels"):
            build()


def test_options_or_fields_but_not_both():
    with pytest.raises(ConfigError, match=r"options = \['tau_max'\]: must be either"):
        TASE(20, options=TASE.Options(), tau_max=0.9)


def test_a_cosine_needs_the_length_of_the_run():
    for build in (lambda: MMTS(10), lambda: TemperatureSchedule(10).start_epoch(0)):
        with pytest.raises(ConfigError, match="epochs = 0: must be the length of the run"):
            build()


def test_state_is_a_copy_and_checked():
    guide = ISogCLRTau(3)
    state = guide.state_dict()
    guide.tau[0] = 0.7
    assert state["tau"][0].item() == pytest.approx(0.1)
    with pytest.raises(ValueError, match="not the state of a ISogCLRTau of 4"):
        ISogCLRTau(4).load_state_dict(state)
    with pytest.raises(ValueError, match="not the state of a Constant"):
        Constant(3).load_state_dict(state)


def test_the_guidance_of_the_documentation_works(tmp_path):
    """The example in the module's docstring, run as it stands."""
    example = room.__doc__[room.__doc__.index("    class Centred") : room.__doc__.index("    METHODS[")]
    space = {"Guidance": Guidance, "torch": torch, "dataclass": dataclass, "option": option}
    exec("\n".join(line[4:] for line in example.splitlines()), space)
    assert len(example.strip().splitlines()) <= 30
    x, _ = mixture((60, 30, 10))
    guide = space["Centred"](100, clusters=5, generator=gen())
    guide.update(x, 0)
    assert guide.tau.min() > 0.0999 and guide.tau.std() > 0.001 and guide.tau.max() <= 0.4
    step(guide, 0)
    assert guide.weight.std() > 0
    other = space["Centred"](100, clusters=5)
    other.load_state_dict(guide.state_dict())
    assert torch.equal(other.loss, guide.loss) and torch.equal(other.weight, guide.weight)


def test_before_any_update_there_are_no_clusters():
    guide = Constant(7, tau_0=0.3)
    assert (guide.tau == np.float32(0.3)).all() and (guide.pseudo_label == -1).all() and len(guide.cluster_sizes) == 0
    guide.update(torch.randn(7, 3, generator=gen()), 0)
    assert (guide.tau == np.float32(0.3)).all() and (guide.weight == 1).all()
    assert centred(torch.zeros(3, 2)).shape == (3, 2)
