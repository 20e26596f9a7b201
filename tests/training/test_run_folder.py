import errno
import json
import math
import os
import threading

import pytest
import torch

from scott_models.errors import DataError, RecipeError, WritingError
from scott_models.pretrain.monitor import Health, judge
from scott_models.pretrain.recipe import Recipe
from scott_models.pretrain.train import write_readme
from scott_models.training.checkpoints import Checkpoints
from scott_models.training.run_folder import Log, has_control, write_environment


@pytest.fixture
def checkpoints(tmp_path):
    model = torch.nn.Linear(2, 2)
    return Checkpoints(
        tmp_path / "checkpoints", {"model": model}, torch.optim.AdamW(model.parameters()), {"images": "digest"}
    )


def set_weights(checkpoints, value):
    torch.nn.init.constant_(checkpoints.parts["model"].weight, value)


def weight(checkpoints):
    return checkpoints.parts["model"].weight[0, 0].item()


def save(checkpoints, step, *, best=False):
    checkpoints.save(step, best=best)
    checkpoints.wait()


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_the_last_and_the_best_are_kept(checkpoints):
    for step in (1, 2, 3, 4):
        set_weights(checkpoints, step)
        save(checkpoints, step, best=step == 2)
    assert names(checkpoints) == ["best.pt", "step_000000003.pt", "step_000000004.pt"]
    assert torch.load(checkpoints.folder / "best.pt", weights_only=True)["step"] == 2
    set_weights(checkpoints, 0)
    assert checkpoints.load() == 4
    assert weight(checkpoints) == 4


def test_a_killed_or_failed_save_leaves_the_last_checkpoint(checkpoints, monkeypatch):
    set_weights(checkpoints, 7)
    save(checkpoints, 7)

    def half(state, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    set_weights(checkpoints, 8)
    with pytest.raises(DataError, match="8.pt.*No space left.*step_000000007.pt.*--resume"):
        save(checkpoints, 8)
    assert names(checkpoints) == ["step_000000007.pt"]
    left = checkpoints.folder / ".step_000000009-1.pt"
    left.write_bytes(b"killed while writing")
    assert checkpoints.load() == 7
    assert weight(checkpoints) == 7
    monkeypatch.undo()
    save(checkpoints, 8)
    assert not left.exists()


@pytest.fixture
def slow_disk(monkeypatch):
    """Block every write until the yielded event is set, and check that only one write runs at a time."""
    go_on, at_once = threading.Event(), []
    write = torch.save

    def slow(state, file):
        at_once.append(1)
        assert len(at_once) == 1
        assert go_on.wait(60)
        write(state, file)
        at_once.pop()

    monkeypatch.setattr(torch, "save", slow)
    yield go_on
    go_on.set()


def test_a_checkpoint_is_written_while_the_run_goes_on(checkpoints, slow_disk):
    """Check that a file holds the weights and the optimiser's state at the time of `save`, one file at a time."""
    set_weights(checkpoints, 1)
    checkpoints.parts["model"](torch.ones(1, 2)).sum().backward()
    checkpoints.optimizer.step()
    moments = [state["exp_avg"].clone() for state in checkpoints.optimizer.state.values()]
    saved = weight(checkpoints)
    checkpoints.save(1)
    for _ in range(3):
        checkpoints.optimizer.step()
    assert not checkpoints.files()
    threading.Timer(0.05, slow_disk.set).start()
    checkpoints.save(2)
    assert checkpoints.files()[-1].name == "step_000000001.pt"
    assert "step_000000002.pt" in checkpoints.last_good()  # last_good waits
    state = torch.load(checkpoints.folder / "step_000000001.pt", weights_only=True)
    assert state["objective"]["model"]["weight"][0, 0] == saved != weight(checkpoints)
    assert all(torch.equal(state["optimizer"]["state"][i]["exp_avg"], moment) for i, moment in enumerate(moments))


def test_saved_weights_keep_the_versions_of_their_modules(checkpoints):
    checkpoints.parts["norm"] = torch.nn.BatchNorm1d(2)
    save(checkpoints, 1)
    state = torch.load(checkpoints.files()[0], weights_only=True)["objective"]["norm"]
    assert state._metadata == checkpoints.parts["norm"].state_dict()._metadata


def test_a_failed_write_is_told_at_the_next_save_or_at_the_end(checkpoints, monkeypatch):
    def full(state, file):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    checkpoints.save(1)
    with pytest.raises(DataError, match="1.pt.*No space left.*no checkpoint yet"):
        checkpoints.save(2)
    with pytest.raises(DataError, match="3.pt: cannot be written"), checkpoints:
        checkpoints.save(3)
    checkpoints.save(4)
    with pytest.raises(KeyError), checkpoints:  # the first error is reported
        {}["first"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EROFS, "check the folder and its disk")],
)
def test_only_a_full_disk_needs_room(number, advice, checkpoints, monkeypatch):
    """Raise the error as torch does, whose writer raises a RuntimeError after the system's error."""

    def fail(state, file):
        try:
            raise OSError(number, "why")
        finally:
            raise RuntimeError("unexpected position 768")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(DataError, match=rf"step_000000001.pt: cannot be written \(why\); {advice}; there is no check"):
        save(checkpoints, 1)


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(checkpoints, damage, capsys):
    for step in (5, 6):
        set_weights(checkpoints, step)
        save(checkpoints, step)
    path = checkpoints.folder / "step_000000006.pt"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "flipped":
        place = content.index(torch.tensor(6.0).numpy().tobytes())
        content[place] ^= 1
        path.write_bytes(content)
    else:
        torch.save({"step": 6}, path)
    assert checkpoints.load() == 5
    assert weight(checkpoints) == 5
    assert "step_000000006.pt: damaged or foreign, trying an earlier one" in capsys.readouterr().err
    assert names(checkpoints) == ["step_000000005.pt", "step_000000006.damaged"]  # pruning must not keep it instead
    assert "step_000000005.pt" in checkpoints.last_good()
    (checkpoints.folder / "step_000000005.pt").write_bytes(b"none")
    for _ in range(2):  # loading again must not start anew in a folder that holds a run
        with pytest.raises(DataError, match="found damaged or foreign files only"):
            checkpoints.load()


