"""Another device than the CPU, on every machine: operators run as torch runs them there, on tensors of the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ELSEWHERE = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)  # a device of which torch knows nothing


class OtherDevice(TorchDispatchMode):
    """Runs ``torch.ops.fastssd.*`` by the kernels that torch has for another device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "fastssd":
            return func(*args, **(kwargs or {}))
        return func.redispatch(ELSEWHERE, *args, **(kwargs or {}))
