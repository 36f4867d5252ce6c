"""The registry of backends: which implementation of the operators runs.

A backend is a module that has one function for every operator, under the operator's public name and with the
signature of :class:`Backend` below. Three exist, in order of preference:

``cpp``
    C++ kernels, compiled once per instruction set (:mod:`fastssd.backends.cpp`).
``numba``
    Numba kernels, compiled at first use (:mod:`fastssd.backends.numba`).
``reference``
    Plain NumPy, the definition that the two others are tested against (:mod:`fastssd.backends.reference`).

The best one that is available is used, unless ``FASTSSD_BACKEND`` or :func:`use_backend` names one.
To add a backend: one module with these functions, and one line in ``_MODULES``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from types import TracebackType
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

Float = NDArray[Any]  # float32 or float64; within one call every Float argument has the same dtype
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

# How a ground truth claims an anchor that the threshold alone would not give it (see docs/contract.md, Matching).
FORCE_MATCH = {"none": 0, "bipartite": 1, "best": 2, "low_quality": 3}
BOX_FORMATS = {"xyxy": 0, "xywh": 1, "cxcywh": 2}
ACTIVATIONS = {"none": 0, "softmax": 1, "sigmoid": 2}
SOFT_NMS_METHODS = {"linear": 0, "gaussian": 1}


class Backend(Protocol):
    """What a backend implements.

    Kernels trust their inputs: the faces in :mod:`fastssd.ops` have validated and promoted them. Every array is
    C-contiguous; ``Float`` arrays of one call share one dtype, float32 or float64; lengths may be zero. Outputs are
    the last arguments, allocated by the caller and overwritten whole; inputs are never written to.
    """

    # --- boxes -------------------------------------------------------------------------------------------------
    def box_area(self, boxes: Float, out: Float) -> None:
        """boxes [N, 4], out [N]. Zero or negative extent: 0. Non-finite box: NaN."""

    def box_convert(self, boxes: Float, in_fmt: int, out_fmt: int, out: Float) -> None:
        """boxes [N, 4], out [N, 4]; formats as in ``BOX_FORMATS``."""

    def clip_boxes_to_image(self, boxes: Float, height: float, width: float, out: Float) -> None:
        """boxes [N, 4], out [N, 4]; x to [0, width], y to [0, height]; NaN stays NaN."""

    def remove_small_boxes(self, boxes: Float, min_size: float, keep: Int) -> int:
        """boxes [N, 4], keep [N]: indices of boxes with both sides >= min_size, ascending. Returns how many."""

    # --- anchors -----------------------------------------------------------------------------------------------
    def grid_anchors(
        self, height: int, width: int, shapes: NDArray[np.float64], scale: NDArray[np.float64], clip: bool, out: Float
    ) -> None:
        """shapes [K, 2] (width, height) as fractions of the picture, scale [2] the picture's (height, width),
        out [height * width * K, 4] xyxy, cell-major (row, column, shape). Computed in float64, rounded once.
        A cell's centre is ((column + 0.5) / width, (row + 0.5) / height)."""

    # --- iou ---------------------------------------------------------------------------------------------------
    def box_iou(self, boxes1: Float, boxes2: Float, out: Float) -> None:
        """boxes1 [B, N, 4], boxes2 [B, M, 4], out [B, N, M]."""

    def generalized_box_iou(self, boxes1: Float, boxes2: Float, out: Float) -> None:
        """As ``box_iou``; GIoU, arXiv:1902.09630."""

    def distance_box_iou(self, boxes1: Float, boxes2: Float, out: Float) -> None:
        """As ``box_iou``; DIoU, arXiv:1911.08287."""

    def complete_box_iou(self, boxes1: Float, boxes2: Float, out: Float) -> None:
        """As ``box_iou``; CIoU, arXiv:1911.08287."""

    def paired_box_iou(self, boxes1: Float, boxes2: Float, out: Float) -> None:
        """boxes1 [N, 4], boxes2 [N, 4], out [N]."""

    # --- matching ----------------------------------------------------------------------------------------------
    def match_anchors(
        self,
        anchors: Float,
        gt_boxes: Float,
        offsets: Int,
        iou_threshold: float,
        background_threshold: float,
        force_match: int,
        gt_idx: Int,
        iou: Float,
    ) -> None:
        """anchors [A, 4]; ragged ground truth: image b owns gt_boxes[offsets[b]:offsets[b + 1]], gt_boxes [S, 4],
        offsets [B + 1]; gt_idx [B, A] (index within the image, -1 background, -2 ignored), iou [B, A]."""

    def assign_targets(
        self,
        anchors: Float,
        gt_boxes: Float,
        gt_labels: Int,
        offsets: Int,
        iou_threshold: float,
        background_threshold: float,
        force_match: int,
        center_variance: float,
        size_variance: float,
        labels: Int,
        deltas: Float,
        gt_idx: Int,
    ) -> None:
        """``match_anchors`` and ``encode_boxes`` in one pass. gt_labels [S] (>= 1); labels [B, A] (0 background,
        -1 ignored), deltas [B, A, 4] (0 where not positive), gt_idx [B, A]."""

    # --- mining ------------------------------------------------------------------------------------------------
    def mine_hard_negatives(
        self, loss: Float, positive: Bool, neg_pos_ratio: float, min_negatives: int, out: Bool
    ) -> None:
        """loss [B, A], positive [B, A], out [B, A]."""

    # --- multibox ----------------------------------------------------------------------------------------------
    def multibox_cross_entropy(
        self,
        logits: Float,
        labels: Int,
        neg_pos_ratio: float,
        min_negatives: int,
        losses: NDArray[np.float64],
        selected: Bool,
    ) -> None:
        """logits [B, A, C], labels [B, A] in [-1, C); losses [B] the sum of each picture, selected [B, A]."""

    def multibox_cross_entropy_gradient(
        self, logits: Float, labels: Int, selected: Bool, scale: float, out: Float
    ) -> None:
        """The gradient of `scale` times the loss, out [B, A, C]; the other arguments as in the forward pass."""

    # --- coding ------------------------------------------------------------------------------------------------
    def encode_boxes(
        self, boxes: Float, anchors: Float, center_variance: float, size_variance: float, out: Float
    ) -> None:
        """boxes [B, A, 4], anchors [A, 4], out [B, A, 4]."""

    def decode_boxes(
        self, deltas: Float, anchors: Float, center_variance: float, size_variance: float, out: Float
    ) -> None:
        """deltas [B, A, 4], anchors [A, 4], out [B, A, 4]."""

    # --- nms ---------------------------------------------------------------------------------------------------
    def nms(self, boxes: Float, scores: Float, iou_threshold: float, keep: Int) -> int:
        """boxes [N, 4], scores [N], keep [N]: kept indices by falling score. Returns how many."""

    def batched_nms(self, boxes: Float, scores: Float, idxs: Int, iou_threshold: float, keep: Int) -> int:
        """As ``nms``; boxes suppress each other only where idxs [N] are equal."""

    def soft_nms(
        self,
        boxes: Float,
        scores: Float,
        method: int,
        iou_threshold: float,
        sigma: float,
        score_threshold: float,
        keep: Int,
        kept_scores: Float,
    ) -> int:
        """boxes [N, 4], scores [N]; keep [N] in order of selection, kept_scores [N] decayed. Returns how many."""

    # --- postprocess -------------------------------------------------------------------------------------------
    def postprocess_detections(
        self,
        logits: Float,
        deltas: Float,
        anchors: Float,
        score_threshold: float,
        iou_threshold: float,
        topk: int,
        clip_height: float,
        clip_width: float,
        activation: int,
        center_variance: float,
        size_variance: float,
        boxes: Float,
        scores: Float,
        labels: Int,
        anchor_idx: Int,
        counts: Int,
    ) -> None:
        """logits [B, A, C], deltas [B, A, 4], anchors [A, 4]; clip sizes are infinity where nothing is clipped;
        out boxes [B, K, 4], scores [B, K], labels [B, K], anchor_idx [B, K], counts [B]. Places at and after
        counts[b] hold box 0, score 0, label -1, anchor_idx -1."""


