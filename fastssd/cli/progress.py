"""A progress bar on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(shown: bool, total: int, done: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar for `total` pieces, of which `done` are done already.

    Yields a function to call with the number of pieces that were finished since the last call. `unit` is the name of a
    piece in the plural.
    """
    if not shown:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} {unit}/s" if speed else f"- {unit}/s")

    # What is printed to stderr meanwhile appears above the bar; stdout is not touched.
    bar = Progress(
        BarColumn(None),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        redirect_stdout=False,
        expand=True,
    )
    with bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda count: bar.advance(task, count)
