"""Class folders as people really have them."""

import pytest
from distributions import VAL, WNIDS, class_tar, devkit_tree, flat_tree, folder_tree, val_tree
from image_trees import class_tree, jpeg, write_folder, write_zip

from rn50.data.sources.detect import open_source
from rn50.errors import DataError

TABS = "".join(f"{name}.JPEG\t{wnid}\n" for name, (wnid, _) in VAL.items())


def labels(source) -> dict[str, str]:
    return {
        image.path.rpartition("/")[2].partition(".")[0]: image.class_id
        for image in source.images()
        if image.split == "val"
    }


EXPECTED = {name: wnid for name, (wnid, _) in VAL.items()}


@pytest.mark.parametrize(
    "line",
    [
        "{name}.JPEG\t{wnid}\t0\t0",
        "{name}.JPEG {wnid}",
        "{name} {wnid}",
        "val/{name}.JPEG,{wnid}",
        "{wnid},{name}.JPEG",
        '"{name}","{wnid} 1 2 3 4 {wnid} 5 6 7 8"',
    ],
)
def test_a_list_of_labels_may_be_written_in_many_ways(tmp_path, line):
    text = "\n".join(line.format(name=name, wnid=wnid) for name, wnid in EXPECTED.items())
    source = open_source(write_folder(tmp_path, flat_tree("val_labels.csv", text)))
    assert labels(source) == EXPECTED


def test_classes_in_a_list_may_have_spaces(tmp_path):
    tree = class_tree(("maine coon", "tabby"))
    tree = {path: data for path, data in tree.items() if not path.startswith("val/")}
    tree |= {"val/1.jpg": jpeg(1), "val/2.jpg": jpeg(2)}
    tree |= {"val/list.csv": b"file,class\n2.jpg,maine coon\n1.jpg,tabby\n"}
    assert labels(open_source(write_folder(tmp_path, tree))) == {"1": "tabby", "2": "maine coon"}


def test_an_image_that_the_list_lacks_is_named(tmp_path):
    tree = flat_tree("val/list.txt", TABS) | {"val/extra.JPEG": jpeg(0)}
    with pytest.raises(DataError, match=r"extra\.JPEG has no line in .*list\.txt, as 1 of the 7"):
        open_source(write_folder(tmp_path, tree))


@pytest.mark.parametrize("numbers", [range(6), (65, 970, 230, 809, 516, 57)])
@pytest.mark.parametrize("line", ["{name}.JPEG {number}", "{number}"])
def test_numbers_are_not_taken_for_classes(tmp_path, numbers, line):
    text = "\n".join(
        line.format(name=name, number=number) for name, number in zip(VAL, numbers, strict=True)
    )
    tree = flat_tree("ILSVRC2012_validation_ground_truth.txt", text)
    with pytest.raises(DataError, match=r"has numbers for labels.*its data/meta\.mat beside"):
        open_source(write_folder(tmp_path, tree))


def test_ground_truth_beside_its_meta_data_is_understood(tmp_path):
    tree = {path: data for path, data in folder_tree().items() if path.startswith("train/")}
    tree |= val_tree("validation/") | devkit_tree("")
    assert labels(open_source(write_zip(tmp_path / "a.zip", tree))) == EXPECTED


def test_a_list_of_other_images_is_no_list_of_these(tmp_path):
    tree = flat_tree("val/list.txt", "a.JPEG\tn01440764\nb.JPEG\tn01440764\n")
    with pytest.raises(DataError, match=r"val is flat: it has 6 files.*or a list such as"):
        open_source(write_folder(tmp_path, tree))


@pytest.mark.parametrize("name", ["train/{}.tar", "train/{0}/{0}.tar"])
def test_tars_that_an_interrupted_extraction_left_are_refused(tmp_path, name):
    tree = folder_tree() | {name.format(WNIDS[1]): class_tar(WNIDS[1])}
    with pytest.raises(DataError, match=r"has 1 tars of classes, such as .*interrupted"):
        open_source(write_zip(tmp_path / "a.zip", tree))


def test_an_interrupted_extraction_in_a_folder_is_read_where_it_can_be(tmp_path):
    tree = folder_tree() | {f"train/{WNIDS[1]}.tar": class_tar(WNIDS[1])}
    source = open_source(write_folder(tmp_path, tree))
    assert source.kind == "ILSVRC2012"
    assert labels(source) == EXPECTED
    assert source.count() == 14


def test_a_class_called_train_is_a_class(tmp_path):
    tree = class_tree(("bus", "train"))
    source = open_source(write_folder(tmp_path, tree))
    assert [class_.id for class_ in source.classes] == ["bus", "train"]


def test_validation_may_lack_classes_and_have_another_order(tmp_path):
    tree = folder_tree()
    tree = {path: data for path, data in tree.items() if not path.startswith(f"val/{WNIDS[1]}")}
    source = open_source(write_folder(tmp_path, tree))
    assert [class_.id for class_ in source.classes] == list(WNIDS)
    assert set(labels(source).values()) == {WNIDS[0], WNIDS[2]}


def test_the_case_of_a_class_folder_is_kept(tmp_path):
    tree = {path.replace("ant", "Ant"): data for path, data in class_tree().items()}
    tree = {path.replace("train/", "TRAIN/"): data for path, data in tree.items()}
    source = open_source(write_folder(tmp_path, tree))
    assert [class_.id for class_ in source.classes] == ["Ant", "bee"]


def test_a_validation_set_made_of_training_images_is_told(tmp_path):
    tree = folder_tree() | {f"val/{WNIDS[0]}/{WNIDS[0]}_77.JPEG": jpeg(0)}
    (note,) = open_source(write_folder(tmp_path, tree)).notes
    assert note.startswith("1 of the 7 validation images (14%) have the names of training images")
