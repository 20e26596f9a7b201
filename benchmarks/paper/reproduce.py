"""Run the most important rows one after the other: pretraining, probes of both encoders, small files to carry away.

python benchmarks/paper/reproduce.py --gpu --data flowers102-320-*.tar --out results --minutes 28
python benchmarks/paper/reproduce.py --cpu --data flowers102 --out results --minutes 170
python benchmarks/paper/reproduce.py --rehearse --data flowers102 --out rehearsal

DATA is Oxford Flowers-102, as tar files or as a folder with train, val and test. The script reads no other data and
uses no network. After an interruption, give the same command again: interrupted work continues, and finished work is
not repeated. If a row, a probe or the compiler fails, the failure is reported and the rest of the work continues.

WORK takes images and run folders; by default WORK is next to OUT. OUT takes small files after every step:

  <row>/                      a run folder for `scott report`, with the bfloat16 weights in parts of at most 15 MiB
  <row>.json                  probes of target encoder, context encoder and random weights, speed, memory, sha256,
                              and the command that joins the parts, for benchmarks/paper/table.py
  <row>.tar, <row>.weights.*  with --pack: the same contents in a few files, for benchmarks/paper/lease.py
  trial.json                  with --trial: the outcome of 20 updates of each model; if torch.compile failed for a
                              model, the rows of this model run without torch.compile

Rows are the TOML files beside this script. --gpu runs rows at the paper's scale. --cpu runs the rows that are meant for
a CPU. --rehearse runs the rows of --gpu at 32 px for an epoch, on any machine, to test the whole path.
"""

import argparse
import json
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from collect import write_whole
from rows import ON_CPU, ON_GPU, STEPS, TOY, UNCOMPILED, Row, Step, gflop_of_step, known_rows
from score import score
from session import MARGIN, STOPPED, Clock, Session, run_until
from trial import as_tried, try_models

from scott_models.errors import DataError, report_user_errors
from scott_models.probes.evaluate import KINDS
from scott_models.weights import local_dir

SLACK, PROBING = 1.1, 90  # factor on the predicted time of a pretraining; seconds for its probes


def unpack_images(data: Sequence[Path], work: Path) -> Path:
    """Return the folder with train, val and test, in the given folder or in the tar files, which are unpacked once.

    Raises:
        DataError: a file is damaged or is no tar file, or there is no such folder.
    """
    root = data[0] if len(data) == 1 and data[0].is_dir() else work / "images"
    if not root.is_dir():
        with local_dir.folder_written_whole(root) as partial:
            for path in data:
                try:
                    with tarfile.open(path) as tar:
                        tar.extractall(partial, filter="data")
                except tarfile.TarError as error:
                    raise DataError(f"{path}: expected a whole tar file ({error}); fetch it again") from error
            split_folder(partial, data)
    return split_folder(root, data)


def split_folder(root: Path, data: Sequence[Path]) -> Path:
    """Find the folder that contains train, val and test: `root` or a folder inside `root`.

    Raises:
        DataError: there is no such folder.
    """
    for folder in (root, *sorted(root.rglob("*"))):
        if all((folder / split).is_dir() for split in ("train", "val", "test")):
            return folder
    given = ", ".join(map(str, data))
    raise DataError(
        f"{given}: expected a folder with train, val and test, found none; give all tar files, or the folder"
    )


def pretrain(row: Row, session: Session) -> None:
    """Begin or continue a row's run until the run ends or the time is over; after a failure, retry uncompiled."""
    for tried in (row, row.changed(UNCOMPILED)):
        status = run_until(tried.pretraining(session.flowers, row.run), session.clock.left - MARGIN)
        if status in STOPPED:
            return
        print(f"{row.name}: pretraining ended with status {status}; its words are above", file=sys.stderr, flush=True)
        if session.clock.left < MARGIN or UNCOMPILED in tried.changes:
            break
        print(f"{row.name}: once more, without torch.compile", file=sys.stderr, flush=True)
    session.failed.append(f"{row.name}: pretraining")


def fits(row: Row, session: Session) -> bool:
    """Return True if a pretraining and its first probes can end in time, by the speeds measured here so far."""
    if session.clock.left < MARGIN:
        return False
    begun = any(row.run.glob("checkpoints/step_*.pt"))
    if begun or not (rates := [*measured_rates(session)]):
        return True
    needed = SLACK * max(rates) * row.petaflop(session.flowers) + PROBING
    if needed > session.clock.left:
        session.clock.say(f"{row.name}: would take {needed / 60:.1f} minutes, left out")
    return needed <= session.clock.left


def measured_rates(session: Session) -> Iterator[float]:
    """Yield seconds per PFLOP: of the pretrainings that have ended, or, if there are none, of benchmarks/gpu.py."""
    ended = [row for row in session.rows if (row.run / "seconds").is_file()]
    for row in ended:
        yield float((row.run / "seconds").read_text(encoding="utf-8")) / row.petaflop(session.flowers)
    benchmark = session.out / "gpu.json"
    if not ended and benchmark.is_file():
        parts = json.loads(benchmark.read_text(encoding="utf-8"))["parts"]
        for result in parts.get("end to end", {}).get("end to end", []):
            yield 1e6 / result["images/s"] / gflop_of_step(result["model"], result["pixels"])


