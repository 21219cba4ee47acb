import io
import json

import pytest
from PIL import Image

from rn50.analyze import architecture
from rn50.analyze.section import Section
from rn50.config import Average, Model, Optim


@pytest.fixture(scope="module")
def resnet50() -> Section:
    optim = Optim(peak_lr=1.0, name="lamb")
    average = Average(ema_horizon=0.1)
    return architecture.section(Model(), px=224, batch_size=64, optim=optim, average=average)


def test_the_section_tells_the_numbers_of_the_papers(resnet50):
    assert "**25,557,032 parameters**, **4.09 GMACs**" in resnet50.markdown
    assert "427 × 427 px (its receptive field), more than the whole image" in resnet50.markdown
    facts = resnet50.facts
    assert (facts["parameters"], facts["receptive_field_px"]) == (25_557_032, 427)
    assert facts["gmacs"] == facts["flops"] / 2e9 == pytest.approx(4.089, abs=5e-4)
    assert [part["side"] for part in facts["parts"]] == [56, 56, 28, 14, 7, 1]
    assert sum(layer["parameters"] for layer in facts["layers"]) == 25_557_032


def test_the_family_goes_from_18_to_152_with_what_torchvision_reports(resnet50):
    family = {one["arch"]: one for one in resnet50.facts["family"]}
    assert [one["parameters"] for one in family.values()] == [
        *(11_689_512, 21_797_672, 25_557_032),
        *(44_549_160, 60_192_808),
    ]
    assert family["resnet50"]["published_top1"] == {
        "IMAGENET1K_V1": pytest.approx(0.7613),
        "IMAGENET1K_V2": pytest.approx(0.80858),
    }
    assert "| **ResNet-50** | 16 | 25,557,032 | 4.09 | 427 px |" in resnet50.markdown
    assert "76.1% (V1), 80.9% (V2) |" in resnet50.markdown


def test_memory_names_the_runs_optimizer_and_its_averages(resnet50):
    memory = resnet50.facts["memory"]
    assert "| optimizer: lamb (this run) | 195.0 MiB |" in resnet50.markdown
    assert memory["optimizers"]["lamb"] == 2 * memory["optimizers"]["sgd"]
    assert memory["averages"] == memory["weights"]
    kept = memory["activations"]["fp32"]
    assert kept["batch"] == kept["fixed"] + 64 * kept["per_image"]
    assert kept["recomputed_batch"] < kept["batch"] / 2


def test_every_picture_is_shown_and_is_a_png_of_a_pages_width(resnet50):
    (picture,) = resnet50.pictures
    assert f"![{picture.alt}]({picture.name})" in resnet50.markdown
    with Image.open(io.BytesIO(picture.png)) as image:
        assert image.format == "PNG"
        assert image.width >= 800


def test_facts_are_json_and_every_row_of_a_table_has_all_its_cells(resnet50):
    assert json.loads(json.dumps(resnet50.facts)) == resnet50.facts
    tables = [b for b in resnet50.markdown.split("\n\n") if b.startswith("|")]
    assert len(tables) == 5
    for block in tables:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_options_are_told_and_nothing_is_compared_with_what_it_is_not():
    model = Model(
        arch="resnet18",
        num_classes=200,
        stem="small",
        blurpool="convs",
        stochastic_depth=0.1,
    )
    section = architecture.section(model, px=224, batch_size=32)
    assert "ResNet-18 with a stem for small images and BlurPool: " in section.markdown
    assert "the strided convolutions see a blurred map" in section.markdown
    assert "skips 0.4 of 8 residuals on average, the last with probability 10%" in section.markdown
    assert "torchvision's weights" not in section.markdown
    assert all(one["published_top1"] == {} for one in section.facts["family"])
    assert "(this run)" not in section.markdown
    assert section.facts["memory"]["averages"] == 0
    assert "sees 123 × 123 px (its receptive field) of the 224 × 224" in section.markdown


def test_a_single_small_image_and_a_frozen_network_are_described_too():
    model = Model(arch="resnet18", train_only="classifier-and-last-bn")
    section = architecture.section(model, px=32, batch_size=1, optim=Optim(peak_lr=0.1))
    assert "Only the classifier is trained" in section.markdown
    assert section.facts["memory"]["optimizers"]["sgd"] == 4 * (512 * 1000 + 1000)
