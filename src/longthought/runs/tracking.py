"""Metrics to somewhere else than the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from longthought.core.errors import SettingsError


class Tracker(Protocol):
    """Receives what a stage logs."""

    def log(self, stage: str, step: int, metrics: Mapping[str, Any], /) -> None: ...


class TensorBoard:
    """A tracker that writes event files, one folder per stage.

    After a resume, the first step logged hides what an earlier, killed process wrote from that step on.

    Raises:
        SettingsError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._writer_of = import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError as error:
            raise SettingsError(
                "TensorBoard is not installed: run `pip install 'longthought[tensorboard]'`, or leave this option out"
            ) from error
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def log(self, stage: str, step: int, metrics: Mapping[str, Any], /) -> None:
        """Write the metrics that are numbers."""
        if stage not in self._writers:
            self._writers[stage] = self._writer_of(str(self._folder / stage), purge_step=step)
        for name, value in metrics.items():
            if value is not None:
                self._writers[stage].add_scalar(name, float(value), step)

    def close(self) -> None:
        """Write out what is buffered."""
        for writer in self._writers.values():
            writer.close()
