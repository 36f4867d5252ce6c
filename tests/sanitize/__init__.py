"""What ``make sanitize`` runs: checks that look for crashes, races and wrong bits instead of promised values.

``hostile``        thousands of hostile calls, each in a forked child: a right result or a proper error, never a signal
``differential``   every instruction set and several numbers of threads against the reference, on hard numbers
``operators``      the cases of tests/operators, for a build with sanitizers
``threads.cpp``    the thread pool, the plan cache and the kernels from several C++ threads, for ThreadSanitizer

Where ``FASTSSD_LIBRARY`` names a file, that build of ``fastssd._C`` is loaded instead of the package's own: this is how
a build with sanitizers is tested beside the ordinary one.
"""

from __future__ import annotations

import importlib.util
import os
import sys


def _load(path: str) -> None:
    name = "fastssd._C"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"FASTSSD_LIBRARY: {path} is no extension module of this Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


LIBRARY = os.environ.get("FASTSSD_LIBRARY")
if LIBRARY and "fastssd._C" not in sys.modules:
    _load(LIBRARY)
