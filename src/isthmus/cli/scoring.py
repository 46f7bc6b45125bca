"""What `soup` and `sweep` share: a score, named on the command line or made of an architecture and data."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from isthmus.cli import inputs, output
from isthmus.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from isthmus.comparing import Splits
    from isthmus.search.scores import Scoring

SCORE = "Your function of weights (name -> tensor) to a number, higher is better, as package.module:function."
METRIC = "With --arch and --data: accuracy, or loss (its negative), on the validation split."
FOLDER = "Folder for scores (to go on after an interruption), search.json and report.html."
ON_ERROR = "A candidate without a score: raise, or skip (it is counted)."


@dataclass(frozen=True)
class Chosen:
    """A score and what it was made of.

    Attributes:
        score: the function.
        called: what it is called where its values are kept; None for a function's own name.
        model: the architecture, where one was named.
        splits: the data, where some was named.
    """

    score: Scoring
    called: str | None
    model: nn.Module | None
    splits: Splits | None

    def tested(self, weights: Mapping[str, Tensor]) -> float | None:
        """Accuracy on the test split, where there is one: a fraction."""
        if self.model is None or self.splits is None:
            return None
        from isthmus.measure import evaluate
        from isthmus.search.fitting import Fitted

        return evaluate(self.model, self.splits.test, Fitted(weights, self.model), split="test").accuracy


def each_head(
    merged: nn.Module, parents: Mapping[str, tuple[nn.Module, Mapping[str, Tensor]]], data: Iterable[object]
) -> dict[str, float]:
    """Accuracy of models of different tasks, and of a merge that answers for each of them, on one set of data.

    A model that has other classes than the data is left out, and said.

    Args:
        merged: returns an output per model.
        parents: name -> architecture and weights, in the order of the outputs.
        data: the test split.
    """
    from isthmus.errors import DataError
    from isthmus.measure import Tally, evaluate
    from isthmus.measure.answers import answering
    from isthmus.program import batches, logits_of

    scores: dict[str, float] = {}
    tallies: dict[int, Tally] = {}
    for place, (name, (model, state)) in enumerate(parents.items()):
        try:
            scores[name] = evaluate(model, data, state, split="test").accuracy
        except DataError as error:
            output.say(f"{name} is not evaluated: {error.what}")
        else:
            tallies[place] = Tally()
    with answering(merged) as ask:
        for batch in batches(data) if tallies else ():
            answers = cast("Sequence[object]", ask(batch))
            for place, tally in tallies.items():
                tally.add(logits_of(answers[place]), batch)
    names = list(parents)
    return scores | {f"merged, for {names[i]}": tally.result("test").accuracy for i, tally in tallies.items()}


def choose(
    score: str | None,
    arch: str | None,
    arguments: dict[str, object],
    data: str | None,
    metric: str,
    validation: int | None,
    seed: int,
) -> Chosen:
    """The score that the options mean.

    Raises:
        InputError: none, or two of them; or one that cannot be found.
    """
    if (score is None) == (data is None):
        raise InputError(
            "two scores are named" if score else "what a good model is, is not known",
            hint="--score package.module:function, or --arch and --data",
        )
    model = inputs.build(arch, arguments) if arch is not None or data is not None else None
    if score is not None:
        from isthmus.program.named import imported

        return Chosen(imported(score, "function", option="--score"), None, model, None)
    from isthmus.measure import score as score_by
    from isthmus.search.fitting import Fitted

    assert model is not None, "data asks for an architecture"
    splits = inputs.splits(inputs.dataset(data, validation, seed), None, None, None)
    made = score_by(model, splits.validation, metric)
    sizes = splits.sizes["validation"]
    named = f"{arch} {json.dumps(arguments, sort_keys=True)}"
    called = f"{metric} of {named} on {sizes} validation images of {data}, seed {seed}"

    def scored(weights: Mapping[str, Tensor]) -> float:
        return made(Fitted(weights, model))

    return Chosen(scored, called, model, splits)


def options(
    items: Sequence[str], function: Callable[..., object], own: Collection[str] = ()
) -> dict[str, Any]:
    """`--option NAME=VALUE`, repeated, as keyword arguments of a function.

    Args:
        items: as typed.
        function: what they are for; its own parameters are other options of the command.
        own: names that are options of the method all the same.

    Raises:
        InputError: one is no name and value, or an option of the command itself.
    """
    taken = inspect.signature(function).parameters
    made: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise InputError(f"--option {item}: write it as NAME=VALUE")
        if name in taken and name not in own:
            raise InputError(
                f"--option {item}: not an option of a method, but of the command", hint="see --help"
            )
        made[name] = value(text)
    return made


def axis(option: str, text: str) -> tuple[str, list[object]]:
    """`density=.1,.3` as a name and its values.

    Raises:
        InputError: there is no name, or no value.
    """
    name, equals, values = text.partition("=")
    name = name.strip()
    if not equals or not name or not values.strip():
        raise InputError(f"{option} {text}: write it as NAME=VALUE,VALUE,...")
    return name, [value(item.strip()) for item in values.split(",")]


def value(text: str) -> object:
    """A value as people type it: 1, .3, true, a/b/c for several numbers, or a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return [float(part) for part in text.split("/")] if "/" in text else text
    except ValueError:
        return text
