"""benchmarks/paper/lease.py: what travels, what is handed out when, and what the played machine refuses."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PAPER = Path(__file__).parents[2] / "benchmarks" / "paper"
sys.path.insert(0, str(PAPER))

import lease  # noqa: E402
import rehearse_lease  # noqa: E402


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "lease").mkdir()
    return rehearse_lease.Machine(tmp_path / "machine")


@pytest.mark.parametrize(
    ("command", "refused"),
    [
        ("for i in 1 2 3 4 5 6 7 8 9; do touch $OUT/$i; done", "at most 8 files back, found 9"),
        ("head -c 16777217 /dev/zero > $OUT/large", "files of at most 16,777,216 bytes"),
        ("for i in 1 2 3 4 5; do head -c 14000000 /dev/zero > $OUT/$i; done", "at most 67,108,864 bytes back"),
        ("mkdir -p $OUT/a/b/c; touch $OUT/a/b/c/d", "files at most 2 folders deep, found 3"),
        ('touch "$OUT/with space"', "names of letters, digits"),
        ("exit 3", "status 0 of 'exit 3'.*600 s.*found 3"),
    ],
)
def test_what_goes_beyond_the_limits_is_refused(machine, tmp_path, command, refused):
    with pytest.raises(RuntimeError, match=refused):
        machine.run(command, tmp_path / "lease", tmp_path / "back")


def test_a_call_that_takes_too_long_or_carries_too_much_is_refused(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearse_lease, "SECONDS", 0.1)
    with pytest.raises(RuntimeError, match="found -9"):
        machine.run("sleep 60", tmp_path / "lease", tmp_path / "back")
    monkeypatch.setattr(rehearse_lease, "CARRIED", 10)
    (tmp_path / "lease" / "data").write_bytes(bytes(11))
    with pytest.raises(RuntimeError, match="10 bytes to carry.*found 11"):
        machine.run("true", tmp_path / "lease", tmp_path / "back")


def test_only_a_session_of_its_own_outlives_a_call(machine, tmp_path):
    command = f"sleep 50 & echo $! > {tmp_path}/group; setsid sleep 50 & echo $! > {tmp_path}/session; sleep 0.2"
    machine.run(command, tmp_path / "lease", tmp_path / "back")
    time.sleep(0.1)
    state = {name: Path(f"/proc/{(tmp_path / name).read_text().strip()}/stat") for name in ("group", "session")}
    assert not state["group"].exists() or " Z " in state["group"].read_text()
    assert state["session"].exists()
    os.kill(int((tmp_path / "session").read_text()), 9)


def test_packages_that_such_machines_lack_are_absent(machine, tmp_path):
    code = "import importlib.util as u; print([u.find_spec(n) for n in ('imagehash', 'tyro', 'rich')])"
    assert machine.run(f'python3 -c "{code}"', tmp_path / "lease", tmp_path / "back") == "[None, None, None]\n"


def test_staged_is_code_alone_and_the_data_of_one_call(tmp_path):
    first, second = tmp_path / "a.tar", tmp_path / "b.tar"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    lease.stage(tmp_path / "lease", [first], [])
    assert (tmp_path / "lease" / "scott_models" / "weights_manifest.json").is_file()
    assert not (tmp_path / "lease" / "scott_models" / "weights_manifest.json").is_symlink()
    assert not list((tmp_path / "lease").rglob("*.safetensors"))
    size = sum(path.stat().st_size for path in (tmp_path / "lease").rglob("*") if path.is_file())
    assert size < 1.5e6
    lease.stage(tmp_path / "lease", [second], [])
    assert [path.name for path in (tmp_path / "lease").glob("*.tar")] == ["b.tar"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(SystemExit, match="empty folder.*`stage`"):
        lease.stage(tmp_path / "mine", [], [])


def test_more_than_may_travel_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "CARRIED", 1000)
    with pytest.raises(SystemExit, match="give one tar file a call"):
        lease.stage(tmp_path / "lease", [], [])


def test_start_wants_data(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.tar").touch()
    with pytest.raises(SystemExit, match="3 tar files.*found 1.*`take`"):
        lease.start(tmp_path, 1, 3, [])


def test_start_waits_for_what_was_killed_and_starts_nothing_twice(tmp_path, monkeypatch, capsys):
    answers, slept = iter([True, True, False]), []
    monkeypatch.setattr(lease, "is_running", lambda work: next(answers))
    monkeypatch.setattr(lease.time, "sleep", slept.append)
    with pytest.raises(SystemExit, match="call `take` for each"):  # it would have started
        lease.start(tmp_path, 1, 3, [])
    assert len(slept) == 2
    monkeypatch.setattr(lease, "is_running", lambda work: True)
    lease.start(tmp_path, 1, 3, [])
    assert "running already" in capsys.readouterr().out


def poll(work, back, **options):
    back.mkdir(exist_ok=True)
    lease.poll(work, back, options.get("seconds", 0), options.get("again", False))
    return sorted(path.name for path in back.iterdir())


def test_files_are_handed_out_once_small_ones_first(tmp_path, capsys, monkeypatch):
    work, out = tmp_path / "work", tmp_path / "work" / "out"
    out.mkdir(parents=True)
    for i in range(7):
        (out / f"row.weights.{i}").write_bytes(b"w")
    (out / "row.tar").write_bytes(b"scores")
    (out / "row.tar.partial").write_bytes(b"half")
    assert poll(work, tmp_path / "1") == ["log.txt", "row.tar", *[f"row.weights.{i}" for i in range(6)]]
    assert "1 more files wait; poll again" in capsys.readouterr().out
    assert poll(work, tmp_path / "2") == ["log.txt", "row.weights.6"]
    assert "0 more files wait; nothing is left" in capsys.readouterr().out
    (out / "row.tar").write_bytes(b"more scores")
    assert poll(work, tmp_path / "3") == ["log.txt", "row.tar"]
    monkeypatch.setattr(lease, "BACK", 3)
    assert poll(work, tmp_path / "4", again=True) == ["log.txt", "row.weights.0", "row.weights.1", "row.weights.2"]
    assert json.loads((work / "sent.json").read_text()).keys() == {"row.weights.0", "row.weights.1", "row.weights.2"}


def test_poll_waits_for_weights(tmp_path, monkeypatch):
    """Scores change often: they wait for the end of a call, weights do not."""
    work, out = tmp_path, tmp_path / "out"
    out.mkdir()
    (out / "row.tar").write_bytes(b"scores")
    looks = []

    def grow(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            (out / "row.weights.0").write_bytes(b"w")

    monkeypatch.setattr(lease, "is_running", lambda work: True)
    monkeypatch.setattr(lease.time, "sleep", grow)
    assert poll(work, tmp_path / "back", seconds=60) == ["log.txt", "row.tar", "row.weights.0"]
    assert len(looks) == 2


def test_what_is_small_is_there_when_a_call_is_cut(tmp_path, monkeypatch):
    work, out = tmp_path, tmp_path / "out"
    out.mkdir()
    (out / "row.tar").write_bytes(b"scores")
    (work / "log.txt").write_text("one line")
    monkeypatch.setattr(lease, "is_running", lambda work: True)

    def cut(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(lease.time, "sleep", cut)
    with pytest.raises(KeyboardInterrupt):
        poll(work, tmp_path / "back", seconds=60)
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["log.txt", "row.tar"]
    (work / "sent.json").write_text("{cut")  # whatever became of it, the next call hands all out
    monkeypatch.setattr(lease, "is_running", lambda work: False)
    assert poll(work, tmp_path / "next") == ["log.txt", "row.tar"]


def test_a_child_whose_parent_was_killed_is_still_the_work(tmp_path):
    parent = subprocess.Popen(["bash", "-c", "sleep 60 & wait"], start_new_session=True)
    (tmp_path / "pid").write_text(str(parent.pid))
    while len(list(group(parent.pid))) < 2:
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    assert lease.is_running(tmp_path)
    os.killpg(parent.pid, 9)
    while any(state not in "ZX" for state in group(parent.pid)):
        time.sleep(0.01)
    assert not lease.is_running(tmp_path)
    assert not lease.is_running(tmp_path / "nothing")


def group(number):
    """The states of the processes of a group."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its = path.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(its) == number:
            yield state


def test_a_checkout_that_travels_too_is_counted(tmp_path, capsys):
    lease.stage(tmp_path / "lease", [], [])
    carried, whole = map(float, re.findall(r"([\d.]+) (?:MiB to carry|if the lease)", capsys.readouterr().out))
    assert carried < 2
    assert whole >= carried


def test_the_script_needs_nothing_but_python(tmp_path):
    """It must say what is wrong on a machine where nothing else works."""
    command = [sys.executable, "-S", "-I", str(PAPER / "lease.py"), "take", "--work", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "nothing yet" in ended.stdout
