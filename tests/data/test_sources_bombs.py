"""Archives that are small and unpack to what is not."""

import gzip
import io
import random
import tarfile
import zipfile

import pytest
from image_trees import class_tree, jpeg, write_zip

from rn50.data.sources import tars
from rn50.data.sources.archives import open_container
from rn50.data.sources.base import BadImageError
from rn50.data.sources.detect import open_source
from rn50.errors import DataError


def test_a_file_of_a_zip_that_shrank_as_no_photograph_does_is_refused_unread(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(17 << 20))
        archive.writestr("flat.jpg", bytes(1 << 20))
    small, bomb = sorted(
        open_container(path).members(["bomb.jpg", "flat.jpg"]), key=lambda member: member.path
    )[::-1]
    assert len(small.read()) == 1 << 20, "a small picture of one colour is a picture"
    with pytest.raises(BadImageError, match="unpacks to 17,825,792 bytes, over 200 times its size"):
        bomb.read()


def test_a_zip_that_lies_about_a_size_yields_no_more_than_it_told(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"x.jpg": bytes(5000)})
    content = path.read_bytes().replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(content)
    (member,) = open_container(path).members(["x.jpg"])
    with pytest.raises(BadImageError, match="damaged there: Bad CRC"):
        member.read()


@pytest.mark.parametrize("big", [300, 3000])
def test_a_compressed_tar_that_unpacks_without_end_is_refused(tmp_path, monkeypatch, big):
    monkeypatch.setattr(tars, "_FREE_BYTES", 1 << 20)
    path = tmp_path / "a.tgz"
    with gzip.open(path, "wb") as packed:
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, data in class_tree().items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        packed.write(bytes(big << 10))  # zeros behind its end
    if big == 300:
        assert open_source(path).count() == 8
    else:
        with pytest.raises(DataError, match=r"a\.tgz is cut off or damaged \(it unpacks to more"):
            open_source(path)


def test_photographs_that_hardly_shrink_are_no_bomb(tmp_path):
    tree = {
        f"{split}/ant/{i}.jpg": jpeg(i, size=(64, 64))
        for split in ("train", "val")
        for i in range(50)
    }
    assert open_source(write_zip(tmp_path / "a.zip", tree)).count() == 100


@pytest.mark.long
def test_a_zip_with_more_entries_than_the_old_form_can_count_is_read(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in class_tree().items():
            archive.writestr(name, data)
        for number in range(0xFFFF):
            archive.writestr(f"other/{number}", b"")
    assert b"PK\x06\x06" in path.read_bytes()[-200:], "else this tests nothing"
    source = open_source(path)
    assert {image.path: image.read() for image in source.images()} == class_tree()


def test_a_file_of_a_zip_whose_size_is_told_in_the_long_form_is_read(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.jpg", "w", force_zip64=True) as x:
        x.write(jpeg(0))
    (member,) = open_container(path).members(["x.jpg"])
    assert member.read() == jpeg(0)


def test_a_zip_that_begins_behind_other_bytes_is_read(tmp_path):
    whole = write_zip(tmp_path / "a.zip", class_tree()).read_bytes()
    (tmp_path / "a.zip").write_bytes(b"PK" + bytes(1000) + whole)
    assert open_source(tmp_path / "a.zip").count() == 8


@pytest.mark.parametrize("seed", range(40))
def test_a_zip_with_random_damage_gives_one_error_or_what_it_held(tmp_path, seed):
    rng = random.Random(seed)
    path = write_zip(tmp_path / "a.zip", class_tree())
    content = bytearray(path.read_bytes())
    ends = len(content) - 22 - 80 * 8 if seed % 2 else 0  # its list, or anywhere
    for _ in range(3):
        content[rng.randrange(ends, len(content))] = rng.randrange(256)
    path.write_bytes(content)
    try:
        found = {image.path: image.read() for image in open_source(path).images()}
    except (DataError, BadImageError):
        return
    assert set(found.values()) <= set(class_tree().values())
