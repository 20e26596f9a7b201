"""Collect the results of a trained row: a small run folder, scores and figures, and the weights in parts.

`collect` writes a folder. `pack` writes a few files that are easy to carry: ROW.tar holds everything except the
weights, and ROW.weights.0, ROW.weights.1, ... are the weights in parts of at most 15 MiB. `unpack` turns these files
into the folder. A file is written whole or not at all.
"""

import hashlib
import io
import json
import shlex
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rows import STEPS, Row

from scott_models.pretrain import Recipe
from scott_models.probes.classifiers import Accuracy
from scott_models.probes.evaluate import Score
from scott_models.training.run_folder import count_seconds
from scott_models.weights.files import sha256

PART = 15 * 2**20  # bytes
KEPT = ("recipe.toml", "environment.json", "metrics.jsonl", "README.md", "export/config.json")
WEIGHTS = "export/model.safetensors"


def collect(row: Row, out: Path) -> None:
    """Write out/ROW/, the run folder with its weights in parts, and out/ROW.json."""
    for name, data in small_files(row).items():
        write_whole(out / name, data)
    for number, data in enumerate(parts(row)):
        write_whole(out / row.name / f"{WEIGHTS}.part{number}", data)


def pack(row: Row, out: Path) -> None:
    """Write out/ROW.tar and out/ROW.weights.0, ...; existing weight files are not written again."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in small_files(row).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    write_whole(out / f"{row.name}.tar", buffer.getvalue())
    for number, data in enumerate(parts(row)):
        if not (path := out / f"{row.name}.weights.{number}").exists():
            write_whole(path, data)


def unpack(packed: Path, out: Path) -> dict[str, str]:
    """Turn a folder of packed rows into run folders as `collect` writes them, but with the weights joined.

    Returns:
        the rows whose weights are incomplete, each with the reason; the other files of these rows are written.
    """
    incomplete = {}
    for path in sorted(packed.glob("*.tar")):
        with tarfile.open(path) as tar:
            tar.extractall(out, filter="data")
        row = path.stem
        wanted = json.loads((out / f"{row}.json").read_text(encoding="utf-8"))["sha256"]
        data = b"".join(part.read_bytes() for part in in_order(packed.glob(f"{row}.weights.*")))
        if (found := hashlib.sha256(data).hexdigest()) == wanted:
            write_whole(out / row / WEIGHTS, data)
        else:
            incomplete[row] = f"expected weights with sha256 {wanted}, found {found}; fetch {row}.weights.* again"
    return incomplete


def in_order(parts: Iterable[Path]) -> list[Path]:
    """Sort files by the number at the end of their names."""
    return sorted(parts, key=lambda path: int(path.suffix.removeprefix(".").removeprefix("part")))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name and rename it, so that an interruption leaves the earlier file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


def parts(row: Row) -> list[bytes]:
    """Cut the exported weights into pieces of at most 15 MiB."""
    data = (row.run / WEIGHTS).read_bytes()
    return [data[start : start + PART] for start in range(0, len(data), PART)]


def small_files(row: Row) -> dict[str, bytes]:
    """Read the files of a trained row except the weights, by name: ROW/..., and ROW.json with scores and figures."""
    files = [row.run / name for name in KEPT] + sorted(row.run.glob("looks/*"))
    found = {f"{row.name}/{path.relative_to(row.run)}": path.read_bytes() for path in files}
    return found | {f"{row.name}.json": (json.dumps(summarize(row), indent=1) + "\n").encode()}


def summarize(row: Row) -> dict[str, Any]:
    """Summarise a row: its scores, its cost, its hardware, and the command that joins and checks its weights."""
    lines = [json.loads(line) for line in (row.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = [line for line in lines if "images_per_second" in line]
    batch = Recipe.load(row.run / "recipe.toml").optim.batch_size
    start = json.loads((row.run / "environment.json").read_text(encoding="utf-8"))[-1]
    kept = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(row.run.glob("probes/*.json"))}
    by_step = {step: [kept[path] for path in kept if path.name.startswith(f"{step}-")] for step in STEPS}
    facts = [{k: v for k, v in result.items() if k not in ("scores", "seconds")} for result in by_step["target"]]
    digest, joined = sha256(row.run / WEIGHTS), f"{row.name}/{WEIGHTS}"
    return {
        "row": row.name,
        "command": f"python -m scott_models.pretrain {shlex.join([row.recipe, *row.changes])} --data DATA --out RUN",
        "hardware": start["gpu"] or f"{start['cpus']} CPU cores",
        "images_per_second": round(median(line["images_per_second"] for line in timed), 1),
        "peak_gib": max((line["peak_gib"] for line in timed if "peak_gib" in line), default=None),
        "minutes": round(count_seconds(lines, batch) / 60, 1),
        "sha256": digest,
        "join": f"cat {joined}.part* > {joined} && echo '{digest}  {joined}' | sha256sum --check",
        "scores": [score for results in by_step.values() for score in averaged(results)],
        **{name: value for fact in facts for name, value in fact.items()},
    }


def averaged(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average the scores of several seeds, probe by probe."""
    seeds: dict[tuple[str, int, str, str], list[Accuracy]] = {}
    for result in results:
        for score in result["scores"]:
            key = score["model"], score["img_size"], score["probe"], score["protocol"]
            seeds.setdefault(key, []).append(Accuracy(score["top1"], score["top5"], score["per_class"]))
    return [
        {**asdict(Score.of(model, size, probe, each)), "protocol": protocol}
        for (model, size, probe, protocol), each in seeds.items()
    ]
