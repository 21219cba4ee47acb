"""What becomes of one image file, whatever it is."""

import io
import os
import signal
import sys

import numpy as np
import pytest
from image_trees import encoded, jpeg, picture
from PIL import Image, ImageCms

from rn50.data.encoder import EncoderProcess
from rn50.data.encoding import Encoding, encoding, fidelity
from rn50.data.jpeg import NotAnImageError, to_jpeg
from rn50.data.sources.base import BadImageError
from rn50.errors import UsageError

HALF = Encoding(resize_short=32)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def smooth(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 48), (43, 32)),
        ((48, 64), (32, 43)),
        ((64, 64), (32, 32)),
        ((3000, 33), (2909, 32)),
        ((640, 480), (43, 32)),
        ((33, 33), (32, 32)),
    ],
)
def test_the_short_side_becomes_what_was_asked_for(size, expected):
    made = to_jpeg(encoded(smooth(*size)), HALF)
    assert (made.width, made.height) == expected
    assert opened(made.data).size == expected
    assert made.resized
    assert made.converted is None


@pytest.mark.parametrize("size", [(32, 32), (100, 32), (5, 900)])
def test_what_would_not_have_fewer_bytes_is_kept_byte_for_byte(size):
    data = encoded(smooth(*size), quality=40, subsampling=2, optimize=True)
    made = to_jpeg(data, HALF)
    assert made.data is data
    assert not made.resized


@pytest.mark.parametrize(
    "chosen", [None, Encoding(resize_short=900, quality=98, subsampling="444")]
)
def test_noise_that_takes_more_bytes_than_pillow_reserves_is_encoded(chosen):
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "PNG")
    assert opened(to_jpeg(data, chosen).data).size == (400, 400)


def test_what_has_few_pixels_and_many_bytes_is_encoded_anew():
    data = encoded(smooth(100, 32), quality=100, subsampling=0)
    made = to_jpeg(data, HALF)
    assert (made.width, made.height, made.resized) == (100, 32, True)
    assert len(made.data) < len(data)


def test_a_smaller_image_looks_like_the_original_resized():
    image = smooth(320, 240)
    made = opened(to_jpeg(encoded(image, quality=100, subsampling=0), HALF).data)
    wanted = np.asarray(image.resize((43, 32), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(np.asarray(made) - wanted).mean() < 3


@pytest.mark.parametrize("subsampling", ["420", "444"])
def test_quality_and_subsampling_are_those_asked_for(subsampling):
    data = encoded(smooth(320, 240))
    sizes, layers = [], set()
    for quality in (50, 90):
        chosen = Encoding(resize_short=100, quality=quality, subsampling=subsampling)
        made = to_jpeg(data, chosen).data
        sizes.append(len(made))
        layers.add(tuple(layer[1:3] for layer in opened(made).layer))
    assert sizes[0] < sizes[1]
    assert layers == {((2, 2) if subsampling == "420" else (1, 1), (1, 1), (1, 1))}


def test_grey_stays_grey_and_is_smaller_for_it():
    made = to_jpeg(encoded(smooth(320, 240).convert("L")), HALF)
    assert opened(made.data).mode == "L"


def test_profile_exif_and_comment_are_dropped_and_the_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(smooth(64, 48), exif=exif, icc_profile=profile, comment=b"hello")
    made = to_jpeg(data, HALF)
    assert (made.width, made.height) == (43, 32)
    assert set(opened(made.data).info) == {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert to_jpeg(data).data is data


def test_another_format_is_converted_and_made_smaller_at_once():
    made = to_jpeg(encoded(smooth(64, 48), "PNG"), HALF)
    assert (made.converted, made.resized, made.width) == ("PNG", True, 43)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}])
@pytest.mark.parametrize("chosen", [None, HALF])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.99])
def test_a_file_that_is_cut_off_anywhere_is_refused(options, chosen, part):
    options = dict(options)
    image = smooth(320, 240).convert(options.pop("mode", "RGB"))
    data = encoded(image, **options)
    to_jpeg(data, chosen)
    with pytest.raises(BadImageError):
        to_jpeg(data[: int(part * len(data))], chosen)


