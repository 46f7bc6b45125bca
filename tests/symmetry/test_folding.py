"""Folding the scales of norms away: the same function, or a reason why not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus
from isthmus.errors import InputError

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Stream(nn.Module):
    """What the forms below are made of."""

    def __init__(self, form: Callable[["Stream", Tensor], Tensor]):
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.a, self.n, self.n2 = nn.Linear(4, 6), nn.LayerNorm(6), nn.LayerNorm(6)
        self.up, self.down, self.both = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(12, 3)
        self.head, self.conv = nn.Linear(6, 3), nn.Conv1d(6, 5, 3, padding=1)
        self.g, self.h, self.bias = (nn.Parameter(torch.randn(6)) for _ in range(3))
        self.m, self.b = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))
        self.double().eval()
        for parameter in self.parameters():
            if parameter.ndim == 1:
                parameter.data.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, self.a(x))

    def block(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


def rms(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def token(s: Stream, h: Tensor) -> Tensor:
    return s.g.expand(h.shape[0], 1, 6)


FOLDED: dict[str, tuple[Callable[[Stream, Tensor], Tensor], str]] = {
    "before a block": (lambda s, h: s.head(h + s.block(s.n(h))), "n.weight"),
    "before a convolution": (lambda s, h: s.conv(s.n(h).transpose(1, 2)), "n.weight"),
    "before a mean": (lambda s, h: s.up(s.n(h).mean(1)), "n.weight"),
    "before a sum": (lambda s, h: s.up(s.n(h).sum(1)), "n.weight"),
    "before a running sum": (lambda s, h: s.up(s.n(h).cumsum(1)), "n.weight"),
    "before padding": (lambda s, h: s.up(F.pad(s.n(h), (0, 0, 1, 1))), "n.weight"),
    "before a slice": (lambda s, h: s.up(s.n(h)[:, 1:]), "n.weight"),
    "twice side by side": (lambda s, h: s.both(s.n(h).repeat(1, 1, 2)), "n.weight"),
    "before one that reads twice": (lambda s, h: (lambda y: s.up(y) * s.up(y.flip(1)))(s.n(h)), "n.weight"),
    "before addmm": (lambda s, h: torch.addmm(s.b, s.n(h).flatten(0, 1), s.m), "n.weight"),
    "before addmm, scaled": (
        lambda s, h: torch.addmm(s.b, s.n(h).flatten(0, 1), s.m, beta=0.5, alpha=2.0),
        "n.weight",
    ),
    "before a bias that others use": (lambda s, h: F.linear(s.n(h), s.up.weight, s.b) + s.b, "n.weight"),
    "by hand": (lambda s, h: s.up(rms(h) * s.g), "g"),
    "by hand, with a shift": (lambda s, h: s.up(rms(h) * s.g + s.h), "g"),
    "with a shift that some do not see": (
        lambda s, h: (lambda y: s.up(y + s.h).sum(-1, keepdim=True) * s.head(y))(rms(h) * s.g),
        "g",
    ),
    "behind a block": (lambda s, h: s.head(rms(h + s.g * s.block(h))), "g"),
    "behind and before": (lambda s, h: s.head(h + s.g * s.block(s.n(h))), "g n.weight"),
}

REFUSED: dict[str, tuple[Callable[[Stream, Tensor], Tensor], str]] = {
    "read by an addition": (
        lambda s, h: (lambda y: s.head(y + s.block(y)))(s.n(h)),
        "n.weight: its result is used by add",
    ),
    "beside another norm": (
        lambda s, h: s.both(torch.cat([s.n(h), s.n2(h)], -1)),
        "n.weight: its result is used by cat",
    ),
    "beside what is not normed": (
        lambda s, h: s.both(torch.cat([s.n(h), h], -1)),
        "n.weight: its result is used by cat",
    ),
    "beside a token": (
        lambda s, h: s.head(torch.cat([token(s, h), s.n(h)], 1)),
        "n.weight: its result is used by cat",
    ),
    "its scale is a shift too": (lambda s, h: s.up(rms(h) * s.g + s.g), "g: is also used by add"),
    "its scale is read": (
        lambda s, h: s.up(rms(h) * s.g) + (h @ s.g)[..., None],
        "g: is also used by matmul",
    ),
    "two shifts": (lambda s, h: s.up(s.n(h) + s.g), "n.weight: its result is used by add"),
    "used twice": (
        lambda s, h: (lambda y: s.head(y + s.block(s.n(y))))(h + s.block(s.n(h))),
        "n.weight: multiplies in 2 places",
    ),
    "its reader reads elsewhere": (
        lambda s, h: s.up(s.n(h)) * s.up(s.n2(h)),
        "n.weight: up.weight, which reads its result, is also used by up:linear",
    ),
    "a bias of the writer that others use": (
        lambda s, h: s.head(rms(h + s.bias + s.g * F.linear(F.gelu(s.up(h)), s.down.weight, s.bias))),
        "g: its result is used by add",
    ),
    "a writer that is partly written over": (
        lambda s, h: s.head(rms(h + s.g * torch.slice_scatter(s.block(h), h[:, :1], 1, 0, 1))),
        "g: its result is used by add",
    ),
    "read by an einsum": (
        lambda s, h: torch.einsum("btc,cd->btd", s.n(h), s.m),
        "n.weight: its result is used by einsum",
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folded_weights_compute_the_same(name: str):
    form, ones = FOLDED[name]
    model = Stream(form)
    graph = isthmus.trace(model, X)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = graph.fold_norms(model)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(model, found, (X,)), model(X))
    assert graph.folded.ones == frozenset(ones.split()), "and nothing else became one"
    assert all(bool((found[key] == 1).all()) for key in ones.split())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items()), "the model stays"
    assert graph.groups["a"] not in ("orthogonal", "orthogonal fixing ones")
    assert graph.folded.groups["a"] in ("orthogonal", "orthogonal fixing ones")
    assert graph.folded.verify(found, X).ok
    # Once more changes nothing.
    again = graph.folded.fold_norms(found)
    assert all(torch.equal(again[key], found[key]) for key in found)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_folded_is_refused_with_the_reason(name: str):
    form, why = REFUSED[name]
    model = Stream(form)
    graph = isthmus.trace(model, X)
    with pytest.raises(InputError, match="no norm can be folded into the weights behind it") as raised:
        graph.fold_norms(model)
    assert raised.value.where == (f"a: {why}",)
    assert graph.folded.groups == graph.groups and graph.verify(model, X).ok


def test_a_model_without_norms_says_so():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(InputError, match="the model has no root-mean-square or layer norm"):
        isthmus.trace(model, torch.randn(2, 4)).fold_norms(model)


@pytest.mark.parametrize("least", [0.0, 1e-12, -1e-9])
def test_a_shift_beside_a_scale_near_zero_goes_into_a_bias(least: float):
    model = Stream(FOLDED["before a block"][0])
    model.n.weight.data[2] = least
    graph = isthmus.trace(model, X)
    found = graph.fold_norms(model)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(model, found, (X,)), model(X))
    assert not found["n.bias"].any() and not torch.equal(found["up.bias"], model.up.bias)
    assert max(value.abs().max() for value in found.values()) < 1e3, "nothing was divided by nearly nothing"


def test_a_shift_beside_a_scale_near_zero_without_a_bias_is_refused():
    model = Stream(FOLDED["before padding"][0])
    model.n.weight.data[2] = 0.0
    graph = isthmus.trace(model, X)
    with pytest.raises(InputError, match="a scale near zero and a shift, and nothing behind it") as raised:
        graph.fold_norms(model)
    assert raised.value.where == ("n.weight, n.bias",)


def test_folded_weights_come_in_the_dtype_they_had():
    model = Stream(FOLDED["before a block"][0]).float()
    graph = isthmus.trace(model, X.float())
    for dtype in (torch.float32, torch.bfloat16):
        state = {key: value.to(dtype) for key, value in model.state_dict().items()}
        assert all(value.dtype == dtype for value in graph.fold_norms(state).values())


def test_weights_that_are_not_folded_are_no_match_for_a_folded_graph():
    model = Stream(FOLDED["before a block"][0])
    graph = isthmus.trace(model, X)
    for use in (
        lambda: graph.folded.verify(model, X),
        lambda: isthmus.Transport(graph.folded, {}).apply(model.state_dict()),
    ):
        with pytest.raises(InputError, match="norms that are not folded") as raised:
            use()
        assert raised.value.where == ("n.weight",) and "graph.fold_norms(weights)" in str(raised.value.hint)


class Logits(nn.Module):
    """A language model, as a function of its tokens alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.model = model
        for parameter in self.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(0.3 * torch.randn_like(parameter))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x, use_cache=False).logits


