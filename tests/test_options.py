"""No option is lost, swapped or given another default on its way from the public function to a kernel.

The facts come from signatures and samples, so that a new operator is held to them as it is. The samples are held too:
where an option has no effect, or two could be swapped unnoticed, no other test would see the mistake.
"""

from __future__ import annotations

import inspect
from itertools import combinations

import numpy as np
import pytest

from fastssd import backends, ops
from fastssd.backends import available_backends, load_backend
from tests.operators import (
    EXAMPLES,
    PUBLIC,
    as_tensor,
    convert,
    difference,
    kernel_arguments,
    options_of,
    outcome,
    torch_operator,
)

OPTIONS = [(name, option) for name in PUBLIC for option in options_of(name)]
PAIRS = [(name, *pair) for name in PUBLIC for pair in combinations(options_of(name), 2)]
CODES = {
    **backends.FORCE_MATCH,
    **backends.BOX_FORMATS,
    **backends.ACTIVATIONS,
    **backends.SOFT_NMS_METHODS,
}


def parameters(name):
    return inspect.signature(getattr(ops, name)).parameters


def is_seen(name, sample, **changes):
    """Whether the changed call gives something else."""
    function = getattr(ops, name)
    ref, comp = (outcome(lambda arguments=arguments: function(**arguments)) for arguments in (sample, sample | changes))
    if isinstance(ref, type) or isinstance(comp, type):
        return ref is not comp
    shapes = [[each.shape for each in found] for found in (ref, comp)]
    return shapes[0] != shapes[1] or any(
        not np.array_equal(*each, equal_nan=True) for each in zip(ref, comp, strict=True)
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_first_sample_says_every_argument(name):
    assert EXAMPLES[name].samples[0].keys() == parameters(name).keys() - {"out"}


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_has_an_effect_in_a_sample(name, option):
    samples, default = EXAMPLES[name].samples, parameters(name)[option].default
    values = [sample[option] for sample in samples if option in sample]
    values += [] if default is inspect.Parameter.empty else [default]
    assert any(is_seen(name, sample, **{option: value}) for sample in samples if option in sample for value in values)


@pytest.mark.parametrize(("name", "first", "second"), PAIRS)
def test_no_two_options_can_be_swapped_unnoticed(name, first, second):
    samples = [sample for sample in EXAMPLES[name].samples if {first, second} <= sample.keys()]
    assert any(is_seen(name, each, **{first: each[second], second: each[first]}) for each in samples)


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_the_parts_of_an_option_cannot_be_swapped_unnoticed(name, option):
    samples = [
        each for each in EXAMPLES[name].samples if isinstance(each.get(option), tuple) and len(each[option]) == 2
    ]
    if samples:
        assert any(is_seen(name, sample, **{option: sample[option][::-1]}) for sample in samples)


# --- from the public function to the kernel --------------------------------------------------------------------------


def for_kernels(sample):
    """What kernels get of a sample, under the names that they have for it."""
    names = {key: CODES.get(value, value) if isinstance(value, str) else value for key, value in sample.items()}
    for option, parts in {
        "variances": ("center_variance", "size_variance"),
        "size": ("height", "width"),
        "clip": ("clip_height", "clip_width"),
    }.items():
        if isinstance(sample.get(option), tuple):
            names |= dict(zip(parts, sample[option], strict=True))
    if "grid_sizes" in sample:
        names["height"], names["width"] = sample["grid_sizes"][-1]  # the kernel is called once a level
        names["scale"] = np.array(sample["image_size"])
    return names


@pytest.mark.parametrize("backend", [name for name in available_backends() if name != "cpp"])
@pytest.mark.parametrize("name", PUBLIC)
def test_kernels_get_every_argument_under_its_name(name, backend):
    """Each backend by its own signature. C++ has no names of parameters: test_backends.py compares its values."""
    sample = EXAMPLES[name].samples[0]
    expected, names = for_kernels(sample), inspect.signature(getattr(load_backend(backend), name)).parameters
    for parameter, value in zip(names, kernel_arguments(name, sample, backend), strict=True):
        if isinstance(value, np.ndarray):
            if parameter in expected:  # else it is an output, or made of several arguments
                finite = value[np.isfinite(value)]
                assert finite.size, parameter
                assert np.isin(finite, expected[parameter]).all(), parameter
        else:
            assert parameter in expected, f"{parameter}: say in for_kernels of which argument it is a part"
            assert value == expected[parameter], parameter


# --- from the public function to torch.ops.fastssd -------------------------------------------------------------------


def plain(value):
    """A default of either side, comparable."""
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", PUBLIC)
def test_schemas_have_the_arguments_and_defaults_of_the_functions(name):
    pytest.importorskip("torch")
    schema = {argument.name: argument for argument in torch_operator(name).default._schema.arguments}
    function = parameters(name)
    assert function.keys() - schema.keys() <= {"out"}
    if EXAMPLES[name].registered is dict:
        assert schema.keys() <= function.keys()
    for argument in schema.keys() & function.keys():
        if name == "grid_anchors" and schema[argument].default_value is None:
            continue  # a schema has no such default; what None means is compared below
        default = function[argument].default
        assert schema[argument].has_default_value() == (default is not inspect.Parameter.empty), argument
        if schema[argument].has_default_value():
            assert schema[argument].default_value == plain(default), argument


@pytest.mark.parametrize("name", PUBLIC)
def test_torch_ops_without_options_is_the_function_without_options(name):
    pytest.importorskip("torch")
    needed = [key for key, each in parameters(name).items() if each.default is inspect.Parameter.empty]
    sample = {key: EXAMPLES[name].samples[0][key] for key in needed}
    arguments = convert(name, EXAMPLES[name].registered(sample), lambda _, array: as_tensor(array))
    comp = outcome(lambda: torch_operator(name)(**arguments))
    assert difference(name, outcome(lambda: getattr(ops, name)(**sample)), comp) is None
