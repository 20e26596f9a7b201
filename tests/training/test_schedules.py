import pytest

from scott_models.training.schedules import linear, warmup_flat_cosine


def test_schedules_of_the_original(recording):
    recorded = recording[1]["schedule"]
    total, warmup = recorded["total_steps"], recorded["warmup_steps"]
    lr = {name: recorded[f"lr_{name}"] for name in ("start", "peak", "final")}
    for i in range(total):
        assert warmup_flat_cosine(i + 1, total=total, warmup=warmup, flat=recorded["flat"], **lr) == pytest.approx(
            recorded["lr"][i], rel=0, abs=1e-12
        )
        for name in ("wd", "ema"):
            value = linear(i + 1, total=total, start=recorded[f"{name}_start"], final=recorded[f"{name}_final"])
            assert value == pytest.approx(recorded[name][i], rel=0, abs=1e-12)


def test_landmarks():
    settings = {"total": 200, "warmup": 26, "start": 1e-6, "peak": 5e-4, "final": 1e-5, "flat": 0.72}
    assert warmup_flat_cosine(1, **settings) == pytest.approx(1e-6 + (5e-4 - 1e-6) / 26, rel=1e-12)
    assert warmup_flat_cosine(26, **settings) == 5e-4
    assert warmup_flat_cosine(26 + 125, **settings) == 5e-4
    assert warmup_flat_cosine(200, **settings) == pytest.approx(1e-5, rel=1e-12)
    assert warmup_flat_cosine(201, **settings) == pytest.approx(1e-5, rel=1e-12)  # the value stays final
    assert linear(200, total=200, start=0.996, final=1.0) == 1.0


def test_no_warmup_and_no_decay():
    assert warmup_flat_cosine(1, total=10, warmup=0, start=0.0, peak=1.0, final=0.0, flat=1.0) == 1.0
    assert warmup_flat_cosine(10, total=10, warmup=0, start=0.0, peak=1.0, final=0.0, flat=1.0) == 0.0
