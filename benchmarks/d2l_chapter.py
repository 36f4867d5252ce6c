"""Run the code of a chapter of Dive into Deep Learning with d2l's functions and with ours; compare results and times.

    python benchmarks/d2l_chapter.py PATH_TO_D2L/chapter_computer-vision

The folder is ``chapter_computer-vision`` of https://github.com/d2l-ai/d2l-en (anchor.md, ssd.md) or of
https://github.com/d2l-ai/d2l-pytorch-colab (anchor.ipynb, ssd.ipynb). Needs the package d2l 1.0.3 and what it imports.

Every PyTorch cell of both sections runs, in order, with these replacements: the images of the book are noise of the
same size; the bananas are generated shapes in the same layout, two batches of 32; training takes one epoch instead of
20; nothing is shown on a screen. For the run with our functions, an import replaces the cells that define one of them,
as a reader would do it, and ``patch`` routes the functions of the package. After both runs every tensor that the cells
made is compared, the trained weights too. The table is written into docs/integration.md.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from d2l import torch as d2l

from fastssd.benchmark import environment
from fastssd.compat import d2l as ours
from fastssd.data import shapes_dataset

PAGE = Path(__file__).parent.parent / "docs" / "integration.md"
NAMES = tuple(name for name in ours.__all__ if name != "patch")
TIMED = ("multibox_prior", "multibox_target", "multibox_detection")
NUM_IMAGES = 64


def cells(path: Path) -> list[str]:
    """The PyTorch code cells of a section, without magics."""
    if path.suffix == ".ipynb":
        found = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    else:
        found = re.findall(r"^```\{\.python \.input[^}]*\}\n(.*?)^```", path.read_text(), re.M | re.S)
        found = [cell for cell in found if re.match(r"\s*(%%tab|#@tab) (all|.*pytorch)", cell)]
    return [re.sub(r"^\s*[%!].*$", "", cell, flags=re.M) for cell in found]


def defines(cell: str) -> set[str]:
    return {node.name for node in ast.parse(cell).body if isinstance(node, ast.FunctionDef)}


def bananas(batch_size: int) -> tuple[Any, Any]:
    """Generated shapes in the layout of ``d2l.load_data_bananas``: images [B, 3, 256, 256], labels [B, 1, 5]."""
    samples = list(shapes_dataset(NUM_IMAGES))
    images = torch.stack([torch.from_numpy(sample.image).permute(2, 0, 1).float() for sample in samples])
    labels = torch.stack([torch.from_numpy(np.append(0, s.boxes[0] / 256).astype(np.float32))[None] for s in samples])
    data = torch.utils.data.TensorDataset(images, labels)
    return (torch.utils.data.DataLoader(data, batch_size), None)


class Clock:
    """Processor time of function calls in seconds. Each call is repeated and the fastest counts, because other
    processes can only slow a call down."""

    REPEATS, ENOUGH = 9, 3.0  # at most so many times, or so many seconds

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            times: list[float] = []
            while len(times) < self.REPEATS and sum(times) < self.ENOUGH:
                start = time.thread_time()
                result = function(*arguments, **options)
                times.append(time.thread_time() - start)
            self.seconds.setdefault(name, []).append(min(times))
            return result

        return timed


@contextlib.contextmanager
def replaced_inputs() -> Iterator[None]:
    """Replace what the cells use besides the functions: images, data, the plot of the training, the device."""
    d2l.plt.switch_backend("agg")
    noise = np.random.default_rng(0)
    replaced: list[tuple[Any, str, Any]] = [
        (d2l, "load_data_bananas", bananas),
        (d2l.plt, "imread", lambda *_: noise.random((561, 728, 3))),
        (
            d2l.torchvision.io,
            "read_image",
            lambda *_: torch.from_numpy(shapes_dataset(NUM_IMAGES)[0].image.copy()).permute(2, 0, 1),
        ),
        (d2l, "Animator", lambda **_: type("Silent", (), {"add": lambda *_: None})()),
        (d2l, "try_gpu", d2l.cpu),
        (d2l, "use_svg_display", lambda: None),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def run(section: list[str], functions: dict[str, Callable[..., Any]] | None, clock: Clock) -> dict[str, Any]:
    """Run the cells of a section and return its variables; `functions` replace the cells that define them."""
    space: dict[str, Any] = {"__name__": "__main__"}
    torch.manual_seed(0)
    for cell in section:
        known = defines(cell) & set(NAMES)
        if not known or functions is None:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(cell.replace("num_epochs, timer = 20", "num_epochs, timer = 1"), "<cell>", "exec"), space)
        for name in known:
            space[name] = space[name] if functions is None else functions[name]
            if name in TIMED:  # these do not call each other
                space[name] = clock.wrap(name, space[name])
        d2l.plt.close("all")
    return space


def tensors(space: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor among the variables, also in tuples and in the weights of networks."""
    found = {}
    for name, value in space.items():
        values = value if isinstance(value, tuple | list) else [value]
        if isinstance(value, torch.nn.Module):
            values = list(value.state_dict().values())
        found |= {f"{name}.{i}": v.detach() for i, v in enumerate(values) if isinstance(v, torch.Tensor)}
    return found