def llama(tied: bool = False) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return Logits(LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied)))


def gpt2(tied: bool = False) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return Logits(GPT2LMHeadModel(GPT2Config(**sizes, **ends, tie_word_embeddings=tied)))


TOKENS = torch.randint(0, 20, (2, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("make", "group"), [(llama, "orthogonal"), (gpt2, "orthogonal fixing ones")])
def test_transformers_of_the_library(make: Callable[[], nn.Module], group: str):
    model = make()
    graph = isthmus.trace(model, TOKENS)
    with torch.no_grad():
        before = model(TOKENS)
        model.load_state_dict(graph.fold_norms(model))  # it is still a model of its class
        torch.testing.assert_close(model(TOKENS), before)
    assert group in graph.folded.groups.values() and group not in graph.groups.values()
    found = graph.folded.verify(model, TOKENS)
    assert found.ok and found.error < 1e-12
    assert str(graph.folded).startswith(str(graph).splitlines()[0]), "the same spaces"


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_head_that_is_the_embedding_cannot_take_a_scale(make: Callable[[bool], nn.Module]):
    model = make(True)
    with pytest.raises(InputError, match="which reads its result, is also used by") as raised:
        isthmus.trace(model, TOKENS).fold_norms(model)
    assert len(raised.value.where) == 1 and "embedding" in raised.value.where[0]
