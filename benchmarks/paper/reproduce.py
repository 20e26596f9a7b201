"""Run the rows that matter most, one after the other: pretraining, probes of both encoders, small files to carry away.

python benchmarks/paper/reproduce.py --gpu --data flowers102-320-*.tar --out results --minutes 28
python benchmarks/paper/reproduce.py --cpu --data flowers102 --out results --minutes 170
python benchmarks/paper/reproduce.py --rehearse --data flowers102 --out rehearsal

DATA is Oxford Flowers-102, as tar files or as a folder with train, val and test. Nothing else is read, and no network.
What was begun goes on where it stopped when the same command is given again; what is done is not done again. A row, a
probe or a compiler that fails is reported and ends nothing but itself.

WORK (next to OUT, unless given) takes images and run folders. OUT takes what is small, after every step:

  <row>/                      a run folder, as `scott report` draws it; the bfloat16 weights in parts of at most 15 MiB
  <row>.json                  probes of target encoder, context encoder and random weights, speed, memory, sha256,
                              and the command that joins the parts; benchmarks/paper/table.py reads it
  <row>.tar, <row>.weights.*  the same as few files, with --pack; benchmarks/paper/lease.py unpacks them
  trial.json                  with --trial: what 20 updates of each model did; where torch.compile failed, rows go on
                              without it

Rows are the TOML files beside this script. A GPU runs them at the paper's scale; --cpu runs those that are meant for a
CPU; --rehearse runs the GPU's at 32 px for an epoch, on any machine, to see that everything works.
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

SLACK, PROBING = 1.1, 90  # how much longer than earlier speeds promise a pretraining may take; seconds for its probes


def unpack_images(data: Sequence[Path], work: Path) -> Path:
    """Find the folder with train, val and test: the one given, or what the tar files hold, unpacked once.

    Raises:
        DataError: a file that is no tar file or is damaged, or no such folder in what is given.
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
    """Find where in a folder train, val and test lie.

    Raises:
        DataError: nowhere.
    """
    for folder in (root, *sorted(root.rglob("*"))):
        if all((folder / split).is_dir() for split in ("train", "val", "test")):
            return folder
    given = ", ".join(map(str, data))
    raise DataError(
        f"{given}: expected a folder with train, val and test, found none; give all tar files, or the folder"
    )


def pretrain(row: Row, session: Session) -> None:
    """Go on with a row's run until it has ended or the time has; once more, uncompiled, where that fails."""
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
    """Tell whether a pretraining and its first probes can end in time, by the speeds measured here so far."""
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
    """Yield seconds for each PFLOP: of the pretrainings that have ended, or else of benchmarks/gpu.py."""
    ended = [row for row in session.rows if (row.run / "seconds").is_file()]
    for row in ended:
        yield float((row.run / "seconds").read_text()) / row.petaflop(session.flowers)
    benchmark = session.out / "gpu.json"
    if not ended and benchmark.is_file():
        for result in json.loads(benchmark.read_text())["parts"].get("end to end", {}).get("end to end", []):
            yield 1e6 / result["images/s"] / gflop_of_step(result["model"], result["pixels"])


def probe_row(row: Row, session: Session) -> None:
    """Score the encoders of a run that has ended, seed by seed, and keep each seed's scores in the run."""
    earlier = [json.loads(path.read_text()) for path in row.run.parent.glob("*/probes/*.json")]
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
    """Probe a row in a process of its own: an error of the device there would spoil all that follows it here."""
    wanted = [step for step in steps if not all(row.scores(step, s).is_file() for s in range(session.seeds))]
    if not wanted or session.clock.left < MARGIN:
        return
    command = [sys.executable, __file__, *session.options, "--probes-only", "--rows", row.name, "--steps", *wanted]
    status = run_until([*command, "--minutes", f"{session.clock.left / 60:.3f}"], session.clock.left)
    if status not in STOPPED:
        session.failed.append(f"{row.name}: probes")
    session.leave(row)


def reproduce(session: Session) -> bool:
    """Run all rows as far as the time goes: first each with its `fast` probes, then those by the paper's protocol.

    Returns:
        whether all is done.
    """
    for row in session.rows:
        if not row.is_trained and fits(row, session):
            with session.clock.step(f"{row.name}: pretraining"):
                started = time.monotonic()
                begun = any(row.run.glob("checkpoints/step_*.pt"))
                pretrain(row, session)
            if row.is_trained and not begun:  # by which those that follow are judged
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
    scale.add_argument("--gpu", action="store_true", help="the paper's scale")
    scale.add_argument("--cpu", action="store_true", help="what a CPU can do in hours")
    scale.add_argument("--rehearse", action="store_true", help="the whole path at 32 px")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="tar files, or a folder")
    parser.add_argument("--out", type=Path, required=True, help="small files")
    parser.add_argument("--work", type=Path, help="images and runs; default: OUT with -work at its end")
    parser.add_argument("--minutes", type=float, default=28, help="after which nothing is begun any more; default 28")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"some of {' '.join(known_rows())}")
    parser.add_argument("--seeds", type=int, default=3, help="of the probes; default 3")
    parser.add_argument("--probes", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, help="of the probes; default: on a GPU all, else fast ones"
    )
    parser.add_argument("--trial", action="store_true", help="make 20 updates of each model, nothing else")
    parser.add_argument("--pack", action="store_true", help="leave few files: ROW.tar and ROW.weights.*")
    parser.add_argument("--probes-only", action="store_true", help="train nothing; probe the rows that are trained")
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
