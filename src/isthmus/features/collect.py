"""One pass over the calibration data, all models side by side on each batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.errors import DataError, InputError
from isthmus.features.feed import explained, feed, placed, sinks
from isthmus.features.pooled import Centred, Pooled, PooledProducts, Scratch, centre
from isthmus.features.request import Place, Request, settle
from isthmus.program import Batch, Program, Tap, home


@dataclass(frozen=True)
class Moments:
    """Statistics of one value in N models; everything float64, over all samples.

    Attributes:
        request: what was asked for (axis counted from the front).
        samples: how many there are of each channel: examples x positions.
        mean, variance: one tensor of d_i channels per model i; the variance is over the
            samples (divided by their number).
        blocks: (i, j), i <= j -> covariance of model i's channels (rows) with model j's.
    """

    request: Request
    samples: int
    mean: tuple[Float[Tensor, " _"], ...]
    variance: tuple[Float[Tensor, " _"], ...]
    blocks: dict[tuple[int, int], Float[Tensor, "_ _"]]

    @property
    def std(self) -> tuple[Float[Tensor, " _"], ...]:
        return tuple(variance.sqrt() for variance in self.variance)

    def covariance(self, i: int, j: int) -> Float[Tensor, "d_i d_j"]:
        """E[(z_i - mean_i)(z_j - mean_j)^T], whichever way round it was accumulated.

        Raises:
            InputError: the request did not ask for this block.
        """
        if (i, j) in self.blocks:
            return self.blocks[i, j]
        if (j, i) in self.blocks:
            return self.blocks[j, i].T
        raise InputError(
            f"models {i} and {j} have no covariance block of {self.request.value}",
            hint=f"it was requested with blocks={self.request.blocks!r}; 'joint' gives every pair",
        )

    def second(self, i: int, j: int) -> Float[Tensor, "d_i d_j"]:
        """The raw second moment E[z_i z_j^T], from means and covariance."""
        return self.covariance(i, j) + torch.outer(self.mean[i], self.mean[j])

    def correlation(self, i: int, j: int, eps: float = 0.0) -> Float[Tensor, "d_i d_j"]:
        """Pearson's correlation of every channel of model i with every one of model j.

        A channel that does not vary correlates 0 with everything.

        Args:
            i: a model.
            j: a model.
            eps: added to the product of the two standard deviations.
        """
        scale = torch.outer(self.std[i], self.std[j]) + eps
        return torch.where(scale > 0, self.covariance(i, j) / scale, 0.0)

    def joint(self) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        """Mean and covariance of all models' channels, stacked; needs blocks="joint"."""
        n = range(len(self.mean))
        return torch.cat(self.mean), torch.cat([torch.cat([self.covariance(i, j) for j in n], 1) for i in n])


@dataclass(frozen=True)
class Features:
    """What one pass over the calibration data found.

    Attributes:
        moments: a request's `place` -> its statistics.
        examples: how many were seen.
        batch_sizes: of every batch, in order.
    """

    moments: dict[Place, Moments]
    examples: int
    batch_sizes: tuple[int, ...]

    def __getitem__(self, value: str | Place) -> Moments:
        """Statistics of a value; with its axis where it was requested along several."""
        if isinstance(value, tuple):
            return self.moments[value]
        found = [key for key in self.moments if key[0] == value]
        if len(found) != 1:
            raise KeyError(f"{value!r} was requested along {len(found)} axes")
        return self.moments[found[0]]


