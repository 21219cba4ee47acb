import json
import re
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image

from analyze.run_folders import a_model, write_run
from rn50.analyze import architecture
from rn50.analyze.analysis import NoData, analyze, data_if_there, default_folder, sections, write
from rn50.analyze.examination import Settings
from rn50.analyze.section import Picture, Section
from rn50.cli import main
from rn50.config import Hardware
from rn50.data.shards import PackedDataset
from rn50.data.sources.wnids import imagenet_wnids
from rn50.durable import file_digest
from rn50.errors import DataError, UsageError
from rn50.evaluate import score
from rn50.model.resnet import build

HARDWARE = Hardware(device="cpu", precision="fp32", workers=2)
SETTINGS = Settings(hardware=HARDWARE, px=(40,), images=4)
TITLES = [
    *("Summary", "Test sizes", "Classes", "Mistakes", "Confidence"),
    *("Where the network looks", "Does it look at the object?", "Architecture"),
]
GONE = NoData("its disk is empty")


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", dataset, "model", "average")


@pytest.fixture(scope="module")
def page(run, packed, tmp_path_factory):
    """An analysis of the run, and what it told of its progress."""
    told = []
    file = analyze(
        run,
        packed,
        tmp_path_factory.mktemp("out") / "analysis",
        SETTINGS,
        report=lambda *counts: told.append(counts),
    )
    return file, told


def facts_of(file):
    return json.loads((file.parent / "analysis.json").read_text())


def test_scores_are_those_of_an_evaluation(page, run, packed):
    file, _ = page
    found = facts_of(file)["sections"]
    expected = score(run, packed, HARDWARE)
    assert set(expected) == {"model", "average"}
    for name, scores in expected.items():
        got = found["Summary"]["scores"][name]
        assert {key: got[key] for key in scores} == scores
    assert found["Confidence"]["negative_log_likelihood"] == expected["model"]["loss"]
    own = next(row for row in found["Test sizes"]["sizes"] if row["px"] == 32)
    assert own["top1"] == expected["model"]["top1"]
    recalls = [row["recall"] * row["images"] for row in found["Classes"]["classes"]]
    assert sum(recalls) / 36 == pytest.approx(expected["model"]["top1"])


def test_scores_at_another_size_are_those_of_a_network_tested_at_it(page, run, packed, tmp_path):
    larger = tmp_path / "larger.safetensors"
    tensors = safetensors.torch.load_file(run / "model.safetensors")
    with safetensors.safe_open(run / "model.safetensors", framework="pt") as opened:
        told = json.loads(opened.metadata()["rn50"])
    told["images"] |= {"test_px": 40, "test_resize_px": 50}
    safetensors.torch.save_file(tensors, larger, {"rn50": json.dumps(told)})
    expected = score(larger, packed, HARDWARE)["larger"]
    sizes = facts_of(page[0])["sections"]["Test sizes"]["sizes"]
    assert [row["px"] for row in sizes] == [32, 40]
    assert {key: sizes[1][key] for key in ("top1", "top5", "loss")} == {
        key: expected[key] for key in ("top1", "top5", "loss")
    }
    assert sizes[0]["loss"] != sizes[1]["loss"]
    average = score(run, packed, HARDWARE, px=40)["average"]
    assert {key: sizes[1]["others"]["average"][key] for key in ("top1", "top5", "loss")} == {
        key: average[key] for key in ("top1", "top5", "loss")
    }


def test_the_page_shows_each_picture_and_the_facts_list_it(page):
    file, _ = page
    text = file.read_text()
    titles = re.findall(r"^## (.*)$", text, re.M)
    assert titles == TITLES
    assert titles == list(facts_of(file)["sections"])
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert sorted(shown) == sorted(facts_of(file)["pictures"])
    assert {p.name for p in file.parent.iterdir()} == {*shown, "analysis.md", "analysis.json"}
    for name in shown:
        with Image.open(file.parent / name) as picture:
            assert picture.width >= 600


def test_progress_is_told_over_all_sizes(page):
    _, told = page
    assert told[-1] == (72, 72)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_the_summary_tells_what_was_analysed(page, run, dataset):
    text = page[0].read_text()
    assert f"# Analysis of {run.name}" in text
    assert "trained by `demo`, after step 12" in text
    assert dataset.fingerprint in text
    assert "the central 32 px of images whose shorter side is resized to 40 px; one crop" in text
    told = facts_of(page[0])["sections"]["Summary"]["weights"]
    assert told["average"] == {
        "step": 12,
        "blake2b": file_digest(run / "average.safetensors"),
    }


