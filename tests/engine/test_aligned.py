"""Orders applied as tensors are read, and recipes that align: nothing of a model is ever held whole."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import isthmus
from isthmus import weights
from isthmus.align import by_parts
from isthmus.align.by_parts import parts, weight_matching_by_parts
from isthmus.engine import COPY, Job, Order, Source, Work, run
from isthmus.errors import InputError, MismatchError
from isthmus.recipe.running import streamed
from isthmus.symmetry import SymmetryGraph, reorder, saved
from isthmus.symmetry.elements import random_element
from isthmus.symmetry.from_config import symmetries_of

pytest.importorskip("transformers", reason="symmetries are read from a configuration of transformers")

Tensors = dict[str, Tensor]

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 2, "vocab_size": 80,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip

RESIDUAL = "model.embed_tokens"


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The symmetries of a small Llama, verified, as a file."""
    folder = tmp_path_factory.mktemp("graph")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    graph, verification = symmetries_of(str(folder))
    return saved.save(graph, folder / "graph.json", verification)


@pytest.fixture(scope="module")
def graph(graph_file: Path) -> SymmetryGraph:
    return saved.load(graph_file)


def llama(graph: SymmetryGraph, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = graph.program.shapes
    return {k: torch.randn(shapes[k], generator=generator).mul_(0.1).bfloat16() for k in sorted(graph.layout)}


def scrambled(graph: SymmetryGraph, state: Tensors, residual: str, seed: int = 1) -> Tensors:
    """The same function with its units in another order."""
    orders = random_element(graph, torch.Generator().manual_seed(seed)).orders
    if residual == "identity":
        orders = {name: order for name, order in orders.items() if name != RESIDUAL}
    return {key: reorder(tensor, graph.layout[key], orders, graph.spaces) for key, tensor in state.items()}


def write(folder: Path, state: Tensors) -> Path:
    """A checkpoint folder of several shards."""
    layout = weights.lay_out([(n, t.dtype, tuple(t.shape)) for n, t in state.items()], shard_size=60_000)
    assert len(layout.shards) > 2
    draft = weights.Draft(folder, layout, "")
    for file in draft.files:
        for name in file.shard.entries:
            file.write(name, 0, state[name])
        file.enter(dict.fromkeys(file.shard.entries, ""))
    draft.copy("config.json", None, json.dumps(CONFIG))
    draft.publish()
    return folder


# Orders in the engine.


@pytest.mark.parametrize("shape", [(7,), (33, 5), (1200, 1100), (6, 4, 3, 2)])
@pytest.mark.parametrize("dims", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("remote", [False, True])
def test_a_source_is_read_in_another_order(
    shape: tuple[int, ...], dims: tuple[int, ...], remote: bool, tmp_path: Path
):
    if max(dims) >= len(shape):
        pytest.skip("it has no such dimension")
    if remote:
        pytest.importorskip("fsspec", reason="the extra `remote` is not installed")
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=generator).bfloat16()
    orders = {d: torch.randperm(shape[d], generator=generator) for d in dims}
    weights.save({"w": tensor}, tmp_path / "a.safetensors")
    weights.save({str(d): o.int() for d, o in orders.items()}, tmp_path / "orders.safetensors")
    names = [str(tmp_path / "a.safetensors"), str(tmp_path / "orders.safetensors")]
    if remote:
        names[0] = f"file://{names[0]}"
    source = Source(0, "w", orders=tuple(Order(d, 1, str(d)) for d in dims))
    wanted = tensor
    for d, order in orders.items():
        wanted = wanted.index_select(d, order)
    jobs = (
        Job("copied", shape, tensor.dtype, (source,), rule=COPY),
        Job("merged", shape, tensor.dtype, (source, Source(0, "w")), rule="average"),
        Job(
            "rows", (3, *shape[1:]), tensor.dtype,
            (Source(0, "w", orders=source.orders, rows=(2, 0, 1)),), rule=COPY,
        ),
    )  # fmt: skip
    found = weights.open(run(Work(tuple(names), jobs, str(tmp_path / "out")), threads=2).folder)
    assert torch.equal(found["copied"], wanted)
    assert torch.equal(found["merged"], isthmus.combine([{"w": wanted}, {"w": tensor}], "average")["w"])
    assert torch.equal(found["rows"], wanted[[2, 0, 1]])


def test_orders_that_are_none_are_refused_before_the_work(tmp_path: Path):
    weights.save({"w": torch.zeros(3, 2)}, tmp_path / "a.safetensors")
    wrong = {"short": torch.tensor([1, 0]), "twice": torch.tensor([0, 0, 2]), "out": torch.tensor([1, 2, 3])}
    weights.save(wrong, tmp_path / "orders.safetensors")
    names = (str(tmp_path / "a.safetensors"), str(tmp_path / "orders.safetensors"))
    places = [*((0, 1, n) for n in wrong), (2, 1, "short"), (0, 1, "absent"), (0, 5, "short")]
    jobs = tuple(
        Job(f"{i}", (3, 2), torch.float32, (Source(0, "w", orders=(Order(*place),)),))
        for i, place in enumerate(places)
    )
    with pytest.raises(MismatchError, match="6 of 6 tensors cannot be merged") as caught:
        run(Work(names, jobs, str(tmp_path / "out")))
    assert "twice is no order of dimension 0 of a tensor of shape (3, 2)" in str(caught.value)
    assert "no absent in checkpoint 1" in str(caught.value)


# Matching by parts.


@pytest.mark.parametrize("residual", ["identity", "match"])
def test_what_was_planted_is_found_in_files(residual: str, graph: SymmetryGraph, tmp_path: Path):
    state = llama(graph)
    files = [
        weights.open(write(tmp_path / "a", state)),
        weights.open(write(tmp_path / "b", scrambled(graph, state, residual))),
    ]
    found = weight_matching_by_parts(graph, files, residual=residual)  # type: ignore[arg-type]
    back = found.apply([dict(f) for f in files])[1]
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert found.status == "converged"
    assert min(cost.after for cost in found.costs) > 0.999


def test_parts_share_no_weight_and_miss_none(graph: SymmetryGraph):
    assert len(list(parts(graph))) == 1, "the residual stream ties all layers together"
    pieces = list(parts(graph.frozen({RESIDUAL: "stays"})))
    assert [sorted(p.spaces) for p in pieces] == [
        sorted(f"model.layers.{layer}.{name}" for name in names)
        for layer in range(2)
        for names in (["self_attn.q_proj/0", "self_attn.q_proj/1", "self_attn.v_proj/1"], ["mlp.gate_proj"])
    ]
    keys = [key for piece in pieces for key in piece.layout]
    assert len(keys) == len(set(keys)) == 2 * 7, "four matrices of attention, three of the MLP"


def test_only_weights_that_can_vote_are_read(graph: SymmetryGraph):
    """With the residual stream left alone, embeddings and norms need not even be there."""
    state = {key: tensor for key, tensor in llama(graph).items() if "proj" in key}
    found = weight_matching_by_parts(graph, [state, scrambled(graph, state, "identity")])
    assert min(cost.after for cost in found.costs) > 0.999


def test_an_order_that_differs_along_another_dimension_is_left_alone():
    class Grouped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.mix = torch.nn.Conv1d(4, 12, 1), torch.nn.Conv1d(12, 12, 1, groups=3)
            self.down = torch.nn.Conv1d(12, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.mix(self.up(x).relu()).relu())

    model = Grouped()
    graph = isthmus.trace(model, torch.randn(2, 4, 5))
    states = [dict(model.state_dict()), {k: v + 0.1 for k, v in model.state_dict().items()}]
    found = weight_matching_by_parts(graph, states, residual="identity")
    stays = [note for note in found.notes if " stays: " in note]
    assert stays
    for key in graph.layout:
        by_parts.indices(graph, found.transports[1].orders, key)


# Recipes.


@pytest.fixture
def pair(graph: SymmetryGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensors]:
    """Writes `a`, and as `b` the same with a little noise and its units in another order."""
    monkeypatch.chdir(tmp_path)

    def make(residual: str = "identity", noise: float = 0.0) -> Tensors:
        state, other = llama(graph), llama(graph, seed=5)
        write(tmp_path / "a", state)
        near = {k: (t.float() + noise * other[k].float()).bfloat16() for k, t in state.items()}
        write(tmp_path / "b", scrambled(graph, near, residual))
        return {k: ((t.float() + near[k].float()) / 2).bfloat16() for k, t in state.items()}

    return make


def recipe(align: str, more: str = "") -> Path:
    path = Path("recipe.yml")
    path.write_text(
        "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"
        f"merge_method: linear\n{more}isthmus: {{align: {align}, limits: {{threads: 2}}}}\n"
    )
    return path


def test_a_recipe_aligns_by_the_configuration_and_gives_the_original_back(pair: Callable[..., Tensors]):
    wanted = pair()
    done = isthmus.plan(recipe("weight-matching")).run("out")
    found = weights.open("out")
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    assert done.aligned[0].startswith("symmetries of config.json, verified: relative error")
    assert done.aligned[1].startswith("b aligned to a: 8 spaces, mean cosine ")
    assert done.aligned[1].endswith("-> 1.0000, converged")
    assert not [file.name for file in Path().iterdir() if file.name.startswith(".")], "nothing is left behind"


@pytest.mark.parametrize("residual", ["identity", "match"])
def test_a_recipe_aligns_by_a_saved_graph_also_what_has_moved_since(
    residual: str, pair: Callable[..., Tensors], graph_file: Path
):
    wanted = pair(residual, noise=0.2)
    isthmus.plan(recipe(f"{{graph: '{graph_file}', residual: {residual}}}")).run("out", shard_size=50_000)
    found = weights.open("out")
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())


