"""The commands of ``rn50``: what is typed, checked and handed on. No logic of its own."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import rich.console
import rich.table
import tyro
from tyro.conf import Positional, arg

from rn50 import config
from rn50.config import Hardware, Run
from rn50.data.sources.base import Layout
from rn50.errors import UsageError, UserError
from rn50.recipes import (
    RECIPES,
    description,
    equivalent_epochs,
    published,
    recipe,
    summary,
    train_sides,
)

_DESCRIPTION = "Train ResNet-50 from scratch: prepare data, train, resume, evaluate."
_AMP = {"--amp": ("--hardware.precision", "auto"), "--no-amp": ("--hardware.precision", "fp32")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with the code that its outcome has (see ``rn50.errors``)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    given = [word for one in given for word in _AMP.get(one, (one,))]
    try:
        commands: dict[str, Callable[..., Any]] = {
            "train": _train_command(given),
            "find-lr": _find_lr_command(given),
            "download": download,
            "prepare": prepare,
            "verify": verify,
            "eval": evaluate,
            "recipes": recipes,
            "doctor": doctor,
        }
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="rn50",
            description=_DESCRIPTION,
            args=given,
            config=(tyro.conf.FlagCreatePairsOff,),
            sort_subcommands=False,
        )
    except UserError as error:
        _say_error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say_error("stopped; nothing half-written is taken for whole: run the command again")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _train_command(given: Sequence[str]) -> Callable[..., None]:
    """Return the ``train`` command whose defaults are those of the recipe that was named."""
    defaults = _defaults(given)

    def train(
        recipe: Positional[str] = defaults.recipe,
        /,
        *,
        run: Annotated[Run, arg(name="")] = defaults,
        resume: bool = False,
        allow_change: tuple[str, ...] = (),
        config: str = "",
        dry_run: bool = False,
    ) -> None:
        """Train a recipe; without one, ResNet-50 on demo data made on the spot.

        Args:
            recipe: One of `rn50 recipes`; its settings are the defaults below.
            run: Settings.
            resume: Go on from the newest whole checkpoint of the output folder, or start there.
            allow_change: Settings that may differ from the run being resumed.
            config: Take the settings of an earlier run from its config.json instead of a recipe.
            dry_run: Print the resolved settings as JSON and stop.
        """
        _train(run, resume=resume, allow_change=allow_change, dry_run=dry_run)

    return train


def _find_lr_command(given: Sequence[str]) -> Callable[..., None]:
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
        with _progress("sweeping") as report:
            found = find_lr(run, place, swept=swept, num_sweeps=runs, say=_say, report=report)
        if int(os.environ.get("RANK", "0")) != 0:
            return
        for name, rule in (
            ("steepest descent", found.steepest),
            ("a tenth of the minimum's", found.minimum_tenth),
        ):
            _say(
                f"{name}: mean {rule.mean:.3g}, median {rule.median:.3g}, "
                f"geometric mean {rule.geometric_mean:.3g} of {runs} sweeps"
            )
        _say(f"for batches of {run.images.batch_size}, try --lr {found.suggested:.2g}")
        _say(f"written: {place / CURVES}, {place / VALUES}")

    return find_lr


def _defaults(given: Sequence[str]) -> Run:
    if not given or given[0] not in ("train", "find-lr"):
        return recipe("demo")
    words = list(given[1:])
    if path := _option(words, "--config"):
        return config.load(Path(path))
    if words and not words[0].startswith("-"):
        return recipe(words[0])
    place = _option(words, "--output-dir", "-o", "--storage.output-dir")
    if "--resume" in words and place and (Path(place) / "config.json").is_file():
        return config.load(Path(place) / "config.json")
    return recipe("demo")


def _option(words: Sequence[str], *names: str) -> str | None:
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in names:
            return value if equals else (words[i + 1] if i + 1 < len(words) else None)
    return None


def _train(run: Run, *, resume: bool, allow_change: tuple[str, ...], dry_run: bool) -> None:
    if dry_run:
        _say(json.dumps(config.to_dict(run), indent=2))
        return
    from rn50.train.run import start

    finished = start(run, resume=resume, allow_change=allow_change, say=_say)
    if finished.scores is not None and int(os.environ.get("RANK", "0")) == 0:
        _say_scores(finished.scores)
        _say(f"written to {finished.folder}:")
        for file in finished.files:
            _say(f"  {file}")


def download(
    name: Positional[str] = "", dest: Positional[Path] = Path(), /, *, url: str = ""
) -> None:
    """Fetch a data set that is free to fetch; without a name, list them.

    What was cut off is continued by the same command.

    Args:
        name: Such as imagenette-160. For imagenet it says where to register.
        dest: Folder to put the archive in.
        url: Another place to fetch the same archive from, such as a mirror.
    """
    from rn50.data.download import ARCHIVES, archive, fetch, next_command

    if not name:
        table = rich.table.Table("name", "about", "what it holds", box=None)
        for one in ARCHIVES.values():
            table.add_row(one.name, f"{one.about_mb:,} MB", one.holds)
        table.add_row("imagenet", "155 GB", "needs an account: says where, and what to fetch")
        rich.console.Console().print(table)
        return
    wanted = archive(name)
    with _progress("fetching", in_bytes=True) as report:
        file = fetch(wanted, dest, url=url, say=_say, report=report)
    _say(f"{file}: {file.stat().st_size / 1e6:,.1f} MB\nnext: {next_command(wanted, file)}")


def prepare(  # noqa: PLR0913 (each is an option)
    source: Positional[str],
    dest: Positional[Path],
    /,
    *,
    val_source: str = "",
    form: Annotated[Layout, arg(name="format")] = "auto",
    resize_short: str = "none",
    quality: int | None = None,
    subsampling: Literal["420", "444"] | None = None,
    classes: str = "",
    per_class: int = 0,
    in_place: bool = False,
    skip_bad: bool = False,
    workers: int = 0,
) -> None:
    """Pack images into shards that train fast and can be verified.

    The same command goes on after an interruption, and gives the same bytes.

    Args:
        source: The folder of ILSVRC2012's archives, Kaggle's CLS-LOC, class folders
            (train/<class>/…, val/<class>/…), imagenette, tiny-imagenet-200, parquet files of the
            Hugging Face Hub, WebDataset tars; a zip or tar of these; or the word demo.
        dest: The folder to make.
        val_source: A folder or archive with the validation images, where they lie apart.
        form: Refuse a source of any other form than this; auto: find out from its content.
        resize_short: Make training images smaller: encode them anew, with a shorter side of at most
            this many pixels, such as 352; none: keep the original bytes. What it costs and gains
            is printed at the end.
        quality: Of the JPEGs made so; by default 90.
        subsampling: Colour resolution of the JPEGs made so; by default 420.
        classes: Pack these only: ids separated by commas, or @FILE with one a line.
        per_class: Pack the first so many images of each class and split, in the source's order.
        in_place: Copy no image: make an index of WebDataset tars, and links to where they lie,
            where they must stay.
        skip_bad: Leave out images that cannot be decoded (or used in place) and list them in the
            manifest.
        workers: Threads; 0: one per core.
    """
    from rn50.data import account
    from rn50.data.encoding import encoding
    from rn50.data.in_place import open_tars
    from rn50.data.pack import Options, pack
    from rn50.data.sources.detect import open_source
    from rn50.data.subset import subset

    stored = encoding(resize_short, quality, subsampling)
    options = Options(encoding=stored, in_place=in_place, workers=workers)

    with _progress("indexing" if in_place else "packing") as report:
        opener = open_tars if in_place else open_source
        opened = opener(source, val_source=val_source or None, layout=form)
        chosen = subset(opened, classes, per_class)
        manifest = pack(chosen, dest, skip_bad=skip_bad, options=options, report=report, say=_say)
    splits = ", ".join(f"{s['images']:,} {name}" for name, s in manifest["splits"].items())
    _say(f"{dest}: {splits} images of {len(manifest['classes'])} classes")
    for line in account.lines(manifest):
        _say(f"  {line}")


def verify(folder: Positional[str], /, *, workers: int = 0) -> None:
    """Check every file and image of a folder made by prepare.

    Args:
        folder: The packed data, or its URL: then the copy in the cache folder is checked.
        workers: Threads; 0: one per core.
    """
    from rn50.data.remote import local_folder
    from rn50.data.verify import verify as check

    place = local_folder(folder, say=_say)
    with _progress("verifying") as report:
        found = check(place, workers=workers, report=report)
    splits = ", ".join(f"{count:,} {name}" for name, count in found.images.items())
    _say(
        f"{folder} is whole: {splits} images of {found.num_classes} classes, "
        f"{found.num_bytes / 1e6:,.1f} MB, fingerprint {found.fingerprint}"
    )


def evaluate(
    weights: Positional[Path],
    /,
    *,
    data: Annotated[str, arg(aliases=["-d"])] = "",
    hardware: Hardware = Hardware(),  # noqa: B008 (frozen)
    json_output: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Score a run or a weights file on every validation image, once.

    Args:
        weights: The folder of a run, or a weights file.
        data: Folder made by prepare, or the URL of a copy of one; by default what the run was
            trained on.
        hardware: How to compute it.
        json_output: Print JSON.
    """
    from rn50.data.remote import local_folder
    from rn50.evaluate import score
    from rn50.train.folder import data_of

    scores = score(weights, local_folder(data or data_of(weights)), hardware, say=_say_aside)
    if json_output:
        _say(json.dumps(scores, indent=2))
    else:
        _say_scores(scores)


