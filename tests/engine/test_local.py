"""What an engine writes is what the rule makes in memory, whatever the threads, shards and interruptions."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import isthmus
from isthmus import progress, weights
from isthmus.combine import ARITHMETIC, COMBINATIONS, blockwise, options_of, terms_of
from isthmus.combine.compiled import loops
from isthmus.engine import COPY, File, Job, Source, Work, Written, run
from isthmus.engine import stream as streams
from isthmus.errors import InputError, MismatchError, WeightsError

MakeWork = Callable[..., Work]
Tensors = dict[str, Tensor]

#: Options that rules cannot do without, and those that make small tensors interesting.
OPTIONS: dict[str, dict[str, object]] = {"slerp": {"t": 0.3}, "near-swap": {"t": 0.05}}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def rules() -> list[str]:
    """Every registered rule that needs no statistics."""
    return [name for name in COMBINATIONS.names() if terms_of(name).statistics != "needed"]


@pytest.mark.parametrize("rule", rules())
def test_streaming_gives_the_bytes_of_memory(
    rule: str, models: list[Path], work_of: MakeWork, tmp_path: Path
):
    terms = terms_of(rule)
    options = {k: v for k, v in OPTIONS.get(rule, {}).items() if k in options_of(rule)}
    count = max(terms.least, min(2, terms.most or 2))
    # Rules that see whole tensors decompose them: on large ones, only time would be tested.
    large = blockwise(rule, count, options).layout != "whole"
    loaded = [{n: t for n, t in weights.load(path).items() if large or t.numel() < 1000} for path in models]
    base = loaded[2] if terms.base != "no" else None
    wanted = isthmus.combine(
        loaded[:count], rule, base=base, options=options, **({"seed": 7} if terms.seed else {})
    )
    for number, (threads, size) in enumerate([(1, 10**9), (3, 2_000_000)]):
        work = work_of(
            rule, f"{number}", base=base is not None, options=options, seed=7 if terms.seed else 0,
            shard_size=size, count=count,
        )  # fmt: skip
        jobs = tuple(job for job in work.jobs if job.name in loaded[0])
        done = run(dataclasses.replace(work, jobs=jobs), threads=threads)
        found = weights.open(done.folder)
        assert weights.digest(found) == weights.digest(wanted), f"{threads} threads"


def test_shards_are_filled_in_order_and_an_index_lists_them(work_of: MakeWork):
    done = run(work_of(shard_size=2_000_000))
    names = sorted(file.name for file in done.folder.iterdir())
    assert (
        names
        == [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ]
        or len(names) == 4
    )
    index = json.loads((done.folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(e.nbytes for e in weights.headers(done.folder).values())


def test_a_single_file_has_no_index_and_the_layout_of_the_other_writer(work_of: MakeWork, tmp_path: Path):
    done = run(work_of())
    assert [file.name for file in done.folder.iterdir()] == ["model.safetensors"]
    weights.save(weights.load(done.folder), tmp_path / "same.safetensors")
    assert (done.folder / "model.safetensors").read_bytes() == (tmp_path / "same.safetensors").read_bytes()


def test_what_lies_beside_is_copied_and_text_written(work_of: MakeWork, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    work = work_of()
    files = (File("tokenizer.json", str(tmp_path / "tokenizer.json")), File("README.md", text="ключ\n"))
    done = run(Work(work.checkpoints, work.jobs, work.out, files=files))
    assert (done.folder / "tokenizer.json").read_text() == "{}"
    assert (done.folder / "README.md").read_text(encoding="utf-8") == "ключ\n"


@pytest.mark.parametrize("name", ["../x.json", "model.safetensors", "a/b", "x.journal", ""])
def test_what_lies_beside_cannot_leave_the_folder_or_replace_a_tensor_file(
    name: str, work_of: MakeWork, tmp_path: Path
):
    work = work_of()
    with pytest.raises(WeightsError, match="cannot be the name of a file"):
        run(Work(work.checkpoints, work.jobs, work.out, files=(File(name, text=""),)))
    assert not list(tmp_path.iterdir())


def test_integers_and_empty_tensors_are_copied(tmp_path: Path):
    tensors = {"n": torch.arange(5), "none": torch.empty(0, 3), "mask": torch.tensor([True, False])}
    weights.save(tensors, tmp_path / "a.safetensors")
    jobs = tuple(Job(n, tuple(t.shape), t.dtype, (Source(0, n),), rule=COPY) for n, t in tensors.items())
    done = run(Work((str(tmp_path / "a.safetensors"),), jobs, str(tmp_path / "out")))
    assert weights.digest(weights.open(done.folder)) == weights.digest(tensors)


def test_a_copy_may_change_the_dtype(models: list[Path], tmp_path: Path):
    job = Job("big", (1500, 1100), torch.float32, (Source(0, "big"),))
    done = run(Work((str(models[0]),), (job,), str(tmp_path / "out")))
    assert torch.equal(weights.open(done.folder)["big"], weights.open(models[0])["big"].float())


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float16, torch.float32, torch.float64])
def test_dtypes_in_and_out(stored: torch.dtype, tmp_path: Path):
    tensors = [{"w": torch.linspace(-2, 2, 300).to(stored)}, {"w": torch.linspace(0, 1, 300).to(stored)}]
    for name, t in zip("ab", tensors, strict=True):
        weights.save(t, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    wanted = torch.stack([t["w"].double() for t in tensors]).mean(0)
    for dtype, bound in [("float32", 1e-6), ("bfloat16", 8e-3), ("float8_e5m2", 0.26)]:
        done = isthmus.merge_files(paths, tmp_path / dtype, dtype=dtype)
        found = weights.open(done.folder)["w"]
        assert found.dtype == getattr(torch, dtype)
        assert torch.allclose(found.double(), wanted, rtol=bound, atol=bound / 10)


# Interruptions.


class PowerCut(Exception):  # noqa: N818
    """Not an error of ours: whatever may end a process between two blocks."""


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """End the run when so many runs of blocks are written, with all finished tensors in the journal."""
    write = streams.Stream.write
    left = [after]

    def failing(self: streams.Stream, blocks: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise PowerCut
        write(self, blocks)  # type: ignore[arg-type]

    monkeypatch.setattr(streams.Stream, "write", failing)


def journaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each tensor entered at once, not after seconds."""
    ended = isthmus.engine.local._Diary.ended

    def now(self: object, *told: object) -> None:
        ended(self, *told)  # type: ignore[arg-type]
        self.enter(everything=True)  # type: ignore[attr-defined]

    monkeypatch.setattr("isthmus.engine.local._Diary.ended", now)


