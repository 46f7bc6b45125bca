"""Attention in every way that models write it: heads move together, and inside each head its own order."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus
from isthmus.symmetry import SymmetryGraph
from isthmus.testing import TOLERANCE

STREAM, HEADS, WIDTH, TOKENS = 10, 3, 4, 5
INNER = HEADS * WIDTH

Split = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def heads_first(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, WIDTH)).transpose(1, 2)


def by_unbind(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, t, _ = x.shape
    return x.reshape(n, t, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)


def by_select(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, t, _ = x.shape
    whole = x.reshape(n, t, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
    return whole[0], whole[1], whole[2]


def by_chunk(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = x.chunk(3, -1)
    return heads_first(q), heads_first(k), heads_first(v)


def by_split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = x.split([INNER, INNER, INNER], -1)
    return heads_first(q), heads_first(k), heads_first(v)


def by_slices(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return heads_first(x[..., :INNER]), heads_first(x[..., INNER : 2 * INNER]), heads_first(x[..., -INNER:])


def inside_each_head(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """heads x 3 x width, as GPT-NeoX stores it."""
    n, t, _ = x.shape
    return x.view(n, t, HEADS, 3 * WIDTH).transpose(1, 2).chunk(3, -1)  # type: ignore[return-value]


FUSED: list[Split] = [by_unbind, by_select, by_chunk, by_split, by_slices, inside_each_head]


class Fused(nn.Module):
    """A stream, one fused attention, a way out."""

    def __init__(
        self, split: Split, change: Callable[["Fused", Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    ):
        super().__init__()
        self.split, self.change = split, change
        self.embed, self.qkv = nn.Linear(3, STREAM), nn.Linear(STREAM, 3 * INNER)
        self.out, self.head = nn.Linear(INNER, STREAM), nn.Linear(STREAM, 2)
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.per_head = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)
        self.register_buffer("table", torch.randn(TOKENS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.split(self.qkv(x))
        if self.change is not None:
            q, k = self.change(self, q, k)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.out(mixed.transpose(1, 2).flatten(2)))


def read(model: nn.Module, x: Tensor | None = None) -> SymmetryGraph:
    """The model's symmetries, verified."""
    torch.manual_seed(0)
    example = torch.randn(2, TOKENS, 3) if x is None else x
    graph = isthmus.trace(model.eval(), example)
    found = graph.verify(model, example)
    assert found.error <= TOLERANCE[torch.float64], f"{found}\n{graph}"
    assert not found.unobservable and not graph.unknown
    return graph


def sizes(graph: SymmetryGraph) -> list[tuple[int, ...]]:
    """The size of every space, after those of what it is within."""
    return sorted((*(graph.spaces[o].size for o in s.within), s.size) for s in graph.spaces.values())


@pytest.mark.parametrize("split", FUSED, ids=lambda f: f.__name__)
def test_a_fused_projection_has_heads_and_in_each_an_order_for_queries_and_one_for_values(split: Split):
    graph = read(Fused(split))
    assert sizes(graph) == [(HEADS,), (HEADS, WIDTH), (HEADS, WIDTH), (STREAM,)]
    heads = next(s for s in graph.spaces.values() if s.size == HEADS)
    queries, values = (s for s in graph.spaces.values() if s.within)
    assert queries.within == values.within == (heads.name,)
    # The output reads values, head by head; queries and keys meet and are gone.
    carried = {s.name: {m.key for m in s.members} for s in graph.spaces.values()}
    assert "out.weight" not in carried[queries.name] and "out.weight" in carried[values.name]
    (rows, columns) = graph.layout["qkv.weight"]
    expected = f"({heads.name} {queries.name}) + ({heads.name} {queries.name}) + ({heads.name} {values.name})"
    if split is inside_each_head:
        expected = f"({heads.name} {queries.name} + {queries.name} + {values.name})"
    assert str(rows) == expected and str(columns) == "embed"
    assert str(graph.layout["out.weight"][1]) == f"({heads.name} {values.name})"


