import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rn50 import durable, rng
from rn50.config import Images
from rn50.data import native, turbojpeg
from rn50.data.decode import Decoder, advice, decoder_name
from rn50.data.loader import Loader
from rn50.data.pack import pack
from rn50.data.plan import CROP_TRIES, Request, TrainPlan, evaluation_requests, random_resized_crops
from rn50.data.shards import PackedDataset
from rn50.data.sources.detect import open_source
from rn50.errors import DataError

SAMPLES = Path(__file__).parents[2] / "../shared/data/imagenet-samples-300.tar"
CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    turbojpeg.library() is None or not any(map(shutil.which, native.COMPILERS)),
    reason="no TurboJPEG 3 library or no C compiler on this machine",
)


def source_file(folder: Path) -> Path:
    file = folder / "native.c"
    file.write_bytes(resources.files("rn50.data").joinpath("native.c").read_bytes())
    return file


@pytest.fixture(scope="module", params=[["-march=native"], [], ["-O1", "-mno-sse3"]], ids=str)
def decoder(request, tmp_path_factory):
    """The code as it is used, and as a compiler makes it for the oldest processors."""
    folder = tmp_path_factory.mktemp("native")
    try:
        native.compile_code(source_file(folder), folder / "native.so", request.param)
    except native.CompileError as error:
        pytest.skip(str(error))
    lib = native.declared(folder / "native.so")
    return native.NativeDecoder(lib, turbojpeg.library())


OPTIONS = (
    {"subsampling": "4:4:4"},
    {"subsampling": "4:2:2"},
    {"subsampling": "4:2:0"},
    {"subsampling": "4:2:0", "progressive": True},
    {"subsampling": "4:1:1"},
    {"mode": "L"},
    {"restart_marker_rows": 1},
)


