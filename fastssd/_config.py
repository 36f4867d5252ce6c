"""What runs here and how: version, backends, instruction set, threads."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from typing import Any

from fastssd.backends import active_backend, available_backends, backend_name

_UNKNOWN = "0+unknown"


def version(package: str = "fastssd") -> str:
    """The version of an installed package, which is not imported for it."""
    import importlib.metadata  # costs more than all of fastssd

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return _UNKNOWN


def set_num_threads(threads: int | None) -> None:
    """Use so many threads in the compiled kernels, from now on and in the whole process.

    Args:
        threads: from 1 to 1024; None goes back to the default: ``FASTSSD_NUM_THREADS``, else what torch uses if it is
            loaded, else the processors that this process may run on. Results never depend on it.

    Raises:
        TypeError, ValueError: not an integer from 1 to 1024.
    """
    from fastssd.backends import threads as pool

    pool.choose(threads)


def show_config() -> dict[str, Any]:
    """What runs here: versions, the backend in use and the available ones, instruction set and threads.

    Returns:
        A dict of plain values, ready for ``json.dumps``.
    """
    from fastssd.backends import threads as pool

    config: dict[str, Any] = {
        "fastssd": version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backend": backend_name(active_backend()),
        "available_backends": list(available_backends()),
        "isa": None,
        "available_isas": [],
        "num_threads": pool.current(),
    }
    if "cpp" in available_backends():
        from fastssd import _C

        config |= {"isa": _C.isa(), "available_isas": list(_C.available_isas())}
    for package in ("numpy", "numba", "torch"):
        config[package] = _version(package)
    config["environment"] = {name: value for name, value in sorted(os.environ.items()) if name.startswith("FASTSSD_")}
    return config


def _version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    loaded = getattr(sys.modules.get(package), "__version__", None)  # not of a folder that happens to have that name
    if loaded is not None:
        return str(loaded)
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        return None
    found = version(package)
    return None if found == _UNKNOWN else found
