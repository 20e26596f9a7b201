import pytest
import torch

from scott_models.training.processes import agree, join


@pytest.mark.parametrize(
    ("environment", "gpu", "cpu"),
    [
        ({}, False, False),
        ({"TORCHELASTIC_RUN_ID": "1"}, False, True),
        ({"TORCHELASTIC_RUN_ID": "1"}, True, False),
        ({"ACCELERATE_USE_CPU": "true"}, True, True),
    ],
)
def test_processes_of_a_launcher_train_together_without_a_gpu(monkeypatch, environment, gpu, cpu):
    for name in ("TORCHELASTIC_RUN_ID", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    monkeypatch.setattr("accelerate.PartialState", lambda cpu, timeout: cpu)
    assert join() == cpu


def test_a_process_agrees_with_itself():
    assert agree({"epochs": 3}) == {"epochs": 3}
