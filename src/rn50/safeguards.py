"""The settings of what is done when training's numbers go bad."""

from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from rn50.section import Count, section


@section
class Guard:
    """When numbers go bad: gradients that are not finite, losses that explode."""

    skip_updates: Annotated[int, Field(ge=0)] = 3
    """Updates in a row whose loss or gradient is not finite that are left out before the run stops
    or rolls back; no such update is ever done. Overflows of fp16's loss scaler do not count."""
    explosion: Annotated[float, Field(ge=0)] = 3.0
    """The loss explodes when its mean over ten steps is so many times that over the last thousand
    (in the first hundred: ten times as many), and at least half of the highest that has been. 0:
    never."""
    on_divergence: Annotated[
        Literal["stop", "roll-back"], tyro.conf.arg(aliases=["--on-divergence"])
    ] = "stop"
    """Then: stop with exit code 4, or go back to the last checkpoint from before the trouble and on
    with other draws of order, crops and mixing."""
    max_rollbacks: Count = 2
    """How often a run may roll back; then it stops."""

    @model_validator(mode="after")
    def _explosion_is_above_noise(self) -> "Guard":
        if 0 < self.explosion <= 1:
            raise ValueError(
                f"explosion is {self.explosion:g}, which the loss always is; give more than 1, as "
                "3, or 0 for never"
            )
        return self
