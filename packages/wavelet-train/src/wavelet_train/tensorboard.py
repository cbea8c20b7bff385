"""Records for TensorBoard (`pip install 'wavelet-train[tensorboard]'`), which is imported when it is used."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import yaml

from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_train.logger import LoggedRun, scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

FOLDER = "tensorboard"


class TensorBoard:
    """Writes event files into the run's folder `tensorboard/`; `tensorboard --logdir runs` shows all runs there."""

    class Config(ComponentConfig):
        kind: Literal["tensorboard"] = "tensorboard"

    _writer: SummaryWriter

    def __init__(self, config: Config) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            raise ConfigurationError(
                "train.loggers: tensorboard needs its package: pip install 'wavelet-train[tensorboard]'"
            ) from None

    def start(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = run.directory / FOLDER
        if run.step == 0:
            shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder), purge_step=run.step + 1)
        text = yaml.safe_dump(dict(run.configuration), sort_keys=False)
        self._writer.add_text("configuration", f"```yaml\n{text}```", run.step)

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record["step"])
        # What a kill would leave in memory does not come again after the resume.
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
