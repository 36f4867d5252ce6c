"""The operators inside torch: ``torch.ops.fastssd.*``, for torch.compile, torch.export, autograd, vmap and devices.

Eager calls on plain tensors of the CPU do not come here (:mod:`fastssd.ops._operator`), except for a gradient. What
torch knows of an operator is derived from its declaration in :data:`fastssd.ops._operator.REGISTRY`:

=============== ====================================================================================
`register`      the schemas and the kernels of each device, also with older releases of torch
`shapes`        the checks before, and the outputs as they are known before the operator runs
`device`        where it runs: on the CPU by its kernel, elsewhere by its formula or on the CPU for it
`formulas`      the operators as torch operations
`gradients`     the derivatives, for torch.library, torch.func and eager calls
`vmap`          the mapped dimension as a leading one
`call`          the arguments of a dispatched call, as the operators take them
=============== ====================================================================================

Importing this package registers the operators. :mod:`fastssd.ops` does so if torch is there already, else the first
call that torch has to dispatch does.
"""

from fastssd.ops._torch import register
from fastssd.ops._torch.call import call
from fastssd.ops._torch.gradients import differentiable, refuse

__all__ = ["call", "differentiable", "refuse"]

register.register_all()
