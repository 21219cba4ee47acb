"""Each benchmark runs in miniature; how fast anything was is not looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rn50.config import Images, Model
from rn50.data.demo import DemoSource
from rn50.data.pack import pack
from rn50.model import resnet, weights

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

# One process for all of them: importing torchvision takes longer than the miniatures. The step
# comes last because a process that has trained is not to be forked.
ALL = """
import sys
sys.path.insert(0, sys.argv[1])
import augment, gpu, loader, saving, step
packed, out = sys.argv[2:]
sizes = ["--count", "16", "--batch-size", "4", "--px", "32", "--workers", "2"]
brief = ["--rounds", "1", "--seconds", "0.01"]
sizes += ["--resize-short", "48"]
loader.main(["--images", packed, *sizes, *brief, "--json", f"{out}/loader.json"])
kinds = ["--only", "RandAugment of timm", "CutMix", "--batch-size", "4", "--px", "32"]
augment.main([*kinds, *brief, "--json", f"{out}/augment.json"])
augment.main([*kinds, *brief, "--operations", "--json", f"{out}/operations.json"])
for options in ([], ["--cpu-smoke", "--only", "ceilings", "numerics"]):
    try:
        gpu.main(["--out", out, *options])
    except SystemExit as end:
        print("gpu ended with", int(end.code))
options = ["--arch", "resnet18", "--rounds", "1", "--folder", out]
saving.main([*options, "--json", f"{out}/saving.json"])
sizes = ["--arch", "resnet18", "--px", "32", "--batch-sizes", "2", "--precisions", "fp32"]
step.main([*sizes, *brief, "--small-ceilings", "--json", f"{out}/step.json"])
"""


def run(*command: str | Path) -> str:
    """Return what a Python process prints, which sees no GPU."""
    # One thread: the miniature's matrices are too small to share.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def report(path: Path) -> dict[str, Any]:
    assert path.with_suffix(".md").read_text().startswith("# ")
    return json.loads(path.read_text())


def test_benchmarks_run_and_the_network_agrees_with_torchvision(
    packed: Path, tmp_path: Path
) -> None:
    printed = run("-c", ALL, BENCHMARKS, packed, tmp_path)

    methods = [row["method"] for row in report(tmp_path / "loader.json")["loader"]]
    assert methods[0] == "torchvision PIL"
    assert {"rn50", "rn50, 48 px", "floor: decode only", "floor: decode only, 48 px"} < {*methods}
    saved = {row["what"]: row for row in report(tmp_path / "saving.json")["saving"]}
    assert 0 < saved["stall"]["ms median"] < saved["whole"]["ms median"]
    timm, cutmix = report(tmp_path / "augment.json")["augment"]
    assert timm["rn50, ms"] > 0
    assert "torchvision PIL, ms" not in timm
    for peer in ("torchvision PIL", "torchvision tensor"):
        ratio = cutmix[f"{peer}, ms"] / cutmix["rn50, ms"]
        assert cutmix[f"{peer} / rn50"] == pytest.approx(ratio, rel=0.5)
    operations = [row["augmentation"] for row in report(tmp_path / "operations.json")["augment"]]
    assert len(operations) == 16
    assert operations[:2] == ["shear x", "shear y"]
    assert [row["side"] for row in report(tmp_path / "step.json")["step"]] == [
        "torchvision",
        "rn50",
    ]
    without_gpu, _, smoke = printed.partition("gpu ended with 2\n")
    assert without_gpu.endswith("give --cpu-smoke to test this script on the CPU\n")
    assert "gpu ended with 0\n" in smoke
    sections = report(tmp_path / "gpu.json")
    assert list(sections) == ["machine", "ceilings", "numerics"]
    assert all(row["agrees"] for row in sections["numerics"]["rows"])


@pytest.mark.long
def test_observation_is_measured_with_all_trackers_on(tmp_path: Path) -> None:
    for library in ("tensorboard", "wandb", "trackio", "mlflow"):
        pytest.importorskip(library)
    brief = ("--step-ms", "1", "--windows", "2", "--steps", "400")
    run(BENCHMARKS / "observation.py", *brief, "--json", tmp_path / "observation.json")
    found = report(tmp_path / "observation.json")
    assert [row["steps"] for row in found["memory"]] == [40, 400, "growth"]
    assert {"process of trackers, MB", "process of W&B, MB"} < found["memory"][1].keys()
    assert found["memory"][1]["process of trackers, MB"] > 20
    assert found["shares"][0]["seconds"] > 0


@pytest.mark.long
def test_grad_cam_is_compared_with_the_library_on_the_demo(tmp_path: Path) -> None:
    pack(DemoSource(train_per_class=1, val_per_class=1), tmp_path / "demo")
    classes = [(c.id, c.name) for c in DemoSource.classes]
    model = Model(arch="resnet18", num_classes=len(classes), zero_init_residual=False)
    images = Images(batch_size=2, test_px=64, test_resize_px=72)
    told = weights.header(model=model, images=images, classes=classes, about={})
    weights.save(tmp_path / "w.safetensors", resnet.build(model, seed=0).state_dict(), told)
    script = (BENCHMARKS / "gradcam.py", tmp_path / "w.safetensors", tmp_path / "demo")
    run(*script, "--json", tmp_path / "gradcam.json")
    rows = report(tmp_path / "gradcam.json")["gradcam"]
    assert [row["map"] for row in rows] == ["16 × 16", "8 × 8", "4 × 4", "2 × 2"]
    assert all(float(row["largest difference to grad-cam"]) < 1e-4 for row in rows)


@pytest.mark.long
def test_every_section_of_the_gpu_benchmark_runs_in_miniature(tmp_path: Path) -> None:
    run(BENCHMARKS / "gpu.py", "--cpu-smoke", "--out", tmp_path)
    sections = report(tmp_path / "gpu.json")
    assert {name: section["problem"] for name, section in sections.items()} == dict.fromkeys(
        sections
    )
    assert all(section["rows"] for section in sections.values())
    assert sections["train-64"]["rows"][0]["finished"]
    assert len(sections["augment"]["rows"]) == 12
    assert sections["determinism"]["rows"][-1]["bit-identical"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_agrees_with_torchvision_and_deterministic_runs_with_each_other(
    tmp_path: Path,
) -> None:
    only = ("--only", "numerics", "determinism")
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu.py", "--out", tmp_path, *only])
    assert done.returncode == 0
    sections = report(tmp_path / "gpu.json")
    assert all(row["agrees"] for row in sections["numerics"]["rows"])
    assert sections["determinism"]["rows"][-1]["bit-identical"]
