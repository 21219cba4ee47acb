"""The operations that a policy can draw, by number, so that draws are small arrays."""

from enum import IntEnum


class Op(IntEnum):
    """An operation on an image; its magnitude's unit stands beside it."""

    IDENTITY = 0
    SHEAR_X = 1  # columns per row
    SHEAR_Y = 2  # rows per column
    TRANSLATE_X = 3  # pixels to the right
    TRANSLATE_Y = 4  # pixels down
    ROTATE = 5  # degrees, anticlockwise
    BRIGHTNESS = 6  # factor, as the three that follow
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10  # bits kept
    SOLARIZE = 11  # threshold, 0 to 256
    SOLARIZE_ADD = 12  # levels
    AUTOCONTRAST = 13
    EQUALIZE = 14
    INVERT = 15
    HUE = 16  # part of the circle
    BLUR = 17  # deviation in pixels


GEOMETRIC = frozenset((Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE))
"""Operations that are one affine map, and so are computed together."""
