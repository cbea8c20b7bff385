"""Records for Weights & Biases (`pip install 'wavelet-train[wandb]'`), whose package is imported when it is used."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from wavelet_core.atomic_files import write_atomically
from wavelet_core.config import ComponentConfig, ConfigurationError
from wavelet_train.logger import LoggedRun, scalars

FOLDER = "wandb"
ID_FILE = "id"


class WeightsAndBiases:
    """Sends records to Weights & Biases, or keeps them in the run's folder `wandb/` until `wandb sync`.

    The run's id is kept there too, so that a resumed run goes on as the same one. What comes again after a kill is what
    is there already, and Weights & Biases leaves it out.
    """

    class Config(ComponentConfig):
        kind: Literal["wandb"] = "wandb"
        project: str = Field("wavelet", min_length=1, description="the project that the run belongs to")
        entity: str | None = Field(None, description="the user or team; null is the default one")
        name: str | None = Field(None, description="what the run is called; null is the name of its directory")
        group: str | None = Field(None, description="a group of runs that are shown together")
        tags: list[str] = Field([], description="words to find the run by")
        mode: Literal["online", "offline"] | None = Field(
            None, description="online, or offline until `wandb sync`; null is what WANDB_MODE says, or else online"
        )

    def __init__(self, config: Config) -> None:
        self.config = config
        try:
            import wandb
        except ImportError:
            raise ConfigurationError(
                "train.loggers: wandb needs its package: pip install 'wavelet-train[wandb]'"
            ) from None
        self._wandb = wandb

    def start(self, run: LoggedRun) -> None:
        config = self.config
        id_file = run.directory / FOLDER / ID_FILE
        if run.step == 0 or not id_file.exists():
            write_atomically(id_file, lambda fresh: fresh.write_text(secrets.token_hex(4), "utf-8"))
        try:
            self._run = self._wandb.init(
                project=config.project,
                entity=config.entity,
                name=config.name or run.directory.resolve().name,
                group=config.group,
                tags=config.tags,
                mode=config.mode,
                config=dict(run.configuration),
                dir=str(run.directory),
                id=id_file.read_text("utf-8").strip(),
                resume="allow",
                settings=self._wandb.Settings(console="off", silent=True),
            )
        except self._wandb.errors.UsageError as error:
            raise ConfigurationError(f"train.loggers: wandb: {error}") from None

    def write(self, record: Mapping[str, Any]) -> None:
        self._run.log(dict(scalars(record)), step=record["step"])

    def close(self) -> None:
        self._run.finish()
