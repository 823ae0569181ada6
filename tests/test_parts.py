"""SDCLR, BCL and GH, each against a slow plain reference written from its description; they compose and resume."""

import copy
import itertools
import math
import os
import signal

import numpy as np
import pytest
import torch
from test_training import assert_same_run
from torch import nn
from torch.nn import functional as F

import tase
from tase import training
from tase.config import METHODS, ConfigError, applicable
from tase.guidance import BCL, GH, MMTS, SDCLR, TASE, Constant, ISogCLRTau, TemperatureSchedule, compose
from tase.guidance.parts import harmonization, simplex_etf, sinkhorn
from tase.losses import nt_xent
from tase.runs import RunError, load_checkpoint
from tase.training import Training, train, train_epoch, train_step

RIVALS = [name for name in METHODS if any(issubclass(METHODS[name].guidance, part) for part in (SDCLR, BCL, GH))]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def started(tiny, method, **overrides):
    config = tiny(method, **overrides)
    t = Training(config, tase.load_splits(config).train)
    t.network.train()
    return t


# --- SDCLR


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_one_threshold_prunes_the_smallest_weights_of_all_convolutions(share, tiny):
    t = started(tiny, "sdclr", guidance__sdclr_pruned=share)
    t.guidance.start_epoch(0)
    weights = {n: m.weight for n, m in t.network.named_modules() if isinstance(m, nn.Conv2d)}
    ordered = sorted(abs(v) for w in weights.values() for v in w.flatten().tolist())
    threshold = ordered[min(math.ceil(share * len(ordered)), len(ordered) - 1)]
    assert {f"{n}.weight" for n in weights} == set(t.guidance.masks)
    for name, w in weights.items():
        expected = [[abs(v) >= threshold for v in row] for row in w.flatten(1).tolist()]
        assert t.guidance.masks[f"{name}.weight"].flatten(1).tolist() == expected
    kept = sum(int(m.sum()) for m in t.guidance.masks.values())
    assert kept == len(ordered) - min(math.ceil(share * len(ordered)), len(ordered) - 1)
    shares = [m.float().mean().item() for m in t.guidance.masks.values()]
    assert share == 0 or max(shares) > min(shares)  # one threshold, not one per layer


def test_masks_are_of_the_epochs_start_and_random_ones_of_the_epoch_alone(tiny):
    t = started(tiny, "sdclr")
    t.guidance.start_epoch(0)
    before = copy.deepcopy(t.guidance.masks)
    train_step(t, torch.arange(64))
    assert all(torch.equal(m, t.guidance.masks[n]) for n, m in before.items())
    t.guidance.start_epoch(1)
    assert any(not torch.equal(m, t.guidance.masks[n]) for n, m in before.items())
    a, b = (started(tiny, "sdclr-random") for _ in range(2))
    train_step(a, torch.arange(64))
    a.guidance.start_epoch(3), b.guidance.start_epoch(3)
    assert all(torch.equal(m, b.guidance.masks[n]) for n, m in a.guidance.masks.items())
    kept, of = (sum(f(m) for m in a.guidance.masks.values()) for f in (lambda m: int(m.sum()), torch.numel))
    assert kept == of - math.ceil(0.3 * of)
    a.guidance.start_epoch(4)
    assert any(not torch.equal(m, b.guidance.masks[n]) for n, m in a.guidance.masks.items())


def pruned_copy(t):
    """The pruned branch as a network of its own, built from its description."""
    pruned = copy.deepcopy(t.network)
    norms = {name.replace("/", "."): norm for name, norm in t.guidance.norms.items()}
    for name, module in list(pruned.named_modules()):
        if isinstance(module, nn.Conv2d):
            module.weight.data *= t.guidance.masks[f"{name}.weight"]
        elif name in norms:
            module.load_state_dict(norms[name].state_dict())
    return pruned


