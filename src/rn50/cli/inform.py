"""``rn50 eval``, ``recipes``, ``hardware`` and ``doctor``: commands that change nothing."""

import json
from pathlib import Path
from typing import Annotated, Literal

import rich.console
import rich.table
from tyro.conf import Positional, arg

from rn50 import config
from rn50.cli.say import say, say_aside, say_scores
from rn50.config import Hardware
from rn50.errors import UsageError
from rn50.recipes import (
    GROUPS,
    RECIPES,
    description,
    equivalent_epochs,
    notes,
    published,
    recipe,
    summary,
    train_sides,
)


def evaluate(
    weights: Positional[Path],
    /,
    *,
    data: Annotated[str, arg(aliases=["-d"])] = "",
    px: int = 0,
    hardware: Hardware = Hardware(),  # noqa: B008 (frozen)
    json_output: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Score a run or a weights file on every validation image, once.

    Args:
        weights: The folder of a run, or a weights file.
        data: Folder made by prepare, or the URL of a copy of one; by default what the run was
            trained on.
        px: Side of the test crop, such as 288 for a network tested at 224, with as large a share of
            the image in it; 0: the network's own.
        hardware: How to compute it.
        json_output: Print JSON.
    """
    from rn50.data.remote import local_folder
    from rn50.evaluate import score
    from rn50.train.folder import data_of

    folder = local_folder(data or data_of(weights))
    scores = score(weights, folder, hardware, px=px, say=say_aside)
    if json_output:
        say(json.dumps(scores, indent=2))
    else:
        say_scores(scores)


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
        say(f"{name}: {description(name)}\n\n{notes(name)}\n")
        say(json.dumps(config.to_dict(recipe(name)), indent=2))
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
    if form == "json":
        say(json.dumps({name: config.to_dict(recipe(name)) for name in RECIPES}, indent=2))
        return
    table = rich.table.Table(box=None)
    for column in ("recipe", "epochs", "px", "cost", "published"):
        right = column in ("epochs", "cost")
        table.add_column(column, no_wrap=True, justify="right" if right else "left")
    table.add_column("what it is", min_width=20)
    for group, made in GROUPS.items():
        table.add_row(f"\n[bold]{group}[/bold]")
        for name in made:
            run = recipe(name)
            px = f"{train_sides(run)}/{run.images.test_px}"
            cost = f"{equivalent_epochs(run):.1f}"
            table.add_row(name, str(run.epochs), px, cost, published(name), summary(name))
    rich.console.Console(width=max(100, rich.console.Console().width)).print(table)
    say(
        "\npx: training / test. cost: in epochs of as many images at 224 px, ImageNet's stem. "
        "\npublished: see `rn50 recipes show NAME`."
    )


def _named(names: tuple[str, ...], count: int, usage: str) -> tuple[str, ...]:
    if len(names) != count:
        raise UsageError(
            f"`rn50 recipes {usage}` takes {count} names of recipes, not {len(names)}; "
            "`rn50 recipes` lists them"
        )
    return names


def hardware(
    *,
    hardware: Hardware = Hardware(),  # noqa: B008 (frozen)
    json_output: Annotated[bool, arg(name="json")] = False,
) -> None:
    """List the hardware profiles, and say what is chosen on this machine and why.

    Args:
        hardware: What is asked for; by default nothing.
        json_output: Print JSON.
    """
    from rn50.hardware import resolve
    from rn50.profiles import PROFILES

    here = resolve(hardware)
    if json_output:
        listed = {name: profile.to_json() for name, profile in PROFILES.items()}
        say(json.dumps({"profiles": listed, "here": here.to_json()}, indent=2))
        return
    table = rich.table.Table("profile", "machine", box=None)
    for column in ("precision", "micro-batch", "ahead", "compile", "img/s"):
        table.add_column(column, no_wrap=True)
    for name, profile in PROFILES.items():
        facts = (
            profile.precision,
            profile.micro_batch,
            str(profile.prefetch_batches),
            "on" if profile.compile else "off",
            f"{profile.images_per_second:,}" if profile.images_per_second else "-",
        )
        style = "bold green" if name == here.profile else ""
        table.add_row(name, profile.machine, *facts, style=style)
        table.add_row("", f"  {profile.why}", style="dim")
    rich.console.Console(width=max(110, rich.console.Console().width)).print(table)
    say(
        f"\nhere: {here.profile} ({here.why}): {here.device.type} in {here.precision}, "
        f"{here.workers} decoding threads, {here.prefetch_batches} batches ahead, "
        f"{'compiled' if here.compile else 'not compiled'}, micro-batch "
        f"{here.micro_batch or PROFILES[here.profile].micro_batch}"
    )
    say(f"{here.note}\n" * bool(here.note) + "What you set yourself wins over a profile.")


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
        say(json.dumps(to_json(findings), indent=2))
    else:
        rich.console.Console().print(table(findings))
    refuse_impossible(findings)
