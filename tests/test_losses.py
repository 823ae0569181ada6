import math
import textwrap

import pytest
import torch
from torch.nn import functional as F

from tase.losses import nt_xent


def views(b=12, d=7, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    z1, z2 = (3 * torch.randn(b, d, generator=g, dtype=dtype) for _ in range(2))
    return z1, z2, torch.rand(b, generator=g, dtype=dtype) * 0.5 + 0.1, torch.rand(b, generator=g, dtype=dtype) + 0.1


def by_hand(z1, z2, tau, weight):
    """Equations (1), (2) with plain Python numbers; also E_p[s] of each anchor."""
    z = [[x / math.hypot(*row) for x in row] for row in torch.cat([z1, z2]).tolist()]
    b = len(z1)
    total = weights = 0.0
    losses, means = [], []
    for u in range(2 * b):
        t, w = float(tau[u % b]), float(weight[u % b])
        s = {v: sum(x * y for x, y in zip(z[u], z[v], strict=True)) for v in range(2 * b) if v != u}
        norm = sum(math.exp(cosine / t) for cosine in s.values())
        losses.append(-s[(u + b) % (2 * b)] / t + math.log(norm))
        means.append(sum(cosine * math.exp(cosine / t) for cosine in s.values()) / norm)
        total, weights = total + w * losses[-1], weights + w
    return total / weights, losses, means


def test_against_a_double_loop():
    z1, z2, tau, weight = views()
    out = nt_xent(z1, z2, tau, weight)
    loss, losses, means = by_hand(z1, z2, tau, weight)
    assert out.loss.item() == pytest.approx(loss, abs=1e-12)
    assert out.per_anchor.tolist() == pytest.approx(losses, abs=1e-12)
    assert out.mean_similarity.tolist() == pytest.approx(means, abs=1e-12)
    assert (out.attraction + out.repulsion).item() == pytest.approx(loss, abs=1e-12)
    t = tau.repeat(2)
    torch.testing.assert_close(out.logsumexp - out.positive_similarity / t, out.per_anchor)
    assert out.others == 2 * len(z1) - 1


def test_constant_tau_is_cross_entropy():
    z1, z2, *_ = views(b=64, d=32, dtype=torch.float32)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    n = len(z)
    keep = ~torch.eye(n, dtype=torch.bool)
    logits = (z @ z.T)[keep].reshape(n, n - 1) / 0.2  # the other 2B - 1, in order
    positive = torch.arange(n).roll(n // 2)
    expected = F.cross_entropy(logits, positive - (positive > torch.arange(n)).long())
    assert nt_xent(z1, z2, 0.2).loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("tau", [0.1, 0.2, 1.0])
def test_against_pytorch_metric_learning(tau):
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason="pytorch-metric-learning is not installed")
    z1, z2, *_ = views(b=48, d=16)
    labels = torch.arange(48).repeat(2)
    expected = losses.NTXentLoss(temperature=tau)(torch.cat([z1, z2]), labels)
    assert nt_xent(z1, z2, tau).loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("chunk", [None, 1, 5, 100])
def test_gradient_with_tau_and_weight_vectors(chunk):
    z1, z2, tau, weight = views(b=5, d=3)
    z1.requires_grad_(), z2.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, tau, weight, chunk=chunk, scale=tau).loss, (z1, z2))
    assert torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, tau, weight, chunk=chunk).per_anchor, (z1, z2))
    assert torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, tau, weight, chunk=chunk).repulsion, (z1, z2))


@pytest.mark.parametrize("chunk", [1, 7, 24, 1000])
def test_chunked_is_plain(chunk):
    results = []
    for rows in (None, chunk):
        z1, z2, tau, weight = views()
        z1.requires_grad_(), z2.requires_grad_()
        out = nt_xent(z1, z2, tau, weight, chunk=rows)
        out.loss.backward()
        results.append((*out[:-1], z1.grad, z2.grad))
    for plain, chunked in zip(*results, strict=True):
        torch.testing.assert_close(plain, chunked, rtol=1e-12, atol=1e-12)


def test_chunks_keep_no_square_matrix():
    z1, z2, *_ = views(b=200, d=8)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        nt_xent(z1.requires_grad_(), z2, 0.2, chunk=10).loss.backward()
    assert 0 < max(sizes) <= 400 * 8


def test_scale_of_the_weights_does_not_matter():
    z1, z2, tau, weight = views()
    assert nt_xent(z1, z2, tau, 7.5 * weight).loss.item() == pytest.approx(
        nt_xent(z1, z2, tau, weight).loss.item(), abs=1e-12
    )
    assert nt_xent(z1, z2, tau, 3.0).loss.item() == pytest.approx(nt_xent(z1, z2, tau).loss.item(), abs=1e-12)


def test_zero_weight_removes_the_anchor_but_not_the_negative():
    z1, z2, tau, _ = views()
    weight = torch.ones(len(z1), dtype=z1.dtype)
    weight[3] = 0
    losses = nt_xent(z1, z2, tau).per_anchor.reshape(2, -1)
    expected = losses[:, torch.arange(len(z1)) != 3].mean()
    assert nt_xent(z1, z2, tau, weight).loss.item() == pytest.approx(expected.item(), abs=1e-12)
    z1.requires_grad_()
    nt_xent(z1, z2, tau, weight).loss.backward()
    assert z1.grad[3].norm() > 1e-3  # pushed by the others
    gone = torch.arange(len(z1)) != 3
    assert nt_xent(z1[gone], z2[gone], tau[gone]).loss.item() != pytest.approx(expected.item(), abs=1e-6)


