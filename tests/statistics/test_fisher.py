"""Fisher information against closed forms, and against itself by other ways."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus.errors import DataError, InputError
from isthmus.program import export
from isthmus.statistics import fisher_information
from isthmus.statistics.fisher import _check
from isthmus.zoo import GPT, demo_vgg, vit


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected.double(), rtol=tolerance, atol=tolerance)


@pytest.fixture
def regression() -> tuple[nn.Linear, Tensor, Tensor]:
    """Softmax regression: its weights, inputs, and probabilities."""
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        model.weight.copy_(drawn(3, 4))
        model.bias.copy_(drawn(3, seed=1))
        x = drawn(50, 4, seed=2)
        return model, x, model(x).softmax(1)


def test_exact_information_of_softmax_regression_is_its_closed_form(regression):
    """E[(diag p - p p^T) (x) x x^T] on the diagonal: p_c (1 - p_c) x_j^2 (notes, section 11)."""
    model, x, p = regression
    known = fisher_information(model, x.split(7))
    close(known["weight"], torch.einsum("nc,nj->cj", p * (1 - p), x.square()) / len(x))
    close(known["bias"], (p * (1 - p)).mean(0))
    whole = torch.stack(
        [torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(v, v)) for q, v in zip(p, x, strict=True)]
    )
    close(known["weight"].flatten(), whole.mean(0).diagonal())


def test_empirical_information_squares_each_examples_gradient(regression):
    model, x, p = regression
    y = torch.arange(len(x)) % 3
    score = nn.functional.one_hot(y, 3) - p
    known = fisher_information(model, [(x, y)], variant="empirical")
    close(known["weight"], torch.einsum("nc,nj->cj", score.square(), x.square()) / len(x))
    own = fisher_information(model, [(x, y)], variant="empirical", likelihood=nn.functional.cross_entropy)
    close(own["weight"], known["weight"])
    mean = score.T @ x / len(x)
    assert (known["weight"] > 2 * mean.square()).all(), "not the square of the batch's mean gradient"


def test_drawn_targets_agree_with_the_expectation(regression):
    model, x, _ = regression
    exact = fisher_information(model, [x])
    some = fisher_information(model, [x], variant="sampled", draws=1000, seed=3)
    close(some["weight"], exact["weight"], 0.1)
    assert not torch.equal(
        some["bias"], fisher_information(model, [x], variant="sampled", draws=1000)["bias"]
    )


def test_regression_and_multi_label_need_no_targets():
    model, x = nn.Linear(3, 2).double(), drawn(40, 3)
    close(fisher_information(model, [x], likelihood="gaussian")["weight"][0], x.square().mean(0))
    p = model(x).sigmoid().detach()
    expected = torch.einsum("nc,nj->cj", p * (1 - p), x.square()) / len(x)
    close(fisher_information(model, [x], likelihood="bernoulli")["weight"], expected)
    for likelihood in ("gaussian", "bernoulli"):
        exact = fisher_information(model, [x], likelihood=likelihood)
        some = fisher_information(model, [x], likelihood=likelihood, variant="sampled", draws=1000)
        close(some["weight"], exact["weight"], 0.15)
    y = (p > 0.5).double()
    known = fisher_information(model, [(x, y)], likelihood="bernoulli", variant="empirical")
    close(known["bias"], (y - p).square().mean(0))
    squared = fisher_information(model, [(x, y)], likelihood="gaussian", variant="empirical")
    close(squared["bias"], (y - model(x).detach()).square().mean(0))


def test_one_number_per_example_is_a_regression():
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).squeeze(1)

    x = drawn(10, 3)
    close(fisher_information(Scalar(), [x], likelihood="gaussian")["linear.weight"][0], x.square().mean(0))


def nets() -> list[tuple[str, nn.Module, Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(9, 1, 8, 8)
    return [
        ("batch norm", demo_vgg(base=2, norm="bn"), x),
        ("attention", vit(image=8, patch=4, dim=8, depth=1, heads=2, in_channels=1), x),
    ]


@pytest.mark.parametrize(("model", "x"), [n[1:] for n in nets()], ids=[n[0] for n in nets()])
@pytest.mark.parametrize("variant", ["exact", "sampled"])
def test_vectorised_or_not_and_however_batched_it_is_the_same(model: nn.Module, x: Tensor, variant):
    model.train()  # a module is run in eval mode however it was left, and left so
    kinds = (True, 4), (True, 1), (False, 9)
    first, *others = (
        fisher_information(model, x.split(n), variant=variant, vectorised=v, microbatch=3) for v, n in kinds
    )
    assert model.training
    for other in others:
        for key in first:
            torch.testing.assert_close(other[key], first[key], rtol=1e-4, atol=1e-9)


def test_information_is_the_mean_of_each_examples_own_by_autograd():
    model, x = nets()[0][1].eval(), nets()[0][2]
    total: dict[str, Tensor] = {}
    for row in x:
        log = model(row[None]).log_softmax(1)[0]
        for c in range(10):
            gradients = torch.autograd.grad(log[c], list(model.parameters()), retain_graph=True)
            for (key, _), gradient in zip(model.named_parameters(), gradients, strict=True):
                part = log[c].exp().item() * gradient.double().square() / len(x)
                total[key] = total.get(key, 0) + part
    known = fisher_information(model, [x])
    assert set(known) == set(total)
    for key in total:
        torch.testing.assert_close(known[key], total[key], rtol=1e-4, atol=1e-9)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_vectorised_is_looped_over():
    class Repeated(nn.Module):
        """`unique` has as many results as the data says: no batching rule can know them."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + 0 * torch.unique(x).sum()

    x = torch.randn(5, 3)
    known = fisher_information(Repeated(), [x])
    assert known.settings["vectorised"] is False
    plain = Repeated()
    plain.load_state_dict(Repeated().state_dict())
    with pytest.raises((RuntimeError, DataError)):
        fisher_information(plain, [x], vectorised=True)


