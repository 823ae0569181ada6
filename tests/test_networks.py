"""Networks of torchvision and timm by name: one step and features at 32 pixels; stems, names, sizes, draws."""

import copy
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

import tase
from tase.config import ConfigError, ModelConfig, architectures
from tase.models import build, check_start, encode, initial_network
from tase.networks import build_backbone, load_weights
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


# RegNet's constructor reads values, which shapes alone do not have; its smallest is trained above.
BY_SHAPE = sorted(name for name in architectures("torchvision") if not name.startswith("regnet"))


@pytest.mark.parametrize("name", BY_SHAPE)
def test_every_network_of_torchvision_has_features(name):
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
    with pytest.raises(ConfigError, match="pip install 'tase.timm.'"):
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


# ----------------------------------------------------------------------------------------------------- trained weights


@pytest.fixture
def published_files(tmp_path, monkeypatch):
    """publish(name): what torchvision would have fetched, drawn here, in a folder of the test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def publish(name):
        weights = models.get_model_weights(name)["IMAGENET1K_V1"]
        torch.manual_seed(5)
        full = models.get_model(name, weights=None)
        path = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(full.state_dict(), path)
        return full, path

    return publish


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "densenet121", "googlenet"])
def test_published_weights_give_the_published_features(name, published_files):
    full, _ = published_files(name)
    if name == "densenet121":
        full.classifier = nn.Identity()
    else:
        full.fc = nn.Identity()
    network = initial_network(tiny_config(f"torchvision:{name}", **{"model.weights": "IMAGENET1K_V1"}), 3, 64).eval()
    x = torch.rand(2, 3, 64, 64)
    how = models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    seen = (x - torch.tensor(how.mean)[:, None, None]) / torch.tensor(how.std)[:, None, None]
    full.transform_input = True  # as googlenet does with published weights; others do not read it
    with torch.no_grad():
        torch.testing.assert_close(network.backbone(x), full.eval()(seen), rtol=1e-3, atol=1e-4)
    if name != "googlenet":  # its mean is that of no colour
        even = {"model.mean": "0.5", "model.std": "0.25", "model.weights": "IMAGENET1K_V1"}
        grey, colour = (initial_network(tiny_config(f"torchvision:{name}", **even), c, 64).eval() for c in (1, 3))
        with torch.no_grad():
            expected = colour.backbone(x[:, :1].expand(-1, 3, -1, -1))
            torch.testing.assert_close(grey.backbone(x[:, :1]), expected, rtol=1e-3, atol=1e-4)


def test_a_vision_transformers_positions_are_interpolated():
    small = {"patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}
    there, here = (models.VisionTransformer(image_size=size, **small) for size in (64, 32))
    about = {"architecture": "vit", "channels": 3, "image_size": 32, "replaced": {}}
    positions = there.encoder.pos_embedding.detach().clone()
    load_weights(here, about, there.state_dict(), "a file")
    assert torch.equal(here.encoder.pos_embedding[:, 0], positions[:, 0]) and here.encoder.pos_embedding.shape[1] == 5
    grid = positions[:, 1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, (2, 2), mode="bicubic", align_corners=True)
    torch.testing.assert_close(here.encoder.pos_embedding[0, 1:].T.reshape(1, 8, 2, 2), expected)


def weights_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_a_run_starts_from_another_and_resumes_exactly_with_frozen_parts(trained, tiny, tmp_path):
    fields = {"model__init": str(trained[1].path), "model__freeze": "0.*,1.*,3.weight", "optim__epochs": 3}
    config = tiny("tase", **fields)
    start, there = initial_network(config, 1, 8).backbone, weights_of(trained[1].encoder())
    assert all(torch.equal(w, there[name]) for name, w in weights_of(start).items())
    tase.train(config, tmp_path / "stopped", until=1, progress=False)
    again = tase.train(config, tmp_path / "stopped", resume=True, progress=False)
    whole = tase.train(config, tmp_path / "whole", progress=False)
    now = weights_of(whole.encoder())
    assert all(torch.equal(w, now[name]) for name, w in weights_of(again.encoder()).items())
    same = {name for name in now if torch.equal(now[name], there[name])}
    assert same == {"0.weight", "3.weight", *(f"1.{leaf}" for leaf in START_NORM)}  # the norm's statistics as well


START_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_sdclr_with_frozen_parts_keeps_their_norms(tiny):
    t = Training(tiny("sdclr", model__freeze="*"), tase.load_splits(tiny("sdclr")).train)
    before = weights_of(t.network.backbone)
    t.network.train()
    train_step(t, torch.arange(64))
    assert all(torch.equal(w, before[name]) for name, w in weights_of(t.network.backbone).items())


@pytest.mark.parametrize("save", ["plain", "nested", "safetensors", "checkpoint"])
def test_weights_are_read_from_files_of_others(save, trained, tiny, tmp_path):
    state = weights_of(trained[1].encoder())
    path = tmp_path / ("weights.safetensors" if save == "safetensors" else "weights.pth")
    if save == "safetensors":
        save_file(state, path)
    elif save == "checkpoint":
        path = trained[1].path / "checkpoint.pt"
    else:
        prefixed = {f"module.backbone.{name}": w for name, w in state.items()}
        torch.save(state if save == "plain" else {"state_dict": prefixed, "epoch": 3}, path)
    start = initial_network(tiny("simclr", model__init=str(path)), 1, 8).backbone
    assert all(torch.equal(w, state[name]) for name, w in weights_of(start).items())


def test_a_file_of_another_network_is_one_line_with_the_key_and_both(trained, tiny, tmp_path):
    init = str(trained[1].path)
    wrong = [({"model__channels": "8,8,16,32"}, r"\(conv4\) does not fit conv4 \(1 channels, 8 pixels\): 9.weight is ")]
    wrong += [
        ({"model__backbone": "resnet18"}, r"\(conv4\) does not fit torchvision:resnet18 .*: conv1.weight is missi")
    ]
    for fields, message in wrong:
        with pytest.raises(ConfigError, match=f"^model.init = .*{message}[^\n]*$"):
            tase.train(tiny("simclr", model__init=init, **fields), tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "checkpoint.pt").exists()
    state = {**weights_of(trained[1].encoder()), "10.weight": torch.zeros(16), "99.more": torch.zeros(1)}
    torch.save(state, tmp_path / "more.pth")
    with pytest.raises(ConfigError, match=r"does not fit conv4 .*\['99.more'\] is not in it"):
        initial_network(tiny("simclr", model__init=str(tmp_path / "more.pth")), 1, 8)


def test_the_identity_has_the_files_content_not_its_path(trained, tiny, tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b" / "c.safetensors"]
    (tmp_path / "b").mkdir()
    for path in paths:
        shutil.copy(trained[1].path / "encoder.safetensors", path)
    first, second = (tiny("simclr", model__init=str(path)) for path in paths)
    other = tiny("simclr", model__init=str(trained[2].path))
    assert first.identity == second.identity != other.identity != tiny("simclr").identity
    assert tase.Config.from_dict(first.to_dict()) == first
    shutil.copy(trained[2].path / "encoder.safetensors", paths[0])
    with pytest.raises(ConfigError, match="model.init = .*a.safetensors.* that the run was configured with"):
        tase.train(first, tmp_path / "run", progress=False)
    paths[0].unlink()
    with pytest.raises(ConfigError, match="a file that is there"):
        tase.train(first, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.init": "no/such.pt"}, "invalid model.init = 'no/such.pt': must be a file of weights, or the folder"),
        ({"model.weights": "IMAGENET1K_V7"}, "unknown model.weights 'IMAGENET1K_V7'; did you mean 'IMAGENET1K_V"),
        ({"model.backbone": "conv4", "model.weights": "V1"}, "none are published of conv4"),
        ({"model.freeze": "layr1.*"}, "unknown parameter in model.freeze of torchvision:resnet18: 'layr1.*'; did you"),
        ({"model.mean": "0.5,0.5"}, "invalid model.mean = .*: must be one value, or 3"),
    ],
)
def test_wrong_starts_are_one_line(fields, message):
    with pytest.raises(ConfigError, match=f"^[^\n]*{message}[^\n]*$"):
        config = tiny_config("resnet18", **fields)
        check_start(config.model)
        initial_network(config, 3, 32)


def test_damaged_weights_are_one_line(tiny, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"no weights")
    (tmp_path / "a.safetensors").write_bytes(b"no weights")
    for path in ("a.pth", "a.safetensors"):
        with pytest.raises(ConfigError, match="^model.init = .* holds no weights that can be read: [^\n]*$"):
            initial_network(tiny("simclr", model__init=str(tmp_path / path)), 1, 8)


def test_weights_that_cannot_be_fetched_are_one_line(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    config = tiny_config("torchvision:squeezenet1_1", **{"model.weights": "IMAGENET1K_V1"})
    with pytest.raises(
        ConfigError, match="^model.weights = 'IMAGENET1K_V1' of .* cannot be fetched: no route to host$"
    ):
        initial_network(config, 3, 32)
