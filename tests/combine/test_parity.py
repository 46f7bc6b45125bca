"""The arithmetic of the tools that people use now, run for real on the same tensors.

`pip install 'isthmus[parity]'` brings them. Rules that draw are compared under the same masks: the tools' call of
`torch.bernoulli` is answered with ours.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor

from isthmus.combine import COMBINATIONS, Place
from isthmus.combine.by_rank import kept_by_rank
from isthmus.combine.random_masks import bernoulli
from isthmus.testing import TOLERANCE

SHAPES = [(1,), (7,), (33, 40), (4, 6, 3, 3)]
SEED, KEY = 5, "layers.0.weight"


def tool(name: str) -> ModuleType:
    """Import a tool, or skip."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name.partition('.')[0]} is not installed: pip install 'isthmus[parity]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of when it is imported is not ours to mend
        return importlib.import_module(name)


def siblings(
    shape: tuple[int, ...], count: int, scale: float = 0.05, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor]]:
    """A base and models near it in float32, rounded to a dtype: to bfloat16, and many differences are equal."""
    generator = torch.Generator().manual_seed(sum(shape) + count)

    def drawn(size: float) -> Tensor:
        return torch.randn(shape, generator=generator) * size

    base = drawn(1.0)
    return base.to(dtype).float(), [(base + drawn(scale)).to(dtype).float() for _ in range(count)]


def ours(name: str, tensors: list[Tensor], base: Tensor | None = None, **options: object) -> Tensor:
    given = dict(options)
    terms = {"base": base, "key": KEY, "seed": SEED}
    return COMBINATIONS.get(name).function(
        tensors, **{k: v for k, v in terms.items() if v is not None}, **given
    )


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    scale = max(expected.abs().max().item(), 1e-3)
    torch.testing.assert_close(found, expected, rtol=0, atol=scale * TOLERANCE[torch.float32] / 50)


