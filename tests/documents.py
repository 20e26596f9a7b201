"""Find code blocks in the documents and examples in help texts, and split them into commands as a shell does."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

CHECKOUT = Path(__file__).parents[1]
DOCUMENTS = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
LANGUAGES = ("python", "sh")
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
EXAMPLES = re.compile(r"^ *for example:\n((?: +.+\n?)+)", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """Hold the code between two fences of a document; `line` is the line of the first fence."""

    document: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(CHECKOUT)}:{self.line}-{self.language}"


@dataclass
class Command:
    """Hold the words of a command as a shell passes them, its environment, and where its output goes."""

    words: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    file: str | None = None
    reader: "Command | None" = None  # the command after |

    def __str__(self) -> str:
        return shlex.join(self.words)

    def starts(self, words: str) -> bool:
        return self.words[: len(words.split())] == words.split()


def blocks(document: Path) -> list[Block]:
    text = document.read_text()
    return [
        Block(document, text.count("\n", 0, found.start()) + 1, found[2], dedent(found[3]))
        for found in FENCED.finditer(text)
    ]


def commands(code: str) -> list[Command]:
    """Split shell code into commands: with comments, continued lines, NAME=value before a command, &&, | and > FILE.

    Raises:
        ValueError: other shell syntax.
    """
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command, words = Command(), iter(lexer)
        found.append(command)
        for word in words:
            if word == "&&":
                command = Command()
                found.append(command)
            elif word == "|":
                command.reader = command = Command()
            elif word == ">":
                command.file = next(words)
            elif re.search(r"^[();<>|&]+$|[`$]", word):
                raise ValueError(
                    f"{line}: expected commands, &&, | and > alone, found {word}; extend tests/documents.py"
                )
            elif not command.words and re.match(r"[A-Za-z_]\w*=", word):
                name, _, command.environment[name] = word.partition("=")
            else:
                command.words.append(word)
    return [command for command in found if command.words]


def examples(text: str) -> list[Command]:
    """Return the commands that a docstring or a description shows below "For example:"."""
    found = EXAMPLES.search(text)
    return commands(found[1]) if found else []
