"""A callback for trainers in Lightning's manner, written against the names of its hooks; Lightning is not imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coppice.core.config import Config
from coppice.core.errors import UsageError
from coppice.passes.train.engine import PruningOptimizer


class PruningCallback:
    """Watches over a `PruningOptimizer` that a module's ``configure_optimizers`` returned.

    When fitting starts it checks that the schedule fits the trainer's number of steps; after each batch it logs
    `PruningOptimizer.progress` under ``pruning/``; when fitting ends, ``config`` is the config to extract. An averaged
    copy of the model, ``ema`` (`torch.optim.swa_utils.AveragedModel`), is masked after each batch. Saving and loading
    need nothing: trainers keep the optimizer's ``state_dict``.
    """

    def __init__(self, ema: Any = None) -> None:
        self.ema = ema
        self.config: Config | None = None

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """Raise `UsageError` where there is no sparse optimizer, or training ends before its ``stop``."""
        optimizer = self._optimizer(trainer)
        planned = getattr(trainer, "estimated_stepping_batches", None)
        if planned is not None and planned < optimizer.stop:
            raise UsageError(
                f"the trainer takes {int(planned)} optimizer steps, and units are zero only after {optimizer.stop}",
                place="PruningCallback",
                remedy=f"build the optimizer with steps={int(planned)}, or train longer",
            )

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log progress, and let the averaged copy follow."""
        optimizer = self._optimizer(trainer)
        if self.ema is not None:
            optimizer.mask(self.ema)
        module.log_dict({f"pruning/{key}": float(value) for key, value in optimizer.progress.items()})

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        """Keep the config to extract."""
        self.config = self._optimizer(trainer).config()

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Every other hook of a callback does nothing; trainers call them all."""
        if name.startswith("on_") or name in ("setup", "teardown"):
            return lambda *args, **kwargs: None
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass

    @property
    def state_key(self) -> str:
        return type(self).__name__

    def _optimizer(self, trainer: Any) -> PruningOptimizer:
        for held in trainer.optimizers:
            optimizer = getattr(held, "optimizer", held)  # trainers may wrap what they were given
            if isinstance(optimizer, PruningOptimizer):
                return optimizer
        raise UsageError(
            "none of the trainer's optimizers prunes",
            place="PruningCallback",
            remedy="return DHSPG(space, base, ...) or HESSO(...) from configure_optimizers",
        )
