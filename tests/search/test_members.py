"""What is wrong with the models is said at once; files are read as the architecture has them, one at a time."""

import weakref
from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from isthmus import score, soup
from isthmus.errors import DataError, InputError, MismatchError, WeightsError
from isthmus.search import SEARCHES, Members, Scores, Search, gather


def test_one_model_is_no_soup_and_none_is_nothing(siblings, drawn, near):
    with pytest.raises(InputError, match="takes two or more models, got 1"):
        soup(siblings[:1], near(drawn(0)))
    with pytest.raises(InputError, match="no model was given"):
        soup([], near(drawn(0)), "grid")


def test_heads_of_different_shapes_are_listed(siblings, drawn, near):
    other = {**siblings[1], "layer.bias": torch.zeros(7)}
    with pytest.raises(MismatchError, match=r"layer\.bias\s+models\[0\] \(4,\)\s+models\[1\] \(7,\)"):
        soup([siblings[0], other], near(drawn(0)))


def test_everything_wrong_is_said_at_once(siblings, drawn, near):
    a, b, c, d = siblings[:4]
    models = [
        a,
        {k: v for k, v in b.items() if k != "layer.bias"},
        {**c, "layer.weight": c["layer.weight"].clone().fill_(torch.nan)},
        {**d, "steps": torch.tensor(8)},
        {**siblings[4], "layer.bias": torch.zeros(4, dtype=torch.long)},
    ]
    with pytest.raises(MismatchError) as raised:
        soup(models, near(drawn(0)))
    said = str(raised.value)
    assert "3 things are wrong with the models" in said
    for words in (
        "only in models[0]",
        "models[2] holds numbers that are not finite",
        "other numbers in models[3] than in models[0]",
        "integers in one of models[0] and models[4]",
    ):
        assert words in said, said


def test_numbers_that_are_not_finite_alone_are_an_error_of_weights(siblings, drawn, near):
    siblings[1]["layer.bias"][0] = torch.inf
    with pytest.raises(WeightsError, match=r"1 tensors|in 1 of 3 tensors"):
        soup(siblings, near(drawn(0)))


def test_counters_may_differ_and_are_the_first_models(siblings, drawn, near):
    models = [{**s, "norm.num_batches_tracked": torch.tensor(i)} for i, s in enumerate(siblings)]
    found = soup(models[::-1], near(drawn(0)))
    assert int(found.weights["norm.num_batches_tracked"]) == 4
    assert found.weights["steps"].dtype == torch.long


def test_switches_must_be_equal(siblings, drawn, near):
    models = [{**s, "mask": torch.tensor([True, i > 0])} for i, s in enumerate(siblings)]
    with pytest.raises(MismatchError, match=r"mask    torch\.bool, other numbers in"):
        soup(models, near(drawn(0)))


def test_tied_tensors_stay_one(nets, drawn, near):
    found = soup(nets, lambda weights: -float(weights["head.bias"].norm()))
    assert found.weights["third.weight"] is found.weights["second.weight"]


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("wise-ft", {}, "it needs a base model"),
        ("adamerging", {}, "it needs a base model"),
        ("adamerging", {}, "it needs the architecture"),
        ("learned", {}, "it needs data"),
        ("greedy", {"score": None}, "it needs a score"),
        ("greedy", {"calibration": [torch.zeros(2, 6)]}, "it needs model= beside calibration="),
    ],
)
def test_what_a_search_lacks_is_said_before_anything_is_read(kind, given, words, siblings, drawn, near):
    with pytest.raises(InputError, match=words):
        soup(siblings, **{"score": near(drawn(0)), "kind": kind, **given})


def test_data_that_can_be_read_once_is_refused(net, nets, data):
    with pytest.raises(DataError, match="can be read only once"):
        soup(nets, model=net, data=iter(data))


def test_names_tell_files_apart_and_are_each_used_once(tmp_path, siblings, drawn, near):
    paths = []
    for index, state in enumerate(siblings[:3]):
        folder = tmp_path / f"run{index}"
        folder.mkdir()
        save_file(state, folder / "model.safetensors")
        paths.append(folder / "model.safetensors")
    assert gather(paths).names == ("run0/model", "run1/model", "run2/model")
    assert gather([*paths[:1], siblings[1]]).names == ("model", "models[1]")
    with pytest.raises(InputError, match="a name each"):
        soup(siblings, near(drawn(0)), names=list("aabcd"))


def test_files_are_read_in_the_architectures_dtypes_with_all_its_names(tmp_path, net, nets, data):
    paths = []
    for index, state in enumerate(nets):
        stored = {k: v.half() if v.ndim > 1 else v.clone() for k, v in state.items() if k != "third.weight"}
        paths.append(tmp_path / f"{index}.safetensors")
        save_file(stored, paths[-1])
    found = soup(paths, model=net, data=data)
    assert found.weights["first.weight"].dtype == torch.float32
    assert found.weights["third.weight"] is found.weights["second.weight"]
    net.load_state_dict(found.weights, strict=True)
    assert score(net, data)() == found.score
    with pytest.raises(MismatchError, match="the architecture"):
        soup([{**nets[0], "more": torch.zeros(1)}, nets[1]], model=net, data=data)


class Watched(Mapping):
    """A model that is read anew each time, and knows how many models' tensors are alive."""

    alive: ClassVar[list[str]] = []
    most = 0

    def __init__(self, state, name):
        self.state, self.name = state, name

    def __getitem__(self, key):
        tensor = self.state[key].clone()
        Watched.alive.append(self.name)
        Watched.most = max(Watched.most, len(set(Watched.alive)))
        weakref.finalize(tensor, Watched.alive.remove, self.name)
        return tensor

    def __iter__(self):
        return iter(self.state)

    def __len__(self):
        return len(self.state)


@pytest.mark.parametrize("kind", ["greedy", "iterated", "with-replacement", "uniform"])
def test_one_model_at_a_time_is_read(kind, siblings, drawn, near):
    watched = tuple(Watched(s, n) for s, n in zip(siblings, "abcde", strict=True))
    search = Search(Members(tuple("abcde"), watched), Scores(near(drawn(0)), called="s"))
    Watched.most = 0
    found = SEARCHES.get(kind).function(search)
    assert found.score == pytest.approx(soup(siblings, near(drawn(0)), kind).score)
    assert Watched.most <= 2, "the model that is added, and the first one for what is no weight"
