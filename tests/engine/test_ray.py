"""The same bytes from a cluster of processes, also when workers are killed at their work."""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import isthmus
from isthmus import progress, weights
from isthmus.cli import main
from isthmus.engine import File, Work
from isthmus.engine import local as local_engine
from isthmus.engine import ray as ray_engine
from isthmus.errors import InputError, IsthmusError, MissingExtraError, WeightsError

MakeWork = Callable[..., Work]

#: Bytes of a file of tensors: one for the large tensor, one for the small ones, one for the row.
SHARD = 800_000


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_without_ray_the_extra_is_named(work_of: MakeWork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'isthmus\[ray\]'"):
        ray_engine.run(work_of())
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two workers on this machine. For each file `die-*` in the folder, one of them dies at its work."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    folder = tmp_path_factory.mktemp("orders")

    def prepare() -> None:
        """Runs in each worker before its first task."""
        from isthmus.engine import stream

        write = stream.Stream.write

        def write_or_die(self: Any, run: Any) -> None:
            write(self, run)
            for order in folder.glob("die-*"):
                try:
                    order.rename(folder / f"died-{os.getpid()}")
                except FileNotFoundError:  # the other one has taken it
                    continue
                os.kill(os.getpid(), signal.SIGKILL)  # between two blocks, with nothing said to anyone

        stream.Stream.write = write_or_die  # type: ignore[method-assign]

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for attempt in range(4):
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=100_000_000,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"worker_process_setup_hook": prepare},
            )
            break
        except Exception as error:  # on a machine that is busy with other things it gives up after 30 s
            ray.shutdown()
            if attempt == 3 or "timed out during startup" not in str(error):
                raise
    yield folder
    ray.shutdown()


@pytest.fixture
def kill(cluster: Path) -> Iterator[Callable[[int], None]]:
    """Have the next so many workers killed; at the end, those that were not are let live."""

    def order(count: int) -> None:
        for number in range(count):
            (cluster / f"die-{number}").touch()

    yield order
    for file in cluster.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        ("average", {}),
        ("ties", {"base": True}),  # by default it looks at all tensors before it writes one
        ("dare-ties", {"base": True, "seed": 3}),
    ],
)
def test_a_cluster_writes_the_bytes_of_one_machine(
    rule: str, more: dict[str, Any], work_of: MakeWork, cluster: Path
):
    here = local_engine.run(work_of(rule, "here", shard_size=SHARD, **more), threads=1)
    work = work_of(rule, "there", shard_size=SHARD, **more)
    there = ray_engine.run(dataclasses.replace(work, files=(File("README.md", text="ключ\n"),)))
    wanted = {**bytes_of(here.folder), "README.md": "ключ\n".encode()}
    assert len(wanted) == 5, "three shards and their index"
    assert bytes_of(there.folder) == wanted
    assert (there.tensors, there.resumed, there.bytes) == (here.tensors, 0, here.bytes)
    assert not weights.draft_of(there.folder).exists()


def test_relative_paths_mean_what_they_mean_here(
    work_of: MakeWork, cluster: Path, monkeypatch: pytest.MonkeyPatch
):
    wanted = bytes_of(local_engine.run(work_of(out="whole"), threads=1).folder)
    work = work_of()
    monkeypatch.chdir(Path(work.checkpoints[0]).parent)
    work = dataclasses.replace(work, checkpoints=tuple(Path(path).name for path in work.checkpoints))
    assert bytes_of(ray_engine.run(work).folder) == wanted


def test_what_a_killed_worker_was_at_is_done_by_another(
    work_of: MakeWork, cluster: Path, kill: Callable[[int], None]
):
    wanted = bytes_of(local_engine.run(work_of(out="whole", shard_size=SHARD), threads=1).folder)
    kill(2)
    done = ray_engine.run(work_of(shard_size=SHARD), retries=3)
    assert len(list(cluster.glob("died-*"))) == 2
    assert bytes_of(done.folder) == wanted


def test_after_too_many_deaths_the_rest_can_be_done_by_either_engine(
    work_of: MakeWork, cluster: Path, kill: Callable[[int], None]
):
    wanted = bytes_of(local_engine.run(work_of(out="whole", shard_size=SHARD), threads=1).folder)
    work = work_of(shard_size=SHARD)
    kill(2)
    with pytest.raises(
        IsthmusError, match=r"the workers on model-0000\d-of-00003.safetensors were lost"
    ) as caught:
        ray_engine.run(work, retries=0)
    assert "what is finished is kept" in str(caught.value)
    assert not Path(work.out).exists()
    assert bytes_of(local_engine.run(work).folder) == wanted


