"""Two augmented views of a batch, drawn per sample, on the device of the batch.

    view1, view2 = two_views(batch, config.views, generator)    # uint8 [b, c, h, w] -> float [b, c, s, s] twice, 0 to 1

Everything random about n views is one `Draw` of tensors [n], made by `draw`; `apply` makes the views of it:

* A random resized crop with flip and blur is separable, out = Wy x Wx^T: two small matrices per sample, which hold the
  weights of PIL's antialiased bicubic or bilinear filter. `crop` is two batched products.
* Brightness, contrast, saturation, hue and the dropping of colour compose into one affine map of colours per sample
  (`colour_maps`, `recolour`). Brightness commutes with the other steps, so of the random order in which torchvision
  takes them only two facts matter: whether saturation comes before hue, and hue before contrast.

The back end "torchvision" takes torchvision's transforms to one PIL image at a time: slow, and the reference. "batched"
differs from it in this:

* nothing is rounded to 8 bits;
* colours are clamped after the crop and at the end, not after every step;
* hue is turned about the grey axis of RGB, not in HSV (on photographs nearer to HSV than a rotation in YIQ is);
* blur comes before the colours instead of after them, which is the same but for clamping and the mean at the edges.

Random parameters have the same distributions; tests bound how far apart crops, means, contrasts, saturations and hues
are. torchvision's v2 transforms are no option: given a batch, they draw one set of parameters for all its images.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from .config import ViewsConfig, check
from .distributed import share

_TRIES = 10  # of a crop that fits inside the image, as in torchvision; then the largest one in the centre
_LUMA = (0.299, 0.587, 0.114)  # grey of a colour, ITU-R 601, as in PIL
_BANK = 2**25  # numbers that a bank of crop matrices may hold: sides up to 64 pixels


def _chunk(device: torch.device) -> int:
    """Numbers in the images worked on at a time: what stays in a CPU's cache; on a GPU, what bounds the memory."""
    return 2**18 if device.type == "cpu" else 2**27


@dataclass(frozen=True)
class Draw:
    """Everything random about n views, one tensor [n] per choice.

    `top`, `left`, `height`, `width`: the crop, in pixels of the image. `flip`: mirrored left to right. `brightness`,
    `contrast`, `saturation`: factors, 1 changes nothing. `hue`: shift in turns. `saturation_first`: saturation comes
    before hue; `hue_first`: hue before contrast. `grey`: colour is dropped. `sigma`: of the blur, in pixels of the
    view, 0 is none.
    """

    top: Int64[Tensor, "n"]
    left: Int64[Tensor, "n"]
    height: Int64[Tensor, "n"]
    width: Int64[Tensor, "n"]
    flip: Bool[Tensor, "n"]
    brightness: Float[Tensor, "n"]
    contrast: Float[Tensor, "n"]
    saturation: Float[Tensor, "n"]
    hue: Float[Tensor, "n"]
    saturation_first: Bool[Tensor, "n"]
    hue_first: Bool[Tensor, "n"]
    grey: Bool[Tensor, "n"]
    sigma: Float[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, index) -> Draw:
        """The views that `index` (slice, indices or mask) picks."""
        return Draw(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))


def two_views(
    batch: UInt8[Tensor, "b c h w"], views: ViewsConfig, generator: torch.Generator | None = None, of: int | None = None
) -> tuple[Float[Tensor, "b c s s"], Float[Tensor, "b c s s"]]:
    """Two random views of each image of a uint8 batch: float32 in [0, 1], s = `views.size` or the images' shorter side.

    `generator` decides all that is random (None: torch's global one). With `of`, the images are this process's
    `distributed.share` of so many, and get the views that one process would give them (not so with the torchvision
    back end, which draws by image). Raises ValueError for another type or shape.
    """
    return stacked_views(batch, views, generator, of).chunk(2)


@torch.no_grad()
def stacked_views(
    batch: UInt8[Tensor, "b c h w"], views: ViewsConfig, generator: torch.Generator | None = None, of: int | None = None
) -> Float[Tensor, "2b c s s"]:
    """`two_views` in one tensor, first views of all images, then second views: one batch for the network."""
    _check_images(batch)
    b, _, h, w = batch.shape
    own = share(of) if of else slice(0, b)
    if False:  # pragma: no cover
        return torchvision_views(batch, views, generator, own.start)
    drawn = draw(views, 2 * (of or b), h, w, generator, batch.device)
    if b < (of or b):  # drawn for the whole batch in every process
        rows = torch.arange(own.start, own.stop, device=batch.device)
        drawn = drawn[torch.cat([rows, rows + of])]
    return apply(batch, drawn, views)


