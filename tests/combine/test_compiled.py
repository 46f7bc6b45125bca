"""Compiled loops give what calls of torch and numpy give, to the last bit, and are asked for when there is work."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from isthmus.combine import COMBINATIONS, Block, Place, blockwise, run
from isthmus.combine.compiled import loops as loops_of
from isthmus.combine.compiled.loops import Loops
from isthmus.combine.task_vectors import TaskVectors
from isthmus.errors import InputError

pytest.importorskip("numba")

NEVER = 1 << 62
TRIMMED = {
    row.name: row.options
    for row in COMBINATIONS.rows()
    if "density" in row.options and isinstance(blockwise(row.name, 2), TaskVectors)
}


def merged(
    loops: Loops, name: str, options: dict[str, object], tensors: list[torch.Tensor], weights: list[float]
):
    """A merge of one tensor, the base first, with loops or without."""
    base, *models = tensors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops_of, "LOOPS", loops)
        return run(blockwise(name, weights, options), models, base=base, key="w", seed=5)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16).flatten().tolist()


def siblings(shape: tuple[int, ...], count: int, dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    """A base and models: some numbers are the same in all, some are equally far from the base, some are -0."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator).mul_(0.02).to(dtype)
    base.view(-1)[::5] = -0.0
    found = [base]
    for _ in range(count):
        step = torch.randn(shape, generator=generator).mul_(2e-3)
        step.view(-1)[1::4] = step.view(-1)[1::4].sign() * 2**-9
        model = (base.float() + step).to(dtype)
        model.view(-1)[::3] = base.view(-1)[::3]
        found.append(model)
    return found


Drawn = tuple[tuple[int, ...], int, torch.dtype, int]


@st.composite
def merges(draw: st.DrawFn):
    name = draw(st.sampled_from(sorted(TRIMMED)))
    fit = TRIMMED[name]
    count = draw(st.integers(1, 3))
    options: dict[str, object] = {"density": draw(st.sampled_from([0.3, 0.5, 1.0]))}
    choices: dict[str, list[object]] = {
        "convention": ["paper", "mergekit"],
        "vote": ["sum", "count"],
        "weighted_vote": [True, False],
        "tie": ["plus", "majority"],
        "divide": ["weights", "count", "none"],
        "lam": [1.0, 0.7],
        "gamma": [0.0, 0.01, 0.2],
    }
    for option, values in choices.items():
        if option in fit:
            options[option] = draw(st.sampled_from(values))
    if options["density"] == 1.0 and "epsilon" in fit:
        options["epsilon"] = 0.0
    weights = draw(st.sampled_from([[1.0] * count, [1.0, 0.5, -0.7][:count], [0.5, 0.2, 0.2][:count]]))
    shape = draw(st.sampled_from([(1,), (3, 7), (5, 2049), (70, 100), (2, 3, 3, 3)]))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    return name, options, (shape, count, dtype, draw(st.integers(0, 99))), weights


@given(merges())
def test_loops_change_no_bit(merge: tuple[str, dict[str, object], Drawn, list[float]]):
    name, options, drawn, weights = merge
    tensors = siblings(*drawn)
    try:
        plain = merged(Loops(NEVER), name, options, tensors, weights)
    except InputError:  # a convention that this rule does not have
        reject()
    assert bits(merged(Loops(0), name, options, tensors, weights)) == bits(plain)


@pytest.mark.parametrize("name", sorted(TRIMMED))
def test_nor_do_they_in_a_tensor_of_several_blocks(name: str):
    tensors = siblings((600, 500), 2, torch.bfloat16, seed=1)
    plain = merged(Loops(NEVER), name, {"density": 0.4}, tensors, [1.0, 0.5])
    assert bits(merged(Loops(0), name, {"density": 0.4}, tensors, [1.0, 0.5])) == bits(plain)


