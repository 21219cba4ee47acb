"""The commands of the README and of the guide are run, on miniature data."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from rn50.cli import main

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs/guide").glob("*.md"))]
ELSEWHERE = (
    "pip ",
    "git ",
    "cd ",
    "tensorboard ",
    "python benchmarks/",
    "uv run scripts/check",
    "aws ",
)


def commands(page: str) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [stripped for line in lines if (stripped := line.partition("#")[0].strip())]


@pytest.fixture(scope="module")
def desk(packed, tmp_path_factory):
    """A folder with everything that the pages name."""
    place = tmp_path_factory.mktemp("desk")
    for split in ("train", "val"):
        for shard in packed.glob(f"{split}-*.tar"):
            shutil.unpack_archive(shard, place / "my-images" / split, filter="data")
    for label in (place / "my-images").rglob("*.cls"):
        label.unlink()
    shutil.copytree(place / "my-images" / "train", place / "my-train-images")
    shutil.copytree(place / "my-images" / "val", place / "my-val-images")
    return place


def run(words: list[str]) -> int:
    try:
        main(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_accepted_and_the_cheap_ones_run(
    page, desk, monkeypatch, capsys, packed
):
    monkeypatch.chdir(desk)
    for made in ("packed", "packed-apart", "tiny-imagenet"):
        shutil.rmtree(desk / made, ignore_errors=True)
    if "prepare" not in (ROOT / page).read_text():
        shutil.copytree(packed, desk / "packed")
    seen = 0
    for command in commands(page):
        if command.startswith(ELSEWHERE):
            continue
        words = shlex.split(command.removeprefix("uv run "))
        if words[0] == "torchrun":
            assert words[1:3] == ["--nproc-per-node", "8"]
            words = ["rn50", *words[words.index("rn50") + 1 :]]
        assert words.pop(0) == "rn50", command
        if words[0] == "eval":
            continue  # tests/test_cli.py runs it on a trained run
        if words[0] == "download" and len(words) > 1:
            continue  # tests/data/test_download.py runs it against a server
        if words[0] == "train" and "--config" in words:
            config = desk / words[words.index("--config") + 1]
            config.parent.mkdir(parents=True, exist_ok=True)
            capsys.readouterr()
            run(["train", "--dry-run"])
            config.write_text(capsys.readouterr().out)
        if words[0] == "train" and "--dry-run" not in words:
            words.append("--dry-run")
        assert run(words) == 0, f"{command}\n{capsys.readouterr().err}"
        seen += 1
    assert seen or page != "README.md"
