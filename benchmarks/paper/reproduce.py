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
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from collect import collect, pack, write_whole
from rows import ON_CPU, ON_GPU, STEPS, TOY, Row, Step, gflop_of_step, known_rows
from torch import nn

from scott_models import weights
from scott_models.classifiers import Accuracy, knn, ridge
from scott_models.data import find_samples
from scott_models.errors import DataError, told_in_a_sentence
from scott_models.features import load_model
from scott_models.frozen import Frozen
from scott_models.labelled import find_labelled
from scott_models.pretrain import Recipe
from scott_models.pretrain.objective import build_objective
from scott_models.pretrain.store import open_images
from scott_models.probe import HEADS, KINDS, Kind, Protocol, probe

CONTROL, CONTEXT = " (random weights)", " (context encoder)"
MARGIN = 20  # seconds that saving and the first small files take
SLACK, PROBING = 1.1, 90  # how much longer than earlier speeds promise a pretraining may take; seconds for its probes
TRIAL = ("optim.epochs=0.32", "optim.warmup_epochs=0", "run.log_every=10")  # 20 of 63 updates
TRYING = 300  # seconds, after which a trial is given up
STOPPED = (0, 130, -signal.SIGINT)
UNCOMPILED = "run.compile=off"


class Clock:
    """Count what is left of the time."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.longest = 0.0  # seconds of a step so far

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def allows_another(self) -> bool:
        """Tell whether a step as long as the longest so far would end in time."""
        return self.left > max(self.longest, MARGIN)

    def say(self, what: str) -> None:
        print(f"== {what}; {self.left / 60:.1f} minutes left", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        self.say(what)
        started = time.monotonic()
        yield
        self.longest = max(self.longest, time.monotonic() - started)


@dataclass
class Session:
    """Hold what all steps share.

    Attributes:
        seeds: of the probes.
        failed: what went wrong so far, in words.
    """

    rows: list[Row]
    flowers: Path
    out: Path
    clock: Clock
    seeds: int
    kinds: Sequence[Kind]
    steps: Sequence[Step]
    packed: bool
    options: list[str]
    failed: list[str] = field(default_factory=list)

    def leave(self, row: Row) -> None:
        """Write the small files of a row that is trained."""
        with self.going_on(f"{row.name}: small files"):
            (pack if self.packed else collect)(row, self.out)

    @contextmanager
    def going_on(self, what: str) -> Iterator[None]:
        """Report whatever goes wrong inside, and let what comes after it run."""
        try:
            yield
        except Exception as error:  # of any kind: the other rows are worth no less for it
            traceback.print_exc()
            print(f"{what} failed ({type(error).__name__}: {error}); going on", file=sys.stderr, flush=True)
            self.failed.append(what)


def unpack_images(data: Sequence[Path], work: Path) -> Path:
    """Find the folder with train, val and test: the one given, or what the tar files hold, unpacked once.

    Raises:
        DataError: a file that is no tar file or is damaged, or no such folder in what is given.
    """
    root = data[0] if len(data) == 1 and data[0].is_dir() else work / "images"
    if not root.is_dir():
        with weights.replaced(root) as partial:
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


def run_until(command: Sequence[str], seconds: float) -> int:
    """Run a command that saves itself when interrupted; interrupt it when its time, or ours, is over.

    Returns:
        its status; that of SIGKILL if it did not end soon after.
    """
    with subprocess.Popen(command) as process:
        try:
            return process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            return end(process)
        except KeyboardInterrupt:
            end(process)
            raise


def end(process: subprocess.Popen) -> int:
    """Interrupt a process, and kill it if it has not saved itself soon; returns its status."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        return process.wait(MARGIN)
    process.kill()
    return process.wait()


def pretraining(row: Row, flowers: Path, run: Path) -> list[str]:
    """Name the command that begins a row's run, or goes on with it."""
    return [
        sys.executable, "-m", "scott_models.pretrain", row.recipe, *row.changes,
        "--data", str(flowers), "--out", str(run), "--resume",
    ]  # fmt: skip


def pretrain(row: Row, session: Session) -> None:
    """Go on with a row's run until it has ended or the time has; once more, uncompiled, where that fails."""
    for tried in (row, row.changed(UNCOMPILED)):
        status = run_until(pretraining(tried, session.flowers, row.run), session.clock.left - MARGIN)
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


def try_models(session: Session) -> None:
    """Make 20 updates of each model, all models at once, and write what came of them to trial.json.

    A model that fails is tried once more alone, and at last without torch.compile; if that works, its rows go on so.
    """
    kept = session.out / "trial.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    models = {row.settings.model.name: row.changed(*TRIAL) for row in reversed(session.rows)}
    first = session.rows[0].settings.model.name
    models = {name: row if name == first else row.changed("monitor.every=0") for name, row in models.items()}
    recipe = session.rows[0].settings
    open_images(find_samples([session.flowers]), recipe.data.short_side)  # once, or all would decode at once
    for together, change in ((True, ()), (False, ()), (False, (UNCOMPILED,))):
        left = {name: row.changed(*change) for name, row in models.items() if found.get(name, {}).get("status") != 0}
        for names in [list(left)] if together else [[name] for name in left]:
            session.clock.say(f"20 updates of {', '.join(names)}{', without torch.compile' if change else ''}")
            for name, result in try_together({name: left[name] for name in names}, session).items():
                found[name] = {**result, "changes": list(change)}
            write_whole(kept, (json.dumps(found, indent=1) + "\n").encode())
    session.failed += [f"{name}: 20 updates" for name, result in found.items() if result["status"] != 0]