def recipes(
    action: Positional[Literal["list", "show", "diff"]] = "list",
    names: Positional[tuple[str, ...]] = (),
    /,
    *,
    form: Annotated[Literal["table", "json"], arg(name="format")] = "table",
) -> None:
    """List the recipes; `show NAME` tells all of one; `diff A B` what two do differently.

    Args:
        action: What to do.
        names: One recipe to show, or two to compare.
        form: How to print the list.
    """
    if action == "show":
        (name,) = _named(names, 1, "show NAME")
        _say(f"{name}: {description(name)}\n")
        _say(json.dumps(config.to_dict(recipe(name)), indent=2))
        return
    if action == "diff":
        one, other = (config.mathematics(recipe(name)) for name in _named(names, 2, "diff A B"))
        table = rich.table.Table("setting", *names, box=None)
        for key in one:
            if one[key] != other[key]:
                table.add_row(key, str(one[key]), str(other[key]))
        rich.console.Console().print(table)
        return
    _named(names, 0, "list")
    rows = [(name, RECIPES[name]()) for name in RECIPES]
    if form == "json":
        _say(json.dumps({name: config.to_dict(run) for name, run in rows}, indent=2))
        return
    table = rich.table.Table(box=None)
    for column in ("recipe", "epochs", "px", "224-px epochs", "published"):
        table.add_column(column, no_wrap=True)
    table.add_column("what it is", min_width=20)
    for name, run in rows:
        px = f"{train_sides(run)}/{run.images.test_px}"
        cost = f"{equivalent_epochs(run):.1f}"
        table.add_row(name, str(run.epochs), px, cost, published(name), summary(name))
    rich.console.Console(width=max(110, rich.console.Console().width)).print(table)


