"""The house rules that a machine can check: layers, light imports, one basename an operator."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastssd
from fastssd.backends import OPERATORS, available_backends, load_backend

PACKAGE = Path(fastssd.__file__).parent
# A layer may import those after it, and itself. What stands in one tuple stands side by side.
LAYERS = [
    ("cli", "__main__"),
    ("training", "compat", "deploy", "benchmark"),
    ("evaluation",),
    ("detection", "explain", "data"),
    ("_preset",),
    ("ops",),
    ("_config", "_fields", "_files", "_image", "_stopping"),
    ("backends",),
    ("_C",),
]
# explain draws what the models of detection found; training writes curves and pictures with explain.
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports_of(path: Path):
    """The top-level parts of fastssd that a file imports, at its head or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"fastssd.{a.name}" for a in node.names] if node.module == "fastssd" else [node.module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "fastssd" and len(parts) > 1 and parts[1] in RANK:
                yield parts[1]


def test_layers_imports_go_down_only():
    upward = []
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in RANK:
            upward += [f"{path}: {name}" for name in imports_of(path) if RANK[name] < RANK[part]]
    assert not upward


def test_import_loads_neither_torch_nor_numba():
    code = """
import sys, fastssd, fastssd.ops
fastssd.ops.nms([[0, 0, 1, 1]], [1.0], 0.5)
print(sorted({"torch", "numba", "lightning", "typer", "PIL", "matplotlib"} & set(sys.modules)))
"""
    environment = {"FASTSSD_BACKEND": "reference" if "cpp" not in available_backends() else "cpp"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", available_backends())
def test_every_backend_has_every_operator(name):
    backend = load_backend(name)
    assert not [operator for operator in OPERATORS if not callable(getattr(backend, operator, None))]


def test_an_operator_has_one_basename_in_every_layer():
    families = {path.stem for path in (PACKAGE / "ops").glob("[a-z]*.py")}
    for backend in ("reference", "numba"):
        assert families <= {path.stem for path in (PACKAGE / "backends" / backend).glob("*.py")}
    sources = PACKAGE.parent / "csrc" / "ops"
    if sources.exists():
        assert families <= {path.stem for path in sources.glob("*.h")}


def test_backend_choice_by_name_environment_and_block():
    before = fastssd.show_config()["backend"]
    with fastssd.use_backend("reference"):
        assert fastssd.show_config()["backend"] == "reference"
    assert fastssd.show_config()["backend"] == before
    with pytest.raises(ValueError, match="cuda"):
        fastssd.use_backend("cuda")
    code = "import fastssd, json; print(json.dumps(fastssd.show_config()))"
    environment = {"FASTSSD_BACKEND": "reference", "FASTSSD_NUM_THREADS": "3"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    config = json.loads(found.stdout)
    assert (config["backend"], config["num_threads"]) == ("reference", 3)
    environment = {"FASTSSD_BACKEND": "nunba"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert found.returncode != 0
    assert "nunba" in found.stderr


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_threads_must_be_a_positive_integer(threads):
    with pytest.raises((TypeError, ValueError)):
        fastssd.set_num_threads(threads)