@pytest.fixture
def same_masks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Answers each call of torch.bernoulli with our mask of the next model.

    Where the probabilities differ they must be those of DELLA, of whose masks the task vectors decide.
    """

    def answer(shape: tuple[int, ...], vectors: Sequence[Tensor] = (), epsilon: float = 0.0) -> None:
        place = Place(KEY, shape, 0, torch.Size(shape).numel(), SEED)
        stream = iter(range(100))

        def drawn(chance: Tensor) -> Tensor:
            flat = chance.double().reshape(-1)
            if bool((flat == flat[0]).all()):
                mask = bernoulli(place, next(stream), _density(flat[0].item()))
            else:
                density = _density(flat.mean().item())
                vector = vectors[model := next(stream)].reshape(-1, shape[-1])
                ladder = torch.linspace(density - epsilon, density + epsilon, shape[-1])
                expected = torch.empty_like(vector).scatter_(
                    1, vector.abs().argsort(dim=1, stable=True), ladder.expand(vector.shape)
                )
                torch.testing.assert_close(chance.view(expected.shape), expected)
                mask = kept_by_rank(vector, place, model, density, epsilon)
            return mask.view(chance.shape).to(chance.dtype)

        monkeypatch.setattr(torch, "bernoulli", drawn)

    return answer


def _density(stored: float) -> float:
    """The density that was given, before it was rounded to float32."""
    return round(stored, 6)


# mergekit


def theirs(method: str, tensors: list[Tensor], base: Tensor | None = None, **parameters: object) -> Tensor:
    merge = tool("mergekit.merge_methods.api").merge_tensors
    inputs = [*([] if base is None else [base]), *tensors]
    ids = [*([] if base is None else ["base"]), *(f"m{i}" for i in range(len(tensors)))]
    given = {
        name: dict(zip(ids[-len(tensors) :], value, strict=True)) if isinstance(value, list) else value
        for name, value in parameters.items()
    }
    return merge(inputs, method, parameters=given, ids=ids, base_index=None if base is None else 0)


WEIGHTS = [0.6, 0.3, 0.4]

#: our rule, options -> their method, parameters; with a base, three models
TASK_VECTORS = [
    (
        "task-arithmetic",
        {"weights": WEIGHTS, "lam": 0.7},
        "task_arithmetic",
        {"weight": WEIGHTS, "lambda": 0.7},
    ),
    (
        "task-arithmetic",
        {"weights": WEIGHTS, "normalize": True},
        "task_arithmetic",
        {"weight": WEIGHTS, "normalize": True},
    ),
    ("ties", {"density": 0.3, "weights": WEIGHTS}, "ties", {"density": [0.3] * 3, "weight": WEIGHTS}),
    ("ties", {"density": 1.0, "weights": WEIGHTS}, "ties", {"density": [1.0] * 3, "weight": WEIGHTS}),
    (
        "ties",
        {
            "density": [0.1, 0.5, 0.9],
            "weights": [1.0, -0.5, 2.0],
            "divide": "none",
            "rescale": "norm",
            "lam": 0.4,
        },
        "ties",
        {
            "density": [0.1, 0.5, 0.9],
            "weight": [1.0, -0.5, 2.0],
            "normalize": False,
            "rescale": True,
            "lambda": 0.4,
        },
    ),
    (
        "breadcrumbs",
        {"density": 0.5, "gamma": 0.1, "weights": WEIGHTS},
        "breadcrumbs",
        {"density": [0.5] * 3, "gamma": [0.1] * 3, "weight": WEIGHTS},
    ),
    (
        "breadcrumbs",
        {"density": 0.95, "gamma": 0.1, "weights": WEIGHTS, "rescale": "norm"},
        "breadcrumbs",
        {"density": [0.95] * 3, "gamma": [0.1] * 3, "weight": WEIGHTS, "rescale": True},
    ),
    (
        "breadcrumbs-ties",
        {"density": 0.4, "gamma": 0.05, "weights": WEIGHTS, "divide": "weights"},
        "breadcrumbs_ties",
        {"density": [0.4] * 3, "gamma": [0.05] * 3, "weight": WEIGHTS, "normalize": True},
    ),
    (
        "dare-linear",
        {"density": 0.4, "weights": WEIGHTS},
        "dare_linear",
        {"density": [0.4] * 3, "weight": WEIGHTS},
    ),
    (
        "dare-linear",
        {"density": 0.4, "weights": WEIGHTS, "rescale": "none"},
        "dare_linear",
        {"density": [0.4] * 3, "weight": WEIGHTS, "rescale": False},
    ),
    (
        "dare-ties",
        {"density": 0.7, "weights": WEIGHTS},
        "dare_ties",
        {"density": [0.7] * 3, "weight": WEIGHTS},
    ),
]


@pytest.mark.parametrize(("name", "options", "method", "parameters"), TASK_VECTORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_task_vectors_are_merged_as_by_mergekit(
    name: str, options: dict, method: str, parameters: dict, shape: tuple[int, ...], same_masks: Callable
):
    base, models = siblings(shape, 3)
    more = {} if name == "task-arithmetic" else {"convention": "mergekit"}
    found = ours(name, models, base, **options, **more)
    same_masks(shape)
    close(found, theirs(method, models, base, **parameters))


@pytest.mark.parametrize("name", ["della", "della-linear"])
@pytest.mark.parametrize("shape", [(7,), (33, 40)])  # of more axes, mergekit ranks along the second
def test_della_is_mergekits(name: str, shape: tuple[int, ...], same_masks: Callable):
    base, models = siblings(shape, 3)
    options = {"density": 0.5, "epsilon": 0.2, "weights": WEIGHTS, "convention": "mergekit"}
    found = ours(name, models, base, **options)
    same_masks(shape, [model - base for model in models], 0.2)
    parameters = {"density": [0.5] * 3, "epsilon": [0.2] * 3, "weight": WEIGHTS, "normalize": name == "della"}
    close(found, theirs(name.replace("-", "_"), models, base, **parameters))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_linear_is_mergekits(shape: tuple[int, ...], normalize: bool):
    _, models = siblings(shape, 3)
    found = ours("linear", models, weights=[1.0, 2.0, 0.5], normalize=normalize)
    close(found, theirs("linear", models, weight=[1.0, 2.0, 0.5], normalize=normalize))


@pytest.mark.parametrize("shape", [(7,), (33, 40), (4, 6, 3, 3)])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale", [0.001, 2.0])  # almost parallel, and not
def test_slerp_is_mergekits(shape: tuple[int, ...], t: float, scale: float):
    a, (b,) = siblings(shape, 1, scale)
    close(ours("slerp", [a, b], t=t), theirs("slerp", [b], a, t=t))


@pytest.mark.parametrize("shape", [(7,), (33, 40)])
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize(
    ("per", "parameters"),
    [
        ("tensor", {}),
        ("row", {"nuslerp_flatten": False}),
        ("column", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ],
)
def test_nuslerp_is_mergekits(shape: tuple[int, ...], with_base: bool, per: str, parameters: dict):
    base, models = siblings(shape, 2, 1.0)
    origin = base if with_base else None
    found = ours("nuslerp", models, origin, weights=[1.0, 3.0], per=per)
    close(found, theirs("nuslerp", models, origin, weight=[1.0, 3.0], **parameters))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_base", [True, False])
def test_multislerp_is_mergekits(shape: tuple[int, ...], with_base: bool):
    base, models = siblings(shape, 3, 1.0)
    origin = base if with_base else None
    found = ours("multislerp", models, origin, weights=WEIGHTS)
    close(found, theirs("multislerp", models, origin, weight=WEIGHTS))


@pytest.mark.parametrize("shape", SHAPES[1:])  # two points of a line have no mean direction
@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_karcher_is_mergekits(shape: tuple[int, ...], scale: float):
    _, models = siblings(shape, 3, scale)
    close(ours("karcher", models, max_iter=10, tol=1e-5), theirs("karcher", models))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("per", "row_wise"), [("tensor", False), ("row", True)])
@pytest.mark.parametrize("scale", [1e-5, 0.05])
def test_model_stock_is_mergekits(shape: tuple[int, ...], per: str, row_wise: bool, scale: float):
    base, models = siblings(shape, 3, scale)
    found = ours("model-stock", models, base, per=per, convention="mergekit")
    close(found, theirs("model_stock", models, base, filter_wise=row_wise))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-4, 0.05])  # below and above the floor of its weights
def test_sce_is_mergekits(shape: tuple[int, ...], scale: float):
    base, models = siblings(shape, 3, scale)
    close(ours("sce", models, base, convention="mergekit"), theirs("sce", models, base))


def test_sces_selection_is_mergekits():
    # Unrounded, so that no two variances are equal: which of those are taken is not defined there.
    generator = torch.Generator().manual_seed(0)
    base, *models = (torch.randn(31, 20, generator=generator) for _ in range(4))
    close(
        ours("sce", models, base, density=0.3, convention="mergekit"),
        theirs("sce", models, base, select_topk=0.3),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["ram", "ramplus-tl"])
def test_ram_is_mergekits(shape: tuple[int, ...], name: str):
    base, models = siblings(shape, 3)
    models = [torch.where(torch.rand(shape) < 0.5, base, m) for m in models]
    close(ours(name, models, base), theirs(name.replace("-", "_"), models, base))


@pytest.mark.parametrize("shape", SHAPES)
def test_near_swap_is_mergekits(shape: tuple[int, ...]):
    base, models = siblings(shape, 1)
    close(ours("near-swap", models, base, t=0.02), theirs("nearswap", models, base, t=0.02))


@pytest.mark.parametrize("shape", [(7,), (33, 40), (4, 6, 3, 3)])
def test_arcee_fusion_is_mergekits(shape: tuple[int, ...]):
    base, models = siblings(shape, 1, 0.5)
    close(ours("arcee-fusion", models, base), theirs("arcee_fusion", models, base))


@pytest.mark.parametrize("scale", [None, 0.25])
def test_passthrough_is_mergekits(scale: float | None):
    _, models = siblings((5, 4), 1)
    close(
        ours("passthrough", models, scale=1.0 if scale is None else scale),
        theirs("passthrough", models, scale=scale),
    )


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_of_equal_elements_ties_keeps_as_many_as_mergekit(density: float):
    # Which of them it keeps is not defined there: it sorts without keeping the order of equal ones.
    base, (model,) = siblings((64, 50), 1, dtype=torch.bfloat16)
    sizes = torch.unique((model - base).abs())
    assert len(sizes) < 2000, "many differences are equal"
    found = ours("ties", [model], base, density=density, convention="mergekit") - base
    expected = theirs("ties", [model], base, density=density, weight=[1.0]) - base
    assert found.count_nonzero() == expected.count_nonzero()
    bound = found[found != 0].abs().min()
    assert torch.equal(found.abs() > bound, expected.abs() > bound)


def test_every_method_of_mergekit_has_a_rule():
    names = {"nearswap": "near-swap"}
    for method in tool("mergekit.merge_methods.registry").registered_methods():
        name = method.spec.name
        assert COMBINATIONS.get(names.get(name, name.replace("_", "-")))


# peft


PEFT = [
    ("task-arithmetic", {}, "task_arithmetic", {}),
    ("magnitude-prune", {"density": 0.3}, "magnitude_prune", {"density": 0.3}),
    ("ties", {"density": 0.3, "convention": "peft"}, "ties", {"density": 0.3}),
    (
        "ties",
        {"density": 0.3, "convention": "peft", "vote": "count"},
        "ties",
        {"density": 0.3, "majority_sign_method": "frequency"},
    ),
    ("dare-linear", {"density": 0.4, "convention": "peft"}, "dare_linear", {"density": 0.4}),
    ("dare-ties", {"density": 0.4, "convention": "peft"}, "dare_ties", {"density": 0.4}),
    (
        "dare-ties",
        {"density": 0.4, "convention": "peft", "vote": "count"},
        "dare_ties",
        {"density": 0.4, "majority_sign_method": "frequency"},
    ),
]


@pytest.mark.parametrize(("name", "options", "method", "parameters"), PEFT)
@pytest.mark.parametrize("shape", [(7,), (33, 40), (4, 6, 3, 3)])
def test_task_vectors_are_merged_as_by_peft(
    name: str, options: dict, method: str, parameters: dict, shape: tuple[int, ...], same_masks: Callable
):
    merge = getattr(tool("peft.utils.merge_utils"), method)
    generator = torch.Generator().manual_seed(1)
    # It prunes with topk, which does not say which of several equal elements it takes: here none are.
    vectors = [torch.randn(shape, generator=generator) for _ in range(3)]
    base = torch.zeros(shape)
    found = ours(name, vectors, base, weights=WEIGHTS, **options)
    same_masks(shape)
    close(found, merge(vectors, torch.tensor(WEIGHTS), **parameters))
