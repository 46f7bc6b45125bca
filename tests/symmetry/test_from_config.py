"""Symmetries of a configuration: verified by a narrower model, whichever of them can be, or by the model itself."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from isthmus.errors import InputError, VerificationError
from isthmus.program.pretrained import Pretrained
from isthmus.symmetry import from_config
from isthmus.symmetry.from_config import symmetries_of


class Net(nn.Module):
    """Units of which a share is sent round a second layer, as partial rotary embeddings do."""

    def __init__(self, width: int, reads: int | None = None, deeper: bool = False):
        super().__init__()
        self.share = width // 4
        self.up, self.down = nn.Linear(4, width), nn.Linear(reads or width, 3)
        self.between = nn.ReLU() if deeper else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        units = self.between(self.up(x)).relu()
        some, rest = units[..., : self.share], units[..., self.share :]
        return self.down(torch.cat([some.tanh(), rest], -1))


class Search:
    """Narrower models of a network 64 wide as a test lists them, and which of them were given weights."""

    def __init__(self, *options: dict[str, object]):
        self.options, self.tried = options, list[dict[str, object]]()

    def make(self, options: Mapping[str, object]) -> tuple[nn.Module, tuple[torch.Tensor]]:
        given = {"width": 64, **options}
        if given["width"] == 6:
            raise InputError("x cannot be made", ["6 is not a multiple of 12"])
        model, example = Net(**given), torch.randn(2, 4)  # type: ignore[arg-type]
        if not example.is_meta:
            self.tried.append(dict(options))
        return model, (example,)

    def narrower(self) -> Iterator[dict[str, object]]:
        return iter(self.options)


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Search]:
    def among(*options: dict[str, object]) -> Search:
        found = Search(*options)
        monkeypatch.setattr(from_config, "pretrained", lambda _: Pretrained("x", found.make, found.narrower))
        return found

    return among


IMPOSSIBLE, NOTHING_LEFT = {"width": 6}, {"width": 3}
BROKEN, DEEPER = {"width": 8, "reads": 7}, {"width": 12, "deeper": True}


def test_what_cannot_be_made_or_run_or_is_another_model_is_passed_over(search: Callable[..., Search]):
    among = search(IMPOSSIBLE, NOTHING_LEFT, BROKEN, DEEPER, {"width": 16}, {"width": 32})
    graph, verification = symmetries_of("x")
    assert verification.ok and not verification.frozen
    assert among.tried == [NOTHING_LEFT, BROKEN, DEEPER, {"width": 16}], "narrowest first, and none after it"
    assert sorted(space.size for space in graph.spaces.values()) == [16, 48], "of the model, not its stand-in"


@pytest.mark.parametrize("options", [(), (IMPOSSIBLE,), (NOTHING_LEFT, BROKEN)])
def test_where_no_narrower_model_will_do_the_model_itself_is_run(
    options: tuple[dict[str, object], ...], search: Callable[..., Search]
):
    among = search(*options)
    _, verification = symmetries_of("x")
    assert verification.ok and among.tried[-1] == {}


def test_a_model_that_cannot_be_verified_says_for_each_why(
    search: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
):
    among = search(IMPOSSIBLE, NOTHING_LEFT, BROKEN, DEEPER)
    monkeypatch.setattr(from_config, "LARGEST", 200)
    with pytest.raises(VerificationError, match="could not be verified") as caught:
        symmetries_of("x")
    reasons = caught.value.where
    assert [reason.partition(":")[0] for reason in reasons] == [
        "width=6", "width=3", "width=8", "width=12", "the model itself",
    ]  # fmt: skip
    for reason, words in zip(
        reasons,
        [
            "not a multiple of 12",
            "13 and 12 operations",
            "shapes",
            "operations",
            "515 parameters, more than the 200",
        ],
        strict=True,
    ):
        assert words in reason
    assert {} not in among.tried, "too large to be run"


CONFIGS: dict[str, dict[str, object]] = {
    # Six wide it has not twelve heads, twelve wide its heads are one wide.
    "bert": {
        "architectures": ["BertModel"], "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536,
        "num_hidden_layers": 1, "vocab_size": 3000,
    },
    "gpt2": {"architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_head": 4, "n_layer": 1, "vocab_size": 300},
    # A quarter of each head turns: of a narrow head, nothing does.
    "gpt_neox": {
        "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 300,
        "intermediate_size": 40, "num_hidden_layers": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_heads_that_do_not_divide_the_narrowest_width(kind: str, tmp_path: Path):
    pytest.importorskip("transformers", reason="configurations are read by transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **CONFIGS[kind]}))
    graph, verification = symmetries_of(str(tmp_path))
    assert verification.ok
    assert "on a model of the same structure" in verification.note
    assert graph.coverage > 0.9
