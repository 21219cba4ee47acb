"""Anti-aliasing: a blur before a network throws pixels away.

Zhang: Making Convolutional Networks Shift-Invariant Again (ICML 2019, arXiv:1904.11486), in the
form that Composer (``algorithms/blurpool``) and FFCV (``rn50_configs``, ``use_blurpool``) train
with: the *input* of each strided convolution of at least 16 channels is blurred by the 3x3 kernel
[1, 2, 1] x [1, 2, 1] / 16 with zero padding, so that the stem stays as it is; in Composer's form
the max-pool becomes one of stride 1 and a blur of stride 2 as well. (timm's ``blur`` networks are
others: they blur after the activation, pad by reflection and leave the shortcuts alone.) Checked
against a blur written out pixel by pixel in ``tests/model/test_blurpool.py``.

Nothing is added to the ``state_dict``: its tensors fit the plain network too, which scores less
with them.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

MIN_CHANNELS = 16
"""Convolutions with fewer inputs, such as the stem's, are left alone."""


class BlurConv2d(nn.Conv2d):
    """A strided convolution of the blurred input; weights and names are those of ``nn.Conv2d``."""

    blur: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            _pair(conv.kernel_size),
            stride=_pair(conv.stride),
            padding=conv.padding if isinstance(conv.padding, str) else _pair(conv.padding),
            bias=conv.bias is not None,
        )
        self.register_buffer("blur", _kernel(conv.in_channels), persistent=False)

    def forward(self, input: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c2 h2 w2"]:
        """Return the convolution of the blurred images."""
        if self.kernel_size == (1, 1):
            # The same sums, without the three quarters of the blur that a stride of 2 drops.
            return F.conv2d(_blurred(input, self.blur, self.stride), self.weight, self.bias)
        return super().forward(_blurred(input, self.blur, (1, 1)))


class BlurMaxPool2d(nn.Module):
    """The stem's max-pool of 3x3 with stride 1, then a blur with stride 2."""

    blur: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("blur", _kernel(channels), persistent=False)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h2 w2"]:
        """Return maxima of half the side."""
        return _blurred(F.max_pool2d(x, 3, stride=1, padding=1), self.blur, (2, 2))


def add(net: nn.Module, *, max_pool: bool) -> None:
    """Blur before every strided convolution of ``net``, and in its max-pool where asked for."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and _is_aliased(child):
                setattr(module, name, BlurConv2d(child))
            elif max_pool and isinstance(child, nn.MaxPool2d):
                setattr(module, name, BlurMaxPool2d(channels=64))


def _is_aliased(conv: nn.Conv2d) -> bool:
    return max(conv.stride) > 1 and conv.in_channels >= MIN_CHANNELS


def _kernel(channels: int) -> Float[Tensor, "channels 1 3 3"]:
    line = torch.tensor([1.0, 2.0, 1.0]) / 4
    return (line[:, None] * line).repeat(channels, 1, 1, 1)


def _blurred(
    x: Float[Tensor, "batch c h w"], kernel: Float[Tensor, "c 1 3 3"], stride: tuple[int, ...]
) -> Float[Tensor, "batch c h2 w2"]:
    return F.conv2d(x, kernel, stride=stride, padding=1, groups=x.shape[1])


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    height, width = values
    return height, width