def jpeg(width: int, height: int, seed: int = 0, *, mode: str = "RGB", **options) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    if options.get("subsampling") == "4:1:1":
        options.pop("subsampling")
        options["subsampling"] = 2
    file = io.BytesIO()
    image.save(file, "JPEG", **({"quality": 90} | options))
    return file.getvalue()


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Images of all shapes and subsamplings, some a pixel wide."""
    folder = tmp_path_factory.mktemp("images")
    sizes = [(64, 48), (65, 49), (33, 97), (127, 31), (100, 100), (17, 16), (300, 211), (1, 40)]
    for part in ("train", "val"):
        (folder / part / "a").mkdir(parents=True)
        for i, (width, height) in enumerate(sizes):
            for j, options in enumerate(OPTIONS):
                data = jpeg(width, height, 10 * i + j, **options)
                (folder / part / "a" / f"{i}-{j}.jpg").write_bytes(data)
    place = folder.with_name(f"{folder.name}-packed")
    pack(open_source(folder), place)
    return PackedDataset.open(place).split("train")


def crops(split, px: int, seed: int) -> Request:
    ids = np.arange(split.num_images)
    draws = rng.uniform(rng.key(seed, "test"), ids, 2 * CROP_TRIES + 2)
    boxes = random_resized_crops(draws, split.widths, split.heights, area=(0.01, 1), ratio=(0.5, 2))
    return Request(ids, px, boxes, 0, np.zeros(len(ids), bool))


def one_by_one(split, request: Request) -> torch.Tensor:
    """What ``Decoder``, image by image, makes of a request."""
    decoder = Decoder()
    out = torch.empty(len(request.ids), request.px, request.px, 3, dtype=torch.uint8)
    for row, i in enumerate(request.ids.tolist()):
        if request.boxes is None:
            decoder.center_resized(split.jpeg(i), request.resize_px, out[row])
        else:
            decoder.crop_resized(split.jpeg(i), request.boxes[row], out[row])
    return out


def at_once(decoder, split, request: Request) -> torch.Tensor:
    out = torch.full((len(request.ids), request.px, request.px, 3), 99, dtype=torch.uint8)
    assert decoder.decode(native.make_jobs(split, request, out), request.px) == []
    return out


@pytest.mark.parametrize("px", [8, 33, 64, 128])
def test_crops_are_those_of_the_decoder_written_out_to_the_bit(decoder, split, px):
    for seed in range(4):
        request = crops(split, px, seed)
        assert torch.equal(at_once(decoder, split, request), one_by_one(split, request))


@pytest.mark.parametrize(("resize_px", "px"), [(72, 64), (64, 64), (75, 50), (73, 64), (40, 33)])
def test_centres_are_those_of_the_decoder_written_out_to_the_bit(decoder, split, resize_px, px):
    images = Images(batch_size=1, train_px=px, test_px=px, test_resize_px=resize_px)
    for request in evaluation_requests(images, split.num_images, 1000):
        assert torch.equal(at_once(decoder, split, request), one_by_one(split, request))


def test_nothing_beside_the_squares_is_written(decoder, split):
    request = crops(split, 33, 0)
    out = torch.full((len(request.ids) + 1, 33, 33, 3), 7, dtype=torch.uint8)
    jobs = native.make_jobs(split, request, out[:-1])
    decoder.decode(jobs[5:6], 33)
    decoder.decode(jobs[-1:], 33)
    untouched = [*range(5), *range(6, len(jobs) - 1), len(jobs)]
    assert (out[untouched] == 7).all()
    assert torch.equal(out[5], one_by_one(split, request)[5])


def test_photographs_are_those_of_the_decoder_written_out_to_the_bit(decoder, tmp_path):
    if not SAMPLES.exists():
        pytest.skip(f"{SAMPLES} is not there")
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        with tarfile.open(SAMPLES) as tar:
            for member in tar.getmembers()[::6]:
                (tmp_path / part / "a" / member.name).write_bytes(tar.extractfile(member).read())
    place = tmp_path.with_name(f"{tmp_path.name}-packed")
    pack(open_source(tmp_path), place)
    photographs = PackedDataset.open(place).split("train")
    for seed in range(2):
        request = crops(photographs, 224, seed)
        assert torch.equal(at_once(decoder, photographs, request), one_by_one(photographs, request))
    images = Images(batch_size=1, train_px=224, test_px=224, test_resize_px=256)
    for request in evaluation_requests(images, photographs.num_images, 1000):
        assert torch.equal(at_once(decoder, photographs, request), one_by_one(photographs, request))


def lead_to(jobs, row: int, data: bytes, file) -> None:
    """Make a job read other bytes, which are appended to an open file."""
    file.seek(0, os.SEEK_END)
    jobs[row]["file"], jobs[row]["offset"], jobs[row]["size"] = (
        file.fileno(),
        file.tell(),
        len(data),
    )
    file.write(data)
    file.flush()


def test_damaged_and_four_coloured_images_are_refused_and_the_others_are_decoded(decoder, split):
    request = crops(split, 32, 0)
    out = torch.zeros(len(request.ids), 32, 32, 3, dtype=torch.uint8)
    jobs = native.make_jobs(split, request, out)
    whole = jpeg(64, 48, 0, subsampling="4:4:4")
    bad = [whole[: len(whole) // 2], b"", bytes(500), jpeg(64, 48, mode="CMYK"), jpeg(63, 48)]
    with tempfile.TemporaryFile() as file:
        for row, data in enumerate(bad):
            lead_to(jobs, row, data, file)
            jobs[row]["image_w"], jobs[row]["image_h"] = 64, 48
        jobs[len(bad)]["file"], jobs[len(bad)]["offset"] = file.fileno(), 1 << 40  # beyond its end
        jobs[len(bad) + 1]["file"] = 9999  # no open file
        count = len(bad) + 2
        assert decoder.decode(jobs, 32) == list(range(count))
        assert torch.equal(out[count:], one_by_one(split, request)[count:])


def test_an_image_after_a_damaged_one_is_decoded(decoder, split):
    request = crops(split, 32, 0)
    expected = one_by_one(split, request)
    draws = np.random.default_rng(0)
    with tempfile.TemporaryFile() as file:
        for _ in range(200):
            out = torch.zeros(len(request.ids), 32, 32, 3, dtype=torch.uint8)
            jobs = native.make_jobs(split, request, out)
            row = int(draws.integers(len(jobs) - 1))
            data = np.frombuffer(split.jpeg(int(request.ids[row])), np.uint8).copy()
            places = draws.integers(len(data), size=8)
            data[places] = draws.integers(256, size=8)
            lead_to(jobs, row, data.tobytes(), file)
            assert decoder.decode(jobs[row : row + 2], 32) in ([], [0])
            assert torch.equal(out[row + 1], expected[row + 1])


def batches(split, workers: int) -> list[torch.Tensor]:
    images = Images(batch_size=20, train_px=40, test_px=40, test_resize_px=40)
    plan = TrainPlan(images=images, seed=0, widths=split.widths, heights=split.heights)
    with Loader(CPU, workers=workers, prefetch=2) as loader:
        read = loader.read(split, (plan.request(step) for step in range(5)))
        return [batch.images.clone() for batch in read]


def test_a_loader_with_the_code_gives_the_batches_of_one_without(split, monkeypatch):
    fast = {workers: batches(split, workers) for workers in (1, 2, 7)}
    monkeypatch.setattr(native, "library", lambda: None)
    slow = batches(split, 2)
    assert all(torch.equal(a, b) for got in fast.values() for a, b in zip(got, slow, strict=True))


def test_a_damaged_image_is_named(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "damaged")
    train = PackedDataset.open(folder).split("train")
    row = train.index[3]
    with open(folder / f"train-{row['shard']:06d}.tar", "r+b") as shard:
        shard.seek(int(row["offset"]))
        shard.write(bytes(200))
    with pytest.raises(DataError, match=train.key(3)):
        batches(PackedDataset.open(folder).split("train"), 2)


def test_an_index_that_points_out_of_its_shards_is_refused(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "pointing")
    index = np.load(folder / "train.index.npy")
    index["offset"][5] = 1 << 40
    np.save(folder / "train.index.npy", index)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["splits"]["train"]["index"]
    entry["blake2b"] = durable.file_digest(folder / "train.index.npy")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="points out of its shards"):
        PackedDataset.open(folder).split("train")


def in_a_new_process(code: str, **variables: str) -> str:
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, env=os.environ | variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ASK = "from rn50.data import decode; print(decode.decoder_name(), decode.advice())"


def test_without_a_compiler_the_machine_is_told_what_it_would_gain(tmp_path):
    told = in_a_new_process(ASK, PATH=str(tmp_path), RN50_CACHE=str(tmp_path), CC="")
    assert told.startswith("turbojpeg there is no C compiler")
    assert "5.5 times (64 px) as fast" in told


def test_a_compiler_that_fails_is_quoted(tmp_path):
    (tmp_path / "cc").write_text("#!/bin/sh\necho no such processor >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    told = in_a_new_process(ASK, RN50_CACHE=str(tmp_path), CC=str(tmp_path / "cc"))
    assert told.startswith("turbojpeg")
    assert "no such processor" in told


def test_a_cache_that_cannot_be_written_costs_speed_only(tmp_path):
    (tmp_path / "file").write_text("")
    told = in_a_new_process(ASK, RN50_CACHE=str(tmp_path / "file"))
    assert told.startswith("turbojpeg")


@pytest.mark.parametrize("name", ["turbojpeg", "pillow"])
def test_the_decoder_can_be_held_back(name, tmp_path):
    assert in_a_new_process(ASK, RN50_DECODER=name).startswith(f"{name} RN50_DECODER is {name}")


def test_the_compiled_code_is_kept_and_used_again(tmp_path):
    for _ in range(2):
        assert in_a_new_process(ASK, RN50_CACHE=str(tmp_path)) == "native None"
        (made,) = (tmp_path / "native").iterdir()
        assert made.suffix == ".so"


def test_here_the_code_is_in_use():
    assert decoder_name() == "native"
    assert advice() is None