@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("rule", ["average", "ties"])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(
    after: int, rule: str, work_of: MakeWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    extra = {"base": True} if rule == "ties" else {}
    wanted = bytes_of(run(work_of(rule, "whole", shard_size=2_000_000, **extra)).folder)
    work = work_of(rule, "cut", shard_size=2_000_000, **extra)
    with monkeypatch.context() as patch:
        journaled(patch)
        interrupt(patch, after)
        with pytest.raises(PowerCut):
            run(work, threads=1)
    assert not Path(work.out).exists(), "nothing half-written under its name"
    done = run(work, threads=2)
    assert bytes_of(done.folder) == wanted
    assert done.resumed >= min(after - 3, 3)
    assert not weights.draft_of(done.folder).exists()


def cut_off(work: Work, monkeypatch: pytest.MonkeyPatch, after: int = 5) -> Path:
    with monkeypatch.context() as patch:
        journaled(patch)
        interrupt(patch, after)
        with pytest.raises(PowerCut):
            run(work, threads=1)
    return weights.draft_of(Path(work.out))


def test_a_finished_tensor_that_was_damaged_is_made_again(work_of: MakeWork, monkeypatch: pytest.MonkeyPatch):
    wanted = bytes_of(run(work_of(out="whole")).folder)
    work = work_of()
    file = cut_off(work, monkeypatch) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    assert bytes_of(run(work).folder) == wanted


@pytest.mark.parametrize("cut", [1, 30, 80])
def test_a_journal_that_was_cut_short_is_believed_as_far_as_it_goes(
    cut: int, work_of: MakeWork, monkeypatch: pytest.MonkeyPatch
):
    wanted = bytes_of(run(work_of(out="whole")).folder)
    work = work_of()
    journal = cut_off(work, monkeypatch) / "model.safetensors.journal"
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert bytes_of(run(work).folder) == wanted


@pytest.mark.parametrize("rule", ["ties", "dare-ties", "della"])
def test_work_goes_on_with_compiled_loops_where_it_stopped_without(
    rule: str, work_of: MakeWork, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("numba")
    asked = {"base": True, "options": {"convention": "mergekit"}, "seed": 0 if rule == "ties" else 7}
    wanted = bytes_of(run(work_of(rule, "whole", **asked)).folder)
    cut_off(work_of(rule, **asked), monkeypatch)
    monkeypatch.setattr(loops, "LOOPS", loops.Loops(0))
    done = run(work_of(rule, **asked), threads=3)
    assert done.resumed and bytes_of(done.folder) == wanted


def test_other_work_does_not_go_on_from_there(work_of: MakeWork, monkeypatch: pytest.MonkeyPatch):
    cut_off(work_of(weights=(0.5, 0.5), shard_size=2_000_000), monkeypatch)
    wanted = bytes_of(run(work_of(out="whole", weights=(0.25, 0.75))).folder)
    done = run(work_of(weights=(0.25, 0.75)))
    assert done.resumed == 0
    assert bytes_of(done.folder) == wanted, "no shard of the other work came along"


def test_nor_does_work_of_another_arithmetic(work_of: MakeWork, monkeypatch: pytest.MonkeyPatch):
    cut_off(work_of(), monkeypatch)
    monkeypatch.setattr("isthmus.engine.local.ARITHMETIC", ARITHMETIC + 1)
    assert run(work_of()).resumed == 0


def test_the_law_of_random_masks_belongs_to_the_version_of_the_arithmetic():
    base, drawn = torch.zeros(40, 50), torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    found = hashlib.sha256()
    for rule in ("dare-linear", "della-linear"):
        merged = isthmus.combine([{"w": drawn}], rule, base={"w": base}, seed=3)["w"]
        found.update(bytes((merged != 0).flatten().to(torch.uint8).tolist()))
    assert (ARITHMETIC, found.hexdigest()[:16]) == (3, "79882409dcdd7379"), "other masks: raise ARITHMETIC"


def test_nor_does_work_on_files_that_have_changed(
    models: list[Path], work_of: MakeWork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    weights.save(weights.load(models[0]), tmp_path / "mine" / "model.safetensors")
    work = work_of()
    work = Work((str(tmp_path / "mine"), *work.checkpoints[1:]), work.jobs, work.out)
    cut_off(work, monkeypatch)
    weights.save(
        {n: t * 2 for n, t in weights.load(models[0]).items()}, tmp_path / "mine" / "model.safetensors"
    )
    assert run(work).resumed == 0


def test_two_at_once_do_not_mix(work_of: MakeWork, monkeypatch: pytest.MonkeyPatch):
    work = work_of()
    write = streams.Stream.write
    told: list[str] = []

    def second(self: streams.Stream, blocks: object) -> None:
        with pytest.raises(WeightsError, match="being written by another process") as caught:
            run(work, threads=1)
        told.append(str(caught.value))
        write(self, blocks)  # type: ignore[arg-type]

    monkeypatch.setattr(streams.Stream, "write", second)
    assert run(work, threads=1).resumed == 0
    assert told


# What is said before the work.


def test_everything_that_is_wrong_is_said_at_once(models: list[Path], tmp_path: Path):
    def job(name: str, shape: tuple[int, ...] = (65,), **more: object) -> Job:
        sources = more.pop("sources", (Source(0, "norm"), Source(1, "norm")))
        return Job(name, shape, torch.bfloat16, sources, **{"rule": "average", **more})  # type: ignore[arg-type]

    jobs = (
        job("fine"),
        job("shape", (64,)),
        job("absent", sources=(Source(0, "nothing"), Source(9, "norm"))),
        job("rule", rule="avarage"),
        job("options", options={"densty": 1}),
        job("weights", weights=(1.0,)),
        job("base", rule="ties"),
        job("rows", (2,), sources=(Source(0, "norm", rows=(0, 65)), Source(1, "norm", rows=(0, 1)))),
    )
    with pytest.raises(MismatchError, match="7 of 8 tensors cannot be merged") as caught:
        run(Work(tuple(map(str, models)), jobs, str(tmp_path / "out")))
    told = str(caught.value)
    for words in (
        "(65,)",
        "no nothing in checkpoint 0",
        "avarage",
        "densty",
        "1 weights for 2",
        "base",
        "row 65",
    ):
        assert words in told, words
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_many_tensors_alike_is_said_once(models: list[Path], tmp_path: Path):
    sources = (Source(0, "norm"), Source(1, "norm"))
    jobs = [
        Job(name, (65,), torch.bfloat16, sources, rule="average", weights=(1.0, -1.0))
        for name in "abcdefghij"
    ]
    with pytest.raises(MismatchError, match="10 of 10 tensors cannot be merged") as caught:
        run(Work(tuple(map(str, models)), tuple(jobs), str(tmp_path / "out")))
    assert all(line.startswith("a and 9 more    ") for line in caught.value.where)
    assert len(caught.value.where) == 2 and "sum to 0" in caught.value.where[1]


def test_too_little_memory_is_said_before(work_of: MakeWork, tmp_path: Path):
    with pytest.raises(InputError, match="too little"):
        run(work_of(), max_memory="1MB")
    assert not list(tmp_path.iterdir())


def test_a_rule_that_cannot_work_in_blocks_is_named(models: list[Path], tmp_path: Path):
    from isthmus.engine.memory import private

    job = Job(
        "big", (1500, 1100), torch.bfloat16, tuple(Source(i, "big") for i in range(2)), base=Source(2, "big")
    )
    whole = next(n for n in ("tsv-merge", "tsv", "iso-c") if n in COMBINATIONS.names())
    work = Work(tuple(map(str, models)), (Job(**{**job.__dict__, "rule": whole}),), str(tmp_path / "out"))
    with pytest.raises(InputError, match="cannot be cut into blocks"):
        run(work, threads=1, max_memory=private() + 40_000_000)


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_do_no_work(threads: int, work_of: MakeWork):
    with pytest.raises(InputError, match="do no work"):
        run(work_of(), threads=threads)


def test_a_folder_that_holds_something_is_left_alone(work_of: MakeWork, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(WeightsError, match="exists and is not empty"):
        run(work_of())
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["mine"]


def test_an_empty_folder_is_taken(work_of: MakeWork, tmp_path: Path):
    (tmp_path / "out").mkdir()
    assert run(work_of()).folder == tmp_path / "out"


# What is said on the way.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("rule", ["average", "dare-linear", "ties", "slerp"])
def test_numbers_that_are_not_finite_are_named(value: float, rule: str, work_of: MakeWork, tmp_path: Path):
    tensors = weights.load(tmp_path_of(work_of) / "model.safetensors")
    tensors["big"][1400, 3] = value
    weights.save(tensors, tmp_path / "bad.safetensors")
    options = {"slerp": {"t": 0.5}}.get(rule, {})
    work = work_of(rule, base=terms_of(rule).base == "needed", options=options)
    work = Work(
        (work.checkpoints[0], str(tmp_path / "bad.safetensors"), work.checkpoints[2]), work.jobs, work.out
    )
    with pytest.raises(WeightsError, match=r"bad\.safetensors holds numbers that are not finite") as caught:
        run(work)
    assert caught.value.where[0].startswith("big    1 of the ")
    assert not Path(work.out).exists()


def test_a_failure_tells_where_finished_tensors_lie(tmp_path: Path):
    sound, out = {"a": torch.ones(4), "b": torch.ones(4)}, tmp_path / "out"
    weights.save(sound, tmp_path / "x.safetensors")
    weights.save(sound | {"b": torch.tensor([1.0, torch.nan, 1, 1])}, tmp_path / "y.safetensors")
    paths = [tmp_path / "x.safetensors", tmp_path / "y.safetensors"]
    with pytest.raises(WeightsError, match="not finite") as caught:
        isthmus.merge_files(paths, out, threads=1)
    stays = (
        f"what is finished stays in {weights.draft_of(out)}, from where the same call goes on; else remove it"
    )
    assert weights.draft_of(out).exists() and stays in str(caught.value)
    weights.save(sound | {"a": torch.full((4,), torch.inf)}, tmp_path / "y.safetensors")
    with pytest.raises(WeightsError, match="not finite") as caught:  # nothing is finished, and nothing stays
        isthmus.merge_files(paths, tmp_path / "other", threads=1)
    assert not weights.draft_of(tmp_path / "other").exists() and "what is finished" not in str(caught.value)


def tmp_path_of(work_of: MakeWork) -> Path:
    return Path(work_of().checkpoints[1])


@pytest.mark.parametrize(
    ("largest", "dtype", "wider"), [(5e4, "float16", "bfloat16 or float32"), (3e38, "float32", "float64")]
)
def test_a_result_that_overflows_is_named(tmp_path: Path, largest: float, dtype: str, wider: str):
    for name in "ab":
        weights.save({"w": torch.full((4,), largest)}, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]

    def summed(dtype: str) -> None:
        isthmus.merge_files(
            paths, tmp_path / "out", method="linear", weights=[1.0, 1.0], dtype=dtype, normalize=False
        )

    with pytest.raises(WeightsError, match=f"linear makes numbers of w that {dtype} cannot hold") as caught:
        summed(dtype)
    assert caught.value.hint is not None and f"output, {wider};" in caught.value.hint
    summed(wider.split()[-1])
    merged = weights.load(tmp_path / "out")["w"]
    torch.testing.assert_close(merged, torch.full((4,), largest, dtype=torch.float32).to(merged.dtype) * 2)


@pytest.mark.parametrize("rule", ["linear", "ties", COPY])
@pytest.mark.parametrize("cast", [torch.float16, None], ids=["source", "output"])
def test_a_file_is_not_blamed_for_a_cast_that_overflows(rule: str, cast: torch.dtype | None, tmp_path: Path):
    if rule != COPY and cast is None:
        pytest.skip("what a rule makes is another matter")
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("large", "small")]
    weights.save({"w": torch.tensor([1.0, -7e4, 2.0])}, paths[0])
    weights.save({"w": torch.ones(3)}, paths[1])
    sources = tuple(Source(i, "w", dtype=cast) for i in ((0,) if rule == COPY else (0, 1)))
    base = Source(1, "w", dtype=cast) if rule == "ties" else None
    job = Job("w", (3,), torch.float16, sources, base, rule)
    with pytest.raises(
        WeightsError, match=r"large\.safetensors holds numbers of w that float16 cannot"
    ) as caught:
        run(Work(tuple(paths), (job,), str(tmp_path / "out")))
    assert caught.value.where == ("1 of the 3 from element 0 on, up to 7e+04",)
    assert caught.value.hint is not None and "choose a wider dtype, bfloat16 or float32" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_infinities_that_are_meant_are_copied_into_any_dtype(tmp_path: Path):
    weights.save({"mask": torch.tensor([0.0, -torch.inf])}, tmp_path / "a.safetensors")
    job = Job("mask", (2,), torch.float16, (Source(0, "mask"),))
    run(Work((str(tmp_path / "a.safetensors"),), (job,), str(tmp_path / "out")))
    assert weights.load(tmp_path / "out")["mask"].tolist() == [0.0, -torch.inf]


def test_progress_tells_the_tensor_and_the_memory(
    work_of: MakeWork, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    progress.enable()
    try:
        run(work_of(), threads=1)
    finally:
        progress.disable()
    lines = capsys.readouterr().err.splitlines()
    assert any("merging: " in line and "/s" in line and "big, " in line and " held" in line for line in lines)


def test_a_result_reads_well(tmp_path: Path):
    assert (
        str(Written(Path("out"), 3, 2_000, 1, 0.51, 2))
        == "out: 3 tensors, 2.0 kB, 1 of them from the run before, in 0.5 s"
    )


def test_a_file_that_is_changed_while_it_is_read_gives_no_output(
    models: list[Path], work_of: MakeWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "mine" / "model.safetensors"
    weights.save(weights.load(models[0]), file)
    work = work_of()
    work = Work((str(file), *work.checkpoints[1:]), work.jobs, work.out)
    write = streams.Stream.write

    def slow(self: streams.Stream, blocks: object) -> None:
        write(self, blocks)  # type: ignore[arg-type]
        with file.open("r+b") as other:
            other.seek(-2, 2)
            other.write(b"\0\0")

    with monkeypatch.context() as patch:
        patch.setattr(streams.Stream, "write", slow)
        with pytest.raises(WeightsError, match="changed while they were merged") as caught:
            run(work)
    assert caught.value.where == (str(file),)
    assert not Path(work.out).exists()
    assert run(work).resumed == 0, "what was made of it is not gone on with"


def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_end(
    models: list[Path], work_of: MakeWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "mine" / "model.safetensors"
    weights.save(weights.load(models[0]), file)
    work = work_of()
    wanted = bytes_of(run(Work(work.checkpoints, work.jobs, str(tmp_path / "whole"))).folder)
    write = streams.Stream.write

    def meanwhile(self: streams.Stream, blocks: object) -> None:
        weights.save({"other": torch.ones(2)}, file)
        write(self, blocks)  # type: ignore[arg-type]

    monkeypatch.setattr(streams.Stream, "write", meanwhile)
    assert bytes_of(run(Work((str(file), *work.checkpoints[1:]), work.jobs, work.out)).folder) == wanted
