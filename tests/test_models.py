"""Networks by name, features of a set, and an encoder that is read back in one call."""

import pytest
import torch
from torch import nn

import tase
from tase.models import build, encode, load_backbone, resized, save_backbone


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


def test_a_backbone_is_read_back_strictly(tmp_path, tiny):
    network = build(tiny().model, 1, 8).eval()
    save_backbone(tmp_path / "encoder.pt", network, tiny().model, 1, 8)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(load_backbone(tmp_path / "encoder.pt")(x), network.backbone(x))
    saved = torch.load(tmp_path / "encoder.pt", weights_only=True)
    saved["weights"].popitem()
    torch.save(saved, tmp_path / "encoder.pt")
    with pytest.raises(ValueError, match="damaged, or no backbone of this library"):
        load_backbone(tmp_path / "encoder.pt")
