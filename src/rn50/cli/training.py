"""``rn50 train`` and ``rn50 find-lr``."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from rn50 import config
from rn50.cli.say import progress, say, say_scores
from rn50.config import Run
from rn50.errors import UsageError
from rn50.recipes import recipe

_RESUME = PrimitiveConstructorSpec(
    nargs=(0, 1),
    metavar="[PATH|URL]",
    instance_from_str=lambda words: words[0] if words else "auto",
    is_instance=lambda value: isinstance(value, str),
    str_from_instance=lambda value: [value] if value else [],
)
"""``--resume`` alone, or with a value; not given, it is empty."""


def train_command(given: Sequence[str]) -> Callable[..., None]:
    """Return the ``train`` command whose defaults are those of the recipe that was named."""
    defaults = _defaults(given)

    def train(
        recipe: Positional[str] = defaults.recipe,
        /,
        *,
        run: Annotated[Run, arg(name="")] = defaults,
        resume: Annotated[str, _RESUME] = "",
        allow_change: tuple[str, ...] = (),
        extend_to: int = 0,
        config: str = "",
        dry_run: bool = False,
    ) -> None:
        """Train a recipe; without one, ResNet-50 on demo data made on the spot.

        Args:
            recipe: One of `rn50 recipes`; its settings are the defaults below.
            run: Settings.
            resume: Go on from the newest whole checkpoint of the output folder or its mirror; where
                there is none, start. Or from the run, or the one checkpoint, at a path or URL.
            allow_change: Settings that may differ from the run being resumed.
            extend_to: Resume with so many epochs in all, by a schedule planned anew from there.
            config: Take the settings of an earlier run from its config.json instead of a recipe.
            dry_run: Print the resolved settings as JSON and stop.
        """
        if extend_to:
            run, allow_change = _extended(run, extend_to, resume, allow_change)
        _train(run, resume=resume, allow_change=allow_change, dry_run=dry_run)

    return train


def find_lr_command(given: Sequence[str]) -> Callable[..., None]:
    """Return the ``find-lr`` command whose defaults are those of the recipe that was named."""
    defaults = _defaults(given)

    def find_lr(  # noqa: PLR0913 (an option is an argument)
        recipe: Positional[str] = defaults.recipe,
        /,
        *,
        run: Annotated[Run, arg(name="")] = defaults,
        low: float = 1e-4,
        high: float = 10.0,
        steps: int = 100,
        runs: int = 3,
        out: str = "",
        config: str = "",
    ) -> None:
        """Suggest a learning rate: train a little while it grows, several times.

        Args:
            recipe: One of `rn50 recipes`; its settings are the defaults below.
            run: Settings.
            low: The first learning rate.
            high: The last learning rate.
            steps: Learning rates, and updates, of a sweep.
            runs: Sweeps, each with a seed of its own.
            out: Folder for the curves and the values. Empty: runs/find-lr-<recipe>.
            config: Take the settings of an earlier run from its config.json instead of a recipe.
        """
        from rn50.train.find_lr import CURVES, VALUES, find_lr
        from rn50.train.lr_finder import Range

        place = Path(out or f"runs/find-lr-{run.recipe}")
        swept = Range(low=low, high=high, steps=steps)
        with progress("sweeping") as report:
            found = find_lr(run, place, swept=swept, num_sweeps=runs, say=say, report=report)
        if int(os.environ.get("RANK", "0")) != 0:
            return
        for name, rule in (
            ("steepest descent", found.steepest),
            ("a tenth of the minimum's", found.minimum_tenth),
        ):
            say(
                f"{name}: mean {rule.mean:.3g}, median {rule.median:.3g}, "
                f"geometric mean {rule.geometric_mean:.3g} of {runs} sweeps"
            )
        say(f"for batches of {run.images.batch_size}, try --lr {found.suggested:.2g}")
        say(f"written: {place / CURVES}, {place / VALUES}")

    return find_lr


def _defaults(given: Sequence[str]) -> Run:
    if not given or given[0] not in ("train", "find-lr"):
        return recipe("demo")
    words = list(given[1:])
    if path := _option(words, "--config"):
        return config.load(Path(path))
    if words and not words[0].startswith("-"):
        return recipe(words[0])
    if (asked := _option(words, "--resume")) is None:
        return recipe("demo")
    return _resumed(words, asked) or recipe("demo")


def _resumed(words: Sequence[str], asked: str) -> Run | None:
    """Return the settings of the run that is to be resumed, if they lie where it is looked for."""
    place = _option(words, "--output-dir", "-o", "--storage.output-dir")
    if place and (Path(place) / "config.json").is_file():
        return config.load(Path(place) / "config.json")
    mirror = _option(words, "--mirror", "--storage.mirror")
    for source in (asked, mirror):
        if source:
            from rn50.train.resume import settings

            if found := settings(source):
                return found
    return None


def _option(words: Sequence[str], *names: str) -> str | None:
    """Return what follows an option: empty where nothing does, None where it is not given."""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in names:
            follows = words[i + 1] if i + 1 < len(words) else ""
            return value if equals else ("" if follows.startswith("-") else follows)
    return None


def _extended(
    run: Run, epochs: int, resume: str, allow_change: tuple[str, ...]
) -> tuple[Run, tuple[str, ...]]:
    if not resume:
        raise UsageError("--extend-to goes with --resume: it gives a run more epochs; add --resume")
    if epochs < run.epochs:
        raise UsageError(
            f"--extend-to is {epochs}, but the run is planned for {run.epochs} epochs; give more"
        )
    return replace(run, epochs=epochs), (*allow_change, "epochs")


def _train(run: Run, *, resume: str, allow_change: tuple[str, ...], dry_run: bool) -> None:
    if dry_run:
        say(json.dumps(config.to_dict(run), indent=2))
        return
    from rn50.train.run import start

    finished = start(run, resume=resume, allow_change=allow_change, say=say)
    if finished.scores is not None and int(os.environ.get("RANK", "0")) == 0:
        say_scores(finished.scores)
        say(f"written to {finished.folder}:")
        for file in finished.files:
            say(f"  {file}")
