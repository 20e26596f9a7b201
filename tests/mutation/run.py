"""Do the tests notice a mistake? Change the package in one place, run the quick tests of that place, and so on.

python tests/mutation/run.py                          400 mutants, half an hour of two processors
python tests/mutation/run.py --count 20 --seed 1      others
python tests/mutation/run.py --only tokenizer         in files with that word in their name
python tests/mutation/run.py --report                 what is known so far

Needs the extra "mutation". A first run of the quick tests notes which test runs which line (coverage.py), and which
lines and branches none does. Mutants are cosmic-ray's. Each is written into a copy of the checkout and meets the quick
tests that run the changed line, those of its file first, until one fails or 40 seconds of them have passed.
Results land in build/mutation, a line each; what is done of a file is not done again while the file stays as it is.
tests/README.md explains the survivors.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from xml.etree import ElementTree

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "scott_models"
WORK = CHECKOUT / "build" / "mutation"
# Found by what they define, wherever it lies.
SUBJECTS = (
    *("class SparseConvTokenizer(", "class SwiGLU(", "class Attention(", "class SCOTT(", "class MaskedConv2d("),
    *("class MIMJEPA(", "def build_objective(", "def blockwise(", "class Predictor(", "def warmup_flat_cosine("),
    *("def make_random_crops(", "class TwoViews:", "class Draws:", "class Pooled(", "def get_registered_args("),
    *("def write_entry(", "class Accuracy:"),
)
PRELOADED = ("torch", "torchvision", "timm", "timm.models", "timm.data", "timm.optim", "numpy", "PIL.Image", "pytest")
PRELOADED += ("sklearn.linear_model", "accelerate", "safetensors.torch", "huggingface_hub", "torch._dynamo")
PROCESSORS = len(os.sched_getaffinity(0))
UNCHANGED = "none"  # a mutant that is none: the tests of its file must pass in a copy, or would kill anything
ENOUGH = 40  # seconds of tests that a mutant meets, of lines that many tests run
PATIENCE = 30  # seconds that a mutant, which may loop for ever, has beyond three times what its tests took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="mutants in all, shared among the files by their length")
    parser.add_argument("--seed", type=int, default=0, help="of the choice among all mutants")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="only in files with a WORD in their name")
    parser.add_argument("--again", action="store_true", help="survivors meet the tests again, which may have grown")
    parser.add_argument("--report", action="store_true", help="run nothing")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    results = WORK / "results.jsonl"
    if not given.report:
        WORK.mkdir(parents=True, exist_ok=True)
        if given.again or not (WORK / "tests.json").exists():
            note_tests()
        known = [result for result in read(results) if result["killed"] or not given.again]
        known = [result for result in known if result["of"] == sha256(CHECKOUT / result["file"])]
        results.write_text("".join(json.dumps(result) + "\n" for result in known))
        done = {(result["file"], result["mutant"], result["occurrence"]) for result in known}
        mutants = [mutant for mutant in choose(given) if mutant[:3] not in done]
        with results.open("a") as log:
            for i, result in enumerate(meet_tests(mutants), 1):
                log.write(json.dumps(result) + "\n")
                log.flush()
                print(f"\r{i} of {len(mutants)}", end="", file=sys.stderr, flush=True)
    report(read(results))


def sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def note_tests() -> None:
    """Run the quick tests once; note of each line which tests run it, and of each test how long it takes."""
    data, times = WORK / "coverage", WORK / "times.xml"
    options = ["--cov=scott_models", "--cov-branch", "--cov-context=test", "--cov-report=", f"--junitxml={times}"]
    command = [sys.executable, "-m", "pytest", "-n", str(PROCESSORS), *options]
    subprocess.run(command, cwd=CHECKOUT, env={**os.environ, "COVERAGE_FILE": str(data)}, check=True)
    from coverage import CoverageData

    seconds = {}
    for case in ElementTree.parse(times).iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        seconds[f"{file}::{case.get('name')}"] = float(case.get("time", 0))
    covered = CoverageData(str(data))
    covered.read()
    lines = {}
    for file in covered.measured_files():
        by_line = covered.contexts_by_lineno(file)
        names = {line: sorted({name.rsplit("|", 1)[0] for name in tests if name}) for line, tests in by_line.items()}
        lines[str(Path(file).relative_to(CHECKOUT))] = names
    (WORK / "tests.json").write_text(json.dumps({"seconds": seconds, "lines": lines}))


Mutant = tuple[str, str, int, int]  # file, cosmic-ray's operator, its occurrence in the file, line


def choose(given: argparse.Namespace) -> list[Mutant]:
    """Draw mutants of every file, as many as its share of all there are."""
    sources = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    files = [path for path, text in sources.items() if any(f"\n{words}" in text for words in SUBJECTS)]
    missing = [words for words in SUBJECTS if not any(f"\n{words}" in sources[path] for path in files)]
    if missing:
        sys.exit(f"nothing in the package defines {missing}; mend SUBJECTS")
    possible = {path: one_a_kind(list(mutants_of(path)), f"{given.seed} {path.name}") for path in files}
    total = sum(map(len, possible.values()))
    chosen = []
    for mutants in possible.values():
        chosen += [(mutants[0][0], UNCHANGED, 0, 0)] if mutants else []
        chosen += mutants[: max(8, round(given.count * len(mutants) / total))]
    if given.only:
        chosen = [mutant for mutant in chosen if any(word in mutant[0] for word in given.only)]
    return chosen


def one_a_kind(mutants: list[Mutant], seed: str) -> list[Mutant]:
    """Keep, in a random order, one of a line's changes of each kind: of "a * b" one of ten other operators will do."""
    random.Random(seed).shuffle(mutants)
    return list({(mutant[3], mutant[1].split("_")[0]): mutant for mutant in mutants}.values())


