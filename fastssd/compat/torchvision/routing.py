"""Route ``torchvision.ops`` itself to our kernels."""

from __future__ import annotations

from types import ModuleType

from fastssd.compat._routes import Host, Routes
from fastssd.compat.torchvision import ops

_HOST = Host(
    f"{__name__}:_HOST",
    ["torchvision"],
    {
        ops.HOME: (
            ops.nms,
            ops.batched_nms,
            ops.box_iou,
            ops.generalized_box_iou,
            ops.distance_box_iou,
            ops.complete_box_iou,
        )
    },
    cpu_only=True,
)


def patch(*modules: ModuleType) -> Routes:
    """Replace torchvision's own box functions by ours, in the whole process.

    Routed are ``torchvision.ops.nms``, ``batched_nms``, ``box_iou``, ``generalized_box_iou``, ``distance_box_iou`` and
    ``complete_box_iou``, wherever a loaded module of torchvision holds them, so that its models use them too. Calls
    that ours refuses go to torchvision's own functions, which answer or raise their own errors: thresholds outside
    [0, 1], wrong shapes and dtypes. So do rotated boxes, tensors of other devices than the CPU and of other types, and
    code that is traced, compiled or scripted.

    ``with patch(): ...`` ends with the block, also by an exception; ``patch()`` alone lasts until ``.restore()`` of
    what it returns. Patches nest, and may end in any order: torchvision has its functions back when none is left. They
    hold for all threads; a call at the moment when one begins or ends gets either function.

    Args:
        modules: further modules to route, for what they imported by name, as ``from torchvision.ops import nms`` does.

    Raises:
        ImportError: torchvision is missing.
    """
    ops.original("nms")
    return _HOST.patch(modules)