def test_they_are_there_for_the_rules_that_are_slow_without_them(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    # No two magnitudes are the same: of equal ones some may be kept, which calls look up.
    different = [torch.randn(300, 40, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    loops = Loops(0).after(1)
    assert loops is not None
    for name in ("merged", "summed", "drawn_by_rank"):
        monkeypatch.setattr(loops, name, spy(getattr(loops, name), name, asked))
    sorting = [("della", {"convention": "paper"}), ("breadcrumbs", {"convention": "paper"})]
    for rule, options, wanted in (
        ("ties", {}, {"merged"}),
        ("breadcrumbs", {"convention": "mergekit", "gamma": 0.05}, {"merged"}),
        ("dare-ties", {"convention": "mergekit"}, {"merged", "summed"}),
        ("della", {"convention": "mergekit"}, {"merged", "drawn_by_rank"}),
        *((*one, set[str]()) for one in sorting),
    ):
        asked.clear()
        merged(Loops(0), rule, {"density": 0.4, **options}, different, [1.0, 1.0])
        assert set(asked) == wanted, rule


def spy(function, name: str, asked: list[str]):
    def spied(*arguments: object) -> object:
        asked.append(name)
        return function(*arguments)

    return spied


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_what_is_not_finite_shows_in_what_they_write(wrong: float, where: int):
    tensors = siblings((40, 50), 2, torch.bfloat16, seed=2)
    tensors[where][3, 4] = wrong
    found = merged(Loops(0), "dare-ties", {"density": 0.4}, tensors, [1.0, 1.0])
    assert not found[3, 4].isfinite() and int((~found.isfinite()).sum()) == 1


def test_other_dtypes_do_without_them():
    base, *models = (t.double() for t in siblings((30, 20), 2, torch.float32, seed=3))
    block = Block(tuple(models), Place("w", (30, 20), 0, 600), base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops_of, "LOOPS", Loops(0))
        assert loops_of.pairs(block) is None


def test_they_wait_until_there_is_enough_to_do():
    loops = Loops(100)
    assert loops.after(60) is None
    assert loops.after(60) is not None
    assert loops.after(1) is not None


def test_they_do_without_where_memory_is_short_and_come_back_where_it_is_not():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops_of, "LOOPS", Loops(0))
        loops_of.allow(loops_of.MEMORY - 1)
        assert loops_of.LOOPS.after(1) is None
        loops_of.allow(loops_of.MEMORY)
        assert loops_of.LOOPS.after(1) is not None
        loops_of.allow(0)
        assert loops_of.LOOPS.after(1) is None, "other loops may yet be compiled"
        loops_of.allow(None)
        assert loops_of.LOOPS.after(1) is not None


@pytest.mark.parametrize("name", ["merged", "drawn_by_rank"])
@pytest.mark.parametrize("error", [EOFError("Ran out of input"), OSError(28, "No space left on device")])
def test_where_they_cannot_be_compiled_or_read_calls_go_on(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise error

    tensors, options = (
        siblings((600, 500), 2, torch.bfloat16, seed=3),
        {"convention": "mergekit", "density": 0.4},
    )
    loops = Loops(0)
    monkeypatch.setattr(loops.after(1), name, fail)
    with pytest.warns(RuntimeWarning, match="without compiled loops from here on"):
        found = merged(loops, "della", options, tensors, [1.0, 1.0])
    assert bits(found) == bits(merged(Loops(NEVER), "della", options, tensors, [1.0, 1.0]))
    assert loops.after(1) is None


def test_where_they_cannot_be_had_nothing_else_changes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "numba.core", None)  # an import of it fails
    assert Loops(0).after(1) is None
    tensors = siblings((30, 20), 2, torch.float32, seed=4)
    assert bits(merged(Loops(0), "ties", {}, tensors, [1.0, 1.0])) == bits(
        merged(Loops(NEVER), "ties", {}, tensors, [1.0, 1.0])
    )


def test_numba_without_its_compiler_is_not_used():
    """In a process of its own: what is switched off is so from the start."""
    code = "from isthmus.combine.compiled.loops import Loops; assert Loops(0).after(1) is None"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, check=True)


def test_where_nothing_can_be_kept_each_process_compiles_for_itself(monkeypatch: pytest.MonkeyPatch):
    def refuse(dispatcher: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr("numba.core.dispatcher.Dispatcher.enable_caching", refuse)
    assert loops_of.__spec__ and loops_of.__spec__.parent
    spec = importlib.util.find_spec(f"{loops_of.__spec__.parent}.kernels")
    assert spec and spec.loader
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    lanes = np.zeros((2, 1024), np.float32)
    numbers = np.arange(3, dtype=np.float32)
    kernels.summed(numbers, np.zeros(3, np.float32), np.array([True, False, True]), lanes)
    assert lanes.sum(axis=1).tolist() == [3.0, 2.0]


def test_blocks_that_begin_at_an_odd_byte_are_taken():
    base, model = siblings((30, 20), 1, torch.bfloat16, seed=6)
    memory = torch.zeros(model.nbytes + 1, dtype=torch.uint8)
    memory[1:] = model.view(torch.uint8).flatten()
    odd = torch.frombuffer(memory.numpy(), dtype=torch.bfloat16, offset=1, count=600).view(30, 20)
    wanted = merged(Loops(0), "ties", {}, [base, model, model], [1.0, 1.0])
    assert bits(merged(Loops(0), "ties", {}, [base, odd, model], [1.0, 1.0])) == bits(wanted)


def test_who_sorts_does_not_even_import_them():
    fresh = Loops(0)
    merged(fresh, "della", {"convention": "paper"}, siblings((30, 20), 2, torch.bfloat16, 0), [1.0, 1.0])
    assert fresh._tried is False
