import ctypes
import io
import math
import os
import statistics
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from rn50 import rng
from rn50.data import native, turbojpeg
from rn50.data.decode import Decoder, ImageDecodeError, decoder_name
from rn50.data.plan import CROP_TRIES, random_resized_crops

SAMPLES = Path(__file__).parents[2] / "../shared/data/imagenet-samples-300.tar"

needs_turbojpeg = pytest.mark.skipif(
    turbojpeg.library() is None, reason="no TurboJPEG 3 library on this machine"
)

SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "grey": 3, "4:4:0": 4, "4:1:1": 5, "4:4:1": 6}
QUALITY, SUBSAMPLING, PROGRESSIVE = 3, 4, 12
SIZES = [(64, 48), (65, 49), (33, 97), (127, 31), (100, 100), (17, 16)]
"""Width and height, whole and broken blocks of every subsampling."""


def smooth(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Blobs of colour with sharp edges, so that chroma upsampling shows."""
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(blocks)
    waves = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).copy()
    waves[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 40)
    return waves


def by_pillow(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **({"quality": 90} | options))
    return file.getvalue()


def by_turbojpeg(pixels: np.ndarray, subsampling: int, progressive: bool) -> bytes:
    """Compress with any subsampling, which Pillow cannot."""
    lib = turbojpeg.library()
    pointer, number = ctypes.c_void_p, ctypes.c_int
    lib.tj3Set.argtypes = [pointer, number, number]
    lib.tj3Compress8.argtypes = [pointer, pointer, *([number] * 4), pointer, pointer]
    lib.tj3Free.argtypes, lib.tj3Free.restype = [pointer], None
    handle = lib.tj3Init(0)
    data, size = ctypes.c_void_p(), ctypes.c_size_t()
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    try:
        for name, value in (
            (QUALITY, 90),
            (SUBSAMPLING, subsampling),
            (PROGRESSIVE, int(progressive)),
        ):
            assert lib.tj3Set(handle, name, value) == 0
        source = pixels.__array_interface__["data"][0]
        assert not lib.tj3Compress8(
            handle, source, width, 0, height, 0, ctypes.byref(data), ctypes.byref(size)
        )
        return ctypes.string_at(data, size.value)
    finally:
        lib.tj3Free(data)
        lib.tj3Destroy(handle)


def pillow_decoder() -> Decoder:
    decoder = Decoder()
    decoder._turbo = None
    return decoder


def turbo_decoder() -> turbojpeg.TurboJpeg:
    return turbojpeg.TurboJpeg(turbojpeg.library())


def opened(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg)).convert("RGB")


def some_boxes(width: int, height: int, count: int, seed: int = 0) -> list[np.ndarray]:
    """Boxes of any place and size, and those at the corners and the whole."""
    draws = np.random.default_rng(seed)
    boxes = [(0, 0, height, width), (0, 0, 1, 1), (height - 1, width - 1, 1, 1)]
    for _ in range(count):
        h, w = draws.integers(1, height + 1), draws.integers(1, width + 1)
        boxes.append((draws.integers(0, height - h + 1), draws.integers(0, width - w + 1), h, w))
    return [np.array(box, dtype=np.int64) for box in boxes]


def crop(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    top, left, height, width = box.tolist()
    return pixels[top : top + height, left : left + width]


def out(px: int) -> torch.Tensor:
    return torch.empty(px, px, 3, dtype=torch.uint8)


def difference(ours: torch.Tensor, theirs: Image.Image) -> np.ndarray:
    return np.abs(ours.numpy().astype(int) - np.asarray(theirs).astype(int))


def psnr(errors: np.ndarray) -> float:
    return 10 * math.log10(255**2 / max(float((errors.astype(float) ** 2).mean()), 1e-9))


@needs_turbojpeg
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_a_region_is_decoded_to_the_pixels_of_the_whole(subsampling, progressive):
    turbo = turbo_decoder()
    for width, height in SIZES:
        jpeg = memoryview(
            by_turbojpeg(smooth(width, height), SUBSAMPLINGS[subsampling], progressive)
        )
        whole = np.asarray(opened(jpeg))
        assert np.array_equal(turbo.decode(jpeg), whole)
        for box in some_boxes(width, height, 40):
            assert np.array_equal(turbo.decode(jpeg, box), crop(whole, box)), (width, height, box)


@needs_turbojpeg
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:2:0"},
        {"subsampling": "4:2:0", "progressive": True},
        {"restart_marker_rows": 1},
        {"quality": 5},
        {"quality": 100},
        {"keep_rgb": True},
    ],
)
def test_both_decoders_give_the_same_pixels(options):
    pillow, turbo = pillow_decoder(), turbo_decoder()
    for width, height in SIZES:
        jpeg = memoryview(by_pillow(smooth(width, height), **options))
        for box in [None, *some_boxes(width, height, 10)]:
            assert np.array_equal(pillow.pixels(jpeg, box), turbo.decode(jpeg, box))


@needs_turbojpeg
def test_an_image_after_a_damaged_one_is_decoded():
    turbo, draws = turbo_decoder(), np.random.default_rng(0)
    jpeg = by_pillow(smooth(65, 49))
    refused = 0
    for _ in range(300):
        damaged = np.frombuffer(jpeg, np.uint8).copy()
        damaged[draws.integers(len(jpeg), size=8)] = draws.integers(256, size=8)
        try:
            turbo.decode(memoryview(damaged))
        except turbojpeg.TurboJpegError:
            refused += 1
        assert np.array_equal(turbo.decode(memoryview(jpeg)), np.asarray(opened(jpeg)))
    assert refused > 100


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("make", [Decoder, pillow_decoder])
def test_grey_and_cmyk_become_rgb_as_pillow_has_it(mode, make):
    image = Image.fromarray(smooth(45, 33)).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    whole = np.asarray(opened(file.getvalue()))
    for box in some_boxes(45, 33, 10):
        got = make().pixels(memoryview(file.getvalue()), box)
        assert np.array_equal(got, crop(whole, box))


@pytest.mark.parametrize("make", [Decoder, pillow_decoder])
def test_one_decoder_decodes_small_and_large_images_in_turn(make):
    decoder = make()
    for side in (20, 900, 30):
        jpeg = by_pillow(smooth(side, side))
        assert np.array_equal(decoder.pixels(memoryview(jpeg)), np.asarray(opened(jpeg)))


@pytest.mark.parametrize("make", [Decoder, pillow_decoder])
def test_the_orientation_in_exif_is_ignored(make):
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = by_pillow(smooth(60, 40), exif=exif)
    assert opened(jpeg).getexif()[0x0112] == 6
    plain = by_pillow(smooth(60, 40))
    got = make().pixels(memoryview(jpeg))
    assert got.shape == (40, 60, 3)
    assert np.array_equal(got, make().pixels(memoryview(plain)))


@pytest.mark.parametrize("make", [Decoder, pillow_decoder])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.9])
def test_an_image_that_was_cut_off_is_refused(make, keep):
    jpeg = by_pillow(smooth(200, 150))
    with pytest.raises(ImageDecodeError):
        make().pixels(memoryview(jpeg[: int(keep * len(jpeg))]))


@pytest.mark.parametrize("make", [Decoder, pillow_decoder])
def test_bytes_that_are_no_image_are_refused(make):
    for data in (b"\xff\xd8", b"GIF89a" + bytes(50), bytes(1000)):
        with pytest.raises(ImageDecodeError):
            make().pixels(memoryview(data))


@pytest.mark.parametrize("make", [Decoder, pillow_decoder])
def test_a_crop_is_resized_exactly_as_torchvision_resizes_the_tensor(make):
    decoder = make()
    for width, height in ((200, 150), (90, 160), (40, 40)):
        jpeg = by_pillow(smooth(width, height))
        whole = torch.from_numpy(np.array(opened(jpeg))).permute(2, 0, 1)
        for box in some_boxes(width, height, 12):
            for px in (64, 33):
                got = out(px)
                decoder.crop_resized(memoryview(jpeg), box, got)
                expected = reference.resized_crop(whole, *box.tolist(), [px, px], antialias=True)
                assert torch.equal(got.permute(2, 0, 1), expected)


def test_a_crop_is_resized_as_pillow_resizes_it_but_for_rounding():
    decoder = Decoder()
    for width, height in ((300, 200), (90, 160)):
        jpeg = by_pillow(smooth(width, height))
        for box in some_boxes(width, height, 30):
            got = out(64)
            decoder.crop_resized(memoryview(jpeg), box, got)
            expected = reference.resized_crop(opened(jpeg), *box.tolist(), [64, 64])
            errors = difference(got, expected)
            assert errors.mean() <= 1
            assert psnr(errors) > 45


def test_a_crop_of_the_wanted_size_is_copied_exactly():
    jpeg = by_pillow(smooth(100, 80))
    got = out(32)
    Decoder().crop_resized(memoryview(jpeg), np.array([11, 23, 32, 32]), got)
    assert np.array_equal(got.numpy(), np.asarray(opened(jpeg))[11:43, 23:55])


def test_a_crop_fills_its_place_in_a_batch_and_nothing_else():
    batch = torch.full((3, 40, 40, 3), 7, dtype=torch.uint8)
    jpeg = memoryview(by_pillow(smooth(100, 80)))
    alone = out(40)
    Decoder().crop_resized(jpeg, np.array([5, 5, 60, 70]), alone)
    Decoder().crop_resized(jpeg, np.array([5, 5, 60, 70]), batch[1])
    assert torch.equal(batch[1], alone)
    assert (batch[0] == 7).all()
    assert (batch[2] == 7).all()


@pytest.mark.parametrize(("resize_px", "px"), [(72, 64), (64, 64), (75, 50), (73, 64)])
@pytest.mark.parametrize("make", [Decoder, pillow_decoder])
def test_the_centre_is_torchvisions_on_pillow_but_for_rounding(make, resize_px, px):
    decoder = make()
    transform = v2.Compose([v2.Resize(resize_px), v2.CenterCrop(px)])
    sides = [(31, 97), (97, 31), (64, 64), (72, 90), (90, 72), (300, 211), (211, 300), (20, 20)]
    for width, height in [*sides, (500, 375), (75, 75), (73, 200), (100, 101)]:
        jpeg = by_pillow(smooth(width, height))
        got = out(px)
        decoder.center_resized(memoryview(jpeg), resize_px, got)
        errors = difference(got, transform(opened(jpeg)))
        assert errors.mean() <= 1, (width, height)
        assert errors.max() <= 2, (width, height)


def test_an_image_of_the_wanted_size_is_its_own_centre():
    jpeg = by_pillow(smooth(64, 64))
    got = out(64)
    Decoder().center_resized(memoryview(jpeg), 64, got)
    assert np.array_equal(got.numpy(), np.asarray(opened(jpeg)))


def test_an_image_that_need_not_be_resized_is_only_cropped():
    jpeg = by_pillow(smooth(100, 72))
    got = out(64)
    Decoder().center_resized(memoryview(jpeg), 72, got)
    assert np.array_equal(got.numpy(), np.asarray(opened(jpeg))[4:68, 18:82])


def test_a_library_that_cannot_be_loaded_is_passed_over(monkeypatch, tmp_path):
    found = turbojpeg.library.__wrapped__()
    (tmp_path / "text.so").write_text("no library")
    for nonsense in (tmp_path / "absent.so", tmp_path / "text.so", tmp_path):
        monkeypatch.setenv(turbojpeg.LIBRARY_VARIABLE, str(nonsense))
        other = turbojpeg.library.__wrapped__()
        assert (other and other._name) == (found and found._name)


@pytest.mark.skipif(not os.path.exists("/lib/x86_64-linux-gnu/libz.so.1"), reason="no such library")
def test_a_library_that_lacks_the_functions_is_passed_over(monkeypatch):
    found = turbojpeg.library.__wrapped__()
    monkeypatch.setenv(turbojpeg.LIBRARY_VARIABLE, "/lib/x86_64-linux-gnu/libz.so.1")
    other = turbojpeg.library.__wrapped__()
    assert (other and other._name) == (found and found._name)


def test_without_a_library_pillow_decodes(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(turbojpeg, "library", lambda: None)
    assert decoder_name() == "pillow"
    jpeg = by_pillow(smooth(60, 40))
    got = Decoder().pixels(memoryview(jpeg), np.array([3, 5, 20, 30]))
    assert np.array_equal(got, np.asarray(opened(jpeg))[3:23, 5:35])


@needs_turbojpeg
def test_with_a_library_and_without_a_compiler_turbojpeg_decodes(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    assert decoder_name() == "turbojpeg"


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """Every fifth of 300 images of ImageNet."""
    if not SAMPLES.exists():
        pytest.skip(f"{SAMPLES} is not there")
    with tarfile.open(SAMPLES) as tar:
        members = [m for m in tar if m.name.lower().endswith((".jpg", ".jpeg"))]
        return [tar.extractfile(member).read() for member in members[::5]]


def test_photographs_are_evaluated_as_torchvision_does_on_pillow(photographs):
    assert len(photographs) >= 50
    decoder = Decoder()
    transform = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    for jpeg in photographs:
        got = out(224)
        decoder.center_resized(memoryview(jpeg), 256, got)
        errors = difference(got, transform(opened(jpeg)))
        assert errors.mean() <= 1
        assert errors.max() <= 2


def test_crops_of_photographs_are_those_of_pillow_but_for_rounding(photographs):
    decoder = Decoder()
    draws = rng.uniform(rng.key(0, "test"), np.arange(len(photographs)), 2 * CROP_TRIES + 2)
    sizes = np.array([opened(jpeg).size for jpeg in photographs])
    boxes = random_resized_crops(
        draws, sizes[:, 0], sizes[:, 1], area=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
    )
    ratios = []
    for jpeg, box in zip(photographs, boxes, strict=True):
        whole = opened(jpeg)
        assert np.array_equal(decoder.pixels(memoryview(jpeg), box), crop(np.asarray(whole), box))
        got = out(224)
        decoder.crop_resized(memoryview(jpeg), box, got)
        expected = reference.resized_crop(whole, *box.tolist(), [224, 224])
        ratios.append(psnr(difference(got, expected)))
    assert statistics.median(ratios) >= 45
    assert min(ratios) >= 35