def _named(names: tuple[str, ...], count: int, usage: str) -> tuple[str, ...]:
    if len(names) != count:
        raise UsageError(
            f"`rn50 recipes {usage}` takes {count} names of recipes, not {len(names)}; "
            "`rn50 recipes` lists them"
        )
    return names


def doctor(*, json_output: Annotated[bool, arg(name="json")] = False) -> None:
    """Say what this machine has for training, and what would help.

    Args:
        json_output: Print JSON.
    """
    try:
        from rn50.doctor import examine, refuse_impossible, table, to_json
    except (ImportError, OSError) as error:
        raise UsageError(
            f"this machine cannot train as it is: {type(error).__name__}: {error}; every package "
            "must load; install them again: pip install --force-reinstall rn50 torch torchvision"
        ) from error

    findings = examine()
    if json_output:
        _say(json.dumps(to_json(findings), indent=2))
    else:
        rich.console.Console().print(table(findings))
    refuse_impossible(findings)


def _progress(verb: str, *, in_bytes: bool = False) -> Any:
    from rn50.observe.progress import progress

    return progress(verb, in_bytes=in_bytes)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _say_scores(scores: dict[str, dict[str, float]]) -> None:
    for name, s in scores.items():
        _say(
            f"{name}: val top-1 {s['top1']:.2%}, top-5 {s['top5']:.2%}, loss {s['loss']:.4f} "
            f"on {s['images']:,} images"
        )


def _say_aside(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _say_error(text: str) -> None:
    print(f"rn50: error: {text}", file=sys.stderr, flush=True)  # noqa: T201