def collect(
    program: Program | Sequence[Program],
    models: Sequence[Mapping[str, Tensor]],
    data: Iterable[object],
    requests: Iterable[Request],
    *,
    device: torch.device | str | None = None,
    limit: int | None = None,
) -> Features:
    """Run N models over the calibration data once, and accumulate every statistic that is asked for.

    All models see the same batch. Only what the requested values need is computed. The models are run
    one after the other on each batch, so what lives at a time is one batch's worth of the requested
    values of the models that wait for a partner (model 0 for "reference", all but the last for "joint"),
    the statistics, and no more however long the data is. Statistics do not depend on how the data is
    split into batches: products are taken in float32 of values with their batch mean taken off (in
    float64 if the weights are), and pooled in float64.

    Args:
        program: of all models, or one each; the values' sizes, but not their names, may then differ.
        models: the state dicts.
        data: an iterable of batches; see `isthmus.program.batches`. Floating inputs are cast to the
            models' dtype and moved to their device.
        requests: what is wanted of which values.
        device: where to run; None for where model 0 is.
        limit: number of examples after which to stop.

    Raises:
        InputError: no models, requests that do not fit, a limit below 1.
        MismatchError: weights are missing or of another shape than the program's.
        DataError: the data is empty or does not fit, or a model's activations are not finite.
    """
    programs = [program] * len(models) if isinstance(program, Program) else list(program)
    if not models or len(programs) != len(models):
        raise InputError(f"{len(models)} models and {len(programs)} programs are no set of models to watch")
    settled = settle(requests, programs)
    if not settled:
        return Features({}, 0, ())
    target = device if device is not None else home(models[0])[0]
    weights = [placed(p, model, target) for p, model in zip(programs, models, strict=True)]
    homes = [home(own) for own in weights]
    names = {request.value for request in settled}
    runners = [p.compile(sinks(p, names), taps=names) for p in programs]

    ledger = _Ledger(settled, len(models))
    sizes: list[int] = []
    with torch.no_grad():
        for index, batch in enumerate(feed(data, "statistics", limit)):
            for model, runner in enumerate(runners):
                here = batch.to(*homes[model])
                where = f"batch {index}" if len(models) == 1 else f"model {model}, batch {index}"
                with explained(programs[model], here, where):
                    runner(weights[model], here, tap=ledger.tap(model))
            ledger.close(batch, index)
            sizes.append(batch.size)
    return Features(ledger.moments(), sum(sizes), tuple(sizes))


class _Ledger:
    """The running statistics: taps write one batch into it, model after model, then it is closed."""

    def __init__(self, requests: Sequence[Request], models: int):
        self.requests, self.models = requests, models
        self.by_value: dict[str, list[Request]] = {}
        for request in requests:
            self.by_value.setdefault(request.value, []).append(request)
        self.pooled = {(request, model): Pooled() for request in requests for model in range(models)}
        self.products = {
            (request, pair): PooledProducts() for request in requests for pair in request.pairs(models)
        }
        self.batch: dict[tuple[Request, int], Centred] = {}
        self.scratch = Scratch()

    def tap(self, model: int) -> Tap:
        """What model `model` shows its values to."""

        def show(name: str, value: Tensor) -> None:
            for request in self.by_value[name]:
                self.write(request, model, value)

        return show

    def write(self, request: Request, model: int, value: Tensor) -> None:
        pairs = [pair for pair in request.pairs(self.models) if pair[1] == model]
        # What no later model is multiplied with shares one buffer.
        waits = any(pair[0] == model < pair[1] for pair in request.pairs(self.models))
        key = (request, model) if waits else "passing"
        if request.patches is None:
            centred = centre(value, request.axis, self.scratch, key)
        else:
            centred = centre(request.patches.of(value), 1, self.scratch, key)
        self.batch[request, model] = centred
        for i, j in pairs:
            partner = self.batch[request, i]
            if partner.count != centred.count:
                raise InputError(
                    f"{request.value} has {partner.count} samples in model {i}, {centred.count} in model {j}",
                    hint="covariances need the same positions in all models",
                )
            before = self.pooled[request, i], self.pooled[request, j]
            self.products[request, (i, j)].add(partner, centred, *before)

    def close(self, batch: Batch, index: int) -> None:
        """Pool the batch's means in, after its products, which need those from before it."""
        for key, centred in self.batch.items():
            self.pooled[key].add(centred)
        self.batch.clear()
        # One look at the device for all values.
        flags = torch.stack([p.finite for p in self.pooled.values()]).tolist()
        if all(flags):
            return
        bad = [key for key, good in zip(self.pooled, flags, strict=True) if not good]
        # Requests are in execution order: a model's first is where it began, the others followed from it.
        firsts = {model: request for request, model in reversed(bad)}
        inputs = [v for v in (*batch.args, *batch.kwargs.values()) if isinstance(v, Tensor)]
        hint = "look at the weights of these models: a value overflowed, or they hold NaN"
        if any(v.is_floating_point() and not bool(v.isfinite().all()) for v in inputs):
            hint = f"batch {index} of the data itself holds NaN or infinity"
        raise DataError(
            "the models' activations are not finite",
            [f"model {model}: {request.value}, batch {index}" for model, request in sorted(firsts.items())],
            hint=hint,
        )

    def moments(self) -> dict[Place, Moments]:
        found: dict[Place, Moments] = {}
        for request in self.requests:
            pooled = [self.pooled[request, model] for model in range(self.models)]
            found[request.place] = Moments(
                request=request,
                samples=pooled[0].count,
                mean=tuple(p.mean for p in pooled),
                variance=tuple(p.variance for p in pooled),
                blocks={
                    (i, j): self.products[request, (i, j)].covariance(pooled[i].count)
                    for i, j in request.pairs(self.models)
                },
            )
        return found
