import pytest
import torch

from scott_models.data import memory

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Imitate a Linux machine with 8 GiB of available memory and no container limit."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal:  16777216 kB\nMemAvailable:  8388608 kB\nHugePages_Total: 0\n")
    return tmp_path


def test_a_quarter_of_the_available_ram(machine):
    assert memory.find_available_ram() == 2**33
    assert memory.find_room(CPU) == 2**31
    assert memory.choose_place(2**31, CPU) == CPU
    assert memory.choose_place(2**31 + 1, CPU) is None


def test_a_containers_limit_counts_but_not_its_files(machine):
    (machine / "memory.current").write_text(f"{3 * 2**30}\n")
    (machine / "memory.stat").write_text(f"anon {2**30}\ninactive_file {2**31}\n")
    (machine / "memory.max").write_text("max\n")
    assert memory.find_available_ram() == 2**33
    (machine / "memory.max").write_text(f"{2**31}\n")
    assert memory.find_available_ram() == 2**30


def test_systems_that_do_not_say(machine, monkeypatch):
    (machine / "meminfo").unlink()
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.get, raising=False)
    assert memory.find_available_ram() == 2_048_000
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.find_available_ram() == memory.UNKNOWN_RAM


def test_a_gpu_first_then_ram(machine, monkeypatch):
    """Check that GPU memory that torch has reserved but does not use counts as free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (900, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    gpu = torch.device("cuda")
    assert memory.find_room(gpu) == 300
    assert [memory.choose_place(size, gpu) for size in (300, 301, 2**40)] == [gpu, CPU, None]
