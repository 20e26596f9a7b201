"""Work on a GPU that is lent for half an hour: carry code and data there, start, look, and unpack what came back.

Made for a machine of which you can only ask: run this command, for ten minutes at most, in a folder that I send with it
(at most 64 MiB), and return the small files it leaves in $OUT. It has no network, and nothing is installed but Python
with torch, torchvision, timm and accelerate. docs/gpu.md has the calls in their order.

  on your machine   python benchmarks/paper/lease.py stage lease flowers102-320-0.tar
  on the GPU        python3 lease/benchmarks/paper/lease.py take
                    python3 lease/benchmarks/paper/lease.py start --minutes 26
                    python3 lease/benchmarks/paper/lease.py poll --out "$OUT" --seconds 540
  on your machine   python benchmarks/paper/lease.py unpack RETURNED --out results

What is started runs in a session of its own, so that it outlives the call that started it. It goes through three steps,
each of which may fail without ending the others: 20 updates of each model; throughput and profile (benchmarks/gpu.py);
the rows of the paper's tables (benchmarks/paper/reproduce.py). After a kill, `start` goes on where it was.
This file needs nothing but Python.
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

ROOT = Path(__file__).resolve().parents[2]
CODE, LEFT_OUT = ("scott_models", "benchmarks"), ("__pycache__", "bundled", "results")
WORK = Path("/tmp/scott_models-lease")
CARRIED, FILES, EACH = 64 * 2**20, 8, 16 * 2**20  # bytes there; files back, and bytes of each
BACK = 60 * 2**20  # bytes back in all, with room for the log
LOG_LINES = 60
PARTS = ("end to end", "profile", "inputs", "max blur")  # of benchmarks/gpu.py


def stage(folder: Path, data: Sequence[Path], packages: Sequence[str]) -> None:
    """Fill a folder with code alone, the tar files of this call, and wheels of packages that the machine lacks.

    What an earlier call staged there is replaced.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / CODE[0]).is_dir():
        sys.exit(f"{folder}: expected a new or empty folder, or what `stage` left there, found other files")
    folder.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for old in folder.glob("*.tar"):
        old.unlink()
    for path in data:
        shutil.copyfile(path, folder / path.name)
    if packages:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(folder / "wheels"), *packages], check=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > CARRIED:
        sys.exit(
            f"{folder}: expected at most {CARRIED / 2**20:.0f} MiB, found {size / 2**20:.1f}; give one tar file a call"
        )
    print(f"{folder}: {size / 2**20:.1f} MiB to carry")


def take(work: Path) -> None:
    """Move the tar files that came with this call to where they stay, and say what is there."""
    data = work / "data"
    data.mkdir(parents=True, exist_ok=True)
    for path in sorted(ROOT.glob("*.tar")):
        shutil.copyfile(path, data / f"{path.name}.partial")
        (data / f"{path.name}.partial").rename(data / path.name)
    found = [f"{path.name} ({path.stat().st_size / 2**20:.1f} MiB)" for path in sorted(data.glob("*.tar"))]
    print(f"{data}: {', '.join(found) or 'nothing yet'}")


