"""A detector with its postprocessing inside: one module, one graph for torch.compile and torch.export."""

from __future__ import annotations

from torch import Tensor, nn

from fastssd.detection.models import SSD
from fastssd.ops import Detections, postprocess_detections


class EndToEndSSD(nn.Module):
    """Images in, detections out; the shapes of the output do not depend on what is found.

    Args:
        model: the network; this module starts in its mode (training or eval).
        score_threshold, iou_threshold, topk, max_detections: as in :func:`fastssd.ops.postprocess_detections`; None:
            those of the model's preset.

    Example:
        >>> detector = EndToEndSSD(TinySSD(num_classes=3)).eval()  # doctest: +SKIP
        >>> program = torch.export.export(detector, (images,))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: SSD,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        topk: int | None = None,
        max_detections: int | None = None,
    ) -> None:
        super().__init__()
        preset = model.preset
        self.model = model
        self.score_threshold = preset.score_threshold if score_threshold is None else score_threshold
        self.iou_threshold = preset.nms_threshold if iou_threshold is None else iou_threshold
        self.topk = preset.topk if topk is None else topk
        self.max_detections = preset.max_detections if max_detections is None else max_detections
        self.train(model.training)

    def forward(self, images: Tensor) -> Detections:
        """
        Args:
            images: float [B, 3, S, S], RGB in [0, 1], S the preset's image size.

        Returns:
            :class:`~fastssd.ops.Detections` of tensors on the images' device, without gradient. Boxes are fractions of
            the image, clipped to it.
        """
        logits, deltas = self.model(images)  # [B, A, C], [B, A, 4]
        return postprocess_detections(
            logits.detach().float(),
            deltas.detach().float(),
            self.model.anchors,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            topk=self.topk,
            max_detections=self.max_detections,
            clip=(1.0, 1.0),
            activation=self.model.preset.activation,
            variances=self.model.preset.variances,
        )
