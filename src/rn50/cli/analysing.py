"""``rn50 analyze``."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from rn50.cli.say import progress, say, say_aside
from rn50.config import Hardware


def analyze(  # noqa: PLR0913 (each is an option)
    weights: Positional[Path],
    /,
    *,
    data: Annotated[str, arg(aliases=["-d"])] = "",
    out: Path | None = None,
    network: Literal["auto", "model", "average", "swa", "best"] = "auto",
    px: tuple[int, ...] = (),
    layer: str = "",
    class_id: Annotated[str, arg(name="class")] = "",
    images: int = 12,
    hardware: Hardware = Hardware(),  # noqa: B008 (frozen)
) -> None:
    """Tell what a network learned: its classes, its mistakes, where it looks, how it is built.

    Writes a page of Markdown, its pictures as PNG, and all figures as JSON.

    Args:
        weights: The folder of a run, or a weights file (torchvision's and timm's ResNets, too).
        data: Folder made by prepare, or the URL of a copy of one; by default what the run was
            trained on. Without any, only the architecture is described, which does not replace an
            analysis with scores.
        out: Folder to write to; by default `analysis` in the run's folder.
        network: Which of a run's: model, average, swa or best; auto: the first of them there is.
        px: Test sizes to compare besides the network's own; by default the training crop's, 1.14
            and 1.28 times its own, and 224 and 288 of a network of 1000 classes.
        layer: Whose Grad-CAM maps are shown, such as layer4; by default the last stage that is not
            too coarse.
        class_id: Show where the network looks for this class, on images of it or taken for it;
            given by its id.
        images: How many a gallery of mistakes has.
        hardware: How to compute it.
    """
    from rn50.analyze import analysis
    from rn50.analyze.examination import Settings
    from rn50.data.remote import local_folder
    from rn50.train.folder import data_of

    if data:
        place: Path | analysis.NoData = local_folder(data)
    else:
        place = analysis.data_if_there(lambda: local_folder(data_of(weights)))
    settings = Settings(
        network=network, px=px, layer=layer, class_id=class_id, images=images, hardware=hardware
    )
    folder = out or analysis.default_folder(weights)
    with progress("analysing") as report:
        page = analysis.analyze(weights, place, folder, settings, say=say_aside, report=report)
    if isinstance(place, analysis.NoData):
        say_aside(f"only the architecture was analysed: {place.why}")
    say(f"wrote {page}")
