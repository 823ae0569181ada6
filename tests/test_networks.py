"""Networks of torchvision and timm by name: one step and features at 32 pixels; stems, names, sizes, draws."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import tase
from tase.config import ConfigError, ModelConfig, architectures
from tase.models import build, encode
from tase.networks import build_backbone
from tase.training import Training, own_draws, train_step

TORCHVISION = """resnet18 mobilenet_v3_small shufflenet_v2_x0_5 squeezenet1_1 efficientnet_b0 mnasnet0_5 regnet_y_400mf
    convnext_tiny vit_b_16 swin_t densenet121 googlenet""".split()  # noqa: SIM905
SMALLEST = ["torchvision:" + name for name in TORCHVISION] + ["timm:test_vit", "timm:test_efficientnet"]
PATCHES = ("convnext", "vit", "swin")  # networks without a stem that small images could need smaller


@pytest.fixture
def of_library():
    """Skip for users without timm; CI must have it."""

    def need(name):
        if name.startswith("timm:"):
            pytest.importorskip("timm")

    return need


def few_images(channels=3, n=8, size=32):
    generator = torch.Generator().manual_seed(0)
    return tase.ImageSet(torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator))


def tiny_config(backbone, method="simclr", **fields):
    given = {"model.backbone": backbone, "model.head_hidden": 16, "model.head_dim": 8, "optim.batch": 4}
    given |= {"optim.epochs": 1, "optim.lr": 0.01, "optim.device": "cpu"}
    return tase.preset("cifar10-lt", method, overrides={**given, **fields})


@pytest.mark.parametrize("name", SMALLEST)
def test_a_training_step_and_features_at_32_pixels(name, of_library):
    of_library(name)
    images = few_images()
    t = Training(tiny_config(name), images)
    before = {key: w.clone() for key, w in t.network.state_dict().items()}
    loss = train_step(t, torch.arange(4)).loss
    assert loss.isfinite()
    backbone = t.network.backbone
    moved = [key for key, w in backbone.named_parameters() if not torch.equal(w, before[f"backbone.{key}"])]
    assert len(moved) > 0.9 * len(list(backbone.parameters())), "layers without a gradient"
    h = encode(backbone, images.images)
    assert h.shape == (8, t.network.projector[0].in_features) and h.isfinite().all() and h.std(0).max() > 0
    first = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    assert first.in_channels == 3 and (first.stride == (1, 1)) == (not any(p in name for p in PATCHES))


@pytest.mark.parametrize("name", architectures("torchvision"))
def test_every_network_of_torchvision_has_features(name):
    if name.startswith("regnet"):  # its constructor reads values, which shapes alone do not have
        assert type(build_backbone(ModelConfig("torchvision:regnet_y_400mf"), 1, 32)[0]).__name__ == "RegNet"
        return
    with torch.device("meta"):
        net, about = build_backbone(ModelConfig(f"torchvision:{name}"), 1, 224)
        assert net(torch.empty(2, 1, 224, 224)).shape == (2, about["feature_dim"])
    assert about["feature_dim"] < 4097 and about["replaced"]


def test_timms_names_are_read_from_its_source():
    timm = pytest.importorskip("timm")
    assert architectures("timm") == set(timm.list_models())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt18", "unknown model.backbone 'resnt18'; did you mean 'resnet18'?"),
        ("torchvision:mobilenet_v3_smal", "unknown architecture of torchvision 'mobilenet_v3_smal'; did you mean"),
        ("keras:vgg", "invalid model.backbone = 'keras:vgg': must be torchvision:NAME or timm:NAME"),
    ],
)
def test_a_wrong_name_is_an_error_with_the_nearest_one(name, message):
    with pytest.raises(ConfigError, match="^[^\n]*$") as error:
        ModelConfig(name)
    assert message in str(error.value)


@pytest.mark.parametrize(("name", "fits"), [("inception_v3", 64), ("maxvit_t", 224), ("vit_h_14", 224)])
def test_a_network_that_cannot_take_the_size_names_one_that_it_can(name, fits):
    with pytest.raises(ConfigError, match=f"torchvision:{name}.* images of 32 pixels .*; views.size={fits} works$"):
        build_backbone(ModelConfig(f"torchvision:{name}"), 3, 32)


def test_timm_that_is_not_installed_is_named(monkeypatch):
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "timm" else real(name))
    architectures.cache_clear()
    model = ModelConfig("timm:resnet18")  # a saved run opens without it
    architectures.cache_clear()
    with pytest.raises(ConfigError, match="pip install tase.timm."):
        build(model, 3, 32)


@pytest.mark.parametrize("channels", [1, 4])
def test_the_first_convolution_takes_the_images_channels(channels):
    for name in ("torchvision:squeezenet1_1", "torchvision:convnext_tiny"):
        net, about = build_backbone(ModelConfig(name, stem="imagenet"), channels, 64)
        assert net(torch.rand(2, channels, 64, 64)).shape == (2, about["feature_dim"])


def test_sdclr_needs_convolutions_to_prune():
    images = few_images()
    train_step(t := Training(tiny_config("torchvision:mobilenet_v3_small", "sdclr"), images), torch.arange(4))
    assert len(t.guidance.masks) > 20
    with pytest.raises(ConfigError, match="method 'sdclr' prunes convolutions, and this network has none"):
        t.guidance.modules(nn.Sequential(nn.Linear(3, 4)))


def test_stochastic_depth_draws_the_same_after_a_stop_and_leaves_the_global_generator():
    config, images = tiny_config("torchvision:efficientnet_b0"), few_images()
    whole, resumed = Training(config, images), Training(config, images)
    train_step(whole, torch.arange(4))
    whole.position = 1
    resumed.restore(copy.deepcopy(whole.state()))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    losses = [train_step(t, torch.arange(4, 8)).loss for t in (whole, resumed)]
    assert torch.equal(*losses) and torch.equal(torch.get_rng_state(), before)
    views = torch.rand(4, 3, 32, 32)
    with own_draws(whole):
        first, second = whole.network(views), whole.network(views)
    assert not torch.equal(first, second), "no layer of this network draws"


def test_clusters_of_features_with_negative_values_are_centred():
    x = encode(build_backbone(ModelConfig("torchvision:convnext_tiny"), 3, 32)[0], few_images().images)
    assert x.min() < 0
    directions = tase.pseudo_labels.directions
    assert torch.equal(directions(x), directions(x, "centred"))
    positive = encode(build_backbone(ModelConfig("torchvision:squeezenet1_1"), 3, 32)[0], few_images().images)
    assert torch.equal(directions(positive), directions(positive, "sqrt"))


def test_a_wrong_name_is_reported_before_torch_is_loaded():
    code = "import sys, tase.__main__ as m; assert m.main(sys.argv[1:]) == 2; assert 'torch' not in sys.modules"
    words = ["train", "--preset", "digits-lt", "--set", "model.backbone=torchvision:resnet19"]
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert ended.returncode == 0 and "did you mean 'resnet1" in ended.stderr