def cmyk(red: int, green: int, blue: int, *, ycck: bool) -> bytes:
    """A JPEG as Photoshop writes it: four inverted inks without black, marked by Adobe's marker."""
    inks = Image.new("RGB", (64, 48), (255 - red, 255 - green, 255 - blue))
    planes = inks.convert("YCbCr") if ycck else Image.new("RGB", (64, 48), (red, green, blue))
    # Pillow inverts what it writes, and writes the marker for plain CMYK.
    bands = [band.point(lambda value: 255 - value) for band in planes.split()]
    data = bytearray(
        encoded(Image.merge("CMYK", (*bands, Image.new("L", (64, 48), 0))), quality=100)
    )
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data[marker + 11] = 2 if ycck else 0
    return bytes(data)


@pytest.mark.parametrize("ycck", [False, True], ids=["CMYK", "YCCK"])
@pytest.mark.parametrize("chosen", [None, HALF])
@pytest.mark.parametrize("colour", [(200, 30, 60), (20, 160, 40), (240, 240, 240), (10, 20, 120)])
def test_four_inks_become_the_right_colours(ycck, chosen, colour):
    made = to_jpeg(cmyk(*colour, ycck=ycck), chosen)
    assert made.converted == "CMYK JPEG"
    shown = np.asarray(opened(made.data)).astype(int).mean((0, 1))
    assert np.abs(shown - colour).max() < 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("none",), None),
        (("None",), None),
        (("352",), Encoding(resize_short=352)),
        (("256", 85, "444"), Encoding(resize_short=256, quality=85, subsampling="444")),
    ],
)
def test_the_options_say_how_images_are_stored(options, expected):
    assert encoding(*options) == expected


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("big",), r"--resize-short is 'big'; it must be a number of pixels or none"),
        (("0",), r"--resize-short is 0; it must be at least 16"),
        (("352", 0), r"--quality is 0; it must be from 1 to 100"),
        (("none", 90), r"--quality has no effect with --resize-short none"),
        (("none", None, "444"), r"--subsampling has no effect"),
    ],
)
def test_options_that_cannot_be_met_are_refused(options, match):
    with pytest.raises(UsageError, match=match):
        encoding(*options)


def test_the_cost_is_told_for_what_was_measured_and_the_nearest_otherwise():
    assert "39.2 dB median, 32.1 dB" in fidelity(Encoding(resize_short=352))
    assert "35.5 dB median, 28.1 dB" in fidelity(Encoding(resize_short=256))
    other = fidelity(Encoding(resize_short=340, quality=86))
    assert "not measured" in other
    assert "short side 352 quality 85 420" in other


def test_a_process_of_its_own_gives_the_same_jpegs_and_errors():
    files = [jpeg(0), jpeg(1, size=(90, 80)), jpeg(2, "CMYK", (90, 80)), encoded(picture(3), "PNG")]
    process = EncoderProcess(HALF)
    try:
        for data in files:
            assert process.to_jpeg(data) == to_jpeg(data, HALF)
        small = encoded(smooth(32, 32), quality=40, subsampling=2, optimize=True)
        assert process.to_jpeg(small).data is small
        with pytest.raises(NotAnImageError, match="it is empty"):
            process.to_jpeg(b"")
        with pytest.raises(BadImageError, match="truncated"):
            process.to_jpeg(jpeg(0, size=(200, 200))[:-400])
        assert process.to_jpeg(files[1]) == to_jpeg(files[1], HALF)
    finally:
        process.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_file_that_crashes_the_decoder_is_bad_and_the_next_one_is_not(monkeypatch):
    process = EncoderProcess(HALF)
    process.to_jpeg(jpeg(0))
    os.kill(process._process.pid, signal.SIGSEGV)
    process._process.wait()
    with pytest.raises(BadImageError, match=r"it crashed the decoder \(SIGSEGV\)"):
        process.to_jpeg(jpeg(0))
    assert process.to_jpeg(jpeg(1)) == to_jpeg(jpeg(1), HALF)
    process.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_process_that_was_killed_is_no_fault_of_the_image():
    process = EncoderProcess(HALF)
    process.to_jpeg(jpeg(0))
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    with pytest.raises(UsageError, match=r"ended from outside \(exit code -9\).*--workers"):
        process.to_jpeg(jpeg(0))
