"""What a run reports, how often, and what an hour of it costs."""

from typing import Annotated

import tyro

from rn50.section import Count, NotNegative, section


@section
class Log:
    """What is reported, and how often."""

    every_steps: Annotated[Count, tyro.conf.arg(aliases=["--log-every"])] = 20
    """Steps between two progress records; the only time the device is waited for."""
    eval_epochs: Annotated[Count, tyro.conf.arg(aliases=["--eval-every"])] = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    price_per_hour: Annotated[NotNegative, tyro.conf.arg(aliases=["--price-per-hour"])] = 0.0
    """Dollars an hour for all machines of the run together: what it has cost and will have cost is
    shown and recorded. 0: unknown. A resumed run may have another price: each hour counts at its
    own."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the extra `rn50[track]`)."""