def test_without_a_checkpoint_nothing_was_done(checkpoints):
    assert checkpoints.load() == 0
    assert "there is no checkpoint yet" in checkpoints.last_good()


def test_a_run_of_other_images_is_refused(checkpoints):
    save(checkpoints, 3)
    checkpoints.identity = {"images": "another"}
    checkpoints.parts["model"] = torch.nn.Linear(2, 3)  # which may need weights of another shape
    with pytest.raises(RecipeError, match="images.*found others.*--out"):
        checkpoints.load()


def test_a_run_of_other_labels_is_refused(checkpoints):
    save(checkpoints, 3)
    checkpoints.identity = {"images": "digest", "labels": "a"}
    assert checkpoints.load() == 3  # an older version stored no labels
    save(checkpoints, 4)
    assert checkpoints.load() == 4
    checkpoints.identity = {"images": "digest", "labels": "b"}
    with pytest.raises(RecipeError, match="labels.*found others"):
        checkpoints.load()


def test_log_goes_on_where_the_checkpoint_ends(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Log(path, 0, batch=8, steps_per_epoch=4, kind_of_health=Health) as log:
        assert not log.monitored(0, Health(40, 0.5, 0.5))
        for step in (2, 4, 6):
            log.write(step, loss=1.0)
        assert log.monitored(4, Health(50, 0.5, 0.5))
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # a power failure
    with Log(path, 4, batch=8, steps_per_epoch=4, kind_of_health=Health) as log:
        assert set(log.health) == {0, 4}
        assert not log.monitored(0, Health(1, 0, 0))  # random weights, measured again
        log.write(6, loss=2.0)
        assert not log.monitored(6, Health(45, 0.5, 0.5))
        assert log.monitored(8, Health(55, 0.5, 0.5))
        log.write(9, loss=float("nan"))
    assert "NaN" not in path.read_text()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["epoch"], line["loss"]) for line in lines if "loss" in line] == [
        (2, 0.5, 1.0),
        (4, 1.0, 1.0),
        (6, 1.5, 2.0),
        (9, 2.25, None),
    ]
    assert all(line["images_per_second"] > 0 for line in lines if "loss" in line)
    assert [line["step"] for line in lines if "monitor" in line] == [0, 4, 6, 8]
    with Log(path, 0, batch=8, steps_per_epoch=4, kind_of_health=Health):
        pass
    assert path.read_text() == ""


