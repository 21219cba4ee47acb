import shutil
import threading

import pytest
import torch

from rn50.config import Images
from rn50.data.decode import Decoder
from rn50.data.loader import Loader
from rn50.data.plan import Request, TrainPlan, evaluation_requests
from rn50.data.shards import PackedDataset, PackedSplit
from rn50.errors import DataError

CPU = torch.device("cpu")
IMAGES = Images(batch_size=20, train_px=32, test_px=32, test_resize_px=36)


@pytest.fixture
def train(dataset) -> PackedSplit:
    return dataset.split("train")


@pytest.fixture
def plan(train) -> TrainPlan:
    return TrainPlan(images=IMAGES, seed=0, widths=train.widths, heights=train.heights)


def requests(plan: TrainPlan, start: int, stop: int) -> list[Request]:
    return [plan.request(step) for step in range(start, stop)]


def read(split, wanted, *, workers: int = 2, prefetch: int = 3):
    """All batches, as (pixels, labels, flips); copied, since their buffers are used again."""
    with Loader(CPU, workers=workers, prefetch=prefetch) as loader:
        return [
            (b.images.clone(), b.labels.clone(), b.flips.clone())
            for b in loader.read(split, wanted)
        ]


def equal(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for batch, twin in zip(one, other, strict=True)
        for a, b in zip(batch, twin, strict=True)
    )


def decoding_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("rn50-decode")]


def test_any_number_of_workers_gives_the_same_bytes(train, plan):
    wanted = requests(plan, 0, 10)
    alone = read(train, wanted, workers=1)
    for workers in (2, 7):
        for prefetch in (1, 4):
            assert equal(read(train, wanted, workers=workers, prefetch=prefetch), alone)


def test_any_starting_step_gives_the_same_bytes(train, plan):
    whole = read(train, requests(plan, 0, 12))
    for start in (1, 5, 11):
        assert equal(read(train, requests(plan, start, 12)), whole[start:])


def test_a_batch_holds_the_crops_that_were_asked_for(train, plan):
    decoder = Decoder()
    for request, (images, labels, flips) in zip(
        requests(plan, 0, 3), read(train, requests(plan, 0, 3)), strict=True
    ):
        assert images.shape == (20, 3, 32, 32)
        for row, i in enumerate(request.ids.tolist()):
            expected = torch.empty(32, 32, 3, dtype=torch.uint8)
            decoder.crop_resized(train.jpeg(i), request.boxes[row], expected)
            assert torch.equal(images[row].permute(1, 2, 0), expected)
        assert labels.tolist() == train.labels[request.ids].tolist()
        assert flips.tolist() == request.flips.tolist()


def test_evaluation_batches_hold_the_centres_and_the_last_is_smaller(dataset):
    val = dataset.split("val")
    wanted = evaluation_requests(IMAGES, val.num_images, 17)
    batches = read(val, wanted)
    assert [len(labels) for _, labels, _ in batches] == [17, 17, 2]
    assert torch.cat([labels for _, labels, _ in batches]).tolist() == val.labels.tolist()
    images = torch.cat([images for images, _, _ in batches])
    decoder = Decoder()
    for i in range(val.num_images):
        expected = torch.empty(32, 32, 3, dtype=torch.uint8)
        decoder.center_resized(val.jpeg(i), 36, expected)
        assert torch.equal(images[i].permute(1, 2, 0), expected)


@pytest.mark.parametrize("prefetch", [1, 2, 9])
def test_batches_come_in_the_order_of_the_requests(train, plan, prefetch):
    wanted = requests(plan, 0, 15)
    with Loader(CPU, workers=5, prefetch=prefetch) as loader:
        got = [batch.request for batch in loader.read(train, wanted)]
    assert all(one is other for one, other in zip(got, wanted, strict=True))


def test_requests_are_taken_no_further_ahead_than_was_allowed(train, plan):
    taken = []

    def recorded():
        for request in requests(plan, 0, 12):
            taken.append(request)
            yield request

    with Loader(CPU, workers=1, prefetch=2) as loader:
        for done, _ in enumerate(loader.read(train, recorded()), 1):
            assert len(taken) <= done + 2


