"""Define the `scott` command: each subcommand calls one function of the package."""

import sys
from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from ..console import is_terminal
from ..errors import report_user_errors
from .evaluation import embed, probe, report
from .machine import bench, doctor
from .pictures import attention, neighbours, pca
from .training import finetune, pretrain
from .zoo import convert, download, list_models, publish

COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_models,
    "download": download,
    "embed": embed,
    "pca": pca,
    "attention": attention,
    "neighbours": neighbours,
    "probe": probe,
    "report": report,
    "pretrain": pretrain,
    "finetune": finetune,
    "publish": publish,
    "convert": convert,
    "bench": bench,
    "doctor": doctor,
}


DESCRIPTION = """Small vision transformers for people who have few images.

For example:
    scott list
    scott embed photos --out features.npz
    scott pca photos --out picture.png --img-size 448
    scott probe --train mine/train --test mine/test
    scott pretrain --data photos --out runs/photos --minutes 90
    scott finetune --train mine/train --test mine/test --out runs/mine
    scott COMMAND --help

Exit status:
    0    done
    1    a failure, or a problem that `scott doctor` found
    2    a mistake that you can fix; one sentence explains it
    130  stopped by Ctrl-C, by SIGTERM, or with the terminal

See docs/commands.md for shell completion, exit statuses and JSON output.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand.

    A mistake that the user can fix becomes one sentence on standard error and exit status 2.

    Args:
        arguments: the words after `scott`; by default the words of the command line.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    terminal = is_terminal(sys.stdout) and is_terminal(sys.stderr)
    for decoration in ("utf8_boxes", "ansi_codes"):  # tyro does not check where its errors go
        tyro._experimental_options[decoration] = terminal
    commands: Any = reduce(
        or_,
        (
            Annotated[Any, subcommand(name, constructor=command, description=_describe(command, words[:1] == [name]))]
            for name, command in COMMANDS.items()
        ),
    )
    with report_user_errors():
        tyro.cli(commands, prog="scott", description=DESCRIPTION, args=words)


def _describe(command: Callable[..., None], chosen: bool) -> str | None:
    """Return a command's summary for the list of commands.

    Return None for the command that the user chose: tyro then shows its whole docstring.
    """
    return None if chosen else str(command.__doc__).split("\n", maxsplit=1)[0]
