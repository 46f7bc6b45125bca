"""In-place operations of the user's model are ordinary operations of the program."""

import torch
from torch import nn

from isthmus.program import Batch, ProgramModule, export


class Overwriting(nn.Module):
    """relu_, arithmetic in place, assignment to a slice, a view that is read after its base changed."""

    def __init__(self, slices: bool):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.head, self.slices = nn.Linear(4, 5), slices

    def forward(self, x):
        y = self.norm(self.conv(x))
        z = self.relu(y)
        y += 1
        y.mul_(2)
        out = self.head((z + y).mean((2, 3)))
        if self.slices:
            w = self.conv(x)
            flat = w.flatten(1)
            w.relu_()
            mask = torch.zeros(5)
            mask[1] = 2
            out[:, 0] += flat.sum(1)
            out = out * mask
        return out


def make(slices: bool):
    torch.manual_seed(0)
    model = Overwriting(slices).eval()
    model.norm.running_mean.normal_()
    x = torch.randn(3, 3, 6, 6)
    return model, x, export(model, x[:2])


def test_the_program_computes_what_the_model_does():
    for slices in (False, True):
        model, x, program = make(slices)
        with torch.no_grad():
            want = model(x)
            assert torch.equal(program.compile()(model.state_dict(), Batch((x,), {})), want)
            # Batch norms are still what rules know, and it is a model that exports again.
            assert [n for n in program.graph.nodes if str(n.target) == "aten.batch_norm.default"]
            module = ProgramModule(program, model.state_dict())
            assert torch.equal(export(module, x[:2]).compile()(module.state_dict(), Batch((x,), {})), want)


def test_a_watched_value_is_what_was_computed_not_what_overwrote_it():
    model, x, program = make(slices=False)
    found = program.compile(["batch_norm", "relu_", "linear"])(model.state_dict(), Batch((x,), {}))
    with torch.no_grad():
        want = model.norm(model.conv(x))
    assert torch.equal(found["batch_norm"], want)
    assert torch.equal(found["relu_"], want.relu())


def test_no_operation_is_in_place():
    for slices in (False, True):
        _, _, program = make(slices)
        names = [str(n.target).split(".")[1] for n in program.graph.nodes if n.op == "call_function"]
        assert not [name for name in names if name.endswith("_")]


def test_inputs_may_have_names_of_builtins():
    model = nn.Sequential(nn.Linear(3, 2))  # its forward's argument is called `input`
    x = torch.randn(4, 3)
    program = export(model, x)
    out = program.compile()(model.state_dict(), Batch((x,), {}))
    assert torch.equal(out, model(x))
    assert torch.equal(
        program.to(dtype=torch.float64).compile()(model.double().state_dict(), Batch((x.double(),), {})),
        model(x.double()),
    )
