"""What a run reports, how often and to which trackers, and what an hour of it costs."""

from typing import Annotated, Literal

import tyro
from pydantic import Field

from rn50.section import Count, NotNegative, section


@section
class Log:
    """What is reported, how often, and to which trackers."""

    every_steps: Annotated[Count, tyro.conf.arg(aliases=["--log-every"])] = 20
    """Steps between two progress records; the only time the device is waited for."""
    eval_epochs: Annotated[Count, tyro.conf.arg(aliases=["--eval-every"])] = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    price_per_hour: Annotated[NotNegative, tyro.conf.arg(aliases=["--price-per-hour"])] = 0.0
    """Dollars an hour for all machines of the run together: what it has cost and will have cost is
    shown and recorded. 0: unknown. A resumed run may have another price: each hour counts at its
    own."""
    tensorboard: Annotated[bool, tyro.conf.arg(aliases=["--tensorboard"])] = False
    """Also write TensorBoard event files (needs the extra `rn50[track]`)."""
    wandb: Annotated[Literal["off", "online", "offline"], tyro.conf.arg(aliases=["--wandb"])] = (
        "off"
    )
    """Also report to Weights & Biases, or into the run's folder for `wandb sync` (needs the extra
    `rn50[wandb]`)."""
    trackio: Annotated[bool, tyro.conf.arg(aliases=["--trackio"])] = False
    """Also report to trackio, whose board `trackio show` opens (needs the extra
    `rn50[trackio]`)."""
    mlflow: Annotated[str, tyro.conf.arg(aliases=["--mlflow"])] = ""
    """Also report to this server or store of MLflow, such as `http://localhost:5000` (needs the
    extra `rn50[mlflow]`)."""
    project: str = "rn50"
    """Project of the trackers that the run belongs to; MLflow calls it an experiment."""
    histogram_epochs: Annotated[int, Field(ge=0)] = 0
    """Record histograms of the weights every so many epochs, for trackers to show; 0: never."""
