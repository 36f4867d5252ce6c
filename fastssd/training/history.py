"""What a run has reached: losses and metrics of each epoch, the best of them, and where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fastssd.training.checkpoint import CheckpointInfo

_LOSSES = ("loss", "loss_class", "loss_box")
_METRICS = ("AP", "AP50", "AP75")


class StepClock:
    """Where the time of a training step goes. On an accelerator: until the work is queued, not until it is done."""

    PARTS = ("data", "forward", "loss", "backward", "optimiser")

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(self.PARTS, 0.0)
        self.steps = 0
        self.restart()

    def restart(self) -> None:
        """Count the time since the last lap to no part."""
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Count the time since the last lap to `part`."""
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now

    def report(self) -> dict[str, Any]:
        """Of each part: seconds per step, and the share of the whole."""
        whole = sum(self.seconds.values()) or 1.0
        return {
            "steps": self.steps,
            "seconds_per_step": {part: value / max(self.steps, 1) for part, value in self.seconds.items()},
            "share": {part: value / whole for part, value in self.seconds.items()},
        }


class RunHistory:
    """The epochs of a run, and the sums of the one that is under way.

    Attributes:
        epochs: one entry an epoch, from the first.
        metrics: of the last evaluation; None before the first.
        best: of the evaluations so far the metrics with the highest AP50, with their epoch; None before the first.
        improved: whether the last epoch has the best.
        epochs_done: how many there are.
        batches_done: batches of the next epoch that are done too.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] | None = None
        self.best: dict[str, Any] | None = None
        self.improved = False
        self.epochs_done = 0
        self.batches_done = 0
        self._partial: dict[str, float] = {}
        self._begun = -1

    def begin_epoch(self, epoch: int) -> None:
        """Begin the sums of an epoch, with the batches that were done before the run was stopped. Twice is once."""
        if self._begun == epoch:
            return
        self._begun = epoch
        self._sums = dict.fromkeys(("pictures", *_LOSSES, "seconds"), 0.0) | self._partial
        self._partial = {}
        self._started = time.perf_counter()
        self._evaluated = 0.0

    def add_batch(self, images: int, loss: float, loss_class: float, loss_box: float) -> None:
        """Add the mean losses of a batch of so many images."""
        for name, value in zip(_LOSSES, (loss, loss_class, loss_box), strict=True):
            self._sums[name] += value * images
        self._sums["pictures"] += images

    def add_evaluation(self, metrics: dict[str, Any], seconds: float) -> None:
        """Add the metrics of the epoch under way, and the time that it took to find them."""
        self.metrics, self._evaluated = metrics, seconds

    def end_epoch(self, of: int) -> str:
        """Add an entry for the epoch under way.

        Args:
            of: how many epochs the run has.

        Returns:
            One line of text about it.
        """
        sums = self._so_far()
        seconds, images = sums.pop("seconds"), sums.pop("pictures")
        self.epochs_done, self.batches_done = self._begun + 1, 0
        metrics = self.metrics if self._evaluated and self.metrics else dict.fromkeys(_METRICS)
        row = {
            "epoch": self.epochs_done,
            **{name: value / max(images, 1) for name, value in sums.items()},
            **{name: metrics[name] for name in _METRICS},
            "seconds": seconds,
            "eval_seconds": self._evaluated,
            "pictures_per_second": images / seconds,
        }
        self.epochs.append(row)
        self.improved = bool(self._evaluated) and (self.best is None or _score(metrics) > _score(self.best))
        if self.improved:
            self.best = {"epoch": self.epochs_done, **metrics}
        found = f"  AP50 {_score(metrics):.3f}  AP {metrics['AP'] or 0.0:.3f}" if self._evaluated else ""
        return (
            f"epoch {self.epochs_done}/{of}  loss {row['loss']:.3f}{found}  {seconds:.1f} s  "
            f"{row['pictures_per_second']:.1f} images/s" + ("  best" if self.improved else "")
        )

    def _so_far(self) -> dict[str, float]:
        """Images, summed losses and seconds of training of the epoch under way."""
        seconds = self._sums["seconds"] + time.perf_counter() - self._started - self._evaluated
        return self._sums | {"seconds": seconds}

    def to_checkpoint(self) -> dict[str, Any]:
        """The fields of :class:`~fastssd.training.checkpoint.CheckpointInfo` that are of the history."""
        return {
            "epoch": self.epochs_done,
            "batches": self.batches_done,
            "partial": self._so_far() if self.batches_done else {},
            "metrics": self.metrics,
            "best": self.best,
            "history": self.epochs,
        }

    def resume(self, info: CheckpointInfo) -> None:
        """Go on from what a checkpoint has."""
        self.epochs, self.metrics, self.best = info.history, info.metrics, info.best
        self.epochs_done, self.batches_done, self._partial = info.epoch, info.batches, info.partial


def _score(metrics: Mapping[str, Any]) -> float:
    """The metric by which a checkpoint is the best: AP50, 0 where there is nothing to find."""
    return metrics["AP50"] or 0.0
