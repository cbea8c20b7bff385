"""The orders in which a run reads its text, and what is carried from window to window."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wavelet_core import ConfigurationError, registry
from wavelet_core.state import leaves
from wavelet_train.run_config import RunConfig
from wavelet_train.trainer import Trainer
from wavelet_train.windows import ConsecutiveWindows, RandomWindows, ShuffledWindows

NewTrainer = Callable[..., Trainer]
TinyRun = Callable[..., RunConfig]


@pytest.fixture
def many_documents(tiny_run: TinyRun, tmp_path: Path) -> list[str]:
    """Overrides for a text in documents that are often shorter than a window of 16."""
    (tmp_path / "texts").mkdir()
    for number in range(60):
        (tmp_path / "texts" / f"{number:02}.txt").write_text("abcdefghijklmnopqrstuvwxyz"[: 5 + number % 20])
    return ["data.dataset={kind: text, train: texts, validation: validation.txt}"]


def losses(trainer: Trainer, steps: int = 4) -> list[float]:
    return [trainer.take_step(0.0)[0] for _ in range(steps)]


@pytest.mark.parametrize(
    ("order", "windows"),
    [
        ("null", RandomWindows),
        ("random", RandomWindows),
        ("shuffled", ShuffledWindows),
        ("contiguous", ConsecutiveWindows),
    ],
)
def test_an_order_reads_what_it_says(order: str, windows: type, new_trainer: NewTrainer) -> None:
    assert type(new_trainer(f"train.order={order}").windows) is windows


def test_contiguous_windows_are_trained_as_one_long_text(new_trainer: NewTrainer) -> None:
    """Without updates, the mean of the losses of windows is that of the text they are cut from."""
    parts = new_trainer("train.order=contiguous")
    with torch.no_grad():
        for parameter in parts.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    tokens = torch.from_numpy(parts.data.split("train").tokens.astype(int)).view(2, -1)
    with torch.no_grad():
        whole = parts.model.loss(tokens[:, :64], tokens[:, 1:65]).item()
        silent = parts.model.loss(tokens[:, 48:64], tokens[:, 49:65]).item()
    found = losses(parts)
    assert sum(found) / 4 == pytest.approx(whole, rel=1e-5)
    assert found[3] != pytest.approx(silent, rel=1e-5)
    assert not any(tensor.requires_grad for tensor in parts.carried.tensors().values())


@pytest.mark.parametrize("order", ["random", "shuffled", "contiguous", "null"])
def test_documents_of_a_window_are_read_from_silence(
    order: str, new_trainer: NewTrainer, many_documents: list[str]
) -> None:
    carrying = ["model.cross_window_state=true"] if order == "null" else []
    trainer = new_trainer("train.reset_at_documents=true", f"train.order={order}", *many_documents, *carrying)
    for _ in range(4):
        batch = next(trainer.windows)
        state = trainer.carried.before(batch)
        with torch.no_grad():
            found = trainer.model(batch.inputs, state)
        for row in range(2):
            starts = [0, *(i for i in range(1, 16) if batch.document_positions[row, i] == 0), 16]
            for begin, end in itertools.pairwise(starts):
                if begin or batch.document_positions[row, 0] == 0:
                    alone = trainer.model(batch.inputs[row : row + 1, begin:end])
                    assert torch.allclose(found[row, begin:end], alone[0], atol=1e-5)


@pytest.mark.parametrize("overrides", [["train.order=contiguous"], ["train.reset_at_documents=true"]])
def test_a_compiled_loss_with_a_state_is_one_graph(overrides: list[str], new_trainer: NewTrainer) -> None:
    """With a backend that takes no time."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    with torch.compiler.set_stance("default", force_backend=backend):
        plain, compiled = new_trainer(*overrides), new_trainer("train.compile=true", *overrides)
        for _ in range(3):
            assert compiled.take_step(0.01) == pytest.approx(plain.take_step(0.01), rel=1e-5)
    assert len(graphs) == 1


def test_off_needs_no_state(new_trainer: NewTrainer) -> None:
    trainer = new_trainer("train.order=shuffled")
    batch = next(trainer.windows)
    assert batch.document_positions is None and trainer.carried.before(batch) is None


def test_what_cannot_be_is_refused(new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    for order in ("random", "shuffled", "contiguous"):
        with pytest.raises(ConfigurationError, match=f"train.order={order}: .* leave train.order null"):
            new_trainer(f"train.order={order}", "model.cross_window_state=true")
    monkeypatch.setattr(registry.get("bypass", "running_mean"), "resets_at_documents", False)
    with pytest.raises(ConfigurationError, match=r"blocks\.0\.bypass \(RunningMeanBypass\) cannot reset"):
        new_trainer("train.reset_at_documents=true")


def test_another_family_is_trained_on_contiguous_text(new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "end_to_end"))
    import lstm_plugin  # type: ignore[import-not-found]

    monkeypatch.setattr(registry, "_components", copy.deepcopy(registry._components))
    registry.register("model", lstm_plugin.LSTM)
    lstm: list[str] = ["model={kind: lstm, channels: 8, context_length: 16}", "train.order=contiguous"]
    trainer = new_trainer(*lstm)
    losses(trainer)
    assert all(tensor.any() for _, tensor in leaves(trainer.carried.state.tree))  # type: ignore[union-attr]
    with pytest.raises(ConfigurationError, match=r"the model \(LSTM\) cannot reset its state"):
        new_trainer(*lstm, "train.reset_at_documents=true")