@pytest.mark.parametrize("damage", [b"", b"3", b"[]", b"{}", b'{"step": "4"}', b'{"step', b"\0\0", b"\xff"])
def test_damaged_lines_of_the_log_are_left_out(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    control, line = (
        b'{"step": 0, "monitor": {"rankme": 4.0, "spread": 0.5, "cosine": 0.5}}',
        b'{"step": 2, "loss": 1.0}',
    )
    path.write_bytes(b"\n".join([control, damage, line, damage]))
    assert has_control(path)
    with Log(path, 4, batch=8, steps_per_epoch=4, kind_of_health=Health) as log:
        assert log.health == {0: Health(4, 0.5, 0.5)}
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [0, 2]
    path.write_bytes(b"\n".join([damage, line]))
    assert not has_control(path)
    assert not has_control(tmp_path / "none.jsonl")


@pytest.mark.parametrize("damage", [b"", b"[{", b"{}", b"\xff"])
def test_a_damaged_environment_begins_anew(tmp_path, damage, capsys):
    path = tmp_path / "environment.json"
    path.write_bytes(damage)
    for after in (0, 4):
        write_environment(path, ["photos"], after=after)
    assert [start["after"] for start in json.loads(path.read_text())] == [0, 4]
    assert (tmp_path / "environment.damaged").read_bytes() == damage
    assert "environment.json: damaged" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_log_on_a_full_disk(tmp_path):
    def write():
        with Log(tmp_path / "metrics.jsonl", 0, batch=8, steps_per_epoch=4, kind_of_health=Health) as log:
            log.file.close()
            log.file = open("/dev/full", "a")  # noqa: SIM115 -- the log closes it
            log.write(2, loss=1.0)

    with pytest.raises(WritingError, match="/dev/full: cannot be written.*make room"):
        write()


def test_what_is_no_number_is_null_at_any_depth(tmp_path):
    """Check that NaN and infinity, which JSON lacks, are written as null, and that monitor lines are read back."""
    path = tmp_path / "metrics.jsonl"
    with Log(path, 0, batch=8, steps_per_epoch=4, kind_of_health=Health) as log:
        log.monitored(0, Health(40, 0.5, 0.5))
        log.write(3, loss=math.inf, rates=[1.0, math.nan], more={"of": {"them": -math.inf}})
        log.monitored(4, Health(math.nan, 0.0, math.inf, knn=3.0))

    def no_number(name):
        raise AssertionError(name)

    lines = [json.loads(line, parse_constant=no_number) for line in path.read_text().splitlines()]
    assert (lines[1]["loss"], lines[1]["rates"], lines[1]["more"]) == (None, [1, None], {"of": {"them": None}})
    assert lines[2]["monitor"] == {"rankme": None, "spread": 0, "cosine": None, "knn": 3, "ridge": None}
    with Log(path, 4, batch=8, steps_per_epoch=4, kind_of_health=Health) as log:
        health = log.health[4]
    assert math.isnan(health.rankme)
    assert (health.spread, health.knn, health.ridge) == (0, 3, None)
    assert judge(health, log.health[0]).startswith("dead, ")
    write_readme(tmp_path / "README.md", Recipe(), ["photos"], 9, log.health)
    assert "| 4 | nan | 0.00 | nan | 3.0 | - |" in (tmp_path / "README.md").read_text()


def test_other_processes_log_nothing(tmp_path):
    with Log(tmp_path / "metrics.jsonl", 0, batch=8, steps_per_epoch=4, kind_of_health=Health, writes=False) as log:
        assert log.write(2, loss=1.0)["loss"] == 1
    assert not list(tmp_path.iterdir())
