"""Work on a GPU that is lent for half an hour: carry code and data there, start the work, and unpack the results.

The machine runs one command at a time, for at most ten minutes, in a folder of at most 64 MiB that is sent with the
command. The machine returns the small files that the command leaves in $OUT. There is no network, and only Python with
torch, torchvision, timm and accelerate. docs/gpu.md has the calls in their order.

  on your machine   python benchmarks/paper/lease.py stage lease flowers102-320-0.tar
  on the GPU        python3 lease/benchmarks/paper/lease.py take
                    python3 lease/benchmarks/paper/lease.py start --minutes 25
                    python3 lease/benchmarks/paper/lease.py poll --seconds 540
  on your machine   python benchmarks/paper/lease.py unpack RETURNED --out results

The work runs in a session of its own, so that it outlives the call that started it. The work has three steps: 20
updates of each model; throughput and profile (benchmarks/gpu.py); the rows of the paper's tables
(benchmarks/paper/reproduce.py). If a step fails, the next step runs nevertheless. After a kill, `start` continues the
work. This file needs only Python.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir

ROOT = Path(__file__).resolve().parents[2]
CODE, LEFT_OUT = ("scott_models", "benchmarks"), ("__pycache__", "bundled", "results")
WORK = Path(gettempdir()) / "scott_models-lease"
CARRIED, FILES, EACH = 64 * 2**20, 8, 16 * 2**20  # per call: bytes sent, files returned, bytes of each file
BACK = 60 * 2**20  # bytes returned by a call in all, with room for the log
LOG_LINES, ENDING = 60, 10  # log lines that poll shows; seconds for killed processes to end
VERSIONS = """
import importlib, sys
print("python", sys.version.split()[0])
for name in ("torch", "torchvision", "timm", "accelerate", "safetensors", "huggingface_hub", "numpy", "PIL"):
    try:
        print(name, importlib.import_module(name).__version__)
    except Exception as error:
        print(name, "cannot be imported:", error)
import scott_models.pretrain
print("scott_models can be imported")
"""
LONGEST = {"throughput and profile": 300}  # seconds for a step that has no --minutes of its own
PARTS = ("end to end", "profile", "inputs", "max blur")  # of benchmarks/gpu.py


def stage(folder: Path, data: Sequence[Path], packages: Sequence[str]) -> None:
    """Fill a folder with the code, the tar files of this call, and wheels of packages that the machine lacks.

    The files that an earlier call staged in the folder are replaced.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / CODE[0]).is_dir():
        sys.exit(f"{folder}: expected a new or empty folder, or what `stage` left there, found other files")
    folder.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for old in folder.glob("*.tar"):
        old.unlink()
    shutil.rmtree(folder / "wheels", ignore_errors=True)
    for path in data:
        shutil.copyfile(path, folder / path.name)
    if packages:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(folder / "wheels"), *packages], check=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > CARRIED:
        limit = f"expected at most {CARRIED / 2**20:.0f} MiB, found {size / 2**20:.1f}"
        sys.exit(f"{folder}: {limit}; give one tar file a call")
    whole = size + size_of_checkout(folder)
    print(
        f"{folder}: {size / 2**20:.1f} MiB to carry, {whole / 2**20:.1f} if the lease carries your whole checkout too"
    )


