"""What ``patch()`` of every host in ``fastssd.compat`` promises, shown once, on a host made for it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("torch")

import torch

from fastssd.compat._routes import Host, original


def total(values):
    """Ours."""
    if not isinstance(values, torch.Tensor):
        raise TypeError
    return "ours"


class Counter:
    """Ours."""

    def count(self, values):
        return total(values)


HOST = Host(f"{__name__}:HOST", ["some_host"], {"some_host.sums": [total, Counter]})
VALUES = torch.ones(3)


@pytest.fixture
def host(monkeypatch):
    """A host's modules: where it defines things, and where it imports them, also under another name."""
    sums, user = types.ModuleType("some_host.sums"), types.ModuleType("some_host.user")

    def total(values):
        return "the host's"

    class Counter:
        def count(self, values):
            return "the host's"

        def name(self):
            return "the host's"

    sums.total, sums.Counter, user.add_up = total, Counter, total
    for module in (types.ModuleType("some_host"), sums, user):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return sums, user


def test_every_name_in_every_module_is_routed_and_given_back(host):
    sums, user = host
    before = dict(vars(sums)), dict(vars(user))
    with HOST.patch():
        assert sums.total is user.add_up is not before[0]["total"]
        assert sums.total(VALUES) == "ours"
        assert issubclass(sums.Counter, before[0]["Counter"])
        assert (sums.Counter().count(VALUES), sums.Counter().name()) == ("ours", "the host's")
        assert original("some_host.sums", "total") is before[0]["total"]
    assert (vars(sums), vars(user)) == before
    with pytest.raises(ZeroDivisionError), HOST.patch():
        1 / 0  # noqa: B018
    assert (vars(sums), vars(user)) == before


def test_the_host_answers_what_ours_refuses(host):
    sums, _ = host
    with HOST.patch():
        assert (sums.total(3), sums.Counter().count(3)) == ("the host's", "the host's")
        assert sums.total(VALUES.to_sparse()) == "the host's"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_and_a_full_memory_are_not_refusals(host, error):
    def total(values):
        raise error

    with Host("", ["some_host"], {"some_host.sums": [total]}).patch(), pytest.raises(error):
        host[0].total(VALUES)


def test_patches_nest_and_end_in_any_order(host):
    sums, _ = host
    theirs = sums.total
    first, second = HOST.patch(), HOST.patch()
    ours = sums.total
    assert ours is not theirs
    first.restore()
    first.restore()
    assert sums.total is ours
    with HOST.patch():
        second.restore()
        assert sums.total is ours
    assert sums.total is theirs


def test_other_modules_are_routed_where_they_are_named_and_late_ones_of_the_host_are_given_back(host, monkeypatch):
    sums, _ = host
    theirs = sums.total
    late, stranger = types.ModuleType("some_host.late"), types.ModuleType("stranger")
    stranger.total = theirs
    with HOST.patch():
        late.total = sums.total  # imported during the patch
        monkeypatch.setitem(sys.modules, "some_host.late", late)
        assert stranger.total is theirs
        with HOST.patch([stranger]):
            assert stranger.total is sums.total is not theirs
        assert stranger.total is theirs
        assert sums.total is late.total is not theirs
    assert sums.total is late.total is theirs


def test_patches_begin_and_end_in_many_threads(host):
    sums, _ = host
    theirs = sums.total
    with HOST.patch():  # one that outlasts the others
        ours = sums.total

        def work(_):
            with HOST.patch():
                return sums.total is ours and sums.total(VALUES) == "ours"

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(200)))
        assert sums.total is ours
    assert sums.total is theirs


class _Slow(types.ModuleType):
    """A module whose names take long to change."""

    def __setattr__(self, name, value):
        if name == "total" and hasattr(self, "total"):
            self.changing.set()
            time.sleep(0.2)
        super().__setattr__(name, value)


def _in_a_child(slow, theirs):
    """Whether the patch is whole, and can be nested and ended here."""
    ours = slow.total
    with HOST.patch():
        nested = slow.total is ours
    HOST._patches[0].restore()
    os._exit(0 if ours is not theirs and nested and slow.total is theirs else 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_in_the_middle_of_a_patch_gets_a_whole_one(host, monkeypatch):
    sums, _ = host
    theirs, patch = sums.total, []
    slow = _Slow("some_host.slow")
    slow.changing = threading.Event()
    slow.total = theirs
    monkeypatch.setitem(sys.modules, "some_host.slow", slow)
    thread = threading.Thread(target=lambda: patch.append(HOST.patch()))
    thread.start()
    slow.changing.wait()
    child = multiprocessing.get_context("fork").Process(target=_in_a_child, args=(slow, theirs), daemon=True)
    child.start()
    thread.join()
    child.join(60)
    assert child.exitcode == 0
    assert slow.total is not theirs  # the child ended its own copy alone
    patch[0].restore()
    assert slow.total is sums.total is theirs


def test_a_patch_that_fails_to_begin_changes_nothing(host):
    class Closed(types.ModuleType):
        def __setattr__(self, name, value):
            raise AttributeError(name)

    sums, user = host
    theirs = sums.total
    closed = Closed("closed")
    vars(closed)["total"] = theirs
    with pytest.raises(AttributeError):
        HOST.patch([closed])
    assert sums.total is user.add_up is closed.total is theirs


def test_routed_objects_are_pickled_during_a_patch_and_after(host):
    sums, _ = host
    with HOST.patch():
        ours = sums.total
        assert pickle.loads(pickle.dumps(ours)) is ours
        counter = pickle.dumps(sums.Counter())
    assert pickle.loads(pickle.dumps(ours)) is ours
    assert pickle.loads(counter).count(VALUES) == "ours"


def test_without_the_host_nothing_is_patched():
    with pytest.raises(ImportError):
        Host("", ["no_such_host"], {"no_such_host": [total]}).patch()
