import math

import pytest

from scott_models.training.course import Course

RATES = {"warmup": 10, "start": 0.0, "peak": 1.0, "final": 0.1, "flat": 0.8}


def test_as_planned():
    course = Course(100)
    assert course.total == 100
    assert [course.place(step) for step in (1, 50, 100)] == [1, 50, 100]
    assert [course.lr(step, **RATES) for step in (5, 60, 100)] == [0.5, 1.0, pytest.approx(0.1)]


@pytest.mark.parametrize("updates", [20, 60, 200])
def test_brought_to_an_end(updates):
    """Check that all schedules end at their final values, in fewer updates than were left or in more."""
    course = Course(100, finish_after=40, finish_updates=updates)
    assert course.total == 40 + updates
    assert course.place(40) == 40
    assert course.place(40 + updates) == 100
    assert course.place(40 + updates // 2) == 70
    assert course.lr(40, **RATES) == 1.0
    assert course.lr(40 + updates // 2, **RATES) == pytest.approx(0.55)
    assert course.lr(40 + updates // 4, **RATES) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    assert course.lr(40 + updates, **RATES) == pytest.approx(0.1)


def test_a_finish_in_the_decay_goes_down_from_there():
    course = Course(100, finish_after=95, finish_updates=10)
    level = Course(100).lr(95, **RATES)
    assert course.lr(96, **RATES) < level < 1
    assert course.lr(105, **RATES) == pytest.approx(0.1)


def test_small_images_come_first():
    assert list(Course(100).sizes(1, 32, 0.75, 64)) == [(1, 75, 32), (76, 100, 64)]
    assert list(Course(100).sizes(60, 32, 0.75, 64)) == [(60, 75, 32), (76, 100, 64)]  # resumed
    assert list(Course(100).sizes(76, 32, 0.75, 64)) == [(76, 100, 64)]
    assert list(Course(100).sizes(101, 32, 0.75, 64)) == []  # the run has ended
    assert list(Course(100).sizes(1, 0, 0.75, 64)) == [(1, 100, 64)]
    assert list(Course(3).sizes(1, 32, 0.75, 64)) == [(1, 2, 32), (3, 3, 64)]
    assert list(Course(1).sizes(1, 32, 0.75, 64)) == [(1, 1, 64)]


def test_a_run_that_is_brought_to_an_end_keeps_the_shares_of_its_sizes():
    assert list(Course(100, 51, 49).sizes(52, 32, 0.75, 64)) == [(52, 75, 32), (76, 100, 64)]
    assert list(Course(100, 55, 18).sizes(56, 32, 0.75, 64)) == [(56, 63, 32), (64, 73, 64)]
    assert list(Course(100, 80, 10).sizes(81, 32, 0.75, 64)) == [(81, 90, 64)]