def test_tokens_are_one_observation_together_or_each():
    torch.manual_seed(0)
    model = GPT(vocabulary=5, context=4, dim=8, depth=1, heads=2).double()
    tokens = torch.randint(0, 5, (6, 4))
    sequences = fisher_information(model, [tokens])
    each = fisher_information(model, [tokens], per="token")
    for key in sequences:  # positions are independent given the input: nothing but the divisor differs
        close(each[key] * 4, sequences[key])
    assert each.settings["observations"] == 24
    for per, exact in (("token", each), ("example", sequences)):
        some = fisher_information(model, [tokens], variant="sampled", per=per, draws=100)
        error = (some["head.weight"] - exact["head.weight"]).norm() / exact["head.weight"].norm()
        assert error < 0.2
    whole = fisher_information(model, [(tokens, tokens)], variant="empirical")
    close(whole["head.weight"], by_hand(model, tokens, together=True))
    apart = fisher_information(model, [(tokens, tokens)], variant="empirical", per="token")
    close(apart["head.weight"], by_hand(model, tokens, together=False))


def by_hand(model: nn.Module, tokens: Tensor, together: bool) -> Tensor:
    found = []
    for row in tokens:
        log = model(row[None]).log_softmax(-1)[0]
        said = [log[i, t] for i, t in enumerate(row)]
        for one in [sum(said)] if together else said:
            (gradient,) = torch.autograd.grad(one, [model.head.weight], retain_graph=True)
            found.append(gradient.square())
    return torch.stack(found).mean(0)


def test_ignored_positions_do_not_count():
    torch.manual_seed(0)
    model = GPT(vocabulary=5, context=4, dim=8, depth=1, heads=2).double()
    tokens = torch.randint(0, 5, (3, 4))
    targets = tokens.clone()
    targets[:, 2:] = -100
    short = fisher_information(model, [tokens[:, :2]], per="token")
    for variant in ("exact", "empirical"):
        shown = fisher_information(model, [(tokens, targets)], per="token", variant=variant)
        assert shown.settings["observations"] == 6
    padded = fisher_information(model, [(tokens, targets)], per="token")
    close(padded["head.weight"], short["head.weight"], 1e-9)  # a causal model: what follows does not matter
    with pytest.raises(DataError, match="no observation"):
        fisher_information(model, [(tokens, torch.full_like(tokens, -100))], per="token")


