"""Make 20 updates of each model, to find out early which models run, with torch.compile or only without."""

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from collect import write_whole
from rows import UNCOMPILED, Row
from session import Session, end

from scott_models.data.decoded import open_images
from scott_models.data.sources import find_samples

TRIAL = ("optim.epochs=0.32", "optim.warmup_epochs=0", "run.log_every=10")  # 20 updates, of 63 in an epoch
TRYING = 300  # seconds after which a trial is ended


def try_models(session: Session) -> None:
    """Make 20 updates of each model, all models at once, and write the outcome to trial.json.

    A model that fails is tried again alone, and then without torch.compile. If only the last attempt works, the rows of
    this model run without torch.compile.
    """
    kept = session.out / "trial.json"
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    models = {row.settings.model.name: row.changed(*TRIAL) for row in reversed(session.rows)}
    first = session.rows[0].settings.model.name
    models = {name: row if name == first else row.changed("monitor.every=0") for name, row in models.items()}
    recipe = session.rows[0].settings
    open_images(find_samples([session.flowers]), recipe.data.short_side)  # decode once, not in every process
    for together, change in ((True, ()), (False, ()), (False, (UNCOMPILED,))):
        left = {name: row.changed(*change) for name, row in models.items() if found.get(name, {}).get("status") != 0}
        for names in [list(left)] if together else [[name] for name in left]:
            session.clock.say(f"20 updates of {', '.join(names)}{', without torch.compile' if change else ''}")
            for name, result in try_together({name: left[name] for name in names}, session).items():
                found[name] = {**result, "changes": list(change)}
            write_whole(kept, (json.dumps(found, indent=1) + "\n").encode())
    session.failed += [f"{name}: 20 updates" for name, result in found.items() if result["status"] != 0]


def try_together(rows: dict[str, Row], session: Session) -> dict[str, dict[str, Any]]:
    """Make the updates of several models at once; return the status and the last line of metrics of each model."""
    started, processes, found = time.monotonic(), {}, {}
    try:
        for name, row in rows.items():
            folder = Path(tempfile.mkdtemp(prefix=f"trial-{name}-", dir=row.run.parent))
            processes[name] = folder, subprocess.Popen(row.pretraining(session.flowers, folder))
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
    """Read the last whole line of a run's metrics; return None if there is none."""
    for line in reversed(log.read_text(encoding="utf-8").splitlines() if log.is_file() else []):
        with suppress(ValueError):  # an incomplete line
            return json.loads(line)
    return None


def as_tried(rows: Sequence[Row], out: Path) -> list[Row]:
    """Return the rows with the changes that the trial found necessary, or unchanged if there was no trial."""
    kept = out / "trial.json"
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    return [row.changed(*found.get(row.settings.model.name, {}).get("changes", ())) for row in rows]