def draw(
    views: ViewsConfig,
    n: int,
    h: int,
    w: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Draw:
    """Random parameters of n views of images of h x w pixels, on `device`; each view has its own.

    Crops as in torchvision's RandomResizedCrop, colours as in its ColorJitter under RandomApply. A generator of another
    device than `device` works, at the price of a copy.
    """
    source = device if generator is None else generator.device
    u = torch.rand(n, 2 * _TRIES + 14, generator=generator, device=source).to(device)
    area, aspect, u = u[:, :_TRIES], u[:, _TRIES : 2 * _TRIES], u[:, 2 * _TRIES :]
    jitter = u[:, 0] < views.jitter

    def around(centre: float, reach: float, column: int) -> Float[Tensor, "n"]:
        return torch.where(jitter, centre + reach * (2 * u[:, column] - 1), centre)

    low, high = views.blur_sigma
    return Draw(
        *_crops(area, aspect, u[:, 1], u[:, 2], views, h, w),
        flip=u[:, 3] < views.flip,
        brightness=around(1, views.brightness, 4),
        contrast=around(1, views.contrast, 5),
        saturation=around(1, views.saturation, 6),
        hue=around(0, views.hue, 7),
        saturation_first=u[:, 8] < u[:, 9],
        hue_first=u[:, 9] < u[:, 10],
        grey=u[:, 11] < views.grey,
        sigma=torch.where(u[:, 12] < views.blur, low + (high - low) * u[:, 13], 0.0),
    )


def _crops(area, aspect, row, column, views: ViewsConfig, h: int, w: int) -> tuple[Int64[Tensor, "n"], ...]:
    """Top, left, height, width of n crops from uniform numbers: `area`, `aspect` [n, tries], `row`, `column` [n]."""
    low, high = views.scale
    area = h * w * (low + (high - low) * area)
    low, high = views.ratio
    aspect = (math.log(low) + math.log(high / low) * aspect).exp_()
    height, width = (area / aspect).sqrt_().round_(), (area * aspect).sqrt_().round_()
    fits = (height > 0) & (height <= h) & (width > 0) & (width <= w)
    first, found = fits.int().argmax(1, keepdim=True), fits.any(1)
    tall, wide = _largest_centred(views, h, w)
    height = torch.where(found, height.gather(1, first).squeeze(1).long(), tall)
    width = torch.where(found, width.gather(1, first).squeeze(1).long(), wide)
    free_h, free_w = h - height, w - width
    top = torch.where(found, (row * (free_h + 1)).long().minimum(free_h), free_h // 2)
    left = torch.where(found, (column * (free_w + 1)).long().minimum(free_w), free_w // 2)
    return top, left, height, width


def _largest_centred(views: ViewsConfig, h: int, w: int) -> tuple[int, int]:
    """Height and width of the largest crop whose aspect ratio is allowed."""
    low, high = views.ratio
    if w / h < low:
        return max(1, round(w / low)), w
    if w / h > high:
        return h, max(1, round(h * high))
    return h, w


@torch.no_grad()
def apply(batch: UInt8[Tensor, "b c h w"], d: Draw, views: ViewsConfig) -> Float[Tensor, "n c s s"]:
    """The n views that `d` describes, float32 in [0, 1]: view j is of image j mod b.

    Raises ValueError for images of another type or shape, and if n is no multiple of b.
    """
    _check_images(batch)
    b, c, h, w = batch.shape
    if b == 0 or len(d) % b:
        raise ValueError(f"{len(d)} drawn views are no multiple of the {b} images of the batch")
    side = _side(views, h, w)
    images = batch.repeat(len(d) // b, 1, 1, 1)
    out = torch.empty(len(d), c, side, side, device=batch.device)
    step = max(1, _chunk(batch.device) // (c * max(h * w, side * side)))
    with torch.autocast(batch.device.type, enabled=False):  # half precision would show in the colours
        linear, tint = colour_maps(d, c)
        for start in range(0, len(d), step):
            part = slice(start, start + step)
            recolour(crop(images[part], d[part], views), (linear[part], tint[part]), out=out[part])
    return out


def _check_images(batch: Tensor) -> None:
    if batch.dtype != torch.uint8 or batch.dim() != 4:
        kind = str(batch.dtype).removeprefix("torch.")
        raise ValueError(f"views are made of uint8 images [b, c, h, w], 0 to 255; got {kind} {list(batch.shape)}")


def _side(views: ViewsConfig, h: int, w: int) -> int:
    return views.size or min(h, w)


def crop(images: UInt8[Tensor, "n c h w"], d: Draw, views: ViewsConfig) -> Float[Tensor, "n c s s"]:
    """Crop, resize, flip and blur image j as `d` says for j: float32 in [0, 255]."""
    n, c, h, w = images.shape
    side = _side(views, h, w)
    down = crop_matrices(d.top, d.height, torch.zeros_like(d.flip), h, side, views.interpolation)
    across = crop_matrices(d.left, d.width, d.flip, w, side, views.interpolation)
    if views.blur > 0:
        blur = blur_matrices(d.sigma, side)
        down, across = blur @ down, blur @ across
    x = images.float().reshape(n, c * h, w) @ across.transpose(1, 2)
    return (down[:, None] @ x.view(n, c, h, side)).clamp_(0, 255)


def crop_matrices(
    start: Int64[Tensor, "n"],
    length: Int64[Tensor, "n"],
    flip: Bool[Tensor, "n"],
    size: int,
    side: int,
    interpolation: str,
) -> Float[Tensor, "n side size"]:
    """One axis of n resized crops as matrices: rows are the output pixels, columns the `size` input pixels.

    Small images have few crops, whose matrices are all kept; those of larger ones are computed (`resize_matrices`).
    """
    if size * (size + 1) * side * size > _BANK:
        return resize_matrices(start, length, flip, size, side, interpolation)
    before = (length - 1) * (size + 1) - (length - 1) * length // 2  # crops that are shorter
    return _bank(size, side, interpolation, start.device).index_select(0, 2 * (before + start) + flip)


@lru_cache(maxsize=8)
def _bank(size: int, side: int, interpolation: str, device: torch.device) -> Float[Tensor, "k side size"]:
    """The matrices of all crops of an axis, by length, then start, then flip."""
    length, start, flip = torch.cartesian_prod(
        torch.arange(1, size + 1, device=device), torch.arange(size, device=device), torch.arange(2, device=device)
    ).unbind(1)
    inside = start + length <= size
    return resize_matrices(start[inside], length[inside], flip[inside].bool(), size, side, interpolation)


def resize_matrices(
    start: Int64[Tensor, "n"],
    length: Int64[Tensor, "n"],
    flip: Bool[Tensor, "n"],
    size: int,
    side: int,
    interpolation: str,
) -> Float[Tensor, "n side size"]:
    """PIL's filter weights: pixels start..start+length resized to `side`, mirrored where `flip`; rows sum to 1.

    The filter is stretched by length/side when the crop shrinks (antialiasing); bicubic is Keys' with a = -0.5.
    """
    scale = (length / side)[:, None]
    row = torch.arange(side, device=start.device) + 0.5
    column = torch.arange(size, device=start.device) + 0.5
    centre = start[:, None] + torch.where(flip[:, None], side - row, row) * scale
    distance = (column - centre[:, :, None]).div_(scale.clamp(min=1)[:, :, None]).abs_()
    weight = _cubic(distance) if interpolation == "bicubic" else (1 - distance).clamp_(min=0)
    inside = (column > start[:, None]) & (column < (start + length)[:, None])
    weight.mul_(inside[:, None])
    return weight.div_(weight.sum(2, keepdim=True))


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel without branches: its outer piece (1 - d)(2 - d)^2 / 2, and for e = 1 - d > 0 also e^2 (1 - 2e)."""
    far = (2 - distance).clamp_(min=0)
    near = (1 - distance).clamp_(min=0)
    return (far - 1).mul_(far).mul_(far).div_(2).add_((1 - 2 * near).mul_(near).mul_(near))


def blur_matrices(sigma: Float[Tensor, "n"], side: int) -> Float[Tensor, "n side side"]:
    """Gaussian blur of one axis, edges reflected, kernel side/10 wide (odd, at least 3); the identity for sigma 0."""
    spread = _reflected_shifts(side, sigma.device)
    half = len(spread) // 2
    offset = torch.arange(-half, half + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    return (kernel @ spread.flatten(1)).view(-1, side, side)


@lru_cache(maxsize=8)
def _reflected_shifts(side: int, device: torch.device) -> Float[Tensor, "k side side"]:
    """For each offset of the blur's kernel the matrix that moves an axis by it, edges reflected."""
    half = min(max(1, side // 20), side - 1)
    pixel = torch.arange(side, device=device) + torch.arange(-half, half + 1, device=device)[:, None]
    pixel = (side - 1 - (side - 1 - pixel.abs()).abs()).long()
    return torch.nn.functional.one_hot(pixel, side).float()


def recolour(
    x: Float[Tensor, "n c s s"], maps: tuple[Tensor, Tensor], out: Tensor | None = None
) -> Float[Tensor, "n c s s"]:
    """Image j of x, in [0, 255], with colours changed by map j of `colour_maps`: in [0, 1], in `out` (contiguous)."""
    linear, tint = maps
    offset = (tint * x.mean((2, 3))).sum(1)[:, None, None]
    out = torch.empty_like(x) if out is None else out
    torch.baddbmm(offset, linear, x.flatten(2), out=out.flatten(2)).clamp_(0, 1)
    return out


def colour_maps(d: Draw, channels: int) -> tuple[Float[Tensor, "n c c"], Float[Tensor, "n c"]]:
    """The colour changes of n views as x -> M x + (t . mean colour of the view), from [0, 255] to [0, 1]: M and t.

    t is there for the contrast, which needs the mean grey of the image at its turn: linear in the mean colour of the
    crop. Images that are not of 3 channels change in brightness and contrast only, by the mean over their channels.
    """
    gain, lift = d.brightness * d.contrast / 255, d.brightness * (1 - d.contrast) / 255
    if channels != 3:
        eye = torch.eye(channels, device=gain.device)
        return gain[:, None, None] * eye, (lift / channels)[:, None].expand(-1, channels)
    linear, seen = _chroma_maps(d)
    return gain[:, None, None] * linear, lift[:, None] * seen


def _chroma_maps(d: Draw) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3"]]:
    """Saturation, hue and the dropping of colour as matrices, and the weights of the mean grey that contrast sees."""
    eye, luma, axis, turn = _colour_basis(d.hue.device)
    angle = 2 * math.pi * d.hue[:, None, None]
    saturate = torch.lerp(luma, eye, d.saturation[:, None, None])
    rotate = axis + angle.cos() * (eye - axis) + angle.sin() * turn
    first = d.saturation_first[:, None, None]
    linear = torch.where(first, rotate, saturate) @ torch.where(first, saturate, rotate)
    grey = luma @ linear
    # Saturation leaves the grey of a colour as it is, so that contrast only asks whether hue was turned before.
    seen = torch.where(d.hue_first[:, None], grey[:, 0], luma[0])
    return torch.where(d.grey[:, None, None], grey, linear), seen


@lru_cache(maxsize=8)
def _colour_basis(device: torch.device) -> Float[Tensor, "4 3 3"]:
    """Identity, grey (rows of luma), mean over the channels, and a quarter turn about the grey axis, red to green."""
    turn = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    basis = torch.stack([torch.eye(3), torch.tensor(_LUMA).expand(3, 3), torch.full((3, 3), 1 / 3), turn])
    return basis.to(device)


def torchvision_views(
    batch: UInt8[Tensor, "b c h w"], views: ViewsConfig, generator: torch.Generator | None = None, first: int = 0
) -> Float[Tensor, "2b c s s"]:
    """The reference: SimCLR's transforms of torchvision, in their order, on one PIL image after the other.

    With a generator the global random state is neither read nor changed; `first`, the place of the first image in a
    batch that several processes share, keeps their draws apart. Raises ConfigError unless c is 1 or 3.
    """
    from torchvision.transforms.functional import to_pil_image

    channels = batch.shape[1]
    check(channels in (1, 3), "views.backend", views.backend, f"'batched' for images of {channels} channels")
    transform = _torchvision_transform(views, channels, _side(views, *batch.shape[2:]))
    source = "cpu" if generator is None else generator.device
    seed = int(torch.randint(2**31, (), generator=generator, device=source))
    images = [to_pil_image(image) for image in batch.cpu()]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed + first)  # torch.manual_seed would change the CUDA generators too
        return torch.stack([transform(image) for _ in range(2) for image in images]).to(batch.device)


def _torchvision_transform(views: ViewsConfig, channels: int, side: int):
    from torchvision import transforms as T

    jitter = T.ColorJitter(views.brightness, views.contrast, views.saturation, views.hue)
    steps = [
        T.RandomResizedCrop(side, views.scale, views.ratio, T.InterpolationMode(views.interpolation)),
        T.RandomHorizontalFlip(views.flip),
        T.RandomApply([jitter], views.jitter),
    ]
    if channels == 3:
        steps.append(T.RandomGrayscale(views.grey))
    if views.blur > 0:
        kernel = len(_reflected_shifts(side, torch.device("cpu")))
        steps.append(T.RandomApply([T.GaussianBlur(kernel, views.blur_sigma)], views.blur))
    return T.Compose([*steps, T.ToTensor()])