def test_a_step_is_the_gradient_of_the_released_three_passes(tiny):
    t = started(tiny, "sdclr")
    with torch.no_grad():  # norms that differ from the network's
        for p in t.guidance.norms.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=gen(1)))
    t.guidance.start_epoch(0)
    t.network.double(), t.guidance.norms.double()  # in place: what rounding does near a ReLU's edge is not the question
    view1, view2 = torch.rand(2, 16, 1, 8, 8, generator=gen(), dtype=torch.float64)
    full, pruned = copy.deepcopy(t.network), pruned_copy(t)

    z1, z2 = t.guidance.embed(t.network, view1, view2)
    nt_xent(z1, z2).loss.backward()

    with torch.no_grad():
        fixed2 = copy.deepcopy(pruned)(view2)
    first = full(view1)
    nt_xent(first, fixed2).loss.backward()
    nt_xent(first.detach(), pruned(view2)).loss.backward()
    norms = {f"{n.replace('/', '.')}.{leaf}" for n, m in t.guidance.norms.items() for leaf, _ in m.named_parameters()}
    by_pruned = dict(pruned.named_parameters())
    for name, p in t.network.named_parameters():
        expected = full.get_parameter(name).grad.clone()
        if name not in norms:
            own = by_pruned[name].grad
            expected += own * t.guidance.masks[name] if name in t.guidance.masks else own
        torch.testing.assert_close(p.grad, expected, atol=1e-6, rtol=1e-5)
    for name, norm in t.guidance.norms.items():
        theirs = pruned.get_submodule(name.replace("/", "."))
        torch.testing.assert_close(norm.weight.grad, theirs.weight.grad, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(norm.running_mean, theirs.running_mean)
        torch.testing.assert_close(norm.running_var, theirs.running_var)
        assert norm.num_batches_tracked == 1
    for name, buffer in t.network.named_buffers():  # the full branch has seen view 1 only
        torch.testing.assert_close(buffer, full.get_buffer(name))


def test_pruned_weights_get_no_gradient_from_the_second_view(tiny):
    t = started(tiny, "sdclr")
    t.guidance.start_epoch(0)
    view1, view2 = torch.rand(2, 16, 1, 8, 8, generator=gen())
    z1, z2 = t.guidance.embed(t.network, view1, view2)
    (z2**3).sum().backward()
    for name, mask in t.guidance.masks.items():
        gradient = t.network.get_parameter(name).grad
        assert (gradient[~mask] == 0).all() and gradient[mask].abs().sum() > 0


def test_a_convolution_without_any_weight_left_is_told(tiny):
    t = started(tiny, "sdclr", guidance__sdclr_pruned=0.9)
    with pytest.warns(UserWarning, match=r"All of backbone\.9\.weight is pruned.*sdclr_pruned"):
        t.guidance.start_epoch(0)
    shares = {
        name: tase.preset(name, "sdclr").guidance.sdclr_pruned for name in ("cifar10-lt", "imagenet100-lt", "digits-lt")
    }
    assert shares == {"cifar10-lt": 0.9, "imagenet100-lt": 0.3, "digits-lt": 0.3}


def test_the_features_are_those_of_the_full_network(tiny, tmp_path):
    config = tiny("sdclr", optim__epochs=2)
    run = train(config, tmp_path / "run", progress=False)
    h = tase.encode(run.encoder(), run.images.images)
    torch.testing.assert_close(torch.from_numpy(run.features()), h, atol=2e-3, rtol=2e-3)
    saved = load_checkpoint(run.path, config.identity)
    assert {k.split(".", 1)[1].rpartition(".")[2] for k in saved["modules"]} >= {"weight", "running_mean"}
    kept = torch.cat([saved["network"][n].flatten() for n in saved["guidance"]["masks"]])
    assert (kept != 0).float().mean() > 0.99  # nothing is pruned for good


# --- BCL


def boosted(n=40, **options):
    return compose(BCL, Constant)(n, clusters=2, epochs=50, **options)


def test_memory_and_strength_against_plain_numbers():
    n, b, beta = 12, 8, 0.9
    guide, memory = boosted(n, bcl_beta=beta), {}
    guide.start_epoch(0)
    assert (guide.strength == 0).all()
    for turn in range(5):
        index = torch.randperm(n, generator=gen(turn))[:b]
        z = torch.randn(2, b, 6, generator=gen(turn))
        out = nt_xent(*z, guide.tau[index])
        guide.after_step(index, out)
        losses = out.per_anchor.tolist()
        for position, i in enumerate(index.tolist()):
            loss = (losses[position] + losses[position + b]) / 2
            memory[i] = beta * memory[i] + (1 - beta) * loss if i in memory else loss
        guide.start_epoch(turn + 1)
        mean = sum(memory.values()) / len(memory)
        deviation = math.sqrt(sum((m - mean) ** 2 for m in memory.values()) / len(memory))
        z = {i: (memory[i] - mean) / deviation if i in memory else 0.0 for i in range(n)}
        largest = max(abs(v) for v in z.values())
        expected = [(z[i] / largest + 1) / 2 for i in range(n)]
        assert guide.strength.tolist() == pytest.approx(expected, abs=1e-5)
        assert [guide.loss_memory[i].item() for i in memory] == pytest.approx(list(memory.values()), abs=1e-5)
    assert 0 in guide.strength.round(decimals=5) or 1 in guide.strength.round(decimals=5)


def planted(guide):
    """Half of the samples are hard."""
    hard = torch.arange(guide.n) % 2 == 0
    guide.loss_memory = torch.where(hard, 5.0, 3.0)
    guide.start_epoch(4)
    return hard


def test_hard_samples_are_augmented_more_and_controls_are_what_they_say():
    guide = boosted()
    hard = planted(guide)
    assert (guide.strength[hard] == 1).all() and (guide.strength[~hard] == 0).all()
    x = torch.rand(40, 3, 8, 8, generator=gen())
    changed = torch.zeros(40)
    for turn in range(20):
        view1, view2 = guide.views(torch.arange(40), x, x, gen(turn))
        assert not torch.equal(view1, view2)
        changed += (view1 != x).flatten(1).any(1)
    assert (changed[~hard] == 0).all() and (changed[hard] > 5).all()

    shuffled, constant = boosted(bcl_shuffled=True), boosted(bcl_constant=0.5)
    planted(shuffled), planted(constant)
    assert torch.equal(shuffled.strength.sort().values, guide.strength.sort().values)
    assert not torch.equal(shuffled.strength, guide.strength) and (constant.strength == 0.5).all()
    again = boosted(bcl_shuffled=True)
    planted(again), again.start_epoch(9)
    assert torch.equal(again.strength, shuffled.strength)  # each sample keeps the strength of the same other one


def test_equal_losses_give_the_middle():
    guide = boosted()
    guide.loss_memory.fill_(2.0)
    guide.start_epoch(1)
    assert (guide.strength == 0.5).all()


def test_the_two_forms_of_bcl_are_the_published_ones():
    independent, dual = (tase.preset("cifar100-lt", name) for name in ("bcl-i", "bcl-d"))
    names = ("bcl_beta", "bcl_operations", "bcl_low", "bcl_random")
    assert [getattr(independent.guidance, n) for n in names] == [0.97, 1, 10, False]
    assert [getattr(dual.guidance, n) for n in names] == [0.97, 2, 5, True]
    assert issubclass(dual.guidance_class, SDCLR) and dual.guidance.sdclr_pruned == 0.9


# --- GH


@pytest.mark.parametrize(("k", "d"), [(2, 1), (5, 4), (5, 16), (65, 64), (100, 128), (129, 128)])
def test_the_classes_are_a_simplex(k, d):
    w = simplex_etf(k, d, gen()).double()
    expected = torch.full((k, k), -1 / (k - 1), dtype=torch.float64).fill_diagonal_(1.0)
    torch.testing.assert_close(w @ w.T, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(w.sum(0), torch.zeros(d, dtype=torch.float64), atol=1e-5, rtol=0)


def plain_sinkhorn(t, pi, iterations):
    """Row and column factors of exp(t / 0.05), as in the paper, in double precision."""
    q = (t.double() / 0.05).exp().T  # [K, N]
    n, pi = q.shape[1], pi.double()[:, None]
    c = torch.ones(n, 1, dtype=torch.float64) / n
    for _ in range(iterations):
        r = pi / (q @ c)
        c = (1 / n) / (q.T @ r)
    return n * (r * q * c.T).T


def unit_rows(n, k, seed=0):
    return F.normalize(torch.randn(n, k, generator=gen(seed)), dim=1)


@pytest.mark.parametrize("tilted", [False, True])
def test_surrogate_labels_against_plain_sinkhorn(tilted):
    t, pi = unit_rows(64, 10), torch.full((10,), 0.1)
    if tilted:
        pi = torch.linspace(1, 20, 10) / torch.linspace(1, 20, 10).sum()
    for iterations in (1, 5, 20):
        expected = plain_sinkhorn(t, pi, iterations)
        torch.testing.assert_close(sinkhorn(t / 0.05, pi, iterations).double(), expected, atol=1e-5, rtol=1e-4)
    q = sinkhorn(t / 0.05, pi, 300)
    torch.testing.assert_close(q.sum(1), torch.ones(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(q.mean(0), pi, atol=1e-5, rtol=0)


def test_sinkhorn_survives_classes_that_nobody_is_in():
    pi = torch.tensor([0.5, 0.5, 0.0, 0.0])
    q = sinkhorn(unit_rows(16, 4) / 0.05, pi, 20)
    assert torch.isfinite(q).all() and (q[:, 2:] == 0).all()


def test_planted_groups_become_surrogate_classes():
    centres = torch.eye(4) * 0.9
    label = torch.arange(40) % 4
    t = F.normalize(centres[label] + 0.02 * torch.randn(40, 4, generator=gen()), dim=1)
    q = sinkhorn(t / 0.05, torch.full((4,), 0.25), 20)
    assert torch.equal(q.argmax(1), label) and q.amax(1).min() > 0.99
    assert harmonization(t, t, torch.full((4,), 0.25), 20) < harmonization(t, t.flip(1), torch.full((4,), 0.25), 20)


def harmonized(n=30, k=5, d=8, part=GH, **options):
    guide = compose(part, Constant)(n, clusters=2, epochs=100, gh_classes=k, **options)
    guide.modules(nn.Sequential(nn.Linear(4, d)))
    return guide


def test_the_loss_and_its_gradient_against_a_double_loop():
    guide = harmonized()
    guide.marginal = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1])
    guide.amount = 0.7
    z = torch.randn(2, 12, 8, generator=gen(), dtype=torch.float64).requires_grad_()
    w = guide.etf.double()
    t = [F.normalize(v @ w.T, dim=1) for v in z]
    q = [plain_sinkhorn(s.detach(), guide.marginal, 20) for s in t]
    expected = 0.0
    for i, (one, other) in itertools.product(range(12), ((0, 1), (1, 0))):
        logits = t[other][i] / 0.1
        log_p = [logits[c] - logits.exp().sum().log() for c in range(5)]
        expected = expected - sum(q[one][i, c] * log_p[c] for c in range(5)) / 12
    (gradient,) = torch.autograd.grad(0.7 * expected, z)
    own = z.detach().float().requires_grad_()
    loss = guide.extra(torch.arange(12), *own)
    torch.testing.assert_close(loss.double(), 0.7 * expected.detach(), atol=1e-5, rtol=1e-5)
    loss.backward()
    torch.testing.assert_close(own.grad.double(), gradient, atol=1e-5, rtol=1e-5)


def test_memory_marginals_and_amount_against_plain_numbers():
    n, guide = 30, harmonized()  # warm-up 50 of 100 epochs, ramp 1, refresh 2
    memory, pi = {}, [0.2] * 5
    for epoch in range(48, 58):
        guide.start_epoch(epoch)
        if epoch >= 50 and epoch % 2 == 0 and memory:
            best = [max(range(5), key=lambda c, m=m: m[c]) for m in memory.values()]
            pi = [best.count(c) / len(best) for c in range(5)]
        assert guide.marginal.tolist() == pytest.approx(pi, abs=1e-6)
        assert guide.amount == (1.0 if epoch >= 50 else 0.0)
        index = torch.randperm(n, generator=gen(epoch))[:20]
        z1, z2 = torch.randn(2, 20, 8, generator=gen(epoch))
        extra = guide.extra(index, z1, z2)
        assert (extra is None) == (epoch < 50)
        t = F.normalize(z1 @ guide.etf.T, dim=1).tolist()
        beta = 0.999 if epoch >= 50 else 0.9
        for i, row in zip(index.tolist(), t):
            memory[i] = [beta * a + (1 - beta) * b for a, b in zip(memory[i], row)] if i in memory else row
        for i, row in memory.items():
            assert guide.class_memory[i].tolist() == pytest.approx(row, abs=1e-5)
    assert set(pi) != {0.2}
    assert guide.surrogate.tolist() == [
        max(range(5), key=lambda c: memory[i][c]) if i in memory else -1 for i in range(n)
    ]


def test_the_ramp_has_the_published_steps():
    guide = harmonized(gh_ramp=0.1)
    found = {}
    for epoch in (49, 50, 54, 59, 60, 99):
        guide.start_epoch(epoch)
        found[epoch] = guide.amount
    assert found == {49: 0.0, 50: 0.1, 54: 0.5, 59: 1.0, 60: 1.0, 99: 1.0}


def test_uniform_marginals_stay_uniform():
    guide = harmonized(gh_uniform=True)
    for epoch in range(48, 56):
        guide.start_epoch(epoch)
        guide.extra(torch.arange(30), *torch.randn(2, 30, 8, generator=gen(epoch)))
    assert guide.marginal.tolist() == pytest.approx([0.2] * 5)


def test_more_classes_than_fit_are_an_error_before_anything_is_trained(tiny):
    assert started(tiny, "gh").guidance.class_memory.shape[1] == 17  # head_dim 16
    with pytest.raises(ConfigError, match=r"guidance\.gh_classes = 18: must be from 2 to model\.head_dim \+ 1 = 17"):
        started(tiny, "gh", guidance__gh_classes=18)


# --- all of them


def test_every_part_composes_with_every_guidance(tiny):
    for base in (Constant, TemperatureSchedule, MMTS, ISogCLRTau, TASE):
        everything = compose(SDCLR, BCL, GH, base)
        guide = everything(32, clusters=3, epochs=10, gh_classes=5, gh_warmup=0.0)
        net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 8))
        assert sum(p.numel() for p in guide.modules(net).parameters()) == 16
        own = base(32, clusters=3, epochs=10)
        features = torch.randn(32, 8, generator=gen())
        for epoch in range(3):
            for g in (guide, own):
                g.start_epoch(epoch)
                g.pseudo.generator.manual_seed(epoch)
                g.update(features, epoch)
            index = torch.randperm(32, generator=gen(epoch))
            view1, view2 = guide.views(index, *torch.rand(2, 32, 1, 8, 8, generator=gen(epoch)), gen(epoch))
            z1, z2 = guide.embed(net, view1, view2)
            out = nt_xent(z1, z2, guide.tau[index], guide.weight[index], scale=guide.scale(index))
            (out.loss + guide.extra(index, z1, z2)).backward()
            guide.after_step(index, out), own.after_step(index, out)
            assert torch.equal(guide.tau, own.tau) and torch.equal(guide.weight, own.weight)
        assert everything.title.endswith("GH + BCL-I + SDCLR")
        twin = everything(32, clusters=3, epochs=10, gh_classes=5, gh_warmup=0.0)
        twin.modules(copy.deepcopy(net))
        twin.load_state_dict(guide.state_dict())
        assert torch.equal(twin.class_memory, guide.class_memory) and torch.equal(twin.strength, guide.strength)


