"""The C++ backend: the compiled kernels, whose signatures are the reference's (``fastssd/_C.pyi``)."""

from fastssd import _C
from fastssd._C import *
from fastssd.backends import threads

_C.set_thread_count(threads.current)

_DIRECT = "direct_"
SHORTCUTS = {name.removeprefix(_DIRECT): entry for name, entry in vars(_C).items() if name.startswith(_DIRECT)}
