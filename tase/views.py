"""Two augmented views of a batch, drawn per sample, on the device of the batch.

    view1, view2 = two_views(batch, config.views, generator)    # uint8 [b, c, h, w] -> float [b, c, s, s] twice, 0 to 1

`draw_parameters` draws all that is random about n views, one tensor [n] per choice; `make_views` makes the views of it:

* A random resized crop with flip and blur is separable, out = Wy x Wx^T: two small matrices per sample hold the
  weights of PIL's antialiased bicubic or bilinear filter, so `crop` is two batched products.
* Brightness, contrast, saturation, hue and the dropping of colour compose into one affine map of colours per sample
  (`colour_maps`, `recolour`). Brightness commutes with the other steps, so of the random order in which torchvision
  takes them only two facts matter: whether saturation comes before hue, and hue before contrast.

Why not torchvision's v2 transforms: given a batch, they draw one set of parameters for all its images
(pytorch/vision#8484), so all views of a batch would share crop and colour, and a network can tell them apart by that.
The tests hold the views against torchvision's transforms of one PIL image at a time. They differ in this:

* nothing is rounded to 8 bits;
* colours are clamped after the crop and at the end, not after every step;
* hue is turned about the grey axis of RGB, not in HSV: a rotation is linear, so it joins the other colour steps in one
  matrix (on photographs it is nearer to HSV than a rotation in YIQ);
* blur comes before the colours instead of after them, which is the same but for clamping and the mean at the edges.

`rand_augment` then changes views by a few of OPERATIONS, each sample with its own probability and magnitude.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from .config import ViewsConfig

CROP_TRIES = 10  # to find a crop that fits inside the image, as in torchvision; then the largest one in the centre
LUMA = (0.299, 0.587, 0.114)  # grey of a colour, ITU-R 601, as in PIL
BANK_SIZE = 2**25  # numbers that a bank of crop matrices may hold: sides up to 64 pixels


def _chunk_size(device: torch.device) -> int:
    """Return how many numbers of images to work on at a time."""
    # CPU: 1 MiB stays in the cache, and malloc gives the same memory again; twice as much took twice as long.
    # GPU: only the memory needs a bound.
    return 2**18 if device.type == "cpu" else 2**27


@dataclass(frozen=True)
class ViewParameters:
    """Hold everything random about n views, one tensor [n] per choice.

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

    def __getitem__(self, index) -> ViewParameters:
        """Pick views by `index`: a slice, indices or a mask."""
        return ViewParameters(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))


def two_views(
    batch: UInt8[Tensor, "b c h w"],
    views: ViewsConfig,
    generator: torch.Generator | None = None,
    offset: int = 0,
    total: int | None = None,
) -> tuple[Float[Tensor, "b c s s"], Float[Tensor, "b c s s"]]:
    """Make two random views of each uint8 image: float32 in [0, 1], s = `views.size` or the images' shorter side.

    `generator` decides all that is random (None: torch's global one). With `total`, the images are number `offset` and
    following of a batch of so many, and get the views that they would get in that whole batch. Raises ValueError for
    images of another type or shape.
    """
    _check_images(batch)
    b, _, h, w = batch.shape
    total = total or b
    # Always drawn for the whole batch: each sample's numbers, and the generator afterwards, do not depend on its split.
    parameters = draw_parameters(views, 2 * total, h, w, generator, batch.device)
    if b < total:
        rows = torch.arange(offset, offset + b, device=batch.device)
        parameters = parameters[torch.cat([rows, rows + total])]
    return make_views(batch, parameters, views).chunk(2)


