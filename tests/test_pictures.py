"""Sheets of thumbnails: one frame per image, whatever its channels and type."""

import pytest
import torch

from tase.figures import thumbnails


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_shows_every_image_with_its_caption_and_frame(channels):
    images = torch.randint(0, 256, (7, channels, 8, 8), dtype=torch.uint8)
    names = [f"no. {i}" for i in range(7)]
    figure = thumbnails(images, names, ["#27509A"] * 7, columns=5, title="seven")
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_xlabel() for ax in shown] == names
    assert len(figure.axes) == 10  # two rows of five, the last three empty
    pixels = torch.from_numpy(shown[3].images[0].get_array().data.copy())
    expected = images[3, 0] if channels == 1 else images[3].permute(1, 2, 0)
    assert torch.equal(pixels, expected)
    assert figure._repr_png_()[:4] == b"\x89PNG"


def test_views_in_zero_to_one_are_shown_alike():
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    a, b = (thumbnails(x, columns=1).axes[0].images[0].get_array() for x in (images, images / 255))
    assert (a == b).all()


def test_wrong_numbers_of_captions_and_no_images_are_errors():
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="2 images but 3 captions"):
        thumbnails(images, ["a", "b", "c"])
    with pytest.raises(ValueError, match="no image"):
        thumbnails(images[:0])