def test_scale_by_tau_takes_out_the_factor_of_the_gradient():
    z1, z2, tau, _ = views()
    out = nt_xent(z1, z2, tau, scale=tau / 0.2)
    assert out.loss.item() == pytest.approx((out.per_anchor * tau.repeat(2) / 0.2).mean().item(), abs=1e-12)
    assert (out.attraction + out.repulsion).item() == pytest.approx(out.loss.item(), abs=1e-12)


def test_tau_and_weight_are_constants():
    z1, z2, tau, weight = views()
    tau.requires_grad_(), weight.requires_grad_()
    nt_xent(z1.requires_grad_(), z2, tau, weight).loss.backward()
    assert tau.grad is None and weight.grad is None


def test_inputs_need_not_be_normalised():
    z1, z2, tau, _ = views()
    assert nt_xent(5 * z1, 0.01 * z2, tau).loss.item() == pytest.approx(nt_xent(z1, z2, tau).loss.item(), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_overflow_at_small_tau(dtype):
    z1 = torch.eye(8).to(dtype)
    out = nt_xent(z1.requires_grad_(), -z1.detach(), 0.01)  # positives as far off as can be
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(100 + math.log(14), rel=1e-6)
    assert torch.isfinite(z1.grad).all()
    identical = nt_xent(torch.ones(4, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype), 0.01)
    assert identical.loss.item() == pytest.approx(math.log(7), abs=1e-4)


def test_float32_inside_autocast():
    z1, z2, tau, weight = (x.float() for x in views(b=64, d=64))
    grads = []
    for enabled in (False, True):
        x = z1.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = nt_xent(x, z2, tau, weight, chunk=16)
            out.loss.backward()
        grads.append((out.loss, x.grad))
    assert torch.equal(grads[0][0], grads[1][0]) and torch.equal(grads[0][1], grads[1][1])


def test_mean_similarity_is_the_derivative_of_the_logsumexp():
    z1, z2, tau, _ = views()
    step = 1e-6
    up, down = (nt_xent(z1, z2, 1 / (1 / tau + e)).logsumexp for e in (step, -step))
    torch.testing.assert_close((up - down) / (2 * step), nt_xent(z1, z2, tau).mean_similarity, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("chunk", [None, 3])
def test_parts_of_a_batch_add_up(chunk):
    """What several processes do: each its images against all columns, the weights summed over the batch."""
    z1, z2, tau, weight = views()
    inputs = [z.clone().requires_grad_() for z in (z1, z2)]
    whole = nt_xent(*inputs, tau, weight, chunk, scale=tau)
    whole.loss.backward()
    loss, per_anchor = 0.0, torch.zeros(2, len(z1), dtype=z1.dtype)
    parts = [z.clone().requires_grad_() for z in (z1, z2)]
    for own in (slice(0, 5), slice(5, 6), slice(6, 12)):
        rows = [z[own] for z in parts]
        out = nt_xent(*rows, tau, weight, chunk, scale=tau, columns=tuple(parts), offset=own.start)
        loss, per_anchor[:, own] = loss + out.loss, out.per_anchor.detach().view(2, -1)
        assert out.others == whole.others
    loss.backward()
    assert loss.item() == pytest.approx(whole.loss.item(), abs=1e-12)
    torch.testing.assert_close(per_anchor.flatten(), whole.per_anchor.detach())
    for part, one in zip(parts, inputs, strict=True):
        torch.testing.assert_close(part.grad, one.grad)


def test_the_formula_in_the_docstring_is_the_loss():
    from tase import losses

    z1, z2, tau, weight = views()
    scale = tau / 0.3
    lines = losses.__doc__.split("written plainly:")[1].split("`nt_xent` is")[0]
    names = {"torch": torch, "F": F, "inf": math.inf, "z1": z1, "z2": z2, "n": len(z1)}
    names |= {"tau": tau, "weight": weight, "scale": scale}
    exec(textwrap.dedent(lines), names)
    assert names["loss"].item() == pytest.approx(nt_xent(z1, z2, tau, weight, scale=scale).loss.item(), abs=1e-12)


def test_wrong_input_is_named():
    z1, z2, tau, _ = views()
    with pytest.raises(ValueError, match="two views"):
        nt_xent(z1, z2[:-1])
    with pytest.raises(ValueError, match="two views"):
        nt_xent(z1[0], z2[0])
    with pytest.raises(ValueError, match="tau must be one number or one per image"):
        nt_xent(z1, z2, tau[:-1])
    with pytest.raises(ValueError, match="tau must be above 0"):
        nt_xent(z1, z2, 0.0)
    with pytest.raises(ValueError, match="not 0 for the whole batch"):
        nt_xent(z1, z2, weight=torch.zeros(len(z1)))
    with pytest.raises(ValueError, match="at least 0"):
        nt_xent(z1, z2, weight=-torch.ones(len(z1)))
    with pytest.raises(ValueError, match="chunk"):
        nt_xent(z1, z2, chunk=-1)
