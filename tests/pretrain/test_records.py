import json

import pytest
import torch

from scott_models.pretrain.records import Checkpoint, Log


@pytest.fixture
def checkpoint(tmp_path):
    model = torch.nn.Linear(2, 2)
    return Checkpoint(tmp_path / "checkpoint.pt", model, torch.optim.AdamW(model.parameters()), total=9)


def test_a_killed_save_leaves_the_last_checkpoint(checkpoint, monkeypatch):
    checkpoint.save(7)
    before = checkpoint.objective.weight.detach().clone()

    def half(state, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    torch.nn.init.zeros_(checkpoint.objective.weight)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(8)
    assert checkpoint.load() == 7
    assert torch.equal(checkpoint.objective.weight, before)


def test_log_goes_on_where_the_checkpoint_ends(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Log(path, 0) as log:
        for step in (2, 4, 6):
            log.write(step, batch=8, loss=1.0)
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # the power went
    with Log(path, 4) as log:
        log.write(6, batch=8, loss=2.0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 1.0), (4, 1.0), (6, 2.0)]
    assert all(line["images_per_second"] > 0 for line in lines)
    with Log(path, 0):
        pass
    assert path.read_text() == ""
