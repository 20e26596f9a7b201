"""The rows that matter most, one after the other: pretraining, probes of both encoders, small files to carry away.

python benchmarks/paper/reproduce.py --gpu --data flowers102-320-*.tar --out results --minutes 28
python benchmarks/paper/reproduce.py --cpu --data flowers102 --out results --minutes 170
python benchmarks/paper/reproduce.py --rehearse --data flowers102 --out rehearsal

DATA is Oxford Flowers-102, as tar files or as a folder with train, val and test. Nothing else is read, and no network.
What was begun goes on where it stopped when the same command is given again; what is done is not done again.

WORK (next to OUT, unless given) takes images and run folders. OUT takes what is small, after every step:

  <row>/                      recipe.toml, environment.json, metrics.jsonl (the curves), export/: a run folder, as
                              `scott report` draws it; the bfloat16 weights in parts of at most 15 MiB
  <row>.json                  probes of target encoder, context encoder and random weights, speed, memory, sha256,
                              and the command that joins the parts; benchmarks/paper/table.py reads it

Rows are the TOML files beside this script. A GPU runs them at the paper's scale; --cpu runs those that are meant for a
CPU; --rehearse runs the GPU's at 32 px for an epoch, on any machine, to see that everything works.
"""

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import nn

from scott_models import weights
from scott_models.classifiers import Accuracy, knn, ridge
from scott_models.errors import DataError, told_in_a_sentence
from scott_models.features import load_model
from scott_models.frozen import Frozen
from scott_models.labelled import find_labelled
from scott_models.pretrain import Recipe
from scott_models.pretrain.objective import build_objective
from scott_models.probe import HEADS, KINDS, Kind, Protocol, probe
from scott_models.release import seconds_of

ROWS = Path(__file__).parent
# In order of value.
ON_GPU = (
    "scott_12_16", "scott_3_16", "scott_7_16", "scott_9_16", "blocks_masked", "mask_random_0.6", "inductive",
    "scott_vit_12_16",
)  # fmt: skip
ON_CPU = ("scott_12_16_cpu", "scott_9_16_cpu", "scott_7_16_cpu")
TOY = ("model.img_size=32", "data.short_side=36", "optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=4")
PART = 15 * 2**20  # bytes
CONTROL, CONTEXT = " (random weights)", " (context encoder)"
MARGIN = 20  # seconds that saving and the first small files take
Step = Literal["target", "context", "paper"]  # the probes of a row; the last is the target's by the paper's protocol
STEPS: tuple[Step, ...] = get_args(Step)


@dataclass(frozen=True)
class Row:
    """A row of the paper's tables, and where its run is."""

    name: str
    recipe: str
    changes: tuple[str, ...]
    run: Path

    @classmethod
    def of(cls, name: str, work: Path, changes: Sequence[str] = ()) -> "Row":
        """The row of a TOML file, whose first command is its pretraining, with further changes."""
        command = first_command(name)
        own = [word for word in command if "=" in word]
        return cls(name, command[command.index("--recipe") + 1], (*own, *changes), work / name)

    @property
    def is_trained(self) -> bool:
        return (self.run / "export" / "model.safetensors").is_file()

    def kept(self, step: Step) -> Path:
        """Where the scores of a step are kept."""
        return self.run / "probes" / f"{step}.json"


def first_command(name: str) -> list[str]:
    """The words of a row's first command."""
    return shlex.split(tomllib.loads((ROWS / f"{name}.toml").read_text())["commands"][0])


def known_rows() -> list[str]:
    """The rows that begin with a pretraining on Flowers-102."""
    names = sorted(path.stem for path in ROWS.glob("*.toml"))
    return [name for name in names if {"pretrain", "flowers102:ROOT"} <= {*first_command(name)}]