def test_batches_of_another_size_follow_each_other(train, plan):
    sizes = [(20, 32), (3, 64), (20, 16), (7, 96), (20, 32)]
    wanted = []
    for step, (count, px) in enumerate(sizes):
        r = plan.request(step)
        wanted.append(
            Request(
                ids=r.ids[:count], px=px, boxes=r.boxes[:count], resize_px=0, flips=r.flips[:count]
            )
        )
    batches = read(train, wanted, prefetch=1)
    assert [images.shape for images, _, _ in batches] == [(n, 3, px, px) for n, px in sizes]
    for request, batch in zip(wanted, batches, strict=True):
        assert equal([batch], read(train, [request]))


def test_images_are_channels_last(train, plan):
    with Loader(CPU, workers=1, prefetch=1) as loader:
        for batch in loader.read(train, requests(plan, 0, 2)):
            assert batch.images.dtype == torch.uint8
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.wait_s >= 0


def test_buffers_are_used_again(train, plan):
    with Loader(CPU, workers=2, prefetch=3) as loader:
        places = [b.images.data_ptr() for b in loader.read(train, requests(plan, 0, 200))]
    assert len(places) == 200
    assert len(set(places)) <= 3 + 1


def test_a_batch_is_not_overwritten_while_it_is_used(train, plan):
    wanted = requests(plan, 0, 12)
    expected = read(train, wanted)
    with Loader(CPU, workers=4, prefetch=1) as loader:
        for batch, (images, _, _) in zip(loader.read(train, wanted), expected, strict=True):
            for _ in range(50):
                threading.Event().wait(0.0002)
            assert torch.equal(batch.images, images)


def damaged(packed, folder, image: int) -> PackedSplit:
    """A copy of the data set in which one training image's bytes were zeroed."""
    shutil.copytree(packed, folder)
    train = PackedDataset.open(folder).split("train")
    row = train.index[image]
    path = folder / f"train-{row['shard']:06d}.tar"
    with path.open("r+b") as file:
        file.seek(int(row["offset"]))
        file.write(bytes(int(row["length"])))
    return PackedDataset.open(folder).split("train")


@pytest.mark.parametrize("workers", [1, 4])
def test_a_damaged_image_is_named_with_its_shard(packed, tmp_path, plan, workers):
    train = damaged(packed, tmp_path / "copy", image=30)
    shard = f"train-{train.index[30]['shard']:06d}.tar"
    with pytest.raises(DataError, match=rf"cannot decode {train.key(30)} \({shard} at byte ") as e:
        read(train, requests(plan, 0, 100), workers=workers)
    assert "run `rn50 verify" in str(e.value)
    assert "\n" not in str(e.value)
    assert not decoding_threads()


def test_batches_before_a_damaged_image_are_delivered(packed, tmp_path, plan):
    train = damaged(packed, tmp_path / "copy", image=30)
    first = next(step for step in range(100) if 30 in plan.sample_ids(step))
    with Loader(CPU, workers=2, prefetch=3) as loader:
        batches = loader.read(train, requests(plan, 0, 100))
        for _ in range(first):
            next(batches)
        with pytest.raises(DataError):
            next(batches)


def test_a_reader_that_stops_early_leaves_no_thread(train, plan):
    with Loader(CPU, workers=4, prefetch=5) as loader:
        for _ in loader.read(train, requests(plan, 0, 1000)):
            break
        assert decoding_threads()
    assert not decoding_threads()


def test_a_loader_reads_again_after_a_reader_that_stopped_early(train, plan):
    wanted = requests(plan, 0, 6)
    expected = read(train, wanted)
    with Loader(CPU, workers=2, prefetch=2) as loader:
        unfinished = loader.read(train, wanted)
        first = next(unfinished).images.clone()
        between = [b.images.clone() for b in loader.read(train, wanted)]
        rest = [b.images.clone() for b in unfinished]
    assert all(torch.equal(a, b[0]) for a, b in zip(between, expected, strict=True))
    assert all(torch.equal(a, b[0]) for a, b in zip([first, *rest], expected, strict=True))


def test_nothing_is_read_where_nothing_is_asked_for(train):
    assert read(train, []) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_a_gpu_are_those_on_the_host(train, plan):
    wanted = requests(plan, 0, 60)
    expected = read(train, wanted)
    device = torch.device("cuda")
    work = torch.randn(2048, 2048, device=device)
    with Loader(device, workers=4, prefetch=2) as loader:
        got = []
        for batch in loader.read(train, wanted):
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            work = work @ work / 50  # the device lags behind the host
            got.append((batch.images.clone(), batch.labels.clone(), batch.flips.clone()))
    assert equal([tuple(t.cpu() for t in batch) for batch in got], expected)
