"""Greedy ensembles, beside the soups they are compared with."""

import pytest
import torch

from isthmus import Ensemble, evaluate, export, greedy_ensemble
from isthmus.errors import DataError, InputError


@pytest.mark.parametrize("of", ["logits", "probabilities"])
@pytest.mark.parametrize("kind", ["greedy", "iterated", "with-replacement"])
def test_what_was_found_is_what_the_ensemble_of_its_members_scores(of, kind, net, nets, data):
    found = greedy_ensemble(nets, net, data, kind, of=of)
    names = list(found.chosen)
    members = [nets[int(name[7])] for name in names]
    joined = Ensemble(export(net, data[0][0]), members, of=of, shares=list(found.chosen.values()))
    assert evaluate(joined, data).accuracy == pytest.approx(found.score)
    assert found.score >= max(evaluate(net, data, state).accuracy for state in nets)


def test_by_loss_and_by_a_program(net, nets, data):
    program = export(net, data[0][0])
    found = greedy_ensemble(nets, program, data, metric="loss", names=list("abcd"))
    members = [nets["abcd".index(name)] for name in found.chosen]
    assert -evaluate(Ensemble(program, members), data).loss == pytest.approx(found.score, rel=1e-5)
    assert found.members == tuple("abcd")


def test_wrong_calls_are_said(net, nets, data):
    with pytest.raises(InputError, match="kinds are greedy"):
        greedy_ensemble(nets, net, data, "learned")
    with pytest.raises(DataError, match="no targets"):
        greedy_ensemble(nets, net, [torch.zeros(2, 6)])
    with pytest.raises(InputError, match="takes two or more"):
        greedy_ensemble(nets[:1], net, data)