def test_classes_may_be_in_front_of_positions():
    model, x = nn.Conv2d(2, 3, 1).double(), drawn(4, 2, 3, 3)
    known = fisher_information(model, [x], axis=1, per="token")
    p = model(x).softmax(1).detach()
    close(known["bias"], (p * (1 - p)).mean((0, 2, 3)))
    y = p.argmax(1)
    shown = fisher_information(model, [(x, y)], axis=1, per="token", variant="empirical")
    close(shown["bias"], (nn.functional.one_hot(y, 3).movedim(-1, 1) - p).square().mean((0, 2, 3)))


def test_tied_weights_have_one_information_under_both_names():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.write = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.write.weight = self.read.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.write(self.read(x))

    known = fisher_information(Tied().double(), [torch.randint(0, 6, (4, 3))])
    assert torch.equal(known["read.weight"], known["write.weight"])
    merged = isthmus.merge([Tied(), Tied()], combine="fisher", data=[torch.randint(0, 6, (4, 3))])
    assert torch.equal(merged.weights["read.weight"], merged.weights["write.weight"])


def test_a_program_mappings_limits_and_iterators():
    model, x = nn.Linear(3, 2).double(), drawn(20, 3)
    program = export(model, x[:2])
    known = fisher_information(program, [x], weights=model.state_dict())
    named = fisher_information(program, ({"input": part} for part in x.split(5)), weights=model.state_dict())
    close(named["weight"], known["weight"])
    close(fisher_information(model, iter(x.split(5)))["weight"], known["weight"])
    some = fisher_information(model, itertools.repeat(x), limit=30)
    assert some.settings["examples"] == 30
    with pytest.raises(InputError, match="no weights of its own"):
        fisher_information(program, [x])


def test_it_is_saved_and_merge_reads_it(tmp_path):
    x = torch.randn(20, 3)
    models = [nn.Linear(3, 2) for _ in range(2)]
    known = [fisher_information(m, [x]) for m in models]
    files = [k.save(tmp_path / f"{i}.safetensors") for i, k in enumerate(known)]
    read = isthmus.merge(models, combine="fisher", statistics=files).weights
    given = isthmus.merge(models, combine="fisher", statistics=known).weights
    gathered = isthmus.merge(models, combine="fisher", data=[x])
    for key in given:
        assert torch.equal(read[key], given[key]) and torch.equal(gathered.weights[key], given[key])
    assert gathered.settings["statistics.variant"] == "exact"
    assert "examples 20" in str(known[0])


def test_what_is_wrong_is_said():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(
        InputError, match=r"variant='best'[\s\S]*likelihood='odd'[\s\S]*per='word'[\s\S]*draws=0"
    ):
        _check("best", "odd", "word", 0, None, None)
    with pytest.raises(InputError, match="only the data's targets are known"):
        fisher_information(model, [x], likelihood=nn.functional.mse_loss)
    with pytest.raises(DataError, match="needs targets"):
        fisher_information(model, [x], variant="empirical")
    with pytest.raises(DataError, match="do not fit the model's outputs"):
        fisher_information(model, [(x, torch.zeros(4, 2).long())], variant="empirical")
    with pytest.raises(InputError, match="no weight is called 'head"):
        fisher_information(model, [x], skip=["head.*"])
    with pytest.raises(DataError, match="cannot be run on the data"):
        fisher_information(model, [x, torch.randn(4, 5)])
    with pytest.raises(DataError, match="not finite"):
        fisher_information(model, [torch.full((2, 3), torch.inf)])


@pytest.mark.parametrize("label", [3, 400, -7])
def test_targets_that_are_no_classes_are_refused_where_they_count(regression, label: int):
    model, x, _ = regression
    data = [(x, torch.full((len(x),), label))]
    with pytest.raises(DataError, match=f"targets run from {label} to {label}, the model has 3 classes"):
        fisher_information(model, data, variant="empirical")
    plain = fisher_information(model, [x])
    close(fisher_information(model, data)["weight"], plain["weight"])  # the expectation is over all classes
