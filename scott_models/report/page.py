"""Hold the parts of a report (title, verdict, tiles, sections) and write them as one self-contained HTML file."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from .. import __version__
from ..errors import needs_extra
from ..writing import write_text_whole

State = Literal["good", "doubtful", "bad", "unknown"]


@dataclass(frozen=True)
class Tile:
    """Hold one key figure with its name, and what to compare the figure with (`beside`)."""

    name: str
    value: str
    beside: str = ""


@dataclass(frozen=True)
class Picture:
    """Hold the content of a picture as a data: address, and its caption."""

    address: str
    words: str

    @classmethod
    def of(cls, image: Image.Image | Path, words: str) -> "Picture":
        """Make a picture from an image, encoded as WebP, or from the bytes of an image file."""
        if isinstance(image, Path):
            content, kind = image.read_bytes(), image.suffix[1:]
        else:
            buffer = io.BytesIO()
            image.save(buffer, "webp", quality=82)
            content, kind = buffer.getvalue(), "webp"
        return cls(f"data:image/{kind};base64,{base64.b64encode(content).decode()}", words)


@dataclass(frozen=True)
class Chart:
    """Hold an SVG element and its caption."""

    svg: str
    words: str


@dataclass(frozen=True)
class Table:
    """Hold the head and the rows of a table.

    Attributes:
        marked: indices of the rows to highlight.
        folded: label that a reader clicks on to open the table; if empty, the table is always open.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    marked: Sequence[int] = ()
    folded: str = ""


@dataclass(frozen=True)
class Section:
    title: str
    words: str = ""
    charts: Sequence[Chart] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    code: str = ""


@dataclass
class Page:
    """Hold a report.

    Attributes:
        state: colour of the verdict.
        verdict: the result in words.
        notes: lines below the verdict.
    """

    title: str
    state: State = "unknown"
    verdict: str = ""
    notes: list[str] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def html(self) -> str:
        with needs_extra("eval"):
            import jinja2

        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return environment.get_template("page.html").render(page=self, version=__version__)

    def write(self, path: Path) -> None:
        """Write the page to a file, whole or not at all."""
        write_text_whole(path, self.html())
