import pytest
from image_trees import class_tree, jpeg, names, tiny_tree, write_folder, write_tar

from rn50.data.pack import pack
from rn50.data.shards import PackedDataset
from rn50.data.sources.base import ClassName, Skipped, SourceImage
from rn50.data.sources.detect import open_source
from rn50.data.subset import subset
from rn50.errors import UsageError


def tree():
    return class_tree(("ant", "bee", "cat", "dog"), per_class=5)


@pytest.fixture
def source(tmp_path):
    return open_source(write_folder(tmp_path / "source", tree()))


def keys(folder, split="train"):
    opened = PackedDataset.open(folder).split(split)
    return [opened.key(i) for i in range(opened.num_images)]


def test_without_options_it_is_the_source_itself(source):
    assert subset(source) is source


def test_only_the_chosen_classes_are_packed_and_numbered_anew(tmp_path, source):
    manifest = pack(subset(source, "dog, bee"), tmp_path / "d")
    data = PackedDataset.open(tmp_path / "d")
    assert [class_.id for class_ in data.classes] == ["bee", "dog"]
    assert data.split("train").labels.tolist() == [0] * 5 + [1] * 5
    assert keys(tmp_path / "d", "val") == ["bee/v_1", "dog/v_3"]
    assert manifest["chosen"] == {"classes": 2, "of_classes": 4, "per_class": None}
    assert manifest["skipped"] == {}


def test_the_classes_may_stand_in_a_file(tmp_path, source):
    (tmp_path / "list.txt").write_text("cat\n\n ant \ncat\n")
    chosen = subset(source, f"@{tmp_path / 'list.txt'}")
    assert [class_.id for class_ in chosen.classes] == ["ant", "cat"]


def test_a_number_per_class_takes_the_first_of_a_folder_by_path(tmp_path, source):
    pack(subset(source, per_class=2), tmp_path / "d")
    assert keys(tmp_path / "d") == [
        f"{c}/{c}_{i}" for c in ("ant", "bee", "cat", "dog") for i in (0, 1)
    ]
    assert len(keys(tmp_path / "d", "val")) == 4


def test_a_number_per_class_takes_the_first_of_an_archive_in_its_order(tmp_path):
    archive = write_tar(tmp_path / "a.tar", dict(reversed(tree().items())))
    pack(subset(open_source(archive), "ant", 2), tmp_path / "d")
    assert keys(tmp_path / "d") == ["ant/ant_3", "ant/ant_4"]


def test_more_than_there_are_takes_all(tmp_path, source):
    manifest = pack(subset(source, per_class=99), tmp_path / "d")
    assert manifest["splits"]["train"]["images"] == 20


def test_the_last_report_says_that_all_is_done(tmp_path, source):
    reports = []
    pack(subset(source, "ant", 3), tmp_path / "d", report=lambda *counts: reports.append(counts))
    assert reports[-1] == (4, 4)


class Endless:
    """A source that says where reading stopped."""

    kind = "endless"
    classes = (ClassName("a", "A"),)
    skipped = Skipped()
    notes = ("mind the gap",)
    checked = False
    last = -1

    def count(self):
        return 1000

    def images(self):
        for i in range(1000):
            self.last = i
            split = "val" if i % 2 else "train"
            yield SourceImage(split, "a", f"{split}/a/{i}.jpg", lambda i=i: jpeg(i))

    def check(self):
        return ["all is well"]


def test_nothing_is_read_once_every_class_has_enough(tmp_path):
    endless = Endless()
    manifest = pack(subset(endless, per_class=3), tmp_path / "d")
    assert endless.last == 5
    assert manifest["checks"] == [
        "the source was not compared with what was published: only a part was read"
    ]
    assert manifest["notes"] == ["mind the gap"]


def test_checks_and_notes_of_the_source_are_in_the_manifest(tmp_path):
    manifest = pack(subset(Endless(), "a"), tmp_path / "d")
    assert manifest["checks"] == ["all is well"]
    assert manifest == pack(Endless(), tmp_path / "e") | {"chosen": manifest["chosen"]}


@pytest.mark.parametrize(
    ("classes", "match"),
    [
        ("bea", r"names 'bea', which the source lacks; .*; did you mean bee\?"),
        ("bee,cow", r"names 'cow', .*; they are ant, bee, cat, dog"),
        (" , ", r"is ' , ', which names no class; give ids separated by commas"),
        ("@nowhere.txt", r"is @nowhere\.txt, which cannot be read .*No such file"),
    ],
)
def test_a_class_that_is_not_there_is_refused(source, classes, match):
    with pytest.raises(UsageError, match=match):
        subset(source, classes)


def test_a_name_is_answered_with_its_id(tmp_path):
    source = open_source(write_folder(tmp_path / "tiny", tiny_tree("")))
    with pytest.raises(UsageError, match=r"did you mean n01 \(goldfish, Carassius auratus\)\?"):
        subset(source, "Goldfish")


def test_a_negative_number_is_refused(source):
    with pytest.raises(UsageError, match=r"--per-class is -1; it must be at least 1"):
        subset(source, per_class=-1)


def test_another_choice_starts_over(tmp_path):
    images = class_tree(per_class=60) | {"val/bee/z.jpg": b""}
    source = write_folder(tmp_path / "source", images)
    for chosen in ("", "bee"):
        with pytest.raises(Exception, match="finished shards"):
            pack(subset(open_source(source), chosen), tmp_path / "d", shard_bytes=20_000)
    said = []
    (source / "val/bee/z.jpg").unlink()
    pack(subset(open_source(source)), tmp_path / "d", shard_bytes=20_000, say=said.append)
    assert "with another set of classes and number of images per class; starting over" in said[0]
    assert names(tmp_path) == ["d", "source"]
