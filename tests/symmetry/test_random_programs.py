"""Random small programs, made of what models are made of: what is read off them must hold."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import isthmus
import isthmus.symmetry
from isthmus.testing import TOLERANCE

Step = tuple[str, int, int]
OPERATIONS: dict[str, Callable[["Net", Tensor, int, int], Tensor]] = {}


def operation(function: Callable[["Net", Tensor, int, int], Tensor]):
    OPERATIONS[function.__name__] = function
    return function


class Net(nn.Module):
    """Interprets a list of steps; a step that does not fit its input does nothing.

    The running value is (examples, tokens, features) or (examples, channels, height, width); `saved`
    holds earlier values for skips, gates and concatenations.
    """

    def __init__(self, steps: list[Step], example: Tensor):
        super().__init__()
        self.steps = steps
        self.weights = nn.ParameterList()
        self.saved: list[Tensor] = []
        self.building, self.next = True, 0
        self.forward(example)
        self.building = False

    def w(self, *shape: int) -> Tensor:
        """The next weight; drawn when the network is built."""
        if self.building:
            self.weights.append(nn.Parameter(torch.randn(shape) / math.sqrt(math.prod(shape[1:]))))
        self.next += 1
        return self.weights[self.next - 1]

    def statistics(self, count: int) -> tuple[Tensor, Tensor]:
        """Running mean and variance of the next batch norm, which are buffers."""
        name = f"norm{self.next}"
        if self.building:
            self.register_buffer(f"{name}_mean", torch.randn(count))
            self.register_buffer(f"{name}_variance", torch.rand(count) + 0.5)
        return getattr(self, f"{name}_mean"), getattr(self, f"{name}_variance")

    def linear(self, x: Tensor, out: int) -> Tensor:
        return F.linear(x, self.w(out, x.shape[-1]), self.w(out))

    def partner(self, x: Tensor, skip: tuple[int, ...] = ()) -> Tensor | None:
        """The last saved value of the same shape, but for the dimensions to skip."""
        for other in reversed(self.saved):
            same = [i for i in range(x.ndim) if i not in skip]
            if other.ndim == x.ndim and all(other.shape[i] == x.shape[i] for i in same):
                return other
        return None

    def forward(self, x: Tensor) -> Tensor:
        self.next, self.saved = 0, []
        for name, a, b in self.steps:
            x = OPERATIONS[name](self, x, a, b)
        if x.ndim == 4:
            x = x.flatten(1)
            return self.linear(x, 3)
        return self.linear(x, 3)


def images(function: Callable[["Net", Tensor, int, int], Tensor]):
    """An operation on images; tokens pass by."""

    def applied(net: Net, x: Tensor, a: int, b: int) -> Tensor:
        return function(net, x, a, b) if x.ndim == 4 else x

    OPERATIONS[function.__name__] = applied
    return function


def tokens(function: Callable[["Net", Tensor, int, int], Tensor]):
    """An operation on tokens; images pass by."""

    def applied(net: Net, x: Tensor, a: int, b: int) -> Tensor:
        return function(net, x, a, b) if x.ndim == 3 else x

    OPERATIONS[function.__name__] = applied
    return function


def channel(x: Tensor) -> int:
    return 1 if x.ndim == 4 else 2


WIDTHS = (4, 6, 8, 12)
HEADS = (2, 3, 4)


def heads_of(x: Tensor, a: int) -> int:
    """A number of heads that divides the features, or 1."""
    found = [h for h in HEADS if x.shape[channel(x)] % h == 0 and x.shape[channel(x)] > h]
    return found[a % len(found)] if found else 1


# -- on anything ---------------------------------------------------------------------------------


@operation
def save(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    net.saved.append(x)
    return x


@operation
def activation(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    return (F.relu, F.gelu, torch.tanh, F.silu)[a % 4](x)


@operation
def skip(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    other = net.partner(x)
    return x if other is None else x + other


@operation
def gate(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    other = net.partner(x)
    return x if other is None else x * torch.sigmoid(other)


@operation
def join(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    """Concatenate with an earlier value along the features."""
    other = net.partner(x, skip=(channel(x),))
    if other is None or other.shape[channel(x)] + x.shape[channel(x)] > 24:
        return x
    return torch.cat([x, other] if a % 2 else [other, x], channel(x))


@operation
def join_self(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    return (
        torch.cat([x, x.flip(1) if b % 5 == 0 and x.ndim == 3 else x], channel(x))
        if x.shape[channel(x)] <= 12
        else x
    )


@operation
def halves(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    """Gate one half with the other, swap them, keep one, or add them."""
    if x.shape[channel(x)] % 2:
        return x
    left, right = x.chunk(2, channel(x))
    if a % 4 == 0:
        return left * torch.sigmoid(right)
    if a % 4 == 1:
        return torch.cat([right, left], channel(x))
    return left if a % 4 == 2 else left + right


@operation
def uneven(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    """Split unevenly and put the parts back in another order."""
    size = x.shape[channel(x)]
    cut = 1 + a % (size - 1) if size > 1 else 0
    if not cut:
        return x
    left, right = x.split([cut, size - cut], channel(x))
    return torch.cat([right, left], channel(x)) if b % 2 else torch.cat([torch.tanh(left), right], channel(x))


@operation
def cut_out(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    size = x.shape[channel(x)]
    start, stop = a % 2, size - b % 2
    return x.narrow(channel(x), start, stop - start) if stop - start >= 2 else x


@operation
def pad_features(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    before, after = a % 3, b % 3
    amounts = [0, 0] * (x.ndim - 1 - channel(x)) + [before, after]
    return F.pad(x, amounts) if x.shape[channel(x)] <= 12 else x


@operation
def scale(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    shape = [1] * x.ndim
    shape[channel(x)] = x.shape[channel(x)]
    return x * net.w(*shape)


@operation
def shuffle(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    """Features seen as groups x within, and the two exchanged."""
    groups, dim = heads_of(x, a), channel(x)
    return x.unflatten(dim, (groups, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


@operation
def repeat_features(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    if x.shape[channel(x)] > 8:
        return x
    if a % 2:
        return x.repeat_interleave(2, channel(x))
    times = [1] * x.ndim
    times[channel(x)] = 2
    return x.repeat(times)


@operation
def stacked(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    other = net.partner(x)
    if other is None:
        return x
    pile = torch.stack([x, other], a % 2 * 2)
    return pile.amax(a % 2 * 2) if b % 2 else pile.unbind(a % 2 * 2)[1]


@operation
def group_statistics(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    """Group norm, over channels in groups."""
    moved = x if x.ndim == 4 else x.transpose(1, 2)
    moved = F.group_norm(moved, heads_of(x, a), net.w(x.shape[channel(x)]), net.w(x.shape[channel(x)]))
    return moved if x.ndim == 4 else moved.transpose(1, 2)


@operation
def in_place(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    return (x * 2).relu_().add_(1.0)


@operation
def order_matters(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    dim = channel(x)
    if a % 4 == 0:
        return x.flip(dim)
    if a % 4 == 1:
        return x.roll(1, dim)
    if a % 4 == 2:
        return x.cumsum(dim)
    return x.index_select(dim, torch.arange(x.shape[dim]).flip(0))


@operation
def across(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    """Softmax, or subtraction of the mean, over the features, or over heads of them."""
    dim = channel(x)
    if a % 3 == 0:
        return x.softmax(dim)
    if a % 3 == 1:
        return x - x.mean(dim, keepdim=True)
    h = heads_of(x, b)
    return x.unflatten(dim, (h, -1)).softmax(dim + b % 2).flatten(dim, dim + 1)


@operation
def over_heads(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    """Features as heads x within; one of the two is summed, maximised or normalised away."""
    dim, h = channel(x), heads_of(x, a)
    opened = x.unflatten(dim, (h, -1))
    reduced = opened.amax(dim + b % 2) if a % 2 else opened.sum(dim + b % 2)
    return reduced if reduced.shape[dim] > 1 else x


@operation
def bends(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    """What lets some scales or signs through."""
    if b % 3 == 0:
        return (torch.abs, torch.square, F.leaky_relu, torch.sin)[a % 4](x)
    if b % 3 == 1:
        return (x.clamp(min=0), x.clamp(-1, 1), x * (x > 0), torch.where(x > 0, x, 0.1 * x))[a % 4]
    return (F.relu(x) ** 2, torch.maximum(x, 2 * x), x.masked_fill(x < 0, 0.0), x - 1)[a % 4]


@operation
def lengths(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    """Norms by hand, over the features or over heads of them."""
    dim, h = channel(x), heads_of(x, b)
    if a % 3 == 0:
        return F.normalize(x, dim=dim)
    if a % 3 == 1:
        return x * torch.rsqrt(x.pow(2).mean(dim, keepdim=True) + 1e-6)
    opened = x.unflatten(dim, (h, -1))
    return F.normalize(opened, dim=dim + 1).flatten(dim, dim + 1)


# -- on tokens -----------------------------------------------------------------------------------


@tokens
def dense(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    return net.linear(x, WIDTHS[a % len(WIDTHS)])


@tokens
def layer_norm(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    d = x.shape[-1]
    return F.rms_norm(x, (d,), net.w(d)) if a % 2 else F.layer_norm(x, (d,), net.w(d), net.w(d))


@tokens
def add_positions(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    return x + net.w(1, *x.shape[1:])


@tokens
def extra_token(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    if x.shape[1] > 4:
        return x
    return torch.cat([net.w(1, 1, x.shape[2]).expand(x.shape[0], -1, -1), x], 1)


@tokens
def mix_tokens(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    return net.linear(x.transpose(1, 2), 3).transpose(1, 2)


@tokens
def attention(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    """Self-attention: separate, fused (four ways) or grouped projections; a norm within heads or none."""
    n, t, _ = x.shape
    h, k = (2, 3), (2, 4)
    heads, width = h[a % 2], k[b % 2]
    kind = a % 6
    if kind == 0:  # three projections
        q, key, v = (
            net.linear(x, heads * width).unflatten(-1, (heads, width)).transpose(1, 2) for _ in range(3)
        )
    elif kind == 1:  # fused, as timm does
        q, key, v = (
            net.linear(x, 3 * heads * width).reshape(n, t, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        )
    elif kind == 2:  # fused, by chunks
        q, key, v = (
            part.view(n, t, heads, width).transpose(1, 2)
            for part in net.linear(x, 3 * heads * width).chunk(3, -1)
        )
    elif kind == 3:  # heads x 3 x width, as GPT-NeoX does
        whole = net.linear(x, heads * 3 * width).view(n, t, heads, 3 * width).transpose(1, 2)
        q, key, v = whole.chunk(3, -1)
    elif kind == 4:  # grouped queries, keys and values repeated
        q = net.linear(x, 2 * heads * width).view(n, t, 2 * heads, width).transpose(1, 2)
        key, v = (net.linear(x, heads * width).view(n, t, heads, width).transpose(1, 2) for _ in range(2))
        key, v = (
            p[:, :, None].expand(n, heads, 2, t, width).reshape(n, 2 * heads, t, width) for p in (key, v)
        )
    else:  # fused with other sizes of value
        whole = net.linear(x, heads * (2 * width + 3))
        q, key, v = whole.split([heads * width, heads * width, heads * 3], -1)
        q, key, v = (p.unflatten(-1, (heads, -1)).transpose(1, 2) for p in (q, key, v))
    if b % 3 == 1:
        q = F.rms_norm(q, (q.shape[-1],), net.w(q.shape[-1]))
    if b % 3 == 2:  # a scale per head
        q = q * net.w(q.shape[1], 1, 1)
    if b % 2:
        mixed = F.scaled_dot_product_attention(q, key, v, is_causal=b % 5 == 0)
    else:
        mixed = (q @ key.transpose(-1, -2)).softmax(-1) @ v
    return net.linear(mixed.transpose(1, 2).flatten(2), x.shape[-1])


@tokens
def per_head(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    """A matrix for each head, or one for all."""
    h = heads_of(x, a)
    opened = x.unflatten(-1, (h, -1)).transpose(1, 2)
    width = opened.shape[-1]
    made = opened @ (net.w(h, width, 4) if b % 2 else net.w(width, 4))
    return made.transpose(1, 2).flatten(2)


@tokens
def talking_heads(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    """Heads mixed with heads, beside a skip: in and out, they are one index set."""
    h = heads_of(x, a)
    opened = x.unflatten(-1, (h, -1))
    if b % 3 == 0:
        mixed = net.w(h, h) @ opened
    elif b % 3 == 1:
        mixed = net.linear(opened.transpose(-1, -2), h).transpose(-1, -2)
    else:
        mixed = torch.einsum("bthk,hg->btgk", opened, net.w(h, h))
    return (opened + mixed).flatten(-2)


@tokens
def learned_queries(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    """Tokens that are weights look at x."""
    d = x.shape[-1]
    queries = net.w(3, d).expand(x.shape[0], -1, -1)
    return F.scaled_dot_product_attention(queries, x, x, is_causal=bool(b % 2) and x.shape[1] == 3)


@tokens
def one_token(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    return x + x[:, :1] if a % 2 else x + x.select(1, 0).unsqueeze(1)


# -- on images -----------------------------------------------------------------------------------


@images
def conv(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    out = WIDTHS[a % len(WIDTHS)]
    size = 1 + 2 * (b % 2)
    return F.conv2d(x, net.w(out, x.shape[1], size, size), net.w(out), padding=size // 2)


@images
def grouped_conv(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    groups = heads_of(x, a)
    out = groups * (1 + b % 3)
    return F.conv2d(x, net.w(out, x.shape[1] // groups, 1, 1), net.w(out), groups=groups)


@images
def depthwise(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    c = x.shape[1]
    return F.conv2d(x, net.w(c * (1 + b % 2), 1, 3, 3), padding=1, groups=c) if c <= 12 else x


@images
def transposed(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    groups = heads_of(x, a) if b % 2 else 1
    return F.conv_transpose2d(x, net.w(x.shape[1], 2, 1, 1), net.w(2 * groups), groups=groups)


@images
def batch_norm(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    c = x.shape[1]
    return F.batch_norm(x, *net.statistics(c), net.w(c), net.w(c))


@images
def channel_norm(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    c = x.shape[1]
    return F.layer_norm(x.permute(0, 2, 3, 1), (c,), net.w(c), net.w(c)).permute(0, 3, 1, 2)


@images
def pool(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    if x.shape[-1] < 4:
        return x
    return F.max_pool2d(x, 2) if a % 2 else F.avg_pool2d(x, 2)


@images
def squeeze_excite(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    middle = F.relu(net.linear(x.mean((2, 3)), 4))
    return x * torch.sigmoid(net.linear(middle, x.shape[1]))[:, :, None, None]


@images
def depth_to_space(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    n, c, height, width = x.shape
    if c % 4 or c < 8 or height > 4:
        return x
    return (
        x.view(n, c // 4, 2, 2, height, width)
        .permute(0, 1, 4, 2, 5, 3)
        .reshape(n, c // 4, 2 * height, 2 * width)
    )


@images
def to_tokens(net: Net, x: Tensor, a: int, b: int) -> Tensor:
    _n, c, _height, _ = x.shape
    if a % 3 == 0:
        return x.flatten(2).transpose(1, 2)
    if a % 3 == 1:
        return x.mean((2, 3))[:, None, :]
    # Each row a token: channels x columns are its features.
    return x.permute(0, 2, 1, 3).flatten(2) if c * x.shape[3] <= 24 else x


numbers = st.integers(0, 11)
steps = st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), numbers, numbers), min_size=1, max_size=7)


def check(steps: list[Step], example: Tensor) -> None:
    torch.manual_seed(0)
    first: Step = ("dense", 1, 0) if example.ndim == 3 else ("conv", 1, 0)
    model = Net([first, ("save", 0, 0), *steps], example)
    graph = isthmus.trace(model, example)
    assert not graph.unknown
    found = graph.verify(model, example, each=False)
    assert found.error <= TOLERANCE[torch.float64], f"{found}\n{graph}"
    obey_the_laws(graph, model)


def obey_the_laws(graph: isthmus.SymmetryGraph, model: nn.Module) -> None:
    """Elements of the full group follow and undo each other, and every part of one is one."""
    for space in graph.spaces.values():
        if any(not set(graph.spaces[outer].within) <= set(space.within) for outer in space.within):
            return  # copies inside one level of several: their orders are right, and do not compose
    state = {key: value.double() for key, value in model.state_dict().items()}
    one, two = graph.random_element(1), graph.random_element(2)
    moved = one.apply(graph, state)
    close(one.then(two, graph).apply(graph, state), two.apply(graph, moved))
    close(one.inverse(graph).apply(graph, moved), state)
    isthmus.symmetry.check(one.then(two, graph), graph)


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for key, value in theirs.items():
        scale = max(value.abs().max().item(), 1.0)
        assert (ours[key] - value).abs().max().item() <= 1e-9 * scale, key


EXAMPLES = settings(max_examples=settings().max_examples * 3 // 5)


@EXAMPLES
@given(steps)
@example([("across", 2, 0), ("uneven", 0, 0)])  # a cut inside blocks that were mixed before
@example([("talking_heads", 7, 1), ("cut_out", 10, 7)])
@example([("across", 8, 4), ("lengths", 8, 5)])
def test_random_programs_on_tokens(steps: list[Step]):
    check(steps, torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)))


@EXAMPLES
@given(steps)
@example([("conv", 9, 1), ("group_statistics", 11, 3), ("skip", 2, 7)])  # one space on both axes of a weight
@example([("join", 8, 6), ("depth_to_space", 10, 2), ("across", 6, 1)])
@example([("mix_tokens", 6, 5), ("across", 8, 8), ("uneven", 10, 7)])
@example([("repeat_features", 5, 6), ("lengths", 2, 6)])
def test_random_programs_on_images(steps: list[Step]):
    check(steps, torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)))
