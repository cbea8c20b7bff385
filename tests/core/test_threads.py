"""How many processor threads are chosen, from readings of a machine that is made up."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from wavelet_core import threads
from wavelet_core.threads import (
    FREE_POSITIONS,
    WORK_PER_THREAD,
    FreeProcessors,
    ThreadChoice,
    available_processors,
    step_work,
    use_threads,
)

TICKS = 100  # a second, of each of the machine's processors


@pytest.fixture(autouse=True)
def threads_as_before(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Machine:
    """Four processors, the files that say what they do, and a clock."""

    def __init__(self, root, monkeypatch):
        self.root, self.seconds, self.own, self.idle = root, 0.0, 0.0, [0, 0, 0, 0]
        (root / "proc/self").mkdir(parents=True)
        self.group("")
        self._write()
        monkeypatch.setattr(threads, "_bound_to", lambda: {0, 1, 2, 3})
        monkeypatch.setattr(os, "sysconf", {"SC_CLK_TCK": TICKS}.get)
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(threads.time, "process_time", lambda: self.own)
        monkeypatch.setattr(threads.time, "sleep", self.run)
        self.busy = 0

    def group(self, name, limit=None):
        (self.root / "proc/self/cgroup").write_text(f"5:cpu:/old\n0::/{name}\n")
        directory = self.root / "sys/fs/cgroup" / name
        directory.mkdir(parents=True, exist_ok=True)
        if limit is not None:
            (directory / "cpu.max").write_text(f"{limit} 100000\n")

    def run(self, seconds, own=0.0):
        """Time passes, in which `busy` processors work for others and this process takes `own` of them."""
        self.seconds += seconds
        self.own += own * seconds
        for number in range(4):
            self.idle[number] += round(TICKS * seconds * min(1, max(0, 4 - self.busy - own - number)))
        self._write()

    def _write(self):
        lines = [f"cpu{number} 7 7 7 {idle} 0 0 0 0 0 0" for number, idle in enumerate(self.idle)]
        (self.root / "proc/stat").write_text("\n".join(["cpu  1 2 3 4", *lines, "intr 1 2", ""]))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    made = Machine(tmp_path, monkeypatch)
    monkeypatch.setattr(threads, "ROOT", tmp_path)
    return made


def model_worth(number):
    """A model whose step of one token is worth so many threads."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(1, 1).expand(number * WORK_PER_THREAD // 1024, 1024 // FREE_POSITIONS))
    return model


@pytest.mark.parametrize(("busy", "expected"), [(0, 4), (1, 3), (3, 1), (4, 1)])
def test_no_more_threads_than_processors_that_others_leave_free(machine, busy, expected):
    machine.busy = busy
    assert use_threads(None, model_worth(9)) == torch.get_num_threads() == expected


def test_no_more_threads_than_a_step_is_worth(machine):
    assert use_threads(None, model_worth(1)) == 1
    assert machine.seconds == 0, "it looked at the machine although there was nothing to decide"
    assert use_threads(None, model_worth(2)) == 2
    assert use_threads(None, model_worth(1), positions=3 * FREE_POSITIONS) == 3


def test_the_choice_follows_what_others_do(machine):
    choice = ThreadChoice(None, model_worth(9))
    seen = []
    for busy, own in ((0, 4), (2, 2), (2, 2), (0, 2)):
        machine.busy = busy
        machine.run(1.0, own)
        choice.renew()
        seen.append(torch.get_num_threads())
    assert seen == [4, 2, 2, 4]
    machine.busy = 3
    machine.run(0.9)
    choice.renew()
    assert torch.get_num_threads() == 4, "less than a second has passed"


def test_a_number_or_the_environment_decides(machine, monkeypatch):
    machine.busy = 4
    assert use_threads(3, model_worth(1)) == 3
    ThreadChoice(3, model_worth(9)).renew()
    assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert use_threads(None, model_worth(9)) == 3


def test_a_model_on_another_device_changes_nothing(machine):
    torch.set_num_threads(2)
    assert use_threads(None, nn.Linear(4, 4, device="meta")) == 2


@pytest.mark.parametrize("number", [0, -1, 1025, True, 1.5, "2", [1]])
def test_what_is_no_number_of_threads_is_refused(number):
    with pytest.raises(ValueError, match="from 1 to 1024"):
        use_threads(number, nn.Linear(4, 4))


def test_quotas_of_all_groups_count(machine):
    assert available_processors() == 4
    machine.group("a", 350000)
    assert available_processors() == 3
    machine.group("a/b", "max")
    assert available_processors() == 3
    machine.group("a/b", 20000)
    assert available_processors() == 1


def test_without_such_files_the_load_average_is_taken_off(monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "ROOT", tmp_path)
    monkeypatch.setattr(threads, "_bound_to", lambda: set(range(8)))
    monkeypatch.setattr(os, "getloadavg", lambda: (2.2, 0.0, 0.0), raising=False)
    assert FreeProcessors().look() == 6


def test_work_is_that_of_matrices_not_of_tables():
    model = nn.ModuleList([nn.Embedding(50, 8), nn.Linear(8, 4), nn.LayerNorm(8)])
    model.append(model[1])
    assert step_work(model, 100) == 100 * 32
    assert step_work(model, 1) == FREE_POSITIONS * 32
