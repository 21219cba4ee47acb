"""The commands of ``rn50``: what is typed, checked and handed on. No logic of its own."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from rn50.cli.analysing import analyze
from rn50.cli.data import download, prepare, verify
from rn50.cli.inform import doctor, evaluate, hardware, recipes
from rn50.cli.plotting import plot
from rn50.cli.reporting import report
from rn50.cli.say import say_error
from rn50.cli.supervising import supervise_command
from rn50.cli.training import find_lr_command, train_command
from rn50.errors import UserError
from rn50.supervise import tell

_DESCRIPTION = "Train ResNet-50 from scratch: prepare data, train, resume, evaluate."
_SHORT = {
    "--amp": ("--hardware.precision", "auto"),
    "--no-amp": ("--hardware.precision", "fp32"),
    "--compile": ("--hardware.compile", "True"),
    "--no-compile": ("--hardware.compile", "False"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with the code that its outcome has (see ``rn50.errors``)."""
    # A notebook names a backend of its own kernel. Where it is not installed, matplotlib cannot be
    # imported; here no figure is ever shown in a window.
    os.environ["MPLBACKEND"] = "agg"
    given, supervise = supervise_command(sys.argv[1:] if arguments is None else arguments)
    given = [word for one in given for word in _SHORT.get(one, (one,))]
    try:
        commands: dict[str, Callable[..., Any]] = {
            "train": train_command(given),
            "find-lr": find_lr_command(given),
            "download": download,
            "prepare": prepare,
            "verify": verify,
            "eval": evaluate,
            "plot": plot,
            "analyze": analyze,
            "report": report,
            "recipes": recipes,
            "hardware": hardware,
            "doctor": doctor,
            "supervise": supervise,
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
        tell(error.exit_code)
        say_error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say_error("stopped; nothing half-written is taken for whole: run the command again")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
