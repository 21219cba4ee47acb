"""Whether the averages are worth keeping: a warning where one is far worse than its model."""

import math

from rn50.config import Run
from rn50.train.schedule import Timeline

MARGIN = 0.05
"""Top-1 accuracy, as a share of all images, by which an average must be worse to be warned of."""
_SIGMAS = 4
"""How many standard errors a difference must have, so that a small split warns of nothing."""
_NAMES = {"average": "EMA", "swa": "SWA"}


def warnings(scores: dict[str, dict[str, float]], timeline: Timeline, steps_done: int) -> list[str]:
    """Return what is to be said of the averages after an evaluation; nothing where they are well.

    An EMA is judged once its horizon has passed, before which it may lag behind a model that still
    learns fast; an SWA from its first weights on.

    Args:
        scores: What ``evaluate`` returned: of the model and of its averages; empty for nothing.
        timeline: The run in steps.
        steps_done: Updates done.
    """
    run, model = timeline.run, scores.get("model", {})
    horizon = run.average.ema_horizon * timeline.total_steps
    told = []
    for name, average in scores.items():
        if name == "model" or (name == "average" and steps_done < horizon):
            continue
        below = model["top1"] - average["top1"]
        mean = (model["top1"] + average["top1"]) / 2
        if below <= _SIGMAS * math.sqrt(2) * _error(mean, model["images"]):
            continue
        # Twice the limit: a model that has only begun to learn shows nothing yet.
        limit = _chance_limit(run, average["images"])
        fallen = average["top1"] <= limit and model["top1"] > 2 * limit
        if not fallen and below <= MARGIN:
            continue
        verdict = "at chance" if fallen else "far worse"
        advice = _of_ema(run, steps_done < timeline.total_steps)
        if name == "swa":
            advice = _of_swa(run, fallen)
        told.append(
            f"the {_NAMES[name]} is {verdict}: top-1 {average['top1']:.2%}, and its model's is "
            f"{model['top1']:.2%}; {advice}; model.safetensors is not affected"
        )
    return told


def _chance_limit(run: Run, images: float) -> float:
    chance = 1 / run.model.num_classes
    return chance + _SIGMAS * _error(chance, images)


def _error(share: float, images: float) -> float:
    return math.sqrt(share * (1 - share) / images)


def _of_ema(run: Run, goes_on: bool) -> str:
    horizon = run.average.ema_horizon
    shorter = f"--ema-horizon {horizon / 4:.2g}"
    if goes_on:
        shorter = f"resume with {shorter} --allow-change average.ema_horizon"
    else:
        shorter = f"in a new run, give {shorter}"
    return f"it reaches back over {horizon * run.epochs:.3g} epochs, too many here: {shorter}"


def _of_swa(run: Run, fallen: bool) -> str:
    calmer = "in a new run, give a lower --schedule.tail-lr"
    if fallen:
        return f"weights as different as these have no good average: {calmer}"
    return (
        f"{calmer}, or estimate its BatchNorm statistics from more than "
        f"{run.average.swa_bn_images} images (--average.swa-bn-images)"
    )
