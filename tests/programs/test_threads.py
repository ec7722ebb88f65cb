"""Rows shared out to threads: none missing, none twice, and the same trees."""

from __future__ import annotations

import multiprocessing
import os
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_dynamics import Plain, assert_equal_trees

from torchrl_wm.planners import GumbelRule, MuZeroRule, search
from torchrl_wm.planners.tree_search import NodeEvaluator
from torchrl_wm.programs import threads as threads_module
from torchrl_wm.programs.threads import in_threads


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["torch's threads", "threads of our own"])
def either_kind(request, monkeypatch):
    if request.param == "threads of our own":
        monkeypatch.setattr(threads_module, "_parallel_region", lambda: None)


needs_openmp = pytest.mark.skipif(
    threads_module._parallel_region() is None, reason="this torch has no OpenMP threads to share"
)


@given(st.integers(0, 500), st.integers(1, 40))
def test_every_row_belongs_to_one_share(rows, least):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shares = in_threads(lambda begin, end: list(range(begin, end)), rows, least)
    finally:
        torch.set_num_threads(before)
    assert sum(shares, []) == list(range(rows))
    assert len(shares) <= max(1, min(3, rows // least))


def test_shares_run_at_once_and_errors_are_raised(four_threads, either_kind):
    together = threading.Barrier(4, timeout=30)  # is only passed by four at once
    assert len(in_threads(lambda *_: together.wait(), 64, least=16)) == 4
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda begin, _: 1 // (begin < 48), 64, least=16)


@needs_openmp
def test_shares_are_handled_by_the_threads_that_torch_has(four_threads):
    torch.ones(400_000).add(1)  # large enough for all of them
    there = {int(thread) for thread in os.listdir("/proc/self/task")}
    together = threading.Barrier(4, timeout=30)

    def who(*_) -> tuple[int, str]:
        together.wait()
        return threading.get_native_id(), threading.current_thread().name

    found = dict(in_threads(who, 64, least=16))
    assert len(found) == 4 and set(found) <= there
    assert not any(name.startswith("torchrl_wm") for name in found.values())


@needs_openmp
def test_all_shares_are_handled_by_fewer_threads_than_asked_for(four_threads):
    def inner(*_) -> list[int]:  # OpenMP grants one thread within a parallel region
        return in_threads(lambda begin, end: end - begin, 64, least=16)

    assert in_threads(inner, 64, least=16) == [[16] * 4] * 4


@needs_openmp
@pytest.mark.skipif(os.cpu_count() < 2, reason="needs two processors")
def test_other_threads_are_kept_off_the_callers_processor_for_as_long_as_they_work(four_threads):
    together = threading.Barrier(4, timeout=30)

    def processors(*_) -> tuple[int, set[int]]:
        together.wait()
        return threading.get_native_id(), os.sched_getaffinity(0)

    everywhere, here = os.sched_getaffinity(0), threading.get_native_id()
    in_threads(processors, 64, least=16)
    for thread, allowed in in_threads(processors, 64, least=16):
        assert len(everywhere - allowed) == (thread != here)
        assert os.sched_getaffinity(thread) == everywhere


def _share_out() -> None:
    assert in_threads(lambda begin, end: end - begin, 64, least=16) == [16] * 4


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs a fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(four_threads):
    _share_out()
    child = multiprocessing.get_context("fork").Process(target=_share_out, daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == 0  # None, where it waits for threads that are not there


@pytest.mark.parametrize("rule", [MuZeroRule(), GumbelRule()], ids=["muzero", "gumbel"])
@pytest.mark.parametrize("rows", [63, 70])
def test_trees_do_not_depend_on_the_number_of_threads(rule, rows, four_threads):
    evaluator = NodeEvaluator(Plain(5))
    root, options = evaluator.dynamics.roots(rows), {"num_simulations": 200, "keep_latents": True}
    several = search(evaluator, root, rule, **options)
    torch.set_num_threads(1)
    one = search(evaluator, root, rule, **options)
    assert evaluator.program is not None
    assert_equal_trees(one, several)


@pytest.mark.parametrize("rule", [MuZeroRule(), GumbelRule()], ids=["muzero", "gumbel"])
def test_a_nan_is_named_with_its_row_in_every_share(rule, four_threads):
    evaluator = NodeEvaluator(Plain(5))
    root = evaluator.dynamics.roots(64)
    root.latents[0][50] = torch.nan
    with pytest.raises(FloatingPointError, match=r"node 1 of row 50, .* in simulation 0"):
        search(evaluator, root, rule, num_simulations=5)


def test_a_program_evaluates_many_rows_in_threads(four_threads):
    evaluator = NodeEvaluator(Plain(5))
    root, index = evaluator.dynamics.roots(20_030), torch.randperm(20_030)
    found = []
    for threads in (4, 1):
        torch.set_num_threads(threads)
        store = evaluator.begin(root.latents, 40_060)
        found.append((evaluator(store, index, index % 5).packed, store.buffers[0]))
    assert evaluator.program is not None
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