def test_a_part_that_does_nothing_leaves_the_run_as_it_is(tiny):
    """SimCLR's steps bit for bit: with nothing pruned but one weight, no strength, or a loss that has not joined."""
    plain = started(tiny, "simclr")
    train_epoch(plain)
    for method, own in (("bcl-i", {"guidance__bcl_constant": 0.0}), ("gh", {"guidance__gh_warmup": 1.0})):
        t = started(tiny, method, **own)
        before = t.generators["data"].get_state()
        assert torch.equal(before, started(tiny, "simclr").generators["data"].get_state())
        t.guidance.start_epoch(0)
        if method == "bcl-i":  # its draws are of the views' stream: the first step alone has the same views
            index = torch.arange(64)
            fresh = started(tiny, "simclr")
            assert torch.equal(train_step(t, index).loss, train_step(fresh, index).loss)
        else:
            train_epoch(t)
            assert all(torch.equal(a, b) for a, b in zip(t.network.parameters(), plain.network.parameters()))


@pytest.mark.parametrize("method", RIVALS)
def test_stopping_in_an_epoch_resumes_bit_equal(method, tiny, tmp_path, monkeypatch):
    """As on Ctrl-C after a step: in an epoch with masks, strengths, memories and a loss that has joined."""
    config = tiny(method, optim__epochs=4, record__knn_every=0)  # GH's loss joins after 2 epochs
    whole = train(config, tmp_path / "whole", progress=False)
    steps, real = itertools.count(), training.train_step
    per_epoch = len(whole.images) // 64

    def interrupted(t, *batch):
        if next(steps) == 2 * per_epoch + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(t, *batch)

    monkeypatch.setattr(training, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", progress=False)
    monkeypatch.setattr(training, "train_step", real)
    assert tase.Run(tmp_path / "cut").status["step"] % per_epoch
    assert_same_run(train(config, tmp_path / "cut", resume=True, progress=False), whole)
    saved = [load_checkpoint(tmp_path / name, config.identity) for name in ("whole", "cut")]
    flat = [[*itertools.chain(*(tensors(s[part]) for part in ("guidance", "modules") if part in s))] for s in saved]
    assert len(flat[0]) == len(flat[1]) > 2
    assert all(torch.equal(a.nan_to_num(-9.0), b.nan_to_num(-9.0)) for a, b in zip(*flat))


def tensors(state):
    for value in state.values():
        if isinstance(value, dict):
            yield from tensors(value)
        elif isinstance(value, torch.Tensor):
            yield value


def test_what_a_part_knows_is_in_the_history(tiny, trained, tmp_path):
    run = train(tiny("bcl-i+gh", optim__epochs=4), tmp_path / "run", progress=False)
    n, s = len(run.images), len(run.history)
    assert run.config.guidance_class.SHOWN == ("loss_memory", "strength", "surrogate")
    memory, strength, surrogate = map(run.history.extra, run.config.guidance_class.SHOWN)
    assert strength.shape == memory.shape == surrogate.shape == (s, n)
    assert np.isnan(memory[0]).all() and (strength[0] == 0).all() and (surrogate[0] == -1).all()
    assert strength[-1].min() >= 0 and strength[-1].max() <= 1 and strength[-1].std() > 0
    assert surrogate[-1].max() < 17 and len(np.unique(surrogate[-1])) > 1
    slim = run.slim(tmp_path / "slim")
    assert np.array_equal(slim.history.extra("strength"), strength)
    with pytest.raises(RunError, match="keep no 'strength'"):
        trained[1].history.extra("strength")


def test_rows_have_titles_and_only_the_options_of_their_parts():
    titles = {name: METHODS[name].title for name in RIVALS}
    assert len(titles) == 13 and len(set(titles.values())) == 13
    assert titles["sdclr"] == "SDCLR" and titles["tase+bcl-i"] == "TASE + BCL-I" and titles["sdclr+gh"] == "SDCLR + GH"
    assert METHODS["tase+gh"].guidance.per_sample and not METHODS["gh"].guidance.per_sample
    assert METHODS["tase+sdclr"].guidance.steerable == TASE.steerable
    with pytest.raises(ConfigError, match="sdclr_pruned"):
        tase.preset("digits-lt", "bcl-i", overrides={"guidance.sdclr_pruned": 0.3})
    assert applicable({"guidance.gh_classes": 5}, "tase") == {}
