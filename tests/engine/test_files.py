"""The door for people with plain files."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import isthmus
from isthmus import weights
from isthmus.combine import ARITHMETIC
from isthmus.engine import beside
from isthmus.errors import InputError, MismatchError


def llamas(folder: Path) -> list[Path]:
    """A base and two siblings, as transformers saves them, in several shards."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    for number in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.02 if number else 0))
        model.save_pretrained(folder / str(number), max_shard_size="20KB")
        (folder / str(number) / "tokenizer.json").write_text(str(number))
        (folder / str(number) / "README.md").write_text("of a parent")
    return [folder / str(number) for number in range(3)]


@pytest.mark.filterwarnings("ignore")
def test_a_merged_model_loads_in_transformers_and_computes_the_same(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    base, *models = llamas(tmp_path)
    done = isthmus.merge_files(
        models, tmp_path / "out", method="ties", base=base, density=0.5, shard_size="30kB", threads=2
    )
    assert (done.folder / "tokenizer.json").read_text() == "0", "the base's"
    assert (done.folder / "generation_config.json").exists()
    assert not (done.folder / "README.md").exists(), "it tells of another model"
    ids = torch.arange(20).view(2, 10)
    expected: dict[str, Tensor] = isthmus.combine(
        [weights.load(m) for m in models], "ties", base=weights.load(base), options={"density": 0.5}
    )
    inside = transformers.LlamaForCausalLM.from_pretrained(base)
    inside.load_state_dict(expected)
    merged = transformers.LlamaForCausalLM.from_pretrained(done.folder)
    with torch.no_grad():
        assert torch.equal(merged(ids).logits, inside(ids).logits)


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    for name, value in (("a", 1.0), ("b", 3.0)):
        tensors = {"w": torch.full((3,), value), "n": torch.tensor([1, 2])}
        weights.save(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(name)
        (tmp_path / name / "modeling_own.py").write_text("raise SystemExit")
        (tmp_path / name / ".hidden.json").touch()
        (tmp_path / name / "model.safetensors.index.json.bak").touch()
    return [tmp_path / "a", tmp_path / "b"]


def test_what_belongs_to_the_model_is_copied_and_nothing_of_it_run(pair: list[Path], tmp_path: Path):
    done = isthmus.merge_files(pair, tmp_path / "out", weights=[0.25, 0.75])
    assert sorted(f.name for f in done.folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "modeling_own.py",
    ]
    assert (done.folder / "config.json").read_text() == "a"
    assert weights.open(done.folder)["w"].tolist() == [2.5, 2.5, 2.5]
    other = isthmus.merge_files(pair, tmp_path / "other", copy_from=pair[1])
    assert (other.folder / "config.json").read_text() == "b"
    assert beside(pair[0] / "model.safetensors") == (), "a file that is named alone has nothing beside it"


def test_the_files_tell_how_they_came_about_and_not_where(pair: list[Path], tmp_path: Path):
    done = isthmus.merge_files(pair, tmp_path / "out", method="linear", weights=[1.0, 2.0], normalize=True)
    told = weights.metadata(done.folder)["isthmus.merge"]
    assert json.loads(told) == {
        "arithmetic": ARITHMETIC,
        "method": "linear",
        "models": ["a", "b"],
        "options": {"normalize": True},
        "seed": 0,
        "weights": [1.0, 2.0],
    }
    assert str(tmp_path) not in told


def test_pickles_and_safetensors_may_be_mixed(pair: list[Path], tmp_path: Path):
    torch.save(weights.load(pair[1]), tmp_path / "b.bin")
    mixed = isthmus.merge_files([pair[0], tmp_path / "b.bin"], tmp_path / "mixed")
    plain = isthmus.merge_files(pair, tmp_path / "plain")
    assert weights.digest(weights.open(mixed.folder)) == weights.digest(weights.open(plain.folder))


def test_checkpoints_that_do_not_fit_are_refused_with_all_that_differs(pair: list[Path], tmp_path: Path):
    weights.save(
        {"w": torch.ones(4), "n": torch.tensor([1, 2]), "x": torch.ones(1)}, tmp_path / "c.safetensors"
    )
    with pytest.raises(MismatchError, match="2 of 3 tensors differ"):
        isthmus.merge_files([pair[0], tmp_path / "c.safetensors"], tmp_path / "out")
    weights.save({"w": torch.ones(3), "n": torch.ones(2)}, tmp_path / "d.safetensors")
    with pytest.raises(MismatchError, match="integers in some checkpoints") as caught:
        isthmus.merge_files([pair[0], tmp_path / "d.safetensors"], tmp_path / "out")
    assert caught.value.where == ("n",)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"method": "tise"}, "did you mean 'ties'"),
        ({"densty": 0.5}, "no option 'densty'"),
        ({"weights": [1.0]}, "1 weights for 2 models"),
        ({"method": "ties"}, "needs a base"),
        ({"shard_size": "many"}, "no amount of memory"),
    ],
)
def test_a_wrong_call_is_refused(more: dict[str, object], message: str, pair: list[Path], tmp_path: Path):
    with pytest.raises(InputError, match=message):
        isthmus.merge_files(pair, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()
