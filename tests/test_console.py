"""Test what is printed where a stream is absent, lost, full or of a narrow encoding."""

import io
import os
import pty
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from scott_models import console

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
# A process that imports the module alone, which takes a moment where the package would take seconds.
PROCESS = f"import sys; sys.path.insert(0, {str(Path(console.__file__).parent)!r}); import console\n"


def test_nobody_hears_a_note_and_nothing_fails(lost, monkeypatch):
    monkeypatch.setattr(sys, "stderr", lost)
    for _ in range(2):
        console.say("a note")
    console.say_from_handler("a note")


def test_nobody_reads_a_result_and_nothing_fails(lost, monkeypatch):
    monkeypatch.setattr(sys, "stdout", lost)
    for _ in range(2):
        console.show("a result")


def test_a_lost_stream_can_be_flushed(monkeypatch):
    """Check that Python, which flushes its streams at the end, would not end with another status."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        console.say("a note")
        stream.write("more")


@needs_full
def test_a_result_that_was_to_be_kept(monkeypatch):
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="No space.*standard output"):
            console.show("a result")


@needs_full
def test_a_note_on_a_full_disk_is_no_error_and_the_next_may_find_room(monkeypatch, tmp_path):
    with FULL.open("w") as stream, (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stderr", stream)
        console.say("a note")
        os.dup2(log.fileno(), stream.fileno())  # as if there were room again
        console.say("later")
    assert (tmp_path / "log").read_text().endswith("later\n")


@pytest.mark.parametrize(("name", "write"), [("stderr", console.say), ("stdout", console.show)])
def test_characters_that_an_encoding_lacks(name, write, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, name, stream)
    write("é 花 caf\udce9")
    assert stream.buffer.getvalue() == b"\xe9 \\u82b1 caf\\udce9" + os.linesep.encode()


def test_a_result_among_the_notes_is_one_of_them(capsys):
    """Check that `--json`, by which all but the result goes to standard error, prints each line once."""
    with redirect_stdout(sys.stderr):
        console.show("a sentence")
    assert capsys.readouterr().err == "a sentence\n"


def test_what_is_a_terminal(lost):
    assert not console.is_terminal(lost)
    main, terminal = pty.openpty()
    with open(main), open(terminal, "w") as stream:
        assert console.is_terminal(stream)


def run(code, shell="", **options):
    """Run code in a process of its own, whose streams the shell changes; return its status and what it printed."""
    command = ["bash", "-c", f'"$@" {shell}', "bash", sys.executable, "-c", PROCESS + code]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, **options)
    return done.returncode, done.stdout, done.stderr


PRINTS = "with console.open_streams(): print('a result'); print('a note', file=sys.stderr)"
HELPS = "with console.open_streams(): print('help'); sys.exit(0)"


@pytest.mark.parametrize("code", [PRINTS, HELPS])
@pytest.mark.parametrize("shell", ["2>&-", ">&-", "<&- >&- 2>&-", "| true; exit ${PIPESTATUS[0]}", "2>&1 | true"])
def test_a_command_ends_with_the_status_of_its_work(code, shell):
    status, _, errors = run(code, shell)
    assert (status, errors.replace("a note\n", "")) == (0, "")


@needs_full
@pytest.mark.parametrize("code", [PRINTS, HELPS])
def test_output_that_was_to_be_kept(code):
    status, _, errors = run(code, "> /dev/full")
    assert status == 1
    assert "No space left on device: 'standard output'" in errors
    assert run(code, "2> /dev/full")[0] == 0


def test_files_do_not_get_the_numbers_of_streams(tmp_path):
    """Otherwise what C code prints on standard error would be written into a file, e.g. a checkpoint."""
    code = f"with console.open_streams(): number = open({str(tmp_path / 'a')!r}, 'w').fileno()\nsys.exit(number)"
    assert run(code, "<&- >&- 2>&-")[0] > 2


def test_a_command_in_a_narrow_encoding():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code = "with console.open_streams(): print('花'), print('花', file=sys.stderr)"
    status, output, errors = run(code, env=environment)
    assert (status, output, errors) == (0, "\\u82b1\n", "\\u82b1\n")


def test_a_result_of_an_unbuffered_command_comes_at_once():
    code = "import os\nwith console.open_streams(): print('first'); os.write(1, b'second\\n')"
    assert run(code, env={**os.environ, "PYTHONUNBUFFERED": "1"})[1] == "first\nsecond\n"