def test_the_reference_is_the_base_or_the_one_named(pair: Callable[..., Tensors], graph_file: Path):
    pair()
    merged = {}
    for more, reference in [("", ""), ("", ", reference: b")]:
        out = Path(f"out{len(merged)}")
        isthmus.plan(recipe(f"{{graph: '{graph_file}'{reference}}}", more)).run(out)
        merged[out] = weights.load(out)
    assert all(torch.equal(t, weights.open("a")[k]) for k, t in merged[Path("out0")].items())
    assert all(torch.equal(t, weights.open("b")[k]) for k, t in merged[Path("out1")].items())


def test_a_run_after_a_kill_does_not_match_again(
    pair: Callable[..., Tensors], graph_file: Path, monkeypatch: pytest.MonkeyPatch
):
    wanted = pair()
    plan = isthmus.plan(recipe(f"{{graph: '{graph_file}'}}"))

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weights.Draft, "publish", cut)
        with pytest.raises(KeyboardInterrupt):
            plan.run("out")
    monkeypatch.setattr(by_parts, "weight_matching_by_parts", cut)
    done = plan.run("out")
    assert done.written.resumed == done.written.tensors
    found = weights.open("out")
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())


def test_other_orders_are_not_taken_up(pair: Callable[..., Tensors], graph_file: Path):
    pair()
    plan = isthmus.plan(recipe(f"{{graph: '{graph_file}'}}"))
    first = streamed.align(plan, Path("kept.safetensors"), 1)
    assert streamed.align(plan, Path("kept.safetensors"), 1) == first
    write(Path("c"), scrambled(saved.load(graph_file), llama(saved.load(graph_file)), "identity", seed=9))
    for file in Path("c").iterdir():
        file.replace(Path("b") / file.name)
    again = streamed.align(plan, Path("kept.safetensors"), 1)
    assert again.orders.keys() == first.orders.keys()
    indices = weights.load("kept.safetensors")
    assert all(t.dtype == torch.int32 for t in indices.values())


