"""Trust without labels: the right verdicts on planted data, none on shuffled features, advice with labels."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_pseudo_labels import gen, mixture

from tase.trust import feature_trust, run_trust, walk_log_sizes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("counts", "tail"), [((500, 100, 20), True), ((200, 200, 200), False), ((60,) * 10, False)])
def test_planted_mixtures_get_the_right_verdict(counts, tail, seed):
    x, _ = mixture(counts, noise=0.5, seed=seed)
    assert feature_trust(x, gen(seed)).trust == (1.0 if tail else 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_features_share_much_less(seed):
    """Not nothing: each planted dimension still shows its groups. Features of trained networks fall to 0.05."""
    x, _ = mixture((500, 100, 20), noise=0.5, seed=seed)
    x = (x @ torch.randn(x.shape[1], 128, generator=gen(seed))).relu()
    shuffled = torch.stack([column[torch.randperm(len(x), generator=gen(i))] for i, column in enumerate(x.T)], dim=1)
    whole, apart = feature_trust(x, gen()), feature_trust(shuffled, gen())
    assert whole.trust == 1 and apart.shared < 0.6 * whole.shared and apart.agreement < 0.6 * whole.agreement


def test_the_walk_counts_the_samples_that_it_reaches():
    p = torch.zeros(30, 3, dtype=torch.float64)
    p[:20, 0] = p[:20, 1] = 0.5  # two clusters of one class of 20
    p[20:, 2] = 1.0
    sizes = walk_log_sizes(p).exp()
    assert sizes[:20].tolist() == pytest.approx([20.0] * 20) and sizes[20:].tolist() == pytest.approx([10.0] * 10)


def test_a_run_says_how_far_to_believe_it_and_labels_say_more(trained, tmp_path):
    run = trained[2]
    plain = run_trust(run)
    assert plain == run_trust(run) and 0 <= plain["trust"] <= 1 and "labels" in plain["verdict"]
    rng = np.random.default_rng(0)
    some = rng.choice(len(run.history.labels), 100, replace=False)
    labels = {str(i): str(run.history.labels[i]) for i in some}
    judged = run_trust(run, labels)
    low, high = judged["interval"]
    assert judged["labelled"] == 100 and low < judged["correlation"] < high and "headness" in judged["advice"]
    with pytest.raises(ValueError, match="labels of 2 of the run's 405 images"):
        run_trust(run, {"1": "a", "2": "b"})
    file = tmp_path / "labels.csv"
    file.write_text("image,class\n" + "".join(f"{i},{label}\n" for i, label in labels.items()))
    words = [sys.executable, "-m", "tase", "trust", str(run.path), "--labels", str(file), "--json"]
    told = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert told == json.loads(json.dumps(judged))