def probe_row(row: Row, session: Session) -> None:
    """Score the encoders of a run that has ended, seed by seed, and write the scores of each seed to the run folder."""
    earlier = [json.loads(path.read_text(encoding="utf-8")) for path in row.run.parent.glob("*/probes/*.json")]
    session.clock.longest = max((result["seconds"] for result in earlier), default=0.0)
    for step in session.steps:
        for seed in range(session.seeds):
            if row.scores(step, seed).is_file() or not session.clock.allows_another():
                continue
            what = f"{row.name}: probes, {step}, seed {seed}"
            with session.going_on(what), session.clock.step(what):
                started = time.monotonic()
                result = score(row, session.flowers, step, seed, session.kinds)
                result["seconds"] = round(time.monotonic() - started, 1)
                write_whole(row.scores(step, seed), json.dumps(result).encode())
            session.leave(row)


def probe_apart(row: Row, session: Session, steps: Sequence[Step]) -> None:
    """Probe a row in a process of its own, because an error of the device would break all later work here."""
    wanted = [step for step in steps if not all(row.scores(step, s).is_file() for s in range(session.seeds))]
    if not wanted or session.clock.left < MARGIN:
        return
    command = [sys.executable, __file__, *session.options, "--probes-only", "--rows", row.name, "--steps", *wanted]
    status = run_until([*command, "--minutes", f"{session.clock.left / 60:.3f}"], session.clock.left)
    if status not in STOPPED:
        session.failed.append(f"{row.name}: probes")
    session.leave(row)


def reproduce(session: Session) -> bool:
    """Run all rows while time is left: first pretraining and `fast` probes, then the probes by the paper's protocol.

    Returns:
        True if all rows and probes are done.
    """
    for row in session.rows:
        if not row.is_trained and fits(row, session):
            with session.clock.step(f"{row.name}: pretraining"):
                started = time.monotonic()
                begun = any(row.run.glob("checkpoints/step_*.pt"))
                pretrain(row, session)
            if row.is_trained and not begun:  # `fits` predicts the time of the other rows by this
                write_whole(row.run / "seconds", f"{time.monotonic() - started:.1f}".encode())
        if row.is_trained:
            session.leave(row)
            probe_apart(row, session, [step for step in session.steps if step != "paper"])
    for row in session.rows:
        if row.is_trained and "paper" in session.steps:
            probe_apart(row, session, ["paper"])
    seeds = range(session.seeds)
    return all(
        row.is_trained and all(row.scores(s, n).is_file() for s in session.steps for n in seeds) for row in session.rows
    )


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    scale = parser.add_mutually_exclusive_group(required=True)
    scale.add_argument("--gpu", action="store_true", help="run at the paper's scale")
    scale.add_argument("--cpu", action="store_true", help="run the rows that a CPU can train in hours")
    scale.add_argument("--rehearse", action="store_true", help="run the whole path at 32 px")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="tar files or a folder of Flowers-102")
    parser.add_argument("--out", type=Path, required=True, help="folder for the small files")
    parser.add_argument("--work", type=Path, help="folder for images and runs; default: OUT with -work at its end")
    parser.add_argument("--minutes", type=float, default=28, help="minutes after which nothing new begins; default 28")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"rows to run, out of {' '.join(known_rows())}")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of the probes; default 3")
    parser.add_argument("--probes", nargs="+", choices=KINDS, default=list(KINDS), help="probes to train; default: all")
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, help="steps of probing; default: all with --gpu, else target and context"
    )
    parser.add_argument("--trial", action="store_true", help="only make 20 updates of each model")
    parser.add_argument("--pack", action="store_true", help="write few files: ROW.tar and ROW.weights.*")
    parser.add_argument("--probes-only", action="store_true", help="only probe the rows that are trained")
    return parser, parser.parse_args()


def main() -> None:
    parser, given = parse()
    if given.gpu and not torch.cuda.is_available():
        parser.error("--gpu: expected a GPU, found none; --rehearse tries everything at toy scale")
    names = given.rows or (ON_CPU if given.cpu else ON_GPU)
    if unknown := [name for name in names if name not in known_rows()]:
        parser.error(f"--rows: expected some of {known_rows()}, got {unknown}")
    work = given.work or given.out.with_name(f"{given.out.name}-work")
    rows = [Row.load(name, work, TOY if given.rehearse else ()) for name in names]
    steps = given.steps or (STEPS if given.gpu else ("target", "context"))
    scale = "--gpu" if given.gpu else "--cpu" if given.cpu else "--rehearse"
    options = [scale, "--data", *map(str, given.data), "--out", str(given.out), "--work", str(work)]
    options += ["--seeds", str(given.seeds), "--probes", *given.probes, *(["--pack"] if given.pack else [])]
    for folder in (given.out, work):
        folder.mkdir(parents=True, exist_ok=True)
    with report_user_errors():
        clock = Clock(given.minutes)
        flowers = unpack_images(given.data, work)
        session = Session(rows, flowers, given.out, clock, given.seeds, given.probes, steps, given.pack, options)
        if given.probes_only:
            for row in rows:
                if row.is_trained:
                    probe_row(row, session)
        elif given.trial:
            try_models(session)
        else:
            session.rows = as_tried(rows, given.out)
            done = reproduce(session)
            print(f"{given.out}: all done" if done else "the time is spent; the same command goes on", file=sys.stderr)
    if session.failed:
        print(f"failed, with their words above: {'; '.join(session.failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
