"""The losses of a short run, committed: a refactor proves itself by leaving them alone.

To renew them after a change that is meant to alter numerics, run
``python tests/golden/test_losses.py`` and show the evidence for the change with the diff.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rn50.observe import record

GOLDEN = Path(__file__).with_name("losses.json")
RUN = (
    *("train", "cifar10-resnet18", "--model.num-classes", "4", "--epochs", "5"),
    *("--batch-size", "16", "--train-px", "24", "--images.test-px", "24", "--lr", "0.05"),
    *("--images.test-resize-px", "28", "--micro-batch", "8", "--clip-grad-norm", "2"),
    *("--warmup-epochs", "1", "--log-every", "1", "--device", "cpu", "--precision", "fp32"),
    *("--model.stem", "imagenet", "--storage.checkpoint-epochs", "0", "--eval-every", "5"),
)


def losses(packed: Path, place: Path) -> dict[str, list[float]]:
    """Return the loss of each of 30 steps, and the final losses on the validation split."""
    words = [sys.executable, "-m", "rn50", *RUN, "--data", packed, "--output-dir", place]
    subprocess.run(words, check=True, capture_output=True)
    records = record.read(place / record.FILE_NAME)
    val = next(r["val"] for r in records if r["kind"] == "epoch" and r["val"])
    return {
        "train": [r["loss"] for r in records if r["kind"] == "train"],
        "val": [val["model"]["loss"], val["average"]["loss"]],
    }


@pytest.mark.slow
def test_the_losses_of_thirty_steps_are_the_committed_ones(packed, tmp_path):
    """The tolerance allows for other processors' kernels, not for other mathematics."""
    found = losses(packed, tmp_path / "run")
    golden = json.loads(GOLDEN.read_text())
    assert len(found["train"]) == 30
    assert found["train"][:10] == pytest.approx(golden["train"][:10], rel=1e-4)
    assert found["train"] == pytest.approx(golden["train"], rel=1e-2)
    assert found["val"] == pytest.approx(golden["val"], rel=1e-2)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import Pictures
    from rn50.data.pack import pack

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "packed"
        pack(Pictures(), folder, shard_bytes=100_000)
        GOLDEN.write_text(json.dumps(losses(folder, Path(scratch) / "run"), indent=1) + "\n")
