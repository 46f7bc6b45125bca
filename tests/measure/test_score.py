import math

import pytest
import torch
from torch import Tensor, nn

from isthmus.errors import DataError, InputError
from isthmus.measure import evaluate, score
from isthmus.program import export

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3
DATA = [(X[:12], Y[:12]), (X[12:], Y[12:])]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))


def test_higher_is_better_for_both_metrics() -> None:
    model, other = net(0), net(1)
    result = evaluate(other, DATA)
    assert score(model, DATA)(other.state_dict()) == result.accuracy
    assert score(model, DATA, "loss")(other.state_dict()) == -result.loss
    assert score(other, DATA, "loss")() == -result.loss


def test_a_program_scores_as_its_module() -> None:
    model, other = net(0), net(1)
    program = export(model, X)
    assert score(program, DATA, "loss")(other.state_dict()) == pytest.approx(
        score(other, DATA, "loss")(), rel=1e-6
    )


def test_a_metric_of_ones_own_gets_outputs_and_targets() -> None:
    seen: list[tuple[int, int]] = []

    def error(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append((len(outputs), len(targets)))
        return -((outputs - targets[:, None]) ** 2).mean()

    model = net().eval()
    whole = score(model, [(X, Y)], error)()
    # Weighted by batch size, so uneven batches give the mean over examples.
    assert score(model, DATA, error)() == pytest.approx(whole, rel=1e-6)
    assert seen == [(20, 20), (12, 12), (8, 8)]


def test_data_without_targets_is_for_metrics_that_need_none() -> None:
    assert score(net(), [X], lambda outputs, targets: float(targets is None))() == 1.0


@pytest.mark.parametrize("metric", ["accuracy", "loss", lambda outputs, targets: outputs.mean()])
def test_the_users_model_is_untouched(metric: str) -> None:
    model = net().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    score(model, DATA, metric)(net(1).state_dict())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_is_not_a_number_is_never_chosen() -> None:
    broken = {key: torch.full_like(value, math.nan) for key, value in net().state_dict().items()}
    assert score(net(), DATA, "loss")(broken) == -math.inf
    assert score(net(), DATA)(broken) == 0.0
    assert score(net(), DATA, lambda outputs, targets: outputs.mean())(broken) == -math.inf


def test_unknown_metrics_and_data_read_once_are_refused() -> None:
    with pytest.raises(InputError, match="no metric is called 'f1'"):
        score(net(), DATA, "f1")
    with pytest.raises(DataError, match="can be read only once"):
        score(net(), iter(DATA))
