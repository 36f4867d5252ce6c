"""Put our functions where a host's modules hold the host's own, and take them out again."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any


class Routes:
    """Every name in the loaded modules of `packages` that is bound to a host's object is bound to ours.

    Modules that are imported later take the names from those, so they are routed too.

    Args:
        packages: top-level packages whose modules are searched.
        pairs: (the host's object, ours).
    """

    def __init__(self, packages: Iterable[str], pairs: Iterable[tuple[Any, Any]]) -> None:
        ours = {id(host): (host, mine) for host, mine in pairs}
        tops = frozenset(packages)
        self._before: list[tuple[Any, str, Any]] = []
        for module in [module for name, module in sys.modules.items() if name.partition(".")[0] in tops]:
            for name, value in list(vars(module).items()):
                if id(value) in ours:
                    self._before.append((module, name, value))
                    setattr(module, name, ours[id(value)][1])

    def restore(self) -> None:
        """Give the host its names back."""
        while self._before:
            module, name, value = self._before.pop()
            setattr(module, name, value)

    def __enter__(self) -> Routes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
