import errno
import os
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest

from scott_models.errors import DataError, RecipeError
from scott_models.training import lock
from scott_models.training.lock import hold_folder


def test_a_second_run_is_told_who_holds_the_folder(tmp_path):
    (tmp_path / "recipe.toml").write_text("mine")
    with hold_folder(tmp_path):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        held = rf"no other run.*process {os.getpid()} on host .* since .*--out"
        with pytest.raises(RecipeError, match=held), hold_folder(tmp_path):
            pass
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
    with hold_folder(tmp_path):
        pass


def test_a_thread_is_a_run_of_its_own(tmp_path):
    found = []

    def train():
        try:
            with hold_folder(tmp_path):
                found.append("held")
        except RecipeError:
            found.append("refused")

    with hold_folder(tmp_path):
        other = threading.Thread(target=train)
        other.start()
        other.join()
    train()
    assert found == ["refused", "held"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_lock_of_a_killed_process_is_nobodys(tmp_path):
    if not (child := os.fork()):
        with hold_folder(tmp_path / "run"):
            os._exit(0)
    os.waitpid(child, 0)
    assert f"process {child} " in (tmp_path / "run" / ".holder").read_text()
    with hold_folder(tmp_path / "run"):
        assert f"process {os.getpid()} " in (tmp_path / "run" / ".holder").read_text()
    assert not list((tmp_path / "run").iterdir())


def test_a_new_folder_that_stays_empty_is_removed(tmp_path):
    for name in ("empty", "full"):
        with suppress(KeyError), hold_folder(tmp_path / "new" / name):
            if name == "full":
                (tmp_path / "new" / name / "recipe.toml").touch()
            {}["a mistake in the recipe"]
    assert sorted(path.name for path in (tmp_path / "new").rglob("*")) == ["full", "recipe.toml"]


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(DataError, match=rf"{out}: expected a folder.*--out"), hold_folder(out):
            pass

    def refuse(*arguments, **settings):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(DataError, match="a folder to write to.*Permission denied"), hold_folder(tmp_path):
        pass


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_a_disk_without_locks(tmp_path, monkeypatch, capsys, error):
    def refuse(*arguments, **settings):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with hold_folder(tmp_path / "run"):
        (tmp_path / "run" / "recipe.toml").touch()
    assert "no locks" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.toml"]


def test_the_first_process_holds_the_folder_for_all(tmp_path, monkeypatch):
    with hold_folder(tmp_path):
        monkeypatch.setattr(lock, "join", lambda: SimpleNamespace(is_main_process=False))
        with hold_folder(tmp_path):
            pass
        monkeypatch.setattr(lock, "agree", lambda refused: RecipeError("the first process was refused"))
        with pytest.raises(RecipeError, match="first process"), hold_folder(tmp_path):
            pass