def test_without_data_the_architecture_is_described_and_the_rest_said_missing(run, tmp_path):
    found = sections(run, GONE, SETTINGS)
    assert [section.title for section in found] == ["Summary", "Architecture"]
    assert "which take data: its disk is empty" in found[0].markdown
    assert "its disk is empty" in found[0].facts["notes"][0]
    assert analyze(run, GONE, tmp_path, SETTINGS).exists()


@pytest.mark.parametrize("weights", [("model",), ()])
def test_an_analysis_with_scores_is_not_replaced_by_one_without(
    dataset, packed, tmp_path, monkeypatch, weights
):
    monkeypatch.setattr(architecture, "section", lambda *_, **__: Section("Architecture", "text"))
    run, out = write_run(tmp_path / "run", dataset, *weights), tmp_path / "out"
    data = GONE if weights else packed
    write([Section("Summary", "full", {"scores": {"model": {}}})], out, title="T")
    before = (out / "analysis.md").read_text()
    with pytest.raises(DataError, match="holds an analysis with scores, which is kept"):
        analyze(run, data, out, SETTINGS)
    assert (out / "analysis.md").read_text() == before
    file = analyze(run, data, tmp_path / "other", SETTINGS)
    assert analyze(run, data, file.parent, SETTINGS) == file  # that has none


def test_a_run_without_weights_is_described_by_its_settings(dataset, packed, tmp_path):
    run = write_run(tmp_path / "run", dataset)
    found = sections(run, packed, SETTINGS)
    assert [section.title for section in found] == ["Summary", "Architecture"]
    assert "has no weights yet" in found[0].markdown
    assert found[0].facts["parameters"] == 11_178_564


def test_data_that_is_there_is_found_and_other_data_is_not(packed, tmp_path):
    def refused():
        raise UsageError("it does not tell")

    assert data_if_there(lambda: packed) == packed
    assert data_if_there(refused) == NoData("it does not tell")
    gone = data_if_there(lambda: tmp_path / "gone")
    assert isinstance(gone, NoData)
    assert "does not exist" in gone.why


@pytest.mark.long
def test_another_network_of_the_run_is_analysed(run, packed, tmp_path):
    found = sections(run, packed, replace(SETTINGS, network="average", px=(32,)))
    assert found[0].facts["network"] == "average"
    assert list(found[0].facts["scores"]) == ["average", "model"]
    expected = score(run, packed, HARDWARE)["average"]
    assert found[1].facts["sizes"][0]["loss"] == expected["loss"]


@pytest.mark.long
def test_a_foreign_file_is_analysed_on_data_of_as_many_classes(packed, tmp_path):
    net = build(replace(a_model(4), stem="small"), seed=0)
    file = tmp_path / "theirs.pth"
    torch.save(net.state_dict(), file)
    found = sections(file, packed, replace(SETTINGS, px=(32,)))
    assert found[0].facts["network"] == "theirs"
    assert [row["id"] for row in found[2].facts["classes"]] == ["ant", "bee", "cat", "dog"]
    assert "tells neither its classes" in found[0].markdown


def test_data_of_other_classes_is_refused(packed, tmp_path):
    net = torchvision.models.resnet18(num_classes=7)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "seven.safetensors")
    with pytest.raises(DataError, match="tell 7 classes apart"):
        sections(tmp_path / "seven.safetensors", packed, SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"images": 0}, "images is 0; a gallery has at least 1", marks=pytest.mark.long
        ),
        ({"px": (4,)}, "px is 4; a test size has 8 to 2048 pixels"),
        ({"class_id": "a cat"}, "class is 'a cat', but .* such as ant; that is the name of cat"),
        pytest.param(
            {"layer": "layer5"},
            "layer is 'layer5', which the network has not; give a stage",
            marks=pytest.mark.long,
        ),
        pytest.param(
            {"class_id": "cow"},
            "class is 'cow', but classes are told by their ids, such as ant$",
            marks=pytest.mark.long,
        ),
    ],
)
def test_settings_that_fit_no_network_are_refused(run, packed, change, message):
    with pytest.raises(UsageError, match=message):
        sections(run, packed, replace(SETTINGS, **change))