def test_a_cluster_goes_on_where_this_machine_was_cut_off(
    work_of: MakeWork, cluster: Path, monkeypatch: pytest.MonkeyPatch
):
    wanted = bytes_of(local_engine.run(work_of(out="whole", shard_size=SHARD), threads=1).folder)
    work = work_of(shard_size=SHARD)
    with monkeypatch.context() as patch:
        patch.setattr(weights.Draft, "publish", _power_cut)
        with pytest.raises(KeyboardInterrupt):
            local_engine.run(work, threads=1)
    done = ray_engine.run(work)
    assert done.resumed == done.tensors
    assert bytes_of(done.folder) == wanted


def _power_cut(draft: weights.Draft) -> None:
    raise KeyboardInterrupt


def test_what_is_wrong_with_a_tensor_is_said_in_the_same_words(
    work_of: MakeWork, cluster: Path, tmp_path: Path
):
    work = work_of()
    tensors = weights.load(work.checkpoints[0])
    tensors["norm"][3] = float("nan")
    weights.save(tensors, tmp_path / "mine" / "model.safetensors")
    work = dataclasses.replace(work, checkpoints=(str(tmp_path / "mine"), *work.checkpoints[1:]))
    with pytest.raises(WeightsError, match="holds numbers that are not finite") as caught:
        ray_engine.run(work)
    assert "norm    1 of the 65" in str(caught.value)
    assert not Path(work.out).exists()


def test_a_machine_that_sees_other_files_is_named(
    work_of: MakeWork, cluster: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_engine, "_known", lambda file: (file.file, "another"))
    work = work_of()
    with pytest.raises(WeightsError, match="sees other files than the machine that asks") as caught:
        ray_engine.run(work)
    assert "storage that all machines" in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"threads": 64}, "the largest machine of the cluster has 2 processors"),
        ({"threads": 0}, "0 threads do no work"),
        ({"max_memory": "900TB"}, "no machine of the cluster has so much"),
        ({"retries": -1}, "negative"),
        ({"address": "10.0.0.1:6379"}, "is connected to a cluster already"),
    ],
)
def test_what_no_cluster_can_give_is_refused_before_the_work(
    asked: dict[str, Any], words: str, work_of: MakeWork, cluster: Path, tmp_path: Path
):
    with pytest.raises(InputError, match=words):
        ray_engine.run(work_of(), **asked)
    assert not list(tmp_path.iterdir())


RECIPE = """
models: [{model: './0', parameters: {weight: 1}}, {model: './1', parameters: {weight: 3}}]
base_model: './2'
merge_method: ties
parameters: {density: 0.5}
isthmus: {limits: {shard_size: 800000}}
"""


@pytest.fixture
def recipe(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(models[0].parent)
    path = tmp_path / "recipe.yml"
    path.write_text(RECIPE)
    return path


def test_a_recipe_runs_on_a_cluster_from_python(recipe: Path, cluster: Path, tmp_path: Path):
    plan = isthmus.plan(recipe)
    plan.run(tmp_path / "one" / "merged")
    plan.run(tmp_path / "many" / "merged", engine="ray")
    assert bytes_of(tmp_path / "many" / "merged") == bytes_of(tmp_path / "one" / "merged")


def test_and_from_the_command_line(
    recipe: Path, cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    isthmus.plan(recipe).run(tmp_path / "one" / "merged")
    monkeypatch.setattr(
        "sys.argv", ["isthmus", "merge", str(recipe), f"--out={tmp_path}/many/merged", "--engine=ray"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    progress.disable()
    assert not ended.value.code
    assert bytes_of(tmp_path / "many" / "merged") == bytes_of(tmp_path / "one" / "merged")


@pytest.mark.parametrize("asked", [{"engine": "dask"}, {"address": "auto"}])
def test_an_engine_that_is_none_is_refused(asked: dict[str, str], recipe: Path, tmp_path: Path):
    with pytest.raises(InputError, match="there is local and ray"):
        isthmus.plan(recipe).run(tmp_path / "out", **asked)


def test_an_output_behind_a_url_is_refused(work_of: MakeWork, cluster: Path, tmp_path: Path):
    with pytest.raises(InputError, match="written to mounted storage"):
        ray_engine.run(dataclasses.replace(work_of(), out="s3://bucket/merged"))
    assert not list(tmp_path.iterdir())
