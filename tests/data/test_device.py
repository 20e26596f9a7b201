import os

from scott_models.data.device import name_compiler_cache


def test_a_user_without_a_name_can_compile(monkeypatch):
    def unknown():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is restored
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    name_compiler_cache()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ  # torch names it by the user
    monkeypatch.setattr("getpass.getuser", unknown)
    name_compiler_cache()
    assert "torchinductor_" in os.environ["TORCHINDUCTOR_CACHE_DIR"]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    name_compiler_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
