import pytest

from scott_models.bench import doctor
from scott_models.weights import manifest

TAG = "scott_3_16.mimjepa_flowers102_cpu"


def found(**options):
    return {finding.what: finding for finding in doctor.examine(**options)}


def test_weights_verified_damaged_and_elsewhere(monkeypatch, tmp_path):
    assert found(speed=False)[TAG].state == "ok"
    (tmp_path / TAG).mkdir()
    (tmp_path / TAG / "model.safetensors").write_bytes(b"damaged")
    monkeypatch.setenv("SCOTT_MODELS_DIR", str(tmp_path))
    assert found(speed=False)[TAG].state == "wrong"
    assert "expected sha256" in found(speed=False)[TAG].found
    monkeypatch.setattr("scott_models.weights.files.list_folders", lambda: [])
    assert found(speed=False)[TAG].found == "neither here nor published"
    published = {**manifest()[TAG], "repository": "org/name", "revision": "0" * 40}
    monkeypatch.setitem(manifest(), TAG, published)
    assert found(speed=False)[TAG].found == "13 MB would come from org/name on the Hub"


def test_what_is_not_installed_names_its_extra(monkeypatch):
    def version(name):
        if name == "accelerate":
            raise doctor.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(doctor, "version", version)
    row = found(speed=False)["accelerate"]
    assert (row.state, row.found) == ("note", "not installed; pip install 'scott_models[train]' if you need it")


def test_tokens_are_not_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    row = found(speed=False)["Hub"]
    assert "a token is set" in row.found
    assert "verysecret" not in str(found(speed=False))


@pytest.mark.parametrize(("can", "state"), [(True, "ok"), (False, "note")])
def test_bf16(monkeypatch, can, state):
    monkeypatch.setattr(doctor, "has_bf16", lambda: can)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert found(speed=False)["bf16"].state == state


def test_speeds(monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.01)
    monkeypatch.setattr(doctor, "BATCH", 2)
    monkeypatch.setattr(doctor, "PIXELS", 32)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    rows = found()
    for what in ("inference", "pretraining"):
        assert float(rows[what].found.split()[0]) > 0
        assert "scott_3_16, 32 px" in rows[what].found
