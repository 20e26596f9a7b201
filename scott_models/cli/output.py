"""Print tables, sentences and JSON to standard output."""

import re
import sys
from collections.abc import Mapping
from typing import Annotated, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import UseAppendAction

from ..console import is_terminal, show
from ..writing import to_json

BadImages = Literal["error", "skip"]
Sources = Annotated[list[str], UseAppendAction]
NUMBERS = re.compile(r"\[\n\s+[-+.\deE]+(,\s+[-+.\deE]+)*\s+\]")  # a list of numbers, printed on one line
NO_LIMIT = 100_000  # characters: the width of a table that does not go to a terminal


def show_table(rows: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    terminal = is_terminal(sys.stdout)
    table = Table() if terminal else Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold", no_wrap=not terminal)  # never cut a name short
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console = Console(width=None if terminal else NO_LIMIT)
    with console.capture() as text:
        console.print(table)
    show("\n".join(line.rstrip() for line in text.get().splitlines()))


def _cell(value: object) -> Text:
    """Return a value as text for a table.

    A bare string would not do: rich interprets "[...]" and ":...:". Without a terminal, line breaks become spaces, so
    that each row stays on one line.
    """
    text = f"{value:.1f}" if isinstance(value, float) else "-" if value in (None, "") else str(value)
    return Text(text if is_terminal(sys.stdout) else " ".join(text.splitlines()))


def print_result(sentence: str, facts: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        show(sentence)


def print_json(value: object) -> None:
    text = to_json(value, indent=2, default=str)  # str for paths, the only printed type that JSON lacks
    show(NUMBERS.sub(lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"), text))