def test_a_norm_inside_heads_that_all_heads_share_makes_one_order_for_all():
    def normed(model: Fused, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return F.rms_norm(q, (WIDTH,), model.scale), k

    graph = read(Fused(by_unbind, normed))
    assert sizes(graph) == [(HEADS,), (HEADS, WIDTH), (WIDTH,), (STREAM,)]
    shared = next(s for s in graph.spaces.values() if s.size == WIDTH and not s.within)
    assert {m.key for m in shared.members} == {"qkv.weight", "qkv.bias", "scale"}


def test_a_scale_per_head_moves_with_the_heads():
    graph = read(Fused(by_chunk, lambda m, q, k: (q * m.per_head, k)))
    assert sizes(graph) == [(HEADS,), (HEADS, WIDTH), (HEADS, WIDTH), (STREAM,)]
    assert str(graph.layout["per_head"][0]) == next(n for n, s in graph.spaces.items() if s.size == HEADS)


def test_rotary_tables_fix_queries_and_keys_and_leave_values():
    def rotated(model: Fused, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        def turn(x: Tensor) -> Tensor:
            a, b = x.chunk(2, -1)
            return x * model.table.cos() + torch.cat([-b, a], -1) * model.table.sin()  # type: ignore[operator]

        return turn(q), turn(k)

    graph = read(Fused(by_split, rotated))
    assert sizes(graph) == [(HEADS,), (HEADS, WIDTH), (STREAM,)]
    assert any("table" in item.reason and item.key == "qkv.weight" for item in graph.fixed)


def test_scores_written_out_are_as_good_as_the_fused_operation():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(3, INNER) for _ in range(3))
            self.out = nn.Linear(INNER, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = heads_first(self.q(x)), heads_first(self.k(x)), heads_first(self.v(x))
            scores = (q @ k.transpose(-1, -2) / WIDTH**0.5).softmax(-1)
            return self.out((scores @ v).transpose(1, 2).flatten(2))

    graph = read(Plain())
    assert sizes(graph) == [(HEADS,), (HEADS, WIDTH), (HEADS, WIDTH)]
    assert graph.layout["q.weight"][0] == graph.layout["k.weight"][0] != graph.layout["v.weight"][0]


class Grouped(nn.Module):
    """Two key heads, each read by three query heads."""

    def __init__(self, by_attention: bool):
        super().__init__()
        self.by_attention = by_attention
        self.q, self.k, self.v = nn.Linear(3, 6 * WIDTH), nn.Linear(3, 2 * WIDTH), nn.Linear(3, 2 * WIDTH)
        self.out = nn.Linear(6 * WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads_first(self.q(x)), heads_first(self.k(x)), heads_first(self.v(x))
        if not self.by_attention:
            n, h, t, d = k.shape
            k, v = (p[:, :, None].expand(n, h, 3, t, d).reshape(n, 3 * h, t, d) for p in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.by_attention)
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("by_attention", [False, True], ids=["repeated", "by the operation"])
def test_grouped_queries_move_with_their_key_head_and_among_themselves(by_attention: bool):
    graph = read(Grouped(by_attention))
    assert sizes(graph) == [(2,), (2, 3), (2, WIDTH), (2, WIDTH)]
    keys = next(n for n, s in graph.spaces.items() if s.size == 2)
    queries = next(n for n, s in graph.spaces.items() if s.size == 3)
    assert str(graph.layout["q.weight"][0]).startswith(f"({keys} {queries} ")
    assert str(graph.layout["out.weight"][1]).startswith(f"({keys} {queries} ")
    assert graph.layout["k.weight"][0] != graph.layout["v.weight"][0]


def test_one_key_head_for_all_queries():
    class Multi(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.kv, self.out = nn.Linear(3, INNER), nn.Linear(3, 2 * WIDTH), nn.Linear(INNER, 2)

        def forward(self, x: Tensor) -> Tensor:
            k, v = self.kv(x)[:, None].chunk(2, -1)
            q = heads_first(self.q(x))
            mixed = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q))
            return self.out(mixed.transpose(1, 2).flatten(2))

    # All heads read the same key: inside, one order for all of them.
    assert sizes(read(Multi())) == [(HEADS,), (WIDTH,), (WIDTH,)]


def test_torchs_own_multi_head_attention():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(3, INNER)
            self.attention = nn.MultiheadAttention(INNER, HEADS, batch_first=True)
            self.head = nn.Linear(INNER, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head(x + self.attention(x, x, x, need_weights=False)[0])

    graph = read(Module())
    assert sizes(graph) == [(HEADS,), (HEADS, WIDTH), (HEADS, WIDTH), (INNER,)]
    assert graph.coverage == pytest.approx(1 - (2) / graph_parameters(graph))


def graph_parameters(graph: SymmetryGraph) -> int:
    return sum(torch.Size(graph.program.shapes[key]).numel() for key in graph.layout)


class Latent(nn.Module):
    """Tokens that are weights, attended in order or not."""

    def __init__(self, causal: bool):
        super().__init__()
        self.causal = causal
        self.tokens, self.head = nn.Parameter(torch.randn(1, TOKENS, 6)), nn.Linear(6, 2)
        self.embed = nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        q = self.tokens.expand(x.shape[0], -1, -1) + self.embed(x).mean(1, keepdim=True)
        return self.head(F.scaled_dot_product_attention(q, q, q, is_causal=self.causal).mean(1))


@pytest.mark.parametrize(("causal", "free"), [(False, [(TOKENS,), (6,)]), (True, [(6,)])])
def test_tokens_that_are_weights_have_an_order_only_where_each_sees_all(
    causal: bool, free: list[tuple[int, ...]]
):
    assert sizes(read(Latent(causal))) == free


@pytest.mark.parametrize("how", ["matmul", "linear", "einsum"])
def test_what_is_inside_heads_that_are_mixed_is_shared_also_beside_a_skip(how: str):
    """Heads in and heads out are one index set, so that each value seems to say which head it is of."""

    class Talking(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(3, INNER), nn.Linear(INNER, 2)
            self.mix = nn.Linear(HEADS, HEADS, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            v = self.embed(x).unflatten(-1, (HEADS, WIDTH))
            if how == "matmul":
                mixed = self.mix.weight @ v
            elif how == "linear":
                mixed = self.mix(v.transpose(-1, -2)).transpose(-1, -2)
            else:
                mixed = torch.einsum("nthk,gh->ntgk", v, self.mix.weight)
            return self.head((v + mixed).flatten(2))

    graph = read(Talking())
    assert sizes(graph) == [(HEADS,), (WIDTH,)]
    assert len(set(graph.layout["mix.weight"])) == 1


def test_heads_that_are_reduced_share_what_is_inside():
    class Averaged(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(3, INNER), nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.embed(x)).unflatten(-1, (HEADS, WIDTH)).mean(2))

    assert sizes(read(Averaged())) == [(HEADS,), (WIDTH,)]


def test_a_matrix_for_each_head():
    class PerHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(3, INNER), nn.Linear(HEADS * 6, 2)
            self.own = nn.Parameter(torch.randn(HEADS, WIDTH, 6))

        def forward(self, x: Tensor) -> Tensor:
            v = heads_first(self.embed(x))
            return self.head(F.relu(v @ self.own).transpose(1, 2).flatten(2))

    graph = read(PerHead())
    assert sizes(graph) == [(HEADS,), (HEADS, WIDTH), (HEADS, 6)]
    assert [leaf.size for leaf in graph.layout["own"]] == [HEADS, WIDTH, 6]