OPERATORS = tuple(name for name in vars(Backend) if not name.startswith("_"))

_MODULES = {
    "cpp": "fastssd.backends.cpp",
    "numba": "fastssd.backends.numba",
    "reference": "fastssd.backends.reference",
}
_NEEDS = {"cpp": "fastssd._C", "numba": "numba", "reference": "numpy"}
_INSTALL = {
    "cpp": "this build of fastssd has no compiled kernels: reinstall it where a C++17 compiler is present",
    "numba": "install it with: pip install 'fastssd[numba]'",
    "reference": "",
}
_active: Backend | None = None
_lock = threading.RLock()  # of what is active and its shortcuts
if hasattr(os, "register_at_fork"):  # a child must not begin with a lock that a thread holds that it does not have
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class _Shortcuts:
    """Whole operators of the active backend, for arguments that need no check or conversion in Python.

    A backend may have a dict ``SHORTCUTS`` of functions by operator. One takes the operator's arguments and returns
    its result, or None for the face to do it, which also explains what is wrong. Operators without one always get None.
    """

    def __getattr__(self, name: str) -> Any:
        return _decline


def _decline(*arguments: Any) -> None:
    return None


shortcuts = _Shortcuts()


def _activate(backend: Backend | None) -> None:
    global _active
    with _lock:
        vars(shortcuts).clear()
        _active = backend
        vars(shortcuts).update(getattr(backend, "SHORTCUTS", {}))


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can run here, best first. Imports none of them."""
    return tuple(name for name in _MODULES if importlib.util.find_spec(_NEEDS[name]) is not None)


def load_backend(name: str) -> Backend:
    """The backend called `name`, imported now.

    Raises:
        ValueError: if no backend has that name.
        RuntimeError: if it exists but cannot run here; the message says what brings it.
    """
    if name not in _MODULES:
        raise ValueError(f"unknown backend {name!r}; expected one of {', '.join(map(repr, _MODULES))}")
    if name not in available_backends():
        raise RuntimeError(f"backend {name!r} is not available: {_INSTALL[name]}")
    return cast(Backend, importlib.import_module(_MODULES[name]))


def active_backend() -> Backend:
    """The backend in use; the first call chooses it (``FASTSSD_BACKEND``, else the best available)."""
    if _active is None:
        # Imported before the lock is taken: an import waits for other threads' imports.
        first = load_backend(os.environ.get("FASTSSD_BACKEND") or available_backends()[0])
        with _lock:
            if _active is None:  # another thread may have come first, with a choice of the user's
                _activate(first)
    return cast(Backend, _active)


def backend_name(backend: Backend) -> str:
    """The name under which a backend is registered."""
    module = getattr(backend, "__name__", "")
    return next(name for name, path in _MODULES.items() if path == module)


class use_backend:
    """Use one backend from here on, or only inside a ``with`` block.

    Args:
        name: ``"cpp"``, ``"numba"`` or ``"reference"``. The choice is the process's, not the thread's.

    Raises:
        ValueError: unknown name.
        RuntimeError: the backend cannot run here.

    Example:
        >>> import fastssd
        >>> with fastssd.use_backend("reference"):
        ...     keep = fastssd.ops.nms(boxes, scores, 0.5)  # doctest: +SKIP
    """

    def __init__(self, name: str) -> None:
        self._before = _active
        _activate(load_backend(name))

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _activate(self._before)
