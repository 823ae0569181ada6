"""Networks by name, features of a set, and an encoder that is read back in one call."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tase
from tase.files import save_pt
from tase.models import build, encode, initial_network, load_encoder, resized, save_encoder


@pytest.mark.parametrize(
    ("name", "size", "stem", "d"), [("resnet18", 32, 3, 512), ("resnet18", 96, 7, 512), ("resnet50", 32, 3, 2048)]
)
def test_resnets_have_a_small_stem_for_small_images(name, size, stem, d):
    model = tase.override(tase.preset("cifar10-lt"), {"model.backbone": name}).model
    network = build(model, 3, size)
    assert network.backbone.conv1.kernel_size == (stem, stem)
    assert isinstance(network.backbone.maxpool, nn.Identity) == (stem == 3)
    x = torch.rand(2, 3, size, size)
    assert network.backbone(x).shape == (2, d) and network(x).shape == (2, 128)


def test_the_head_is_the_protocols():
    head = build(tase.preset("cifar10-lt").model, 3, 32).projector
    assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert (head[0].in_features, head[0].out_features) == (512, 512)
    assert head[3].out_features == 128 and head[3].bias is None


def test_features_do_not_depend_on_the_batch_and_leave_the_mode(tiny):
    network = build(tiny().model, 1, 8).train()
    images = torch.randint(0, 256, (33, 1, 8, 8), dtype=torch.uint8)
    whole, parts = encode(network.backbone, images), encode(network.backbone, images, batch=7)
    assert network.backbone.training and whole.shape == (33, 16)
    assert torch.allclose(whole, parts, atol=1e-6)


def test_larger_images_are_resized_and_cut_in_the_middle():
    images = torch.zeros(1, 3, 40, 80, dtype=torch.uint8)
    images[..., 20:60] = 255
    x = resized(images, 20)
    assert x.shape == (1, 3, 20, 20) and x.mean() > 0.98


def test_an_encoder_is_read_back_strictly_and_takes_bytes(trained, tmp_path):
    run, images = trained[2], trained[2].images.images[:4]
    saved = [
        run,
        run.path,
        run.path / "encoder.json",
        run.path / "encoder.safetensors",
        shutil.copy(run.path / "encoder.safetensors", tmp_path),
    ]
    for source in saved:  # the last one without encoder.json
        encoder = tase.load_encoder(source)
        assert not encoder.training and (encoder.about["feature_dim"], encoder.about["image_size"]) == (16, 8)
        h = encoder(images)
        assert torch.equal(h, encoder(images.float() / 255)) and torch.equal(h, tase.encode(run.encoder(), images))
    assert encoder(torch.zeros(2, 1, 20, 30, dtype=torch.uint8)).shape == (2, 16)
    state = load_file(tmp_path / "encoder.safetensors")
    state.popitem()
    save_file(state, tmp_path / "encoder.safetensors", {"tase": json.dumps(encoder.about)})
    with pytest.raises(ValueError, match="damaged, or no encoder of this library .*Missing key"):
        load_encoder(tmp_path / "encoder.safetensors")


def test_the_encoder_of_an_older_run_opens(trained, tmp_path):
    model = dataclasses.asdict(trained[2].config.model)
    model = {name: model[name] for name in ("backbone", "stem", "channels", "strides", "head_hidden", "head_dim")}
    state, images = trained[2].encoder().state_dict(), trained[2].images.images[:4]
    save_pt(tmp_path / "encoder.pt", {"meta": {"model": model, "channels": 1, "size": 8}, "weights": state})
    assert torch.equal(load_encoder(tmp_path)(images), trained[2].encoder()(images))


# What tase/README.md shows: no part of this library is needed.
PLAIN = re.search(
    r"```python\n(import json.*?)```", (Path(tase.__file__).parent / "README.md").read_text(), re.S
).group(1)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet18", 1), ("torchvision:shufflenet_v2_x0_5", 3), ("torchvision:googlenet", 3), ("timm:test_vit", 1)],
)
def test_a_saved_encoder_opens_without_this_library(name, channels, tmp_path):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    if not hasattr(nn.Module, "set_submodule"):
        pytest.skip("needs torch 2.5, as the page says")
    fields = {"model.backbone": name, "model.mean": "0.4", "model.std": "0.2"}
    config = tase.override(tase.preset("cifar10-lt"), fields)
    network = initial_network(config, channels, 32).eval()
    save_encoder(tmp_path, network, config.model)
    images = torch.rand(3, channels, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    code = f"import sys; sys.modules['tase'] = None; import torch; images = torch.load('images.pt')\n{PLAIN}"
    code += "\ntorch.save(features, 'features.pt')"
    code = code.replace("import json", "import timm, json") if "timm" in name else code
    code = code.replace("torchvision.models.get_model", "timm.create_model") if "timm" in name else code
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    with torch.no_grad():
        expected = network.backbone(images)
        again = load_encoder(tmp_path)(images)
    for features in (
        again,
        torch.load(tmp_path / "features.pt", weights_only=True),
    ):  # rounded otherwise: weights are not channels-last
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