def mutants_of(path: Path) -> Iterator[Mutant]:
    """List what cosmic-ray can change in a file: annotations are left out, which nothing runs."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    tree, annotations = get_ast(path.read_text()), set(annotated(path))
    for name in sorted(operator_names()):
        if get_operator(name).arguments():
            continue
        operator = get_operator(name)()
        places = [place for node in ast_nodes(tree) for place in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(places):
            if start not in annotations:
                yield str(path.relative_to(CHECKOUT)), name, occurrence, start[0]


def annotated(path: Path) -> Iterator[tuple[int, int]]:
    """List the places of a file, (line, column), that are inside annotations."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(annotation, ast.expr):
                for part in ast.walk(annotation):
                    if isinstance(part, ast.expr):
                        last = part.end_col_offset or part.col_offset
                        yield from ((part.lineno, column) for column in range(part.col_offset, last + 1))


def meet_tests(mutants: list[Mutant]) -> Iterator[dict]:
    """Yield what became of each mutant; as many at a time as there are processors.

    A child of this process meets the tests; this one has imported what takes long.
    """
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    for name in PRELOADED:
        __import__(name)
    known = json.loads((WORK / "tests.json").read_text())
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        free = [copy_checkout(Path(folder) / str(i)) for i in range(PROCESSORS)]
        running: dict[int, tuple[Mutant, Path, list[str], float]] = {}
        waiting = list(reversed(mutants))
        while waiting or running:
            while waiting and free:
                mutant, place = waiting.pop(), free.pop()
                source = (CHECKOUT / mutant[0]).read_text()
                if mutant[1] != UNCHANGED:
                    (place / mutant[0]).write_text(mutate_code(source, get_operator(mutant[1])(), mutant[2]))
                tests = tests_of(mutant, known)
                running[start(place, tests)] = (mutant, place, tests, time.monotonic())
            for child, (mutant, place, tests, began) in list(running.items()):
                ended, status = os.waitpid(child, os.WNOHANG)
                late = time.monotonic() - began > PATIENCE + 3 * sum(known["seconds"].get(name, 1) for name in tests)
                if not ended and late:
                    os.killpg(child, 9)
                    ended, status = os.waitpid(child, 0)
                if ended:
                    shutil.copy(CHECKOUT / mutant[0], place / mutant[0])
                    del running[child]
                    free.append(place)
                    if "ERROR: not found: " in (log := (place / "log").read_text()):
                        sys.exit(f"tests have other names than when they were noted; delete {WORK}/tests.json\n{log}")
                    killed = bool(tests) and os.waitstatus_to_exitcode(status) != 0
                    if mutant[1] == UNCHANGED and killed:
                        sys.exit(f"{mutant[0]}: its tests fail in an unchanged copy\n{log}")
                    fields = dict(zip(("file", "mutant", "occurrence", "line"), mutant))
                    fields["of"] = sha256(CHECKOUT / mutant[0])
                    yield {**fields, "killed": killed, "late": late, "tests": len(tests)}
            time.sleep(0.02)


def copy_checkout(place: Path) -> Path:
    """Copy what tests read; the weights, which are large, are linked."""
    large = {"weights", "build", ".git"}
    for path in CHECKOUT.iterdir():
        if path.name in large:
            place.mkdir(exist_ok=True)
            (place / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, place / path.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.mkdir(exist_ok=True)
            shutil.copy(path, place / path.name, follow_symlinks=False)
    return place


def tests_of(mutant: Mutant, known: dict) -> list[str]:
    """List the quick tests that run the changed line, or all where it runs at import; those of its file first."""
    lines = {int(line): tests for line, tests in known["lines"].get(mutant[0], {}).items()}
    found = {test for line in statement_of(mutant) for test in lines.get(line, [])} or set(known["seconds"])
    mirror = f"/test_{Path(mutant[0]).name}::"
    first = sorted(found, key=lambda test: (mirror not in test, known["seconds"].get(test, 1.0)))
    took = accumulate(known["seconds"].get(test, 1.0) for test in first)
    return [test for test, seconds in zip(first, took) if seconds <= ENOUGH]


def statement_of(mutant: Mutant) -> range:
    """Return the lines of the statement around a mutant, of one with a body those of its head."""
    tree, line, found = ast.parse((CHECKOUT / mutant[0]).read_text()), mutant[3], range(mutant[3], mutant[3] + 1)
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno or node.lineno
            if node.lineno <= line <= last:
                found = range(node.lineno, last + 1)
    return found


def start(place: Path, tests: list[str]) -> int:
    """Begin a child that leaves with pytest's status."""
    if child := os.fork():
        return child
    os.setpgid(0, 0)
    with (place / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(place)
    sys.path[0] = str(place)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    status = 2
    try:
        import pytest

        status = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests])
    finally:
        os._exit(int(status))


def report(results: list[dict]) -> None:
    """Print a row for each file, and every survivor."""
    by_file = defaultdict(Counter)
    results = [result for result in results if result["mutant"] != UNCHANGED]
    for result in results:
        by_file[result["file"]]["killed" if result["killed"] else "survived"] += 1
    if not results:
        sys.exit("nothing is known yet")
    print("\n| file | mutants | killed |\n|---|---|---|")
    for file, counts in sorted(by_file.items()):
        print(f"| {file} | {counts.total()} | {counts['killed']} |")
    everything = sum(by_file.values(), Counter())
    print(f"| all | {everything.total()} | {everything['killed']}, {everything['killed'] / everything.total():.1%} |")
    for result in results:
        if not result["killed"]:
            print(
                f"{result['file']}:{result['line']} {result['mutant']} {result['occurrence']}, {result['tests']} tests"
            )


if __name__ == "__main__":
    main()
