"""The reference of the views: torchvision's transforms of SimCLR, in their order, on one PIL image after the other."""

import torch
from torchvision import transforms as T
from torchvision.transforms.functional import to_pil_image


def reference_views(batch, views, generator):
    """Two views of uint8 images [b, c, h, w] with 1 or 3 channels, in one tensor [2b, c, s, s] as `stacked_views`."""
    transform = reference_transform(views, batch.shape[1], views.size or min(batch.shape[2:]))
    seed = int(torch.randint(2**31, (), generator=generator))
    images = [to_pil_image(image) for image in batch]
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global state
        torch.default_generator.manual_seed(seed)
        return torch.stack([transform(image) for _ in range(2) for image in images])


def reference_transform(views, channels, side):
    jitter = T.ColorJitter(views.brightness, views.contrast, views.saturation, views.hue)
    steps = [
        T.RandomResizedCrop(side, views.scale, views.ratio, T.InterpolationMode(views.interpolation)),
        T.RandomHorizontalFlip(views.flip),
        T.RandomApply([jitter], views.jitter),
    ]
    if channels == 3:
        steps.append(T.RandomGrayscale(views.grey))
    if views.blur > 0:
        kernel = 2 * min(max(1, side // 20), side - 1) + 1  # a tenth of the side, odd
        steps.append(T.RandomApply([T.GaussianBlur(kernel, views.blur_sigma)], views.blur))
    return T.Compose([*steps, T.ToTensor()])
