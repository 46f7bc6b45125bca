import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isthmus.errors import DataError, InputError, MismatchError
from isthmus.measure import ensemble, evaluate, logits_of
from isthmus.program import Cut, export, keep_apart

CLASSES = 3


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, CLASSES)
    )
    model[1].running_mean.normal_()
    return model.double()


def split(n: int = 40, size: int = 40, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=random, dtype=torch.float64)
    y = torch.randint(CLASSES, (n,), generator=random)
    return list(zip(x.split(size), y.split(size), strict=True))


class Fixed(nn.Module):
    """Answers what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_accuracy_and_loss_are_those_of_torch() -> None:
    model = net().eval()
    ((x, y),) = split()
    logits = model(x)
    result = evaluate(model, [(x, y)], split="validation")
    assert result.accuracy == (logits.argmax(1) == y).double().mean().item()
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-12)
    assert result.examples == 40
    assert result.chance == y.bincount().max().item() / 40
    assert all("validation: 40 examples, chance" in finding.note for finding in result.findings)
    assert result.findings[0].value == 100 * result.accuracy


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 41))
def test_batching_does_not_matter(size: int) -> None:
    whole, parts = evaluate(net(), split()), evaluate(net(), split(size=size))
    assert (whole.accuracy, whole.examples, whole.chance) == (parts.accuracy, parts.examples, parts.chance)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)


def test_a_module_a_program_and_a_runner_agree_on_any_weights() -> None:
    model, other = net(0), net(1)
    program = export(model, split()[0][0])
    want = evaluate(other, split())
    for what in (model, program, program.compile()):
        assert evaluate(what, split(), other.state_dict()).loss == pytest.approx(want.loss, rel=1e-12)


def test_the_users_model_is_untouched() -> None:
    model, other = net(0), net(1)
    model.train()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, split())
    evaluate(model, split(), other.state_dict())
    with pytest.raises(DataError):
        evaluate(model, [])
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_weights_that_do_not_fit_are_all_named() -> None:
    weights = net().state_dict()
    weights["new"] = weights.pop("0.bias")
    weights["4.weight"] = torch.zeros(1, 1)
    with pytest.raises(MismatchError) as caught:
        evaluate(net(), split(), weights)
    message = str(caught.value)
    assert "3 weights do not fit Sequential" in message
    assert "new    unexpected" in message
    assert "0.bias    missing" in message
    assert "4.weight    model (3, 8)    weights (1, 1)" in message


def test_tied_weights_come_under_either_key() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    model = Tied().double()
    other = torch.randn(4, 4, dtype=torch.float64)
    results = [
        evaluate(model, split(), weights).loss
        for weights in (
            {"a.weight": other},
            {"b.weight": other},
            {"a.weight": other, "b.weight": other.clone()},
        )
    ]
    assert results[0] == results[1] == results[2]


def test_a_program_needs_weights() -> None:
    with pytest.raises(InputError, match="no weights of its own"):
        evaluate(export(net(), split()[0][0]), split())


class Output(dict):  # a ModelOutput is a mapping with attributes
    logits: Tensor


def test_logits_are_found_in_what_models_return() -> None:
    first, second = torch.ones(1, 2), torch.zeros(1, 2)
    named = Output(loss=first)
    named.logits = second
    for output, want in (
        (first, first),
        ((first, second), first),
        ({"state": first, "logits": second}, second),
        ({"state": first}, first),
        (named, second),
        ((None, second), second),
    ):
        assert logits_of(output) is want
    with pytest.raises(DataError, match="returned a int without a tensor"):
        logits_of(3)


def test_mapping_batches_feed_keywords() -> None:
    class Keyword(nn.Module):
        def forward(self, *, pixels: Tensor) -> Mapping[str, Tensor]:
            return {"logits": pixels}

    data = [{"pixels": torch.eye(3), "labels": torch.tensor([0, 1, 0])}]
    assert evaluate(Keyword(), data).accuracy == pytest.approx(2 / 3)


def test_classes_may_be_last_or_second_and_places_may_be_ignored() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, CLASSES, generator=random)
    targets = torch.randint(CLASSES, (2, 5), generator=random)
    targets[0, 0] = -100
    last = evaluate(Fixed(), [(logits, targets)])
    second = evaluate(Fixed(), [(logits.movedim(-1, 1), targets)])
    assert last == second
    assert last.examples == 9
    want = nn.functional.cross_entropy(logits.movedim(-1, 1), targets).item()
    assert last.loss == pytest.approx(want, rel=1e-6)


def test_answers_that_are_no_number_are_wrong_and_counted() -> None:
    logits = torch.eye(3)
    logits[0] = math.nan  # argmax would say class 0, which is the target
    result = evaluate(Fixed(), [(logits, torch.arange(3))])
    assert (result.accuracy, result.loss, result.not_a_number) == (pytest.approx(2 / 3), math.inf, 1)
    assert "1 answers are not a number" in result.note


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), "one class index per output"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "targets run from 0 to 3, the model has 3 classes"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "targets run from -1 to 0"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), "do not fit"),
        (torch.zeros(2, 1), torch.tensor([0, 0]), "at least two classes"),
        (torch.zeros(2, 3, 3), torch.zeros(2, 3).long(), "could both be the classes"),
        (torch.zeros(2, 3), torch.tensor([-100, -100]), "no target to compare with"),
        (torch.zeros(2, 3), None, "no targets to compare with"),
    ],
)
def test_targets_that_do_not_fit_are_refused(x: Tensor, y: Tensor | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(Fixed(), [x if y is None else (x, y)])


def test_an_ensemble_of_one_is_the_model() -> None:
    assert ensemble(net(), [net(1).state_dict()], split()) == evaluate(net(1), split())


def test_an_ensemble_averages_logits() -> None:
    models = [net(seed).eval() for seed in range(3)]
    shares = (0.5, 0.2, 0.3)
    ((x, y),) = split()
    logits = sum(share * model(x) for share, model in zip(shares, models, strict=True))
    result = ensemble(net(7), [m.state_dict() for m in models], split(size=7), shares=shares)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-12)
    assert result.accuracy == (logits.argmax(1) == y).double().mean().item()


def test_everything_kept_apart_is_the_ensemble() -> None:
    models = [net(seed) for seed in range(2)]
    program = export(models[0], split()[0][0])
    kept, _ = keep_apart(program, Cut(preserve_first=program.layers), (0.25, 0.75))
    weights = {
        f"branch{i}.{key}": value for i, m in enumerate(models) for key, value in m.state_dict().items()
    }
    apart = evaluate(kept, split(), weights)
    mean = ensemble(program, [m.state_dict() for m in models], split(), shares=(0.25, 0.75))
    assert apart.accuracy == mean.accuracy
    assert apart.loss == pytest.approx(mean.loss, rel=1e-12)


@pytest.mark.parametrize("shares", [(0.5,), (0.5, 0.6), (math.nan, 1.0)])
def test_shares_that_are_none_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="for 2 models"):
        ensemble(net(), [net(0).state_dict(), net(1).state_dict()], split(), shares=shares)
    with pytest.raises(InputError, match="there is no model"):
        ensemble(net(), [], split())