def test_a_graph_that_was_never_verified_is_not_believed(
    pair: Callable[..., Tensors], graph: SymmetryGraph, tmp_path: Path
):
    pair()
    text = json.loads(saved.save(graph, tmp_path / "graph.json").read_text())
    text.pop("verification")
    (tmp_path / "graph.json").write_text(json.dumps(text))
    with pytest.raises(InputError, match="was never verified"):
        isthmus.plan(recipe("{graph: graph.json}")).run("out")


@pytest.mark.parametrize(
    ("align", "more", "words"),
    [
        ("activation-matching", "", "activation-matching runs the models on data, and the recipe names none"),
        ("{residual: some}", "", "identity"),
        ("{graph: nowhere.json}", "", "nowhere.json does not exist"),
        ("{reference: c}", "", "c is no model of this recipe"),
    ],
)
def test_what_cannot_be_aligned_is_said_by_the_plan(
    align: str, more: str, words: str, pair: Callable[..., Tensors]
):
    pair()
    with pytest.raises(InputError, match=words):
        isthmus.plan(recipe(align, more))


def test_slices_of_other_layers_are_not_aligned(pair: Callable[..., Tensors]):
    pair()
    Path("recipe.yml").write_text(
        "slices:\n- sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [1, 2]}]\n"
        "merge_method: linear\nparameters: {weight: 1}\nisthmus: {align: weight-matching}\n"
    )
    with pytest.raises(InputError, match="align whole models, and cut the result into slices"):
        isthmus.plan("recipe.yml")