class Clock:
    """What is left of the time."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.longest = 0.0  # seconds of a step so far

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def allows_another(self) -> bool:
        """Whether a step as long as the longest so far would end in time."""
        return self.left > max(self.longest, MARGIN)

    def tell(self, what: str) -> None:
        print(f"== {what}; {self.left / 60:.1f} minutes left", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        self.tell(what)
        started = time.monotonic()
        yield
        self.longest = max(self.longest, time.monotonic() - started)


def unpacked(data: Sequence[Path], work: Path) -> Path:
    """The folder with train, val and test: the one given, or what the tar files hold, unpacked once.

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
    """Where in a folder train, val and test lie.

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


def pretrain(row: Row, flowers: Path, clock: Clock) -> None:
    """Go on with a row's run until it has ended or the time has, in a process of its own; it saves itself then."""
    command = [
        sys.executable, "-m", "scott_models.pretrain", row.recipe, *row.changes,
        "--data", str(flowers), "--out", str(row.run), "--resume",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            process.wait(max(clock.left - MARGIN, 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        except KeyboardInterrupt:  # which it got too
            process.wait()
            raise
    if process.returncode not in (0, 130, -signal.SIGINT):  # the other rows are worth no less for it
        print(f"{row.name}: pretraining ended with status {process.returncode}; its words are above", file=sys.stderr)


def probed(row: Row, flowers: Path, step: Step, seeds: int, kinds: Sequence[Kind] = KINDS) -> None:
    """Score an encoder of a run that has ended, and keep the scores in the run."""
    protocol: Protocol = "paper" if step == "paper" else "fast"
    if step == "paper":  # the others have no protocol
        kinds = [kind for kind in kinds if kind in HEADS]
    with tempfile.TemporaryDirectory() as folder:
        name = str(row.run)
        if step == "context":
            name = f"local-dir:{weights.export(encoders(row.run)['context'], Path(folder) / 'context')}"
        report = probe(
            name, [flowers], [flowers], kinds=kinds, protocol=protocol, seeds=seeds, control=step == "target"
        )
    called = {name: row.name + (CONTEXT if step == "context" else ""), name + CONTROL: row.name + CONTROL}
    scores = [{**asdict(score), "model": called[score.model], "protocol": protocol} for score in report.scores]
    result: dict[str, Any] = {"scores": scores, "train": report.train, "test": report.test}
    if step == "target":
        result["rounding"] = rounding(row.run, flowers)
    row.kept(step).parent.mkdir(exist_ok=True)
    row.kept(step).write_text(json.dumps(result))


def encoders(run: Path) -> dict[str, nn.Module]:
    """Both encoders of a run's last checkpoint, in fp32."""
    last = max((run / "checkpoints").glob("step_*.pt"))
    state = torch.load(last, map_location="cpu", weights_only=True)["objective"]
    objective = build_objective(Recipe.load(run / "recipe.toml").changed("model", init="", grow=False))
    for name, part in objective.named_children():
        part.load_state_dict(state[name])
    return {name: encoder.eval() for name, encoder in objective.encoders.items()}


def rounding(run: Path, flowers: Path) -> dict[str, float]:
    """What bfloat16 weights change: features of val's images, and the probes that train on train's.

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
        of_train, of_val = frozen.pooled(trained.images, "train"), frozen.pooled(tested.images, "val")
        features.append(of_val)
        for kind, classify in (("knn", knn), ("ridge", ridge)):
            votes = classify(of_train, trained.labels, of_val, len(trained.names))
            found[f"{kind}_{name}"] = Accuracy.of(votes, tested.labels).top1
    exact, rounded = features
    found["features"] = ((rounded - exact).norm() / exact.norm()).item()
    found["largest"] = ((rounded - exact).norm(dim=1) / exact.norm(dim=1)).max().item()
    return found


def collect(row: Row, out: Path) -> None:
    """Write what is small of a row that is trained: the run without checkpoints, and its scores and figures."""
    small = out / row.name
    parts_of = small / "export"
    parts_of.mkdir(parents=True, exist_ok=True)
    for name in ("recipe.toml", "environment.json", "metrics.jsonl", "export/config.json"):
        shutil.copyfile(row.run / name, small / name)
    whole = row.run / "export" / "model.safetensors"
    data = whole.read_bytes()
    for number, start in enumerate(range(0, len(data), PART)):
        (parts_of / f"{whole.name}.part{number}").write_bytes(data[start : start + PART])
    kept = [json.loads(path.read_text()) for path in map(row.kept, STEPS) if path.exists()]
    lines = [json.loads(line) for line in (row.run / "metrics.jsonl").read_text().splitlines()]
    timed = [line for line in lines if "images_per_second" in line]
    batch = Recipe.load(row.run / "recipe.toml").optim.batch_size
    sha256, joined = weights.sha256(whole), f"{row.name}/export/{whole.name}"
    content = {
        "row": row.name,
        "command": f"python -m scott_models.pretrain {shlex.join([row.recipe, *row.changes])} --data DATA --out RUN",
        "hardware": (start := json.loads((row.run / "environment.json").read_text())[-1])["gpu"]
        or f"{start['cpus']} CPU cores",
        "images_per_second": round(median(line["images_per_second"] for line in timed), 1),
        "peak_gib": max((line["peak_gib"] for line in timed if "peak_gib" in line), default=None),
        "minutes": round(seconds_of(lines, batch) / 60, 1),
        "sha256": sha256,
        "join": f"cat {joined}.part* > {joined} && echo '{sha256}  {joined}' | sha256sum --check",
        "scores": [score for result in kept for score in result["scores"]],
        **{name: value for result in kept for name, value in result.items() if name != "scores"},
    }
    (out / f"{row.name}.json").write_text(json.dumps(content, indent=1) + "\n")


def reproduce(
    rows: Sequence[Row],
    flowers: Path,
    out: Path,
    clock: Clock,
    seeds: int,
    kinds: Sequence[Kind],
    steps: Sequence[Step],
) -> bool:
    """All rows as far as the time goes: first each with its `fast` probes, then those by the paper's protocol.

    Returns:
        whether all is done.
    """

    def take(row: Row, step: Step) -> None:
        if row.is_trained and not row.kept(step).exists() and clock.allows_another():
            with clock.step(f"{row.name}: probes, {step}"):
                probed(row, flowers, step, seeds, kinds)
            collect(row, out)

    for row in rows:
        if not row.is_trained and clock.left > MARGIN:
            clock.tell(f"{row.name}: pretraining")
            pretrain(row, flowers, clock)
        if row.is_trained:
            collect(row, out)
        for step in ("target", "context"):
            take(row, step)
    if "paper" in steps:
        for row in rows:
            take(row, "paper")
    return all(row.is_trained and all(row.kept(step).exists() for step in steps) for row in rows)


def main() -> None:
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
    parser.add_argument("--probes", nargs="+", choices=KINDS, default=KINDS, help="default: all")
    parser.add_argument("--protocol", choices=("fast", "both"), help="of the probes; default: both on a GPU")
    given = parser.parse_args()
    if given.gpu and not torch.cuda.is_available():
        parser.error("--gpu: expected a GPU, found none; --rehearse tries everything at toy scale")
    work = given.work or given.out.with_name(f"{given.out.name}-work")
    known = known_rows()
    names = given.rows or (ON_CPU if given.cpu else ON_GPU)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--rows: expected some of {known}, got {unknown}")
    rows = [Row.of(name, work, TOY if given.rehearse else ()) for name in names]
    both = given.protocol == "both" if given.protocol else given.gpu
    steps: list[Step] = ["target", "context", "paper"] if both else ["target", "context"]
    given.out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    with told_in_a_sentence():
        clock = Clock(given.minutes)
        flowers = unpacked(given.data, work)
        done = reproduce(rows, flowers, given.out, clock, given.seeds, given.probes, steps)
        print(f"{given.out}: all done" if done else "the time is spent; the same command goes on", file=sys.stderr)


if __name__ == "__main__":
    main()