def size_of_checkout(without: Path) -> int:
    """Add up the bytes of the files that git does not ignore, except those in a folder; return 0 if git is missing."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    with suppress(OSError):
        names = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\0")
        paths = [ROOT / name for name in filter(None, names)]
        inside = without.resolve()
        return sum(path.stat().st_size for path in paths if path.is_file() and inside not in path.resolve().parents)
    return 0


def take(work: Path) -> None:
    """Copy the tar files of this call to the work folder; print the files there and what the machine has."""
    data = work / "data"
    data.mkdir(parents=True, exist_ok=True)
    for path in sorted(ROOT.glob("*.tar")):
        shutil.copyfile(path, data / f"{path.name}.partial")
        (data / f"{path.name}.partial").rename(data / path.name)
    found = [f"{path.name} ({path.stat().st_size / 2**20:.1f} MiB)" for path in sorted(data.glob("*.tar"))]
    print(f"{data}: {', '.join(found) or 'nothing yet'}; {shutil.disk_usage(work).free / 2**30:.0f} GiB are free")
    print(f"compiler: {shutil.which('gcc') or shutil.which('cc') or 'none, so torch.compile will not work'}")
    for command in (["nvidia-smi", "-L"], [sys.executable, "-c", VERSIONS]):
        with suppress(OSError):
            ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            print((ran.stdout + ran.stderr).strip())


def start(work: Path, minutes: float, tars: int, options: Sequence[str]) -> None:
    """Start the work in a session of its own, from a copy of the code, unless the work is running already."""
    for _ in range(ENDING):  # a process that was killed just now takes a moment to end
        if not is_running(work):
            break
        time.sleep(1)
    else:
        print(f"running already; kill -- -{read(work / 'pid')} ends all of it")
        return
    if (found := len(list((work / "data").glob("*.tar")))) != tars:
        sys.exit(f"{work / 'data'}: expected {tars} tar files of Flowers-102, found {found}; call `take` for each")
    shutil.rmtree(work / "code", ignore_errors=True)  # the next call may replace the files of this call
    shutil.copytree(ROOT, work / "code", ignore=shutil.ignore_patterns("*.tar"))
    if wheels := sorted(map(str, (work / "code" / "wheels").glob("*.whl"))):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
        subprocess.run([*command, "--target", str(work / "code"), *wheels], check=True)
    script = work / "code" / "benchmarks" / "paper" / "lease.py"
    command = [sys.executable, str(script), "go", "--work", str(work), "--minutes", str(minutes), *options]
    # outside this call's folder, which may be deleted after the call
    with (work / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=work, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (work / "pid").write_text(str(process.pid), encoding="utf-8")
    print(f"started; kill -- -{process.pid} ends all of it")


def go(work: Path, minutes: float, rehearse: bool, options: Sequence[str]) -> None:
    """Run the three steps one after the other, even if a step fails."""
    end = time.monotonic() + 60 * minutes
    scale, scripts = "--rehearse" if rehearse else "--gpu", work / "code" / "benchmarks"
    data, out = [str(path) for path in sorted((work / "data").glob("*.tar"))], work / "out"
    script = str(scripts / "paper" / "reproduce.py")
    rows = [script, scale, "--data", *data, "--out", str(out), "--work", str(work / "runs"), "--pack", *options]
    small = ["--batch", "2", "--img-size", "32", "--updates", "2", "--models", "scott_3_16", "--uncompiled"]
    full = ["--updates", "400", "--models", "scott_12_16"]
    images = str(work / "runs" / "images")
    speed = [str(scripts / "gpu.py"), "--data", images, "--out", str(out / "gpu.json"), "--parts", *PARTS]
    paths = [str(work / "code"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "SCOTT_MODELS_CACHE": str(work / "cache")}
    os.environ["PYTHONUNBUFFERED"] = "1"
    failed: list[str] = []
    for what, command in {
        "20 updates of each model": [*rows, "--trial"],
        "throughput and profile": [*speed, *(small if rehearse else full)],
        "the rows": rows,
    }.items():
        if command[0] == speed[0] and f'"{PARTS[-1]}"' in read(out / "gpu.json"):
            continue
        left = (end - time.monotonic()) / 60
        print(f"== {what}: {left:.1f} minutes left", flush=True)
        limit = ["--minutes", f"{left:.2f}"] if command[0] == rows[0] else []
        if command[0] == speed[0] and "run.compile=off" in read(out / "trial.json"):
            limit = ["--uncompiled"]
        try:
            status = subprocess.run(
                [sys.executable, *command, *limit], check=False, timeout=LONGEST.get(what)
            ).returncode
        except subprocess.TimeoutExpired:
            status = -9
        print(f"== {what}: ended with status {status}", flush=True)
        failed += [what] * (status != 0)
    outcome = f"failed: {', '.join(failed)}" if failed else "all steps did what they should"
    print(f"== the end; {outcome}", flush=True)


def poll(work: Path, out: Path, seconds: float, again: bool) -> None:
    """Hand out new files until there are weights, the work has ended or the time is over; then print the log.

    Small files and the log are copied to `out` at once, because the call may be interrupted. A file is handed out once,
    and again after a change; with `again`, all files are handed out again.
    """
    ledger = work / "sent.json"
    sent: dict[str, str] = {}
    if not again:
        with suppress(OSError, ValueError):  # no ledger before the first call, or a damaged ledger
            sent = json.loads(ledger.read_text(encoding="utf-8"))
    taken: dict[str, int] = {}  # bytes of each file in `out`
    end = time.monotonic() + seconds
    while True:
        runs = is_running(work)
        waiting = unsent(work / "out", sent)
        over = not runs or time.monotonic() >= end or any(".weights." in path.name for path in waiting)
        hand_out([path for path in waiting if over or ".weights." not in path.name], out, sent, taken)
        lines = read(work / "log.txt").splitlines()
        (out / "log.txt").write_text("\n".join(lines)[-EACH // 2 :], encoding="utf-8")
        if over:
            break
        time.sleep(1)
    ledger.with_suffix(".partial").write_text(json.dumps(sent), encoding="utf-8")
    ledger.with_suffix(".partial").replace(ledger)
    print("\n".join(lines[-LOG_LINES:]))
    left = len(unsent(work / "out", sent))
    what_next = "poll again" if left or runs else "nothing is left"
    print(f"== the work {'runs' if runs else 'has ended'}; {left} more files wait; {what_next}")


def hand_out(files: Sequence[Path], out: Path, sent: dict[str, str], taken: dict[str, int]) -> None:
    """Copy files to `out` while the limits allow, and record the copied files in `sent` and `taken`."""
    for path in files:
        state, size = state_of(path), path.stat().st_size
        others = [bytes_ for name, bytes_ in taken.items() if name != path.name]
        if len(others) < FILES - 1 and sum(others) + size <= BACK:  # the log is a file too
            shutil.copyfile(path, out / f"{path.name}.partial")
            (out / f"{path.name}.partial").replace(out / path.name)
            sent[path.name], taken[path.name] = state, size


def unpack(returned: Path, out: Path) -> None:
    """Turn the returned files into run folders and scores, with the weights joined and checked."""
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    from collect import unpack as unpack_rows  # only this command needs the package

    out.mkdir(parents=True, exist_ok=True)
    for path in returned.glob("*.json"):
        shutil.copyfile(path, out / path.name)
    incomplete = unpack_rows(returned, out)
    for row in sorted(path.stem for path in returned.glob("*.tar")):
        print(f"{out / row}: {incomplete.get(row, 'whole')}")
    sys.exit(1 if incomplete else 0)


def unsent(folder: Path, sent: dict[str, str]) -> list[Path]:
    """List the whole files that are new or changed since they were handed out: weights last, older files first."""
    files = [path for path in folder.glob("*") if path.is_file() and path.suffix != ".partial"]
    files = [path for path in files if sent.get(path.name) != state_of(path)]
    return sorted(files, key=lambda path: (".weights." in path.name, path.stat().st_mtime))


def state_of(path: Path) -> str:
    """Describe the state of a file; files are only replaced as a whole, so new content has a new state."""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def is_running(work: Path) -> bool:
    """Return True if a process of the session that `start` began is alive, even a child whose parent was killed."""
    group = read(work / "pid")
    if not group:
        return False
    if not Path("/proc/self/stat").exists():  # not on Linux
        with suppress(OSError):
            os.killpg(int(group), 0)
            return True
        return False
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            text = status.read_text(encoding="utf-8", errors="replace")
            state, _, its_group = text.rsplit(")", 1)[1].split()[:3]  # the name of the process may contain blanks
            if its_group == group and state not in "ZX":
                return True
    return False


def absolute(path: str) -> Path:
    """Return an absolute path, because the started process works in another folder."""
    return Path(path).resolve()


def read(path: Path) -> str:
    """Read a text file; return an empty text if the file does not exist."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, function: Callable[..., None]) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=(function.__doc__ or "").split(".")[0].split("\n")[0])
        if name not in ("stage", "unpack"):
            found.add_argument("--work", type=absolute, default=WORK, help=f"folder on the GPU machine; default {WORK}")
        return found

    staging = command("stage", stage)
    staging.add_argument("folder", type=Path)
    staging.add_argument("data", type=Path, nargs="*", help="tar files of this call; default: only the code")
    staging.add_argument("--packages", nargs="+", default=[], help="wheels to carry too, e.g. timm==1.0.31")
    command("take", take)
    for name, function in (("start", start), ("go", go)):
        running = command(name, function)
        running.add_argument("--minutes", type=float, required=True, help="minutes after which nothing new begins")
        running.add_argument("--rehearse", action="store_true", help="run at 32 px, on any machine")
        if function is start:
            running.add_argument("--tars", type=int, default=3, help="expected number of tar files; default 3")
        running.add_argument("--rows", nargs="+", help="rows of reproduce.py; default: all, in order of value")
        running.add_argument("--seeds", type=int, default=3, help="number of seeds of the probes; default 3")
    polling = command("poll", poll)
    folder = os.environ.get("OUT")
    help_ = "folder whose files are returned; default $OUT"
    polling.add_argument("--out", type=Path, default=folder, required=folder is None, help=help_)
    polling.add_argument("--seconds", type=float, default=540, help="longest wait in seconds; default 540")
    polling.add_argument("--again", action="store_true", help="hand out all files again")
    unpacking = command("unpack", unpack)
    unpacking.add_argument("returned", type=Path)
    unpacking.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    options = []
    if given.command in ("start", "go"):
        options = ["--seeds", str(given.seeds), *(["--rows", *given.rows] if given.rows else [])]
    match given.command:
        case "stage":
            stage(given.folder, given.data, given.packages)
        case "take":
            take(given.work)
        case "start":
            start(given.work, given.minutes, given.tars, [*options, *(["--rehearse"] if given.rehearse else [])])
        case "go":
            go(given.work, given.minutes, given.rehearse, options)
        case "poll":
            poll(given.work, given.out, given.seconds, given.again)
        case "unpack":
            unpack(given.returned, given.out)


if __name__ == "__main__":
    main()
