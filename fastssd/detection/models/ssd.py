"""The detector: a backbone, a head, and the preset with their anchors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from fastssd.detection.models.preset import Preset, check_size
from fastssd.detection.parts import Head, conv3x3

FOCAL_PRIOR = 0.01  # RetinaNet, arXiv:1708.02002, section 4.1


class SSD(nn.Module):
    """A single shot detector: every anchor of every feature map gets class logits and box deltas.

    Args:
        backbone: maps float [B, 3, S, S] to a list (or tuple, or ordered mapping) of feature maps, finest first:
            ``timm.create_model(..., features_only=True)``, a feature extractor of torchvision, a module of your own.
        num_classes: number of foreground classes; the network adds the background as column 0.
        preset: input size, anchors, normalisation; None: evenly spaced scales over the feature maps that the backbone
            returns at `image_size`, and ImageNet's normalisation.
        image_size: height and width of the input in pixels, if there is no preset.
        channels: number of channels of each feature map; None: found by running the backbone once.
        predictor: makes the prediction layers, as in :class:`~fastssd.detection.parts.Head`.

    Attributes:
        class_names: name of class 1, 2, ...; empty if they are unknown.

    Raises:
        ValueError: `num_classes` or `image_size` is out of range.

    Source:
        SSD, arXiv:1512.02325.

    Example:
        >>> import timm
        >>> backbone = timm.create_model("resnet18", features_only=True, out_indices=(2, 3, 4))
        >>> model = SSD(backbone, num_classes=3, image_size=320)
    """

    mean: Tensor
    std: Tensor
    anchors: Tensor  # [A, 4] xyxy, fractions of the image

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_classes: int,
        preset: Preset | None = None,
        image_size: int = 320,
        channels: Sequence[int] | None = None,
        predictor: Callable[[int, int], nn.Module] = conv3x3,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
        check_size(image_size)
        if preset is None or channels is None:
            shapes = _shapes(backbone, preset.image_size if preset else image_size)
            channels = [shape[0] for shape in shapes]
            name = type(backbone).__name__.lower()
            preset = preset or Preset.spaced(name, image_size, [(rows, columns) for _, rows, columns in shapes])
        self.preset = preset
        self.other_grid_sizes: tuple[tuple[tuple[int, int], ...], ...] = ()  # see allow_size
        self.num_classes = num_classes
        self.class_names: tuple[str, ...] = ()
        self.frozen: tuple[str, ...] = ()
        self.backbone = backbone
        self.head = Head(channels, preset.anchors_per_cell, num_classes + 1, predictor)
        self.head.reset_parameters(FOCAL_PRIOR if preset.activation == "sigmoid" else None)
        self.register_buffer("mean", torch.tensor(preset.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preset.std).view(3, 1, 1), persistent=False)
        self.register_buffer("anchors", torch.from_numpy(preset.anchors()), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            images: float [B, 3, S, S], RGB in [0, 1], S the preset's image size. The channels_last memory format is
                fastest.

        Returns:
            logits [B, A, C], column 0 is the background, and deltas [B, A, 4]; in the order of :attr:`anchors`.

        Raises:
            ValueError: the sizes of the feature maps are not those of the preset.
        """
        maps = _as_list(self.backbone((images - self.mean) / self.std))  # [B, D_l, H_l, W_l] for each level l
        grids = tuple((x.shape[2], x.shape[3]) for x in maps)
        if grids != self.preset.grid_sizes and grids not in self.other_grid_sizes:
            size = self.preset.image_size
            raise ValueError(
                f"images: expected {size} x {size} pixels and feature maps {self.preset.grid_sizes} as in the preset "
                f"{self.preset.name!r}, got {images.shape[2]} x {images.shape[3]} and {grids}"
            )
        logits, deltas = self.head(maps)
        return logits, deltas

    def allow_size(self, image_size: int) -> Preset:
        """Accept images of another size too, as multi-scale training needs.

        Args:
            image_size: height and width, pixels.

        Returns:
            The preset of that size. Its :meth:`~Preset.anchors` belong to the outputs at that size; :attr:`anchors`
            remain those of the model's own preset.

        Raises:
            ValueError: the backbone does not accept images of this size.
        """
        check_size(image_size)
        levels = len(self.preset.grid_sizes)
        try:
            grids = tuple((rows, columns) for _, rows, columns in _shapes(self.backbone, image_size))
        except RuntimeError as error:  # a feature map became smaller than the next layer's kernel
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{self.preset.name!r} cannot take {image_size} x {image_size} pixels: {reason}") from None
        if len(grids) != levels or not all(map(all, grids)):
            raise ValueError(
                f"{self.preset.name!r} cannot take {image_size} x {image_size} pixels: expected {levels} feature maps, "
                f"got {grids}"
            )
        if grids != self.preset.grid_sizes:
            self.other_grid_sizes += (grids,)
        return self.preset.at_size(image_size, grids)

    def freeze(self, *patterns: str) -> list[str]:
        """Do not train these modules: no gradients, and batch normalisation keeps its running statistics.

        Args:
            patterns: names of modules, with shell wildcards: ``"backbone"`` is the whole backbone,
                ``"backbone.vgg.[0-9]"`` its first ten layers.

        Returns:
            The names of the modules that match.

        Raises:
            ValueError: a pattern matches no module.
        """
        modules = [name for name, _ in self.named_modules() if name]
        chosen: list[str] = []
        for pattern in patterns:
            found = [name for name in modules if fnmatchcase(name, pattern)]
            if not found:
                parts = ", ".join(name for name in modules if name.count(".") < 2)
                raise ValueError(f"freeze: no module is called {pattern!r}; there are {parts}, and modules in them")
            chosen += [name for name in found if name not in chosen]
        self.frozen += tuple(chosen)
        for name in chosen:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)
        return chosen

    def train(self, mode: bool = True) -> SSD:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self


def _as_list(maps: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
    return list(maps.values()) if isinstance(maps, Mapping) else list(maps)


@torch.no_grad()
def _shapes(backbone: nn.Module, image_size: int) -> list[tuple[int, int, int]]:
    """(channels, rows, columns) of the backbone's feature maps."""
    parameter = next(backbone.parameters(), torch.empty(0))  # for dtype and device
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()  # so that an image of zeros does not change the statistics of a batch normalisation
    try:
        maps = _as_list(backbone(parameter.new_zeros(1, 3, image_size, image_size)))
    finally:
        for module, mode in modes:
            module.training = mode
    return [(x.shape[1], x.shape[2], x.shape[3]) for x in maps]