def compare(mine: dict[str, Any], theirs: dict[str, Any]) -> tuple[int, float]:
    """The number of tensors, and the largest difference of a value."""
    first, second = tensors(mine), tensors(theirs)
    assert first.keys() == second.keys()
    worst = 0.0
    for name, value in first.items():
        assert value.shape == second[name].shape, name
        worst = max(worst, (value.double() - second[name].double()).abs().max().item() if value.numel() else 0.0)
    return len(first), worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapter", type=Path)
    folder = parser.parse_args().chapter
    sections = {}
    for name in ("anchor", "ssd"):
        path = next(p for p in (folder / f"{name}.ipynb", folder / f"{name}.md") if p.exists())
        sections[name] = cells(path)

    torch.set_num_threads(1)
    rows, compared = [], []
    functions = {name: getattr(ours, name) for name in NAMES}
    with replaced_inputs():
        for name, title in (("anchor", "14.4, anchor boxes"), ("ssd", "14.7, SSD")):
            clocks, spaces = {"d2l": Clock(), "fastssd": Clock()}, {}
            for package, clock in clocks.items():
                with ours.patch() if package == "fastssd" else contextlib.nullcontext():
                    routed = {f: getattr(d2l, f) for f in TIMED}
                    for f, function in routed.items():
                        setattr(d2l, f, clock.wrap(f, function))
                    try:
                        spaces[package] = run(sections[name], functions if package == "fastssd" else None, clock)
                    finally:
                        for f, function in routed.items():
                            setattr(d2l, f, function)
            count, worst = compare(spaces["fastssd"], spaces["d2l"])
            compared.append(f"{count} tensors of section {title} (largest difference {worst:.2g})")
            for f in TIMED:
                before, after = (clock.seconds[f] for clock in clocks.values())
                assert len(before) == len(after)
                a, b = float(np.median(before)), float(np.median(after))
                calls = "1 call" if len(before) == 1 else f"{len(before)} calls"
                rows.append(f"| {title} | `{f}`, {calls} | {seconds(a)} | {seconds(b)} | **{a / b:.1f} x** |")
    machine = environment()
    block = "\n".join(
        [
            "<!-- d2l: written by benchmarks/d2l_chapter.py -->",
            "| section | | d2l 1.0.3 | fastssd.compat.d2l | |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Processor time: medians over the calls in the cells, each the fastest of up to {Clock.REPEATS}; "
            f"{machine['cpu']}, one thread, torch {torch.__version__.split('+')[0]}.\n"
            f"Compared after the runs: {' and '.join(compared)}.",
            "<!-- /d2l -->",
        ]
    )
    print(block)
    PAGE.write_text(re.sub(r"<!-- d2l: .*?<!-- /d2l -->", lambda _: block, PAGE.read_text(), count=1, flags=re.S))


def seconds(value: float) -> str:
    unit, scale = next((u for u in (("s", 1.0), ("ms", 1e-3)) if value >= u[1]), ("us", 1e-6))
    return f"{value / scale:.3g} {unit}"


if __name__ == "__main__":
    main()