def test_maps_of_one_class_are_of_its_images_and_those_taken_for_it(run, packed):
    found = sections(run, packed, replace(SETTINGS, px=(32,), class_id="bee", layer="layer2"))
    looks = next(one for one in found if one.title == "Where the network looks")
    assert (looks.facts["target"], looks.facts["layer"]) == ("bee", "layer2")
    shown = [*looks.facts["right"], *looks.facts["wrong"]]
    assert shown
    assert all("bee" in (fact["true"], fact["predicted"]) for fact in shown)


@pytest.mark.long
def test_a_class_of_which_nothing_is_seen_has_no_maps(packed, tmp_path):
    net = torchvision.models.resnet18(num_classes=1000)
    with torch.no_grad():
        net.fc.bias[7] = 1e6
    file = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file(net.state_dict(), file)
    data = tmp_path / "data"
    shutil.copytree(packed, data)
    manifest = json.loads((data / "manifest.json").read_text())
    for entry, wnid in zip(manifest["classes"], imagenet_wnids(), strict=False):
        entry["id"] = wnid
    (data / "manifest.json").write_text(json.dumps(manifest))
    wanted = replace(SETTINGS, px=(32,), class_id=imagenet_wnids()[9])
    with pytest.raises(UsageError, match="no validation image is of it or is taken for it"):
        sections(file, data, wanted)


def test_an_image_that_cannot_be_decoded_is_named(run, packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "copy")
    val = PackedDataset.open(folder).split("val")
    shard, offset = val.place(5)
    with (folder / shard).open("r+b") as file:
        file.seek(offset)
        file.write(bytes(300))
    with pytest.raises(DataError, match=f"cannot decode {val.key(5)}"):
        sections(run, folder, SETTINGS)


def test_pictures_of_an_earlier_analysis_are_removed_and_nothing_else(tmp_path):
    def of(*names):
        pictures = tuple(Picture(name, b"png", "a picture") for name in names)
        return [Section("One", "text", {"value": float("nan"), "of": (1, 2)}, pictures)]

    (tmp_path / "mine.png").write_bytes(b"mine")
    write(of("a.png", "b.png"), tmp_path, title="T")
    file = write(of("b.png", "c.png"), tmp_path, title="T")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"mine.png", "b.png", "c.png", "analysis.md", "analysis.json"}
    assert facts_of(file)["sections"]["One"] == {"value": None, "of": [1, 2]}


@pytest.mark.parametrize("facts", ["{", "[]", '{"pictures": ["../../x.png", 3]}'])
def test_a_damaged_analysis_is_replaced(tmp_path, facts):
    (tmp_path / "analysis.json").write_text(facts)
    file = write([Section("One", "text")], tmp_path, title="T")
    assert facts_of(file)["pictures"] == []


def test_a_place_that_cannot_be_written_is_refused_before_the_work(run, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=r"a file is in its place; give another folder"):
            analyze(run, tmp_path / "no data is read", place, SETTINGS)


def test_where_it_is_written(tmp_path):
    assert default_folder(tmp_path) == tmp_path / "analysis"
    assert default_folder(tmp_path / "swa.safetensors") == tmp_path / "analysis-swa"


def run_command(capsys, *words):
    try:
        main([str(word) for word in words])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_writes_beside_the_weights_and_says_where(dataset, packed, tmp_path, capsys):
    run = write_run(tmp_path / "run", dataset, "model")
    flags = ("--px", 32, "--device", "cpu", "--precision", "fp32", "--workers", 2)
    code, out, _ = run_command(capsys, "analyze", run, "--data", packed, *flags)
    assert code == 0
    assert out == f"wrote {run / 'analysis' / 'analysis.md'}\n"
    assert (run / "analysis" / "confusion.png").exists()


def test_the_command_does_what_it_can_without_data(dataset, tmp_path, capsys):
    run = write_run(tmp_path / "run", dataset, "model")
    code, out, err = run_command(capsys, "analyze", run, "--out", tmp_path / "out")
    assert code == 0
    assert out == f"wrote {tmp_path / 'out' / 'analysis.md'}\n"
    assert "only the architecture was analysed" in err
    assert f"data folder {run / 'no data'} does not exist" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("gone",), 3, "there is no gone to analyse"),
        (("RUN", "--data", "gone"), 3, "data folder gone does not exist"),
        (("RUN", "--network", "swa"), 2, "has no swa.safetensors"),
        (("RUN", "--network", "ema"), 2, "invalid choice 'ema'"),
    ],
)
def test_the_command_refuses_in_one_line(run, capsys, words, code, message):
    words = [run if word == "RUN" else word for word in words]
    got, _, err = run_command(capsys, "analyze", *words)
    assert got == code
    assert message in err
