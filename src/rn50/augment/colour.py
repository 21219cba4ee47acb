"""Colour operations on batches of uint8 images, each image with a magnitude of its own.

The formulas are those of torchvision's v2 transforms, which follow Pillow's ``ImageEnhance`` and
``ImageOps``; the tests compare them with ``torchvision.transforms.v2.functional`` image by image.
Posterize, solarize, autocontrast, equalize and invert agree exactly, the others to one level of 255
(the order in which a product and a sum are rounded) and hue to two.
"""

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

Images = UInt8[Tensor, "batch 3 height width"]
Magnitudes = Float[Tensor, " batch"]


def brightness(images: Images, factor: Magnitudes) -> Images:
    """Blend with black: 0 is black, 1 the image, 2 twice as bright."""
    return to_bytes(images * _spread(factor))


def color(images: Images, factor: Magnitudes) -> Images:
    """Blend with the grey image (saturation): 0 is grey, 1 the image."""
    return _blend(images, _grey(images), factor)


def contrast(images: Images, factor: Magnitudes) -> Images:
    """Blend with the mean of the grey image: 0 is flat, 1 the image."""
    return _blend(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def posterize(images: Images, bits: Magnitudes) -> Images:
    """Keep so many of the upper bits, 0 to 8."""
    dropped = 8 - bits.to(torch.int32)
    mask = 256 - torch.bitwise_left_shift(torch.ones_like(dropped), dropped)
    return images & _spread(mask.to(torch.uint8))


def solarize(images: Images, threshold: Magnitudes) -> Images:
    """Invert what is at the threshold (0 to 256) or above."""
    least = _spread(threshold.ceil())
    inverts = (images >= least.clamp(max=255).to(torch.uint8)).view(torch.uint8)
    return images ^ (inverts * torch.where(least > 255, 0, 255).to(torch.uint8))


def solarize_add(images: Images, amount: Magnitudes) -> Images:
    """Add the amount, up to 255, to what lies below 128 (timm's ``SolarizeAdd``)."""
    added = (images + _spread(amount.to(torch.int16))).clamp_(max=255).to(torch.uint8)
    return torch.where(images < 128, added, images)


def autocontrast(images: Images) -> Images:
    """Stretch each channel to reach from 0 to 255; a channel of one value is left alone."""
    low, high = (reduce(images, (2, 3)).float()[..., None] for reduce in (torch.amin, torch.amax))
    flat = high == low
    scale = torch.where(flat, 1.0, (high - low) * (1 / 255))
    levels = torch.arange(256, device=images.device)
    stretched = (levels - torch.where(flat, 0.0, low)) / scale
    return _look_up(_places(images), stretched.clamp_(0, 255).to(torch.uint8), images)


def equalize(images: Images) -> Images:
    """Spread the values of each channel evenly, by Pillow's integer arithmetic."""
    count, _, height, width = images.shape
    places = _places(images)
    histogram = _counts(places, count * 3 * 256).view(count, 3, 256)
    up_to = histogram.cumsum(2, dtype=torch.int32)
    # The pixels of the greatest value present do not count: where the sum first reaches its end.
    last = histogram.gather(2, up_to.argmax(2, keepdim=True))
    step = (height * width - last) // 255
    below = up_to - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    same = torch.arange(256, dtype=torch.int32, device=images.device)
    return _look_up(places, torch.where(step == 0, same, table).to(torch.uint8), images)


def invert(images: Images) -> Images:
    """Return the negative."""
    return ~images


def hue(images: Images, shift: Magnitudes) -> Images:
    """Turn the hue by a part of the circle, -0.5 to 0.5.

    The way back from hue, saturation and value is the closed form of each channel,
    ``v - v s max(0, min(k, 4 - k, 1))`` with ``k = n + 6 h mod 6`` and n = 5, 3, 1.
    """
    rgb = images.float() / 255
    red, green, blue = rgb.unbind(1)
    value = rgb.amax(1)
    span = value - rgb.amin(1)
    divisor = torch.where(span == 0, 1.0, span)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    turned = sixths + 6 * shift[:, None, None]
    channels = []
    for n in (5.0, 3.0, 1.0):
        k = torch.remainder(n + turned, 6)
        channels.append(value - span * torch.minimum(k, 4 - k).clamp_(0, 1))
    # As torchvision goes from floats to bytes: 256 equal parts, of which the last holds 1.0.
    return to_bytes(torch.stack(channels, 1).clamp_(0, 1).mul_(256 - 1e-3))


def to_bytes(values: Float[Tensor, "batch 3 height width"]) -> Images:
    """Cut values to 0..255, in place, and drop their fractions."""
    # By way of int16, which the CPU converts to four times as fast as straight to uint8.
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _places(images: Images) -> Int32[Tensor, " values"]:
    """Return where the value of each pixel and channel is in a table [batch, 3, 256], flat."""
    tables = 256 * torch.arange(3 * len(images), dtype=torch.int32, device=images.device)
    return images.to(torch.int32).add_(tables.view(-1, 3, 1, 1)).flatten()


def _look_up(
    places: Int32[Tensor, " values"], table: UInt8[Tensor, "batch 3 256"], like: Images
) -> Images:
    return table.flatten().index_select(0, places).view(like.shape)


def _counts(places: Int32[Tensor, " values"], most: int) -> Int32[Tensor, " most"]:
    if places.device.type == "cpu":
        return places.bincount(minlength=most).to(torch.int32)
    # Elsewhere ``bincount`` looks for the greatest place first, and the host waits for it.
    ones = torch.ones(1, dtype=torch.int32, device=places.device).expand(len(places))
    counts = torch.zeros(most, dtype=torch.int32, device=places.device)
    return counts.scatter_add_(0, places.long(), ones)


def _grey(images: Images) -> Float[Tensor, "batch 1 height width"]:
    red, green, blue = images.unbind(1)
    grey = (red * 0.2989).add(green, alpha=0.587).add(blue, alpha=0.114)
    return grey.floor_()[:, None]


def _blend(images: Images, other: Float[Tensor, "batch ..."], factor: Magnitudes) -> Images:
    return to_bytes((images * _spread(factor)).add_(other * _spread(1 - factor)))


def _spread(values: Tensor) -> Tensor:
    """Return one value per image, ready to meet its pixels."""
    return values[:, None, None, None]
