"""Run the calls of docs/gpu.md on this machine, at toy scale, and enforce the limits of a lease.

python benchmarks/paper/rehearse_lease.py --data flowers102-320-*.tar --out rehearsal

A folder stands for the lent machine. A call carries at most 64 MiB there, ends after ten minutes, and brings back at
most eight files of 16 MiB. The network is off if the system allows this, and packages that such machines lack cannot be
imported. A call that exceeds a limit is an error. The script needs torch, torchvision, timm and accelerate.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lease import CARRIED, EACH, FILES, ROOT, WORK

PAGE = ROOT / "docs" / "gpu.md"
SECONDS, BACK, DEPTH = 600, 64 * 2**20, 2  # per call: seconds, bytes brought back, depth of folders in $OUT
ABSENT = ("imagehash", "tyro", "rich", "jinja2", "datasets", "gradio")
HERE, THERE = (
    re.compile(r"python benchmarks/paper/lease\.py "),
    re.compile(r"python3 lease[\w-]*/benchmarks/paper/lease\.py "),
)
ROWS = ("scott_3_16", "inductive")


class Machine:
    """Simulate the lent machine in a folder.

    Attributes:
        carried, returned: bytes of each call so far.
        seconds: duration of each call so far.
        printed: printed text of each call so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.carried: list[int] = []
        self.returned: list[int] = []
        self.seconds: list[float] = []
        self.printed: list[str] = []
        absent = "".join(f"sys.modules[{name!r}] = None\n" for name in ABSENT)  # makes the import fail
        (folder / "absent").mkdir(parents=True)
        (folder / "absent" / "sitecustomize.py").write_text(f"import sys\n{absent}", encoding="utf-8")
        isolate = ["unshare", "--net", "--map-root-user"]
        works = shutil.which("unshare") and subprocess.run([*isolate, "true"], check=False).returncode == 0
        self.isolate = isolate if works else []

    def run(self, command: str, carry: Path, back: Path) -> str:
        """Run a command in a fresh copy of `carry`, copy the files in $OUT to `back`, and return the printed text.

        Raises:
            RuntimeError: the files carried there or brought back exceed the limits of the lease, or the command failed
                or took too long.
        """
        tree, out = self.folder / "tree", self.folder / "out"
        for place in (tree, out):
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(carry, tree / carry.name)
        self.carried.append(sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()))
        require(self.carried[-1] <= CARRIED, f"at most {CARRIED:,} bytes to carry, found {self.carried[-1]:,}")
        out.mkdir()
        paths = [str(Path(sys.executable).parent), os.defpath]
        environment = {"PATH": os.pathsep.join(paths), "HOME": str(self.folder), "OUT": str(out)}
        environment["PYTHONPATH"] = str(self.folder / "absent")
        started = time.monotonic()
        with (self.folder / "printed").open("w+", encoding="utf-8") as printed:
            process = subprocess.Popen(
                [*self.isolate, "bash", "-c", command],
                cwd=tree, env=environment, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS)
            kill_group(process.pid)  # only a process in a session of its own may outlive the call
            status = process.wait()
        text = (self.folder / "printed").read_text(encoding="utf-8")
        self.seconds.append(time.monotonic() - started)
        require(status == 0, f"status 0 of {command!r} within {SECONDS} s, found {status}: {text}")
        self.printed.append(text)
        self.bring_back(out, back)
        return text

    def bring_back(self, out: Path, back: Path) -> None:
        files = [path for path in out.rglob("*") if path.is_file()]
        sizes = [path.stat().st_size for path in files]
        names = [part for path in files for part in path.relative_to(out).parts]
        require(len(files) <= FILES, f"at most {FILES} files back, found {len(files)}")
        require(
            max(sizes, default=0) <= EACH, f"files of at most {EACH:,} bytes, found one of {max(sizes, default=0):,}"
        )
        require(sum(sizes) <= BACK, f"at most {BACK:,} bytes back, found {sum(sizes):,}")
        deepest = max((len(path.relative_to(out).parts) - 1 for path in files), default=0)
        require(deepest <= DEPTH, f"files at most {DEPTH} folders deep, found {deepest}")
        odd = [name for name in names if not re.fullmatch(r"[A-Za-z0-9._-]+", name)]
        require(not odd, f"names of letters, digits, '.', '_' and '-', found {odd}")
        shutil.copytree(out, back, dirs_exist_ok=True)
        self.returned.append(sum(sizes))


def require(condition: bool, expected: str) -> None:
    if not condition:
        raise RuntimeError(f"lease: expected {expected}")


def kill_group(group: int) -> None:
    with suppress(ProcessLookupError):  # no process is left
        os.killpg(group, signal.SIGKILL)


def calls() -> list[str]:
    """Read the commands of the page in their order, those for this machine and those for the lent machine."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if HERE.match(line) or THERE.match(line)]


def rehearse(
    data: Sequence[Path],
    folder: Path,
    out: Path,
    rows: Sequence[str] = ROWS,
    after: Callable[[str, Path], None] | None = None,
) -> Machine:
    """Run the page's commands with other tar files, and repeat each `poll` until nothing is left.

    Args:
        data: the tar files, in place of those of the page.
        folder: a new folder for the machine and for all files on the way.
        out: a folder for the unpacked results.
        rows: the rows to train.
        after: a function that is called after each call on the machine, with the command and the work folder.
    """
    machine, work, returned = Machine(folder / "machine"), folder / "work", folder / "returned"
    tars = iter(data)
    for line in calls():
        if HERE.match(line):
            words = [str(next(tars)) if word.endswith(".tar") else word for word in HERE.sub("", line).split()]
            places = {"RETURNED": returned, "results": out}
            arguments = [str(places.get(word, folder / word if word.startswith("lease") else word)) for word in words]
            subprocess.run([sys.executable, str(ROOT / "benchmarks/paper/lease.py"), *arguments], check=True)
            continue
        command = re.sub(r"(lease\.py (?:take|start|poll))", rf"\1 --work {work}", line)
        command = re.sub(r"--minutes \d+", rf"\g<0> --rehearse --seeds 2 --rows {' '.join(rows)}", command)
        while True:
            printed = machine.run(command, folder / line.split("/")[0].split()[-1], returned)
            print(printed, end="", file=sys.stderr)
            if after:
                after(command, work)
            if " poll " not in command or "nothing is left" in printed:
                break
    require("all steps did what they should" in printed, "all steps to end with status 0; their words are above")
    return machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="the tar files, in the page's order")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--rows", nargs="+", default=ROWS, help=f"rows to train; default: {' '.join(ROWS)}")
    given = parser.parse_args()
    machine = rehearse(given.data, given.out, given.out / "results", given.rows)
    print("call  MiB there  MiB back  seconds")
    for number, (there, back, seconds) in enumerate(zip(machine.carried, machine.returned, machine.seconds), start=1):
        print(f"{number:4}  {there / 2**20:9.1f}  {back / 2**20:8.1f}  {seconds:7.1f}")
    print(f"(the default work folder on a GPU machine is {WORK})")


if __name__ == "__main__":
    main()