def try_together(rows: dict[str, Row], session: Session) -> dict[str, dict[str, Any]]:
    """Make the updates of some models at once; returns each one's status and last line of metrics."""
    started, processes, found = time.monotonic(), {}, {}
    try:
        for name, row in rows.items():
            folder = Path(tempfile.mkdtemp(prefix=f"trial-{name}-", dir=row.run.parent))
            processes[name] = folder, subprocess.Popen(pretraining(row, session.flowers, folder))
        for name, (folder, process) in processes.items():
            try:
                status = process.wait(max(TRYING - (time.monotonic() - started), 1))
            except subprocess.TimeoutExpired:
                status = end(process)
            found[name] = {"status": status, "last": last_line(folder / "metrics.jsonl")}
    finally:
        for _, process in processes.values():
            process.kill()
    return found


def last_line(log: Path) -> dict[str, Any] | None:
    """Read the last whole line of a run's metrics."""
    for line in reversed(log.read_text().splitlines() if log.is_file() else []):
        with suppress(ValueError):  # cut short
            return json.loads(line)
    return None


def as_tried(rows: Sequence[Row], out: Path) -> list[Row]:
    """Change rows as the trial found necessary, if there was one."""
    kept = out / "trial.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    return [row.changed(*found.get(row.settings.model.name, {}).get("changes", ())) for row in rows]


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


def score(row: Row, flowers: Path, step: Step, seed: int, kinds: Sequence[Kind]) -> dict[str, Any]:
    """Score one encoder with one seed.

    Returns:
        scores; and of the target how many images they rest on, and, with the first seed, what bfloat16 changes.
    """
    protocol: Protocol = "paper" if step == "paper" else "fast"
    if step == "paper":  # the others have no protocol
        kinds = [kind for kind in kinds if kind in HEADS]
    with tempfile.TemporaryDirectory() as folder:
        name = str(row.run)
        if step == "context":
            name = f"local-dir:{weights.export(encoders(row.run)['context'], Path(folder) / 'context')}"
        report = probe(
            name,
            [flowers],
            [flowers],
            kinds=kinds,
            protocol=protocol,
            seeds=[seed],
            control=step == "target",
            duplicates=False,  # known of this data set (docs/RESULTS.md), and imagehash may not be there
        )
    called = {name: row.name + (CONTEXT if step == "context" else ""), name + CONTROL: row.name + CONTROL}
    scores = [{**asdict(each), "model": called[each.model], "protocol": protocol} for each in report.scores]
    result: dict[str, Any] = {"scores": scores}
    if step == "target":
        result |= {"train": report.train, "test": report.test}
        result |= {"rounding": rounding(row.run, flowers)} if seed == 0 else {}
    return result


def encoders(run: Path) -> dict[str, nn.Module]:
    """Load both encoders of a run's last checkpoint, in fp32."""
    last = max((run / "checkpoints").glob("step_*.pt"))
    state = torch.load(last, map_location="cpu", weights_only=True)["objective"]
    objective = build_objective(Recipe.load(run / "recipe.toml").changed("model", init="", grow=False))
    for name, part in objective.named_children():
        part.load_state_dict(state[name])
    return {name: encoder.eval() for name, encoder in objective.encoders.items()}


def rounding(run: Path, flowers: Path) -> dict[str, float]:
    """Measure what bfloat16 weights change: features of val's images, and the probes that train on train's.

    Convolutions are exact meanwhile: a GPU would round what they multiply to TF32, whatever the weights.

    Returns:
        features, largest: the difference of pooled features relative to their length, of all images together and of
        the image where it is largest; and for each probe its top-1 % by fp32 and by the exported weights.
    """
    trained, tested = find_labelled([flowers / "train"], [flowers / "val"])
    exported = load_model(str(run))
    original = encoders(run)["target"]
    original.pretrained_cfg = exported.pretrained_cfg
    found, features = {}, []
    for name, model in (("fp32", original), ("exported", exported)):
        frozen = Frozen(model, f"{run.name}, {name}")
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            of_train, of_val = frozen.pooled(trained.images, "train"), frozen.pooled(tested.images, "val")
        features.append(of_val)
        for kind, classify in (("knn", knn), ("ridge", ridge)):
            votes = classify(of_train, trained.labels, of_val, len(trained.names))
            found[f"{kind}_{name}"] = Accuracy.of(votes, tested.labels).top1
    exact, rounded = features
    found["features"] = ((rounded - exact).norm() / exact.norm()).item()
    found["largest"] = ((rounded - exact).norm(dim=1) / exact.norm(dim=1)).max().item()
    return found


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
    with told_in_a_sentence():
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
