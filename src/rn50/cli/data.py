"""``rn50 download``, ``rn50 prepare`` and ``rn50 verify``."""

from pathlib import Path
from typing import Annotated, Literal

import rich.console
import rich.table
from tyro.conf import Positional, arg

from rn50.cli.say import progress, say
from rn50.data.sources.base import Layout


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
    with progress("fetching", in_bytes=True) as report:
        file = fetch(wanted, dest, url=url, say=say, report=report)
    say(f"{file}: {file.stat().st_size / 1e6:,.1f} MB\nnext: {next_command(wanted, file)}")


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

    with progress("indexing" if in_place else "packing") as report:
        opener = open_tars if in_place else open_source
        opened = opener(source, val_source=val_source or None, layout=form)
        chosen = subset(opened, classes, per_class)
        manifest = pack(chosen, dest, skip_bad=skip_bad, options=options, report=report, say=say)
    splits = ", ".join(f"{s['images']:,} {name}" for name, s in manifest["splits"].items())
    say(f"{dest}: {splits} images of {len(manifest['classes'])} classes")
    for line in account.lines(manifest):
        say(f"  {line}")


def verify(folder: Positional[str], /, *, workers: int = 0) -> None:
    """Check every file and image of a folder made by prepare.

    Args:
        folder: The packed data, or its URL: then the copy in the cache folder is checked.
        workers: Threads; 0: one per core.
    """
    from rn50.data.remote import local_folder
    from rn50.data.verify import verify as check

    place = local_folder(folder, say=say)
    with progress("verifying") as report:
        found = check(place, workers=workers, report=report)
    splits = ", ".join(f"{count:,} {name}" for name, count in found.images.items())
    say(
        f"{folder} is whole: {splits} images of {found.num_classes} classes, "
        f"{found.num_bytes / 1e6:,.1f} MB, fingerprint {found.fingerprint}"
    )