def draw_parameters(
    views: ViewsConfig,
    n: int,
    h: int,
    w: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> ViewParameters:
    """Draw the parameters of n views of images of h x w pixels, on `device`, each view its own.

    Crops are distributed as by torchvision's RandomResizedCrop, colours as by its ColorJitter under RandomApply. A
    generator of another device than `device` costs a copy.
    """
    source = device if generator is None else generator.device
    # One call for all choices, of one width for all options: changing an option leaves the others' numbers alone.
    u = torch.rand(n, 2 * CROP_TRIES + 14, generator=generator, device=source).to(device)
    area, aspect, u = u[:, :CROP_TRIES], u[:, CROP_TRIES : 2 * CROP_TRIES], u[:, 2 * CROP_TRIES :]
    jitter = u[:, 0] < views.jitter

    def around(centre: float, reach: float, column: int) -> Float[Tensor, "n"]:
        return torch.where(jitter, centre + reach * (2 * u[:, column] - 1), centre)

    low, high = views.blur_sigma
    return ViewParameters(
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
    """Turn uniform numbers (`area`, `aspect` [n, tries]; `row`, `column` [n]) into top, left, height and width."""
    low, high = views.scale
    area = h * w * (low + (high - low) * area)
    low, high = views.ratio
    aspect = (math.log(low) + math.log(high / low) * aspect).exp_()
    height, width = (area / aspect).sqrt_().round_(), (area * aspect).sqrt_().round_()
    fits = (height > 0) & (height <= h) & (width > 0) & (width <= w)
    # Samples fail independently, so all tries of all samples are drawn, and each takes its first one that fits.
    first, found = fits.int().argmax(1, keepdim=True), fits.any(1)  # [n, 1], [n]
    tall, wide = _largest_centred(views, h, w)
    height = torch.where(found, height.gather(1, first).squeeze(1).long(), tall)
    width = torch.where(found, width.gather(1, first).squeeze(1).long(), wide)
    free_h, free_w = h - height, w - width
    top = torch.where(found, (row * (free_h + 1)).long().minimum(free_h), free_h // 2)
    left = torch.where(found, (column * (free_w + 1)).long().minimum(free_w), free_w // 2)
    return top, left, height, width


def _largest_centred(views: ViewsConfig, h: int, w: int) -> tuple[int, int]:
    """Return height and width of the largest crop whose aspect ratio is allowed."""
    low, high = views.ratio
    if w / h < low:
        return max(1, round(w / low)), w
    if w / h > high:
        return h, max(1, round(h * high))
    return h, w


@torch.no_grad()
def make_views(batch: UInt8[Tensor, "b c h w"], d: ViewParameters, views: ViewsConfig) -> Float[Tensor, "n c s s"]:
    """Make the n views that `d` describes, float32 in [0, 1]: view j is of image j mod b.

    Raises ValueError for images of another type or shape, and if n is no multiple of b.
    """
    _check_images(batch)
    b, c, h, w = batch.shape
    if b == 0 or len(d) % b:
        raise ValueError(f"{len(d)} drawn views are no multiple of the {b} images of the batch")
    side = _side(views, h, w)
    images = batch.repeat(len(d) // b, 1, 1, 1)
    out = torch.empty(len(d), c, side, side, device=batch.device)
    step = max(1, _chunk_size(batch.device) // (c * max(h * w, side * side)))
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


def crop(images: UInt8[Tensor, "n c h w"], d: ViewParameters, views: ViewsConfig) -> Float[Tensor, "n c s s"]:
    """Crop, resize, flip and blur image j as `d` says for j: float32 in [0, 255]."""
    n, c, h, w = images.shape
    side = _side(views, h, w)
    down = crop_matrices(d.top, d.height, torch.zeros_like(d.flip), h, side, views.interpolation)
    across = crop_matrices(d.left, d.width, d.flip, w, side, views.interpolation)
    if views.blur > 0:
        blur = blur_matrices(d.sigma, side)
        down, across = blur @ down, blur @ across
    x = images.float().reshape(n, c * h, w) @ across.transpose(1, 2)  # [n, c h, side]: rows first
    return (down[:, None] @ x.view(n, c, h, side)).clamp_(0, 255)


def crop_matrices(
    start: Int64[Tensor, "n"],
    length: Int64[Tensor, "n"],
    flip: Bool[Tensor, "n"],
    size: int,
    side: int,
    interpolation: str,
) -> Float[Tensor, "n side size"]:
    """Return one axis of n resized crops as matrices: rows are the output pixels, columns the `size` input pixels."""
    # A small image has few crops along an axis (528 of 32 pixels): all their matrices are computed once and looked up,
    # which makes the views of 32 x 32 images 1.4 times as fast, those of 28 x 28 grey ones 2.2 times.
    if size * (size + 1) * side * size > BANK_SIZE:
        return resize_matrices(start, length, flip, size, side, interpolation)
    before = (length - 1) * (size + 1) - (length - 1) * length // 2  # crops that are shorter
    return _bank(size, side, interpolation, start.device).index_select(0, 2 * (before + start) + flip)


@lru_cache(maxsize=8)
def _bank(size: int, side: int, interpolation: str, device: torch.device) -> Float[Tensor, "k side size"]:
    """Compute the matrices of all crops of an axis, by length, then start, then flip; k = size (size + 1)."""
    length, start, flip = torch.cartesian_prod(
        torch.arange(1, size + 1, device=device), torch.arange(size, device=device), torch.arange(2, device=device)
    ).unbind(1)
    inside = start + length <= size
    return resize_matrices(start[inside], length[inside], flip[inside].bool(), size, side, interpolation)


def resize_matrices(start, length, flip, size: int, side: int, interpolation: str) -> Float[Tensor, "n side size"]:
    """Compute `crop_matrices`: PIL's filter weights, mirrored where `flip`; rows sum to 1.

    The filter is stretched by length/side when the crop shrinks (antialiasing); bicubic is Keys' with a = -0.5.
    """
    scale = (length / side)[:, None]
    row = torch.arange(side, device=start.device) + 0.5
    column = torch.arange(size, device=start.device) + 0.5
    centre = start[:, None] + torch.where(flip[:, None], side - row, row) * scale  # [n, side], in input pixels
    distance = (column - centre[:, :, None]).div_(scale.clamp(min=1)[:, :, None]).abs_()
    weight = _cubic(distance) if interpolation == "bicubic" else (1 - distance).clamp_(min=0)
    inside = (column > start[:, None]) & (column < (start + length)[:, None])
    weight.mul_(inside[:, None])  # PIL crops before it resizes: pixels outside the crop do not bleed in
    return weight.div_(weight.sum(2, keepdim=True))


def _cubic(distance: Tensor) -> Tensor:
    """Evaluate Keys' kernel without branches: (1 - d)(2 - d)^2 / 2 up to 2, and for e = 1 - d > 0 also e^2 (1 - 2e)."""
    far = (2 - distance).clamp_(min=0)
    near = (1 - distance).clamp_(min=0)
    return (far - 1).mul_(far).mul_(far).div_(2).add_((1 - 2 * near).mul_(near).mul_(near))


def blur_matrices(sigma: Float[Tensor, "n"], side: int) -> Float[Tensor, "n side side"]:
    """Return Gaussian blurs of one axis, edges reflected, side/10 wide (odd, at least 3); the identity for sigma 0."""
    spread = _reflected_shifts(side, sigma.device)  # [k, side, side]
    half = len(spread) // 2
    offset = torch.arange(-half, half + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)  # [n, k]
    return (kernel @ spread.flatten(1)).view(-1, side, side)


@lru_cache(maxsize=8)
def _reflected_shifts(side: int, device: torch.device) -> Float[Tensor, "k side side"]:
    """Return for each offset of the blur's kernel the matrix that moves an axis by it, edges reflected."""
    half = min(max(1, side // 20), side - 1)
    pixel = torch.arange(side, device=device) + torch.arange(-half, half + 1, device=device)[:, None]
    pixel = (side - 1 - (side - 1 - pixel.abs()).abs()).long()
    return torch.nn.functional.one_hot(pixel, side).float()


def recolour(
    x: Float[Tensor, "n c s s"], maps: tuple[Tensor, Tensor], out: Tensor | None = None
) -> Float[Tensor, "n c s s"]:
    """Change the colours of image j of x, in [0, 255], by map j of `colour_maps`: in [0, 1], in `out` (contiguous)."""
    linear, tint = maps  # [n, c, c], [n, c]
    offset = (tint * x.mean((2, 3))).sum(1)[:, None, None]
    out = torch.empty_like(x) if out is None else out
    torch.baddbmm(offset, linear, x.flatten(2), out=out.flatten(2)).clamp_(0, 1)
    return out


def colour_maps(d: ViewParameters, channels: int) -> tuple[Float[Tensor, "n c c"], Float[Tensor, "n c"]]:
    """Return the colour changes of n views, x -> M x + (t . mean colour of the view), [0, 255] to [0, 1], as M and t.

    t is there for the contrast, which needs the mean grey of the image at its turn: linear in the mean colour of the
    crop. Images that are not of 3 channels change in brightness and contrast only, by the mean over their channels.
    """
    # b (k x + (1 - k) mean grey), b and k the factors of brightness and contrast: gain x + lift mean grey.
    gain, lift = d.brightness * d.contrast / 255, d.brightness * (1 - d.contrast) / 255
    if channels != 3:
        eye = torch.eye(channels, device=gain.device)
        return gain[:, None, None] * eye, (lift / channels)[:, None].expand(-1, channels)
    linear, seen = _chroma_maps(d)
    return gain[:, None, None] * linear, lift[:, None] * seen


def _chroma_maps(d: ViewParameters) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3"]]:
    """Return saturation, hue and the dropping of colour as matrices, and the weights of the mean grey at contrast."""
    eye, luma, axis, turn = _colour_basis(d.hue.device)
    angle = 2 * math.pi * d.hue[:, None, None]
    saturate = torch.lerp(luma, eye, d.saturation[:, None, None])  # from grey (0) to the colour itself (1) and beyond
    # Rodrigues' formula: along the grey axis nothing moves, across it colours turn by the angle.
    rotate = axis + angle.cos() * (eye - axis) + angle.sin() * turn
    first = d.saturation_first[:, None, None]
    linear = torch.where(first, rotate, saturate) @ torch.where(first, saturate, rotate)
    grey = luma @ linear
    # Saturation leaves the grey of a colour as it is, so that contrast only asks whether hue was turned before.
    seen = torch.where(d.hue_first[:, None], grey[:, 0], luma[0])
    return torch.where(d.grey[:, None, None], grey, linear), seen


@lru_cache(maxsize=8)
def _colour_basis(device: torch.device) -> Float[Tensor, "4 3 3"]:
    """Return identity, grey (rows of luma), mean over channels, a quarter turn about the grey axis, red to green."""
    turn = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    basis = torch.stack([torch.eye(3), torch.tensor(LUMA).expand(3, 3), torch.full((3, 3), 1 / 3), turn])
    return basis.to(device)


# --- RandAugment, each sample its own


def rand_augment(
    x: Float[Tensor, "n c s s"],
    strength: Float[Tensor, "n"],
    low: float = 0.0,
    operations: int = 1,
    random_magnitude: bool = False,
    generator: torch.Generator | None = None,
    offset: int = 0,
    total: int | None = None,
) -> Float[Tensor, "n c s s"]:
    """Change each view in [0, 1] by `operations` of OPERATIONS, drawn with replacement, each with probability strength.

    Their magnitude is low + (30 - low) strength, of 30; `random_magnitude`: low + (30 - low) strength u, u uniform per
    view. `total` and `offset` as of `two_views`. What is drawn from `generator` does not depend on the strengths.
    """
    source = x.device if generator is None else generator.device
    u = torch.rand(total or len(x), operations, 6, generator=generator, device=source)[offset : offset + len(x)]
    which, applied, sign, share, *place = u.to(x.device).unbind(2)  # [n, operations] each
    magnitude = (low + (30 - low) * (strength * share[:, 0] if random_magnitude else strength)) / 30
    first, last = constant(tuple(tuple(ends) for *ends, _ in OPERATIONS.values()), x.dtype, x.device).unbind(1)
    for k in range(operations):
        op = (which[:, k] * len(OPERATIONS)).long().clamp_max(len(OPERATIONS) - 1)
        value = torch.lerp(first[op], last[op], magnitude)
        value = torch.where((op < GEOMETRIC) & (sign[:, k] < 0.5), -value, value)
        op = torch.where(applied[:, k] < strength, op, -1)
        x = operate(x, op, value, torch.stack([p[:, k] for p in place], 1))
    return x


@torch.no_grad()
def operate(
    x: Float[Tensor, "n c s s"], op: Int64[Tensor, "n"], value: Float[Tensor, "n"], place: Float[Tensor, "n 2"]
) -> Float[Tensor, "n c s s"]:
    """Do with view j the operation number op[j] of OPERATIONS (-1: none) at value[j]; cutout at place[j] in [0, 1)."""
    moved = (op >= 0) & (op < GEOMETRIC)
    x = _where(moved, _warped, x.clone(), op, value)  # the geometric ones together: one affine grid per sample
    for number, (*_, function) in enumerate(OPERATIONS.values()):
        if number >= GEOMETRIC:
            x = _where(op == number, function, x, value[:, None, None, None], place)
    return x


def _where(mask: Bool[Tensor, "n"], function: Callable[..., Tensor], x: Tensor, *values: Tensor) -> Tensor:
    """Replace the rows of x in the mask by the function's; in place on a CPU."""
    # Counting the rows would wait for the device, and a compiled graph has no number of rows: all are computed.
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.where(mask[:, None, None, None], function(x, *values), x)
    rows = mask.nonzero().squeeze(1)
    if len(rows):
        x[rows] = function(x[rows], *(v[rows] for v in values))
    return x


def _warped(x: Float[Tensor, "n c s s"], op: Int64[Tensor, "n"], value: Float[Tensor, "n"]) -> Float[Tensor, "n c s s"]:
    """Shear from the upper left corner, shift by a share of the side, or rotate about the centre; black outside."""
    side, half = x.shape[-1], x.shape[-1] / 2
    shear_x, shear_y, right, down, angle = (torch.where(op == i, value, 0.0)[:, None, None] for i in range(GEOMETRIC))
    cos, sin = torch.deg2rad(angle).cos(), torch.deg2rad(angle).sin()
    pixel = torch.arange(side, device=x.device) + 0.5
    across, along = pixel[None, None, :], pixel[None, :, None]
    # Where each output pixel comes from; the pixel that holds the point is taken (PIL's nearest).
    column = cos * (across - half) - sin * (along - half) + half + shear_x * along + right * side
    row = sin * (across - half) + cos * (along - half) + half + shear_y * across + down * side
    column, row = column.floor().long(), row.floor().long()  # [n, s, s]
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    source = (row * side + column).clamp(0, side * side - 1).flatten(1)
    moved = x.flatten(2).gather(2, source[:, None].expand(-1, x.shape[1], -1))
    return moved.view_as(x) * inside[:, None]


@lru_cache(maxsize=32)
def constant(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor on the device, copied there once: each copy would make the step wait for it."""
    return torch.tensor(values, dtype=dtype, device=device)


def _bright(x: Float[Tensor, "n c s s"]) -> Float[Tensor, "n 1 s s"]:
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * constant(LUMA, x.dtype, x.device)[:, None, None]).sum(1, keepdim=True)


def _blend(x: Tensor, other: Tensor, factor: Float[Tensor, "n 1 1 1"]) -> Tensor:
    return torch.lerp(other, x, factor).clamp(0, 1)


def _autocontrast(x, value, place):
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low), x)


def _equalize(x, value, place):
    """Map the levels of each channel, of 256, so that their counts are even; below 256 pixels it does nothing."""
    level = (255 * x).round().long().flatten(2)  # [n, c, s s]
    count = torch.zeros(*x.shape[:2], 256, dtype=torch.int64, device=x.device)
    count.scatter_add_(2, level, torch.ones_like(level))
    last = count.gather(2, level.amax(2, keepdim=True))
    step = (level.shape[2] - last) // 255  # as in PIL, in whole numbers
    even = (step // 2 + count.cumsum(2) - count) // step.clamp_min(1)
    return torch.where(step[..., None] > 0, even.clamp_max(255).gather(2, level).view_as(x) / 255, x)


def _posterize(x, value, place):
    step = 2 ** (8 - value.floor())  # 4 to 8 bits
    return ((255 * x).round() / step).floor() * step / 255


def _sharpness(x, value, place):
    kernel = constant(((1, 1, 1), (1, 5, 1), (1, 1, 1)), x.dtype, x.device).expand(x.shape[1], 1, 3, 3) / 13
    smooth = x.clone()
    smooth[..., 1:-1, 1:-1] = torch.nn.functional.conv2d(x, kernel, groups=x.shape[1])
    return _blend(x, smooth, value)


def _cutout(x, value, place):
    """Paint a square grey whose side is a share of the image's, cut off at the edges, around a random place."""
    side = x.shape[-1]
    size = value[..., 0] * side  # [n, 1, 1]
    first = (place[:, :, None] * side - size / 2).clamp_min(0).floor()  # [n, 2, 1]
    pixel = torch.arange(side, device=x.device)
    covered = (pixel >= first) & (pixel <= (first + size).floor()) & (size > 0)  # [n, 2, s]
    grey = constant((125, 123, 114), x.dtype, x.device)[:, None, None] / 255
    painted = grey if x.shape[1] == 3 else _bright(grey[None])[0]
    return torch.where((covered[:, 1, :, None] & covered[:, 0, None, :])[:, None], painted, x)


# BCL's operations: value at magnitude 0, at magnitude 30, what is done. Directions and ranges are those of its released
# code, where a larger magnitude is a *weaker* solarize and posterize, and contrast to sharpness do nothing at 15.
OPERATIONS: dict[str, tuple[float, float, Callable[..., Tensor]]] = {
    "shear x": (0.0, 0.6, _warped),
    "shear y": (0.0, 0.6, _warped),
    "translate x": (0.0, 0.66, _warped),
    "translate y": (0.0, 0.66, _warped),
    "rotate": (0.0, 60.0, _warped),
    "autocontrast": (0.0, 1.0, _autocontrast),
    "invert": (0.0, 1.0, lambda x, value, place: 1 - x),
    "equalize": (0.0, 1.0, _equalize),
    "solarize": (0.0, 110.0, lambda x, value, place: torch.where(255 * x < value, x, 1 - x)),
    "posterize": (4.0, 8.0, _posterize),
    "contrast": (0.1, 1.9, lambda x, value, place: _blend(x, _bright(x).mean((2, 3), keepdim=True), value)),
    "colour": (0.1, 1.9, lambda x, value, place: _blend(x, _bright(x), value) if x.shape[1] == 3 else x),
    "brightness": (0.1, 1.9, lambda x, value, place: (x * value).clamp(0, 1)),
    "sharpness": (0.1, 1.9, _sharpness),
    "cutout": (0.0, 0.4, _cutout),
}
GEOMETRIC = 5  # the first ones, of a random sign
