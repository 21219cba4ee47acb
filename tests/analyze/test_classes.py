import io
import warnings

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from analyze.seen import answered, counts, drawn, seen_of
from rn50.analyze import classes
from rn50.analyze.classes import class_scores, confused_pairs
from rn50.analyze.names import shown_names
from rn50.data.sources.wnids import class_names, imagenet_wnids

CASES = {
    "random": (3000, 12, lambda labels: labels),
    "two classes": (200, 2, lambda labels: labels),
    "a class absent in the data": (400, 6, lambda labels: np.where(labels == 3, 4, labels)),
    "one class alone in the data": (50, 4, lambda labels: labels * 0 + 2),
}


def same(got, expected):
    return np.array_equal(np.isnan(got), np.isnan(expected)) and np.allclose(
        np.nan_to_num(got), np.nan_to_num(expected)
    )


def check_against_scikit_learn(labels, predicted, num_classes, confusion):
    every = list(range(num_classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(confusion, confusion_matrix(labels, predicted, labels=every))
        expected = precision_recall_fscore_support(
            labels, predicted, labels=every, zero_division=np.nan
        )
    got = class_scores(confusion)
    for mine, theirs in zip((got.precision, got.recall, got.f1), expected[:3], strict=True):
        assert same(mine, theirs)
    assert np.array_equal(got.support, expected[3])


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_scikit_learn(case):
    count, num_classes, change = CASES[case]
    logits, labels = drawn(count, num_classes)
    labels = labels.new_tensor(change(labels.numpy()))
    seen = seen_of(logits, labels)
    check_against_scikit_learn(seen.labels, seen.predicted, num_classes, seen.confusion)


@pytest.mark.parametrize(
    ("labels", "predicted"),
    [
        ([0, 1, 2, 2], [0, 1, 2, 2]),  # all right
        ([0, 1, 2, 2], [1, 2, 0, 0]),  # all wrong
        ([0, 1, 2, 2], [0, 0, 0, 0]),  # classes never predicted
        ([0, 0, 0, 0], [1, 1, 2, 0]),  # classes absent
    ],
)
def test_degenerate_scores_are_those_of_scikit_learn(labels, predicted):
    check_against_scikit_learn(labels, predicted, 4, counts(labels, predicted, 4))


def test_pairs_are_told_apart_by_direction_and_come_by_count():
    labels = [0] * 10 + [1] * 4 + [2] * 5
    predicted = [0] * 6 + [1] * 3 + [2] + [0] * 3 + [1] + [1] * 3 + [2] * 2
    pairs = confused_pairs(counts(labels, predicted, 3), 10)
    assert [(p.true, p.predicted, p.count) for p in pairs] == [
        (1, 0, 3),  # the share is the larger
        (2, 1, 3),
        (0, 1, 3),
        (0, 2, 1),
    ]
    assert [p.share for p in pairs] == [3 / 4, 3 / 5, 3 / 10, 1 / 10]
    assert [p.reverse for p in pairs] == [3, 0, 3, 0]
    assert len(confused_pairs(counts(labels, predicted, 3), 2)) == 2


def test_no_pair_of_a_network_that_is_right():
    seen = answered([0, 1, 2], [0, 1, 2], 3)
    assert confused_pairs(seen.confusion, 5) == []
    found = classes.section(seen, ("a", "b", "c"), ("a", "b", "c"))
    assert "No image is taken for another class." in found.markdown
    assert found.facts["macro"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_two_classes_of_one_name_stay_two():
    ids = imagenet_wnids()
    known = {  # as ILSVRC2012's own lists have them; torchvision's names are told apart
        "n02012849": "crane",
        "n03126707": "crane",
        "n03710637": "maillot",
        "n03710721": "maillot, tank suit",
    }
    names = shown_names(ids, tuple(c.name for c in class_names(ids, known)))
    assert len(set(names)) == 1000
    for name, pair in {
        "maillot": ("n03710637", "n03710721"),
        "crane": ("n02012849", "n03126707"),
    }.items():
        one, other = (ids.index(wnid) for wnid in pair)
        assert [names[one], names[other]] == [f"{name} ({wnid})" for wnid in pair]
        seen = answered([one] * 3 + [other] * 2, [other] * 3 + [other, one], 1000)
        found = classes.section(seen, ids, names)
        rows = {row["id"]: row for row in found.facts["classes"]}
        assert rows.keys() == set(pair)
        assert [rows[wnid]["recall"] for wnid in pair] == [0.0, 0.5]
        assert f"| {name} ({pair[0]}) | {name} ({pair[1]}) | 3 of 3 | 100.0% | 1 |" in (
            found.markdown
        )


def test_the_first_of_several_words_names_a_class():
    names = shown_names(("a", "b", "c"), ("goldfish, Carassius auratus", "", "goldfish"))
    assert names == ("goldfish (a)", "b", "goldfish (c)")


@pytest.mark.parametrize(
    ("num_classes", "pictures"),
    [
        (2, ["classes.png", "confusion.png"]),
        (10, ["classes.png", "confusion.png"]),
        (200, ["classes.png", "confusion.png", "confusion-pairs.png"]),
    ],
)
def test_a_section_has_tables_pictures_and_facts(num_classes, pictures):
    logits, labels = drawn(20 * num_classes, num_classes)
    seen = seen_of(logits, labels)
    names = tuple(f"class {i}" for i in range(num_classes))
    found = classes.section(seen, names, names)
    assert [p.name for p in found.pictures] == pictures
    for picture in found.pictures:
        assert f"]({picture.name})" in found.markdown
        assert Image.open(io.BytesIO(picture.png)).width >= 1000
    rows = found.facts["classes"]
    assert len(rows) == num_classes
    assert sum(row["images"] * row["recall"] for row in rows) == pytest.approx(seen.correct.sum())
    hits = (seen.guesses == seen.labels[:, None]).any(axis=1).sum()
    assert sum(row["images"] * row["top5"] for row in rows) == pytest.approx(hits)
    recalls = class_scores(seen.confusion).recall
    worst = names[int(np.nanargmin(recalls))]
    table = found.markdown.partition("| class |")[2]
    assert table.index(f"| {worst} |") < 200


def test_classes_that_the_data_lacks_are_said_and_not_averaged():
    seen = answered([0, 0, 1, 1], [0, 5, 1, 1], 1000)
    found = classes.section(seen, imagenet_wnids(), imagenet_wnids())
    assert "998 more classes apart" in found.markdown
    assert "1 images (25.0%)" in found.markdown
    assert found.facts["macro"]["precision"] == 1.0
    assert found.facts["macro"]["recall"] == 0.75
