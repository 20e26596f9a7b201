"""Test progress lines where standard error is not a terminal."""

from scott_models import progress


def test_lines_tell_speed_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    assert list(progress.track("abc", "reading", total=8, size=3)) == ["a", "b", "c"]
    out, errors = capsys.readouterr()
    lines = errors.splitlines()
    states = dict.fromkeys(line.split(" images, ")[0] for line in lines)
    assert list(states) == ["reading: 0/8", "reading: 3/8", "reading: 6/8", "reading: 8/8"]
    assert all(line.endswith(" left") and "images/s" in line for line in lines)
    assert out == ""
    assert all(map(str.isprintable, lines))  # no control characters


def test_what_is_short_needs_no_lines(capsys):
    assert list(progress.track(range(3), "reading", total=3)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
