"""Find image files below folders, and say which files and folders are left out."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ..console import say
from ..errors import DataError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx"),
)
HEIF = (".heic", ".heif", ".hif")  # read if pillow-heif is installed
# Pictures, films and volumes that are not read; a note counts the files of these kinds.
NOT_READ = (
    *(".jxl", ".svg", ".psd", ".eps", ".pdf", ".exr", ".hdr", ".ico", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
    *(".orf", ".rw2", ".raf", ".dcm", ".nii", ".czi", ".svs", ".ndpi", ".mrxs", ".lif", ".nd2", ".mp4", ".mov", ".avi"),
)
# Folders of systems, besides hidden ones: archives of a Mac, thumbnails of a Synology, trash and repairs of disks.
SYSTEM_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
NAMED = 3  # the most folders that a message names


@dataclass
class LeftOut:
    """Count what a search leaves out.

    Attributes:
        suffixes: number of files by suffix.
        dead_links: number of links to images that do not exist.
        closed: folders that cannot be entered, with the reason.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    dead_links: int = 0
    closed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = []
        for suffix, count in sorted(self.suffixes.items()):
            advice = " (pip install pillow-heif to read these)" if suffix in HEIF else ""
            parts.append(f"{count} {suffix} files{advice}")
        if self.dead_links:
            parts.append(f"{self.dead_links} links to files that do not exist")
        if self.closed:
            parts.append(self.name_closed())
        return ", ".join(parts)

    def name_closed(self) -> str:
        """Name the first folders that cannot be entered."""
        more = f" and {len(self.closed) - NAMED} more" if len(self.closed) > NAMED else ""
        return f"folders that cannot be entered: {', '.join(self.closed[:NAMED])}{more}"


def find_images(folders: Sequence[str | Path], *, skip_bad: bool = False) -> list[Path]:
    """Find every image file below the folders (flat, nested, or by class), sorted within each; a file may be given too.

    Hidden files and folders, folders of systems (such as __MACOSX) and folders of runs are no part of the images. A
    note on standard error counts the pictures of other formats and dead links.

    Args:
        skip_bad: leave out folders that cannot be entered, with a note, instead of raising.

    Raises:
        DataError: no folder is given, or a folder does not exist, holds no image or has folders that cannot be entered.
    """
    if not folders:
        raise DataError("expected at least one folder of images, got none")
    found = []
    for folder in map(Path, folders):
        if folder.is_file():
            found.append(folder)
            continue
        if not folder.exists():
            raise DataError(f"{folder}: expected a folder of images, found nothing there")
        left_out = LeftOut()
        inside = sorted(_find_below(folder, left_out))
        if left_out.closed and not skip_bad:
            raise DataError(
                f"{folder}: expected folders that can be entered, found {left_out.name_closed()}; change their "
                "permissions, or leave them out with --bad-images skip"
            )
        besides = f", besides {left_out}" if str(left_out) else ""
        if not inside:
            raise DataError(
                f"{folder}: expected images ({', '.join(SUFFIXES)}), found none in this folder or below{besides}"
            )
        if besides:
            say(f"note: {folder}: left out {left_out}")
        found += inside
    return found


def check_outside(path: Path, sources: Sequence[str | Path]) -> None:
    """Validate early that a picture to write is not one of the images that it shows, and will not become one.

    Raises:
        DataError: the picture lies in one of the folders, or is one of the files.
    """
    for source in map(Path, sources):
        inside = path.resolve().is_relative_to(source.resolve()) if source.is_dir() else False
        if inside or path.resolve() == source.resolve():
            raise DataError(
                f"{path}: expected a file outside of {source}, found it among the images; choose another folder"
            )


def is_run_folder(folder: Path) -> bool:
    """Return True for the folder of a run of this package, whose pictures are no data."""
    return (folder / "recipe.toml").is_file() and (folder / "environment.json").is_file()


def _find_below(root: Path, left_out: LeftOut) -> Iterator[Path]:
    """Yield the image files below a folder; follow links to folders, and visit each folder once."""
    seen = set()
    suffixes = {*SUFFIXES, *(HEIF if find_spec("pillow_heif") else ())}
    counted = {*NOT_READ, *HEIF} - suffixes

    def note_closed(error: OSError) -> None:
        left_out.closed.append(f"{error.filename} ({error.strerror})")

    for name, folders, files in os.walk(root, followlinks=True, onerror=note_closed):
        real = os.path.realpath(name)
        if real in seen or (name != str(root) and is_run_folder(Path(name))):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [folder for folder in folders if not _is_foreign(folder)]
        for path in (Path(name, file) for file in files if not file.startswith(".")):
            suffix = path.suffix.lower()
            if suffix in counted:
                left_out.suffixes[suffix] += 1
            if suffix not in suffixes:
                continue
            if path.is_file():
                yield path
            elif path.is_symlink() and not path.exists():
                left_out.dead_links += 1


def _is_foreign(folder: str) -> bool:
    return folder.startswith(".") or folder.lower() in SYSTEM_FOLDERS