def start(work: Path, minutes: float, options: Sequence[str]) -> None:
    """Start the work in a session of its own, from a copy of the code, unless it runs already."""
    if is_running(work):
        print(f"running already: {read(work / 'pid')}")
        return
    if not list((work / "data").glob("*.tar")):
        sys.exit(f"{work / 'data'}: expected the tar files of Flowers-102, found none; call `take` first")
    shutil.rmtree(work / "code", ignore_errors=True)  # the next call may replace what this one came with
    shutil.copytree(ROOT, work / "code", ignore=shutil.ignore_patterns("*.tar"))
    if wheels := sorted(map(str, (work / "code" / "wheels").glob("*.whl"))):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
        subprocess.run([*command, "--target", str(work / "code"), *wheels], check=True)
    script = work / "code" / "benchmarks" / "paper" / "lease.py"
    command = [sys.executable, str(script), "go", "--work", str(work), "--minutes", str(minutes), *options]
    with (work / "log.txt").open("a") as log:  # not in this call's folder either, which may go with the call
        process = subprocess.Popen(
            command, cwd=work, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (work / "pid").write_text(str(process.pid))
    print(f"started: {process.pid}")


def go(work: Path, minutes: float, rehearse: bool, options: Sequence[str]) -> None:
    """Do the three steps, one after the other, whatever becomes of each."""
    end = time.monotonic() + 60 * minutes
    scale, scripts = "--rehearse" if rehearse else "--gpu", work / "code" / "benchmarks"
    data, out = [str(path) for path in sorted((work / "data").glob("*.tar"))], work / "out"
    rows = [
        str(scripts / "paper" / "reproduce.py"),
        scale,
        "--data",
        *data,
        "--out",
        str(out),
        "--work",
        str(work / "runs"),
    ]
    rows += ["--pack", *options]
    small = ["--batch", "2", "--img-size", "32", "--updates", "2", "--models", "scott_3_16", "--uncompiled"]
    full = ["--updates", "1000", "--models", "scott_12_16"]
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
        status = subprocess.run([sys.executable, *command, *limit], check=False).returncode
        print(f"== {what}: ended with status {status}", flush=True)
        failed += [what] * (status != 0)
    outcome = f"failed: {', '.join(failed)}" if failed else "all steps did what they should"
    print(f"== the end; {outcome}", flush=True)


def poll(work: Path, out: Path, seconds: float, again: bool) -> None:
    """Wait for weights to carry back, the end of the work or of the time; then show the log and hand out what is new.

    A file is handed out once, unless it changes or all are asked for `again`.
    """
    ledger = work / "sent.json"
    sent: dict[str, str] = {} if again or not ledger.exists() else json.loads(ledger.read_text())
    end = time.monotonic() + seconds
    while is_running(work) and time.monotonic() < end:
        if any(".weights." in path.name for path in unsent(work / "out", sent)):
            break
        time.sleep(1)
    room, count = BACK, FILES - 1  # the log is one
    for path in unsent(work / "out", sent):
        was = state_of(path)
        if count and (size := path.stat().st_size) <= room:
            shutil.copyfile(path, out / path.name)
            sent[path.name] = was
            room, count = room - size, count - 1
    ledger.write_text(json.dumps(sent))
    lines = read(work / "log.txt").splitlines()
    (out / "log.txt").write_text("\n".join(lines)[-EACH // 2 :])
    print("\n".join(lines[-LOG_LINES:]))
    left = len(unsent(work / "out", sent))
    state = "runs" if is_running(work) else "has ended"
    what_next = "poll again" if left or state == "runs" else "nothing is left"
    print(f"== the work {state}; {left} more files wait; {what_next}")


def unpack(returned: Path, out: Path) -> None:
    """Turn the files that came back into run folders and scores, the weights joined and checked."""
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    from collect import unpack as unpack_rows  # the one command that needs the package

    out.mkdir(parents=True, exist_ok=True)
    for path in returned.glob("*.json"):
        shutil.copyfile(path, out / path.name)
    incomplete = unpack_rows(returned, out)
    for row in sorted(path.stem for path in returned.glob("*.tar")):
        print(f"{out / row}: {incomplete.get(row, 'whole')}")
    sys.exit(1 if incomplete else 0)


def unsent(folder: Path, sent: dict[str, str]) -> list[Path]:
    """List whole files that were not handed out as they are now, small ones first, then the oldest."""
    files = [path for path in folder.glob("*") if path.is_file() and path.suffix != ".partial"]
    files = [path for path in files if sent.get(path.name) != state_of(path)]
    return sorted(files, key=lambda path: (".weights." in path.name, path.stat().st_mtime))


def state_of(path: Path) -> str:
    """Describe a file, which is only ever replaced as a whole, so that another content has another description."""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def is_running(work: Path) -> bool:
    """Tell whether the process that `start` began is alive, and no zombie."""
    with suppress(OSError, ValueError):
        os.kill(pid := int(read(work / "pid")), 0)
        status = read(Path(f"/proc/{pid}/stat"))
        return "lease.py" in read(Path(f"/proc/{pid}/cmdline")) if status else True
    return False


def absolute(path: str) -> Path:
    return Path(path).resolve()


def read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


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
    staging.add_argument("data", type=Path, nargs="*", help="tar files of this call; none: code alone")
    staging.add_argument("--packages", nargs="+", default=[], help="wheels to carry too, e.g. timm==1.0.31")
    command("take", take)
    for name, function in (("start", start), ("go", go)):
        running = command(name, function)
        running.add_argument("--minutes", type=float, required=True, help="after which nothing new is begun")
        running.add_argument("--rehearse", action="store_true", help="at 32 px, on any machine")
        running.add_argument("--rows", nargs="+", help="of reproduce.py; default: all in order of value")
        running.add_argument("--seeds", type=int, default=3, help="of the probes; default 3")
    polling = command("poll", poll)
    polling.add_argument("--out", type=Path, required=True, help="the folder that comes back")
    polling.add_argument("--seconds", type=float, default=540, help="to wait at most; default 540")
    polling.add_argument("--again", action="store_true", help="hand out what was handed out before too")
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
            start(given.work, given.minutes, [*options, *(["--rehearse"] if given.rehearse else [])])
        case "go":
            go(given.work, given.minutes, given.rehearse, options)
        case "poll":
            poll(given.work, given.out, given.seconds, given.again)
        case "unpack":
            unpack(given.returned, given.out)


if __name__ == "__main__":
    main()
