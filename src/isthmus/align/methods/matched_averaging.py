"""FedMA's matched averaging: units of N models become the units of a network that grows where they do not fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from isthmus.align.alignment import ALIGNMENTS, Alignment, Cost
from isthmus.align.mixed.joint import check_counted, check_rest, listed, mixable, orders_of_the_rest
from isthmus.align.mixed.rows import in_order, rows
from isthmus.errors import InputError
from isthmus.maps import Membership, Transport
from isthmus.maps.elementwise import absorb
from isthmus.progress import task
from isthmus.symmetry import Count, SymmetryGraph, counted

Averaging = Literal["count", "map", "paper"]

#: A unit that many clients share counts as one that ten do. Source: the published code.
MOST = 10


@ALIGNMENTS.register(
    "matched-averaging",
    claims=("planted-exact", "seeded"),
    costs="an assignment per model, space and sweep; what grew costs more to run",
    source="Wang et al., Federated Learning with Matched Averaging, arXiv:2002.06440; Yurochkin et al. 2019",
)
def matched_averaging(
    graph: SymmetryGraph,
    models: Sequence[Mapping[str, Tensor]],
    *,
    data: Iterable[object] | None = None,
    reference: int = 0,
    graphs: Sequence[SymmetryGraph] | None = None,
    average: Averaging = "count",
    gamma: float = 1e-3,
    variance: float = 1.0,
    prior_variance: float = 1.0,
    sweeps: int = 5,
    cap: int = 700,
    seed: int = 0,
) -> Alignment:
    """Match units of N models by a Beta-Bernoulli process over their weights; unlike units make the network grow.

    Space after space, in the order of the program: each model's units are assigned to the global units found so far,
    or become new ones, whichever is likelier (`match`). The next space's weights are then compared with what they read
    in global order, zero where a model lacks a unit.

    A network grows where its units are computed one by one and read by weights. Along what it sums, averages or
    normalises over (the stream of a layer norm, a softmax over units) a unit more would change every model's function:
    such spaces keep their width, their units are matched one to one, and a note names the operation.

    Args:
        graph: the symmetries.
        models: state dicts ("clients"), of any number of models.
        data: if given, heads and groups are ordered by activations instead of by weights.
        reference: global units are numbered in the order of this model's.
        graphs: one per model, where their widths differ.
        average: what a global unit is: the weighted mean of its "count" holders; the posterior mode ("map": units that
            few hold shrink); or the sum over all models, zero where one lacks it ("paper").
        gamma: how readily the network grows, positive (7 in the published CNNs, 1e-3 in their LSTM).
        variance: of a model's weights around its global unit.
        prior_variance: of the global units around zero.
        sweeps: how often each model is taken out and matched again, in random order.
        cap: beyond so many units a model adds one at a time.
        seed: of the order of the sweeps.

    Raises:
        InputError: a bad option.
        MismatchError: models differ in width where a network cannot grow.

    Source: sections 2 and 3; their cost is a log-likelihood and maximised. We differ in that residual streams share one
        assignment, norms and biases go along, and the prior has mean zero for biases too (0.1 in their code, on the
        wrong column). Running networks are trained between layers there; that loop is no part of this.
    """
    problems = [
        f"{name} = {value} is not positive"
        for name, value in (
            ("gamma", gamma),
            ("variance", variance),
            ("prior_variance", prior_variance),
            ("cap", cap),
        )
        if not value > 0
    ]
    problems += [f"sweeps = {sweeps} is negative"] if sweeps < 0 else []
    if average not in ("count", "map", "paper"):
        problems.append(f"average = {average!r} is none of 'count', 'map', 'paper'")
    if problems:
        raise InputError("matched-averaging was given wrong options", problems)
    graphs = list(graphs or [graph] * len(models))
    spaces = mixable(graph, graphs if average == "count" else ())
    check_rest(graphs, spaces)
    check_counted(graphs, spaces, ("mean", "sum", "told"))
    maps, notes = orders_of_the_rest(graphs, models, spaces, data, reference, seed=seed)
    # A unit more is a row of zeros, of which not every weight can be computed.
    computed = {name: (Count(place, "told"),) for name, place in graph.computed.items()}
    counts = {name: found for name, found in (computed | counted(graph)).items() if name in spaces}
    notes += [
        f"{name}: stays at {graph.spaces[name].size} units, which {listed(found)} counts"
        for name, found in counts.items()
    ]
    weights = [absorb(g, m, list(g.spaces))[0] for g, m in zip(graphs, models, strict=True)]
    process = Process(gamma, variance, prior_variance, cap)
    generator = torch.Generator().manual_seed(seed)
    done = {name for name in graph.spaces if name not in spaces}
    costs: list[Cost] = []
    ordered, late = in_order(graph, spaces), 0
    with task("matching", total=len(ordered), unit="spaces") as advance:
        for name in ordered:
            clients = [rows(g, w, name, m, done).cpu() for g, w, m in zip(graphs, weights, maps, strict=True)]
            groups, settled = process.match(clients, sweeps, generator, grows=name not in counts)
            late += not settled
            found = _memberships(groups, reference, average, process)
            for index, item in enumerate(found):
                maps[index][name] = item
                if index != reference:
                    costs.append(_cost(index, name, clients, groups, reference))
            width = graph.spaces[name].size
            if found[0].target != width:
                notes.append(f"{name}: {width} -> {found[0].target} units")
            done.add(name)
            advance(1)
    settings = {
        "average": average,
        "gamma": gamma,
        "variance": variance,
        "prior_variance": prior_variance,
        "sweeps": sweeps,
        "cap": cap,
        "seed": seed,
    }
    transports = tuple(Transport(own, m) for own, m in zip(graphs, maps, strict=True))
    status = f"{late} spaces still changed after {sweeps} sweeps" if late else "converged"
    return Alignment(
        "matched-averaging", graph, transports, reference, tuple(costs), settings, tuple(notes), status
    )


@dataclass(frozen=True)
class Process:
    """The prior over global units: Gaussian values, popular units likelier, new ones ever less.

    Attributes:
        gamma: mass of the Beta process: how many units are expected.
        variance: s, of a model's unit around its global unit.
        prior_variance: s0, of global units around zero.
        cap: beyond so many units a model adds one at a time.
    """

    gamma: float = 1e-3
    variance: float = 1.0
    prior_variance: float = 1.0
    cap: int = 700

    def match(
        self,
        clients: Sequence[Float[Tensor, "_ features"]],
        sweeps: int,
        generator: torch.Generator,
        grows: bool = True,
    ) -> tuple[list[Int[Tensor, " _"]], bool]:
        """The global unit of every unit of every client; no two units of a client share one.

        The widest client makes the first global units, the others follow by width; then each is taken out and matched
        again, `sweeps` times in random order.

        Args:
            clients: a row of numbers per unit, in common coordinates.
            sweeps: passes of refinement.
            generator: of their orders.
            grows: whether units may become new ones; clients of one width are matched one to one if not.

        Returns:
            The groups, and whether the last sweep changed none.
        """
        widest = sorted(range(len(clients)), key=lambda j: -len(clients[j]))
        groups: list[Tensor] = [torch.zeros(0, dtype=torch.long) for _ in clients]
        groups[widest[0]] = torch.arange(len(clients[widest[0]]))
        for j in widest[1:]:
            groups[j] = self._assign(j, clients, groups, grows)
        settled = len(clients) < 2
        for _ in range(sweeps):
            before = [group.clone() for group in groups]
            for j in torch.randperm(len(clients), generator=generator).tolist():
                groups[j] = torch.zeros(0, dtype=torch.long)
                _, compact = torch.cat(groups).unique(return_inverse=True)
                groups = list(compact.split([len(group) for group in groups]))
                groups[j] = self._assign(j, clients, groups, grows)
            settled = all(_same(a, b) for a, b in zip(before, groups, strict=True))
            if settled:
                break
        _, compact = torch.cat(groups).unique(return_inverse=True)
        return list(compact.split([len(group) for group in groups])), settled

    def _assign(self, j: int, clients: Sequence[Tensor], groups: Sequence[Tensor], grows: bool) -> Tensor:
        """The likeliest global unit, old or new, of each unit of a client that is not matched yet."""
        own, s, s0 = clients[j].double(), self.variance, self.prior_variance
        others = [i for i in range(len(clients)) if i != j and len(groups[i])]
        known = 1 + max((int(groups[i].max()) for i in others), default=-1)
        total = own.new_zeros(known, own.shape[1])
        count = own.new_zeros(known)
        for i in others:
            total.index_add_(0, groups[i], clients[i].double() / s)
            count.index_add_(0, groups[i], torch.ones(len(groups[i]), dtype=torch.float64))
        precision = 1 / s0 + count / s
        old = _squares(own / s, total) / (1 / s + precision) - total.square().sum(1) / precision
        popular = count.clamp(max=MOST)
        # The client itself is not counted, so fewer than all hold a unit; the guard is for a single client.
        old = old + (popular / (len(clients) - popular).clamp(min=1e-9)).clamp(min=1e-9).log()
        room = max(min(len(own), max(self.cap - known, 1)), len(own) - known) if grows else 0
        order = torch.arange(1, room + 1, dtype=torch.float64)
        new = ((own / s).square().sum(1) / (1 / s0 + 1 / s))[:, None] - 2 * order.log()
        new = new + 2 * math.log(self.gamma / len(clients))
        _, chosen = linear_sum_assignment(torch.cat([old, new], 1).numpy(), maximize=True)
        return torch.from_numpy(chosen).long()

    def share(self, count: Tensor, models: int, average: Averaging) -> Tensor:
        """What part of a global unit each of its holders makes, at equal weights."""
        if average == "paper":
            return torch.full_like(count, 1 / models)
        if average == "map":
            return (1 / self.variance) / (1 / self.prior_variance + count / self.variance)
        return 1 / count


def _squares(own: Tensor, total: Tensor) -> Tensor:
    """|own_l + total_i|^2 for every pair."""
    return own.square().sum(1)[:, None] + total.square().sum(1) + 2 * own @ total.mT


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool((ours == theirs).all())


def _memberships(
    groups: Sequence[Tensor], reference: int, average: Averaging, process: Process
) -> list[Membership]:
    order = list(dict.fromkeys([*groups[reference].tolist(), *torch.cat(list(groups)).tolist()]))
    position = torch.empty(len(order), dtype=torch.long)
    position[torch.tensor(order)] = torch.arange(len(order))
    count = torch.cat(list(groups)).bincount(minlength=len(order)).double()
    share = process.share(count, len(groups), average)
    return [Membership(position[group], share[group], len(order)) for group in groups]


def _cost(index: int, name: str, clients: Sequence[Tensor], groups: Sequence[Tensor], reference: int) -> Cost:
    """Mean cosine of a model's units with the reference's of the same number, and of the same global unit."""
    ours, theirs = (torch.nn.functional.normalize(clients[i], dim=1) for i in (reference, index))
    cosine = ours @ theirs.mT
    common = min(cosine.shape)
    together = (groups[reference][:, None] == groups[index]).to(cosine)
    after = (cosine * together).sum() / together.sum().clamp(min=1)
    return Cost(index, name, cosine.diagonal()[:common].mean().item(), after.item(), "mean cosine")
