"""The arithmetic of trimmed and elected task vectors as loops that numba compiles.

Each function here does in one pass over memory what `task_vectors`, `trimming` and `by_rank` do in ten calls or more,
operation by operation in the same order, so that the numbers are the same to the last bit. `compiled` says when they
are worth it. bfloat16 numbers come as the 16-bit integers that they are stored in.

The small functions run over a slice each: so written, loops become vector instructions.
"""

from __future__ import annotations

import contextlib
from typing import Any, no_type_check

import numpy as np
from numba import njit, types
from numba.extending import overload

# Elements that are taken through all steps before the next ones are: as float32, a few times this many bytes stay in
# the fastest cache.
_TILE = 2048

# What sums begin with: unlike zero, it leaves the sign of a zero that is added to it.
_NOTHING = np.float32(-0.0)


def _compiled(function: Any) -> Any:
    fast = njit(nogil=True, error_model="numpy")(function)  # division by zero is no error
    with contextlib.suppress(
        RuntimeError
    ):  # there is no folder to keep it in: each process compiles for itself
        fast.enable_caching()
    return fast


def _wide(stored: Any) -> Any:
    raise NotImplementedError("compiled only")


@overload(_wide)
@no_type_check
def _wide_of(stored):
    if stored == types.uint16:  # of a bfloat16 number: the upper half of a float32 one
        return lambda stored: np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)
    return lambda stored: stored


@_compiled
@no_type_check
def _widen(stored, out):
    for i in range(out.shape[0]):
        out[i] = _wide(stored[i])


@_compiled
@no_type_check
def _differ(model, base, out):
    for i in range(out.shape[0]):
        out[i] = _wide(model[i]) - base[i]


@_compiled
@no_type_check
def _mask(vector, kept):
    for i in range(vector.shape[0]):
        vector[i] *= np.float32(kept[i])


@_compiled
@no_type_check
def _shrink(vector, bound):
    for i in range(vector.shape[0]):
        small = (vector[i] >= -bound) & (vector[i] <= bound)
        vector[i] = np.float32(0) if small else vector[i]


@_compiled
@no_type_check
def _window(vector, bound, top):
    for i in range(vector.shape[0]):
        size = abs(vector[i])
        vector[i] *= np.float32((size > bound) & (size <= top))


@_compiled
@no_type_check
def _scale(vector, factor):
    for i in range(vector.shape[0]):
        vector[i] *= factor


@_compiled
@no_type_check
def _add(total, vector):
    for i in range(total.shape[0]):
        total[i] += vector[i]


@_compiled
@no_type_check
def _add_times(total, vector, factor):
    for i in range(total.shape[0]):
        total[i] += vector[i] * factor


@_compiled
@no_type_check
def _add_sign(total, vector):
    for i in range(total.shape[0]):
        total[i] += np.float32(vector[i] > 0) - np.float32(vector[i] < 0)


@_compiled
@no_type_check
def _decide(vote, even):
    """The elected signs, as numbers."""
    for i in range(vote.shape[0]):
        fair = vote[i] + np.float32(vote[i] == 0) * even
        vote[i] = np.float32(-1) if np.signbit(fair) else np.float32(1)


@_compiled
@no_type_check
def _agree(vector, sign, share, factor, total, parts):
    """Add what has the elected sign, and the part that it has in what the sum is divided by."""
    for i in range(total.shape[0]):
        along = vector[i] * sign[i]
        parts[i] += np.float32(along > 0) * share
        along = np.float32(0) if along < 0 else along
        total[i] += along * factor


@_compiled
@no_type_check
def _divide_counted(total, parts, weight):
    for i in range(total.shape[0]):
        one = np.float32(1) if parts[i] < 1 else parts[i]
        total[i] /= one * weight


@_compiled
@no_type_check
def _divide_weighed(total, parts):
    for i in range(total.shape[0]):
        total[i] /= parts[i] + np.float32(parts[i] == 0)


@_compiled
@no_type_check
def _finish(total, lam, base, out):
    for i in range(out.shape[0]):
        out[i] = total[i] * lam + base[i]


@_compiled
@no_type_check
def merged(
    models, base, kept, bounds, tops, times, factors, weights, elects, counts, even, divides, shares, lam, out
):
    """The base and lam times the sum of what is kept of task vectors, into `out`.

    Args:
        models: flat arrays, one per model, all of one dtype: float32, or bfloat16 as its bits.
        base: the same.
        kept: a mask per model; empty where its bound says what is kept.
        bounds: a magnitude per model, up to which elements are set to zero; below zero for none.
        tops: one above which they are multiplied by zero, as are those up to the bound then; NaN for none.
        times: what each model's kept elements are multiplied by, and
        factors: what they are multiplied by then.
        weights: what they are multiplied by where they are added up.
        elects: whether signs are elected.
        counts: by the number of signs, not by the sum.
        even: what is added to an even vote: -1 where minus wins it, else -0.
        divides: 0 by nothing, 1 by the number that agree times a weight, 2 by the weights of those that agree.
        shares: the weights that it is divided by.
        lam: what the sum is multiplied by.
        out: float32.
    """
    tile = np.empty((len(models) + 4, _TILE), np.float32)
    for start in range(0, out.shape[0], _TILE):
        stop = min(start + _TILE, out.shape[0])
        count = stop - start
        wide, vote, total, parts = tile[0, :count], tile[1, :count], tile[2, :count], tile[3, :count]
        _widen(base[start:stop], wide)
        for m in range(len(models)):
            vector = tile[4 + m, :count]
            _differ(models[m][start:stop], wide, vector)
            if kept[m].shape[0]:
                _mask(vector, kept[m][start:stop])
            elif not np.isnan(tops[m]):
                _window(vector, bounds[m], tops[m])
            elif bounds[m] >= 0:
                _shrink(vector, bounds[m])
            if times[m] != 1:
                _scale(vector, times[m])
            if factors[m] != 1:
                _scale(vector, factors[m])
        total[:] = _NOTHING
        if elects:
            vote[:] = _NOTHING
            parts[:] = np.float32(0)
            for m in range(len(models)):
                if counts:
                    _add_sign(vote, tile[4 + m, :count])
                else:
                    _add(vote, tile[4 + m, :count])
            _decide(vote, even)
            for m in range(len(models)):
                share = shares[m] if divides == 2 else np.float32(1)
                _agree(tile[4 + m, :count], vote, share, weights[m], total, parts)
            if divides == 1:
                _divide_counted(total, parts, shares[0])
            elif divides == 2:
                _divide_weighed(total, parts)
            for i in range(count):
                total[i] *= vote[i]
        else:
            for m in range(len(models)):
                _add_times(total, tile[4 + m, :count], weights[m])
        _finish(total, lam, wide, out[start:stop])


@_compiled
@no_type_check
def _into_lanes(lanes, start, size):
    """Add numbers to the lanes of their positions, the first of which is `start`."""
    at = np.uint64(0)
    count = np.uint64(size.shape[0])
    width = np.uint64(lanes.shape[0])
    lane = np.uint64(start) % width
    while at < count:
        more = min(width - lane, count - at)
        for i in range(more):
            lanes[lane + i] += size[at + i]
        at += more
        lane = np.uint64(0)


@_compiled
@no_type_check
def _sizes(model, base, out):
    for i in range(out.shape[0]):
        out[i] = abs(_wide(model[i]) - _wide(base[i]))


@_compiled
@no_type_check
def summed(model, base, kept, lanes):
    """The magnitudes of a task vector and of what is kept of it, each added up in lanes (`blocks.total`).

    Args:
        model: a flat array, float32 or the bits of bfloat16.
        base: the same.
        kept: a mask.
        lanes: float32, (2, lanes), zeros.
    """
    tile = np.empty(_TILE, np.float32)
    for start in range(0, model.shape[0], _TILE):
        stop = min(start + _TILE, model.shape[0])
        size = tile[: stop - start]
        _sizes(model[start:stop], base[start:stop], size)
        _into_lanes(lanes[0], start, size)
        _mask(size, kept[start:stop])
        _into_lanes(lanes[1], start, size)


@_compiled
@no_type_check
def _outrank(twice, distances, width, larger):
    """Which elements of a row, which stands twice in `twice`, are larger than those so far behind them."""
    length = np.uint64(larger.shape[0])
    for run in range(distances.shape[0]):
        far = np.uint64(distances[run])
        begin = np.uint64(run * width)
        end = min(begin + np.uint64(width), length)
        # From here on the other one stands at the row's beginning, and ranks below its equal.
        turn = min(max(length - far, begin), end)
        for i in range(begin, turn):
            larger[i] = twice[i] > twice[i + far]
        for i in range(turn, end):
            larger[i] = twice[i] >= twice[i + far]


@_compiled
@no_type_check
def _combine(low, high, larger, kept):
    for i in range(kept.shape[0]):
        kept[i] = low[i] | (high[i] & larger[i])


@_compiled
@no_type_check
def drawn_by_rank(model, base, length, distances, width, low, high, kept, lanes):
    """Masks by rank (`by_rank.kept_by_rank`), and the sums of `summed`.

    Args:
        model: whole rows, flat, float32 or the bits of bfloat16.
        base: the same.
        length: of a row.
        distances: (rows, runs), of each run to its peers, from 1 to length - 1.
        width: elements of a run.
        low: which elements are kept whatever their rank.
        high: which are kept if they outrank their peers.
        kept: the mask, to be filled.
        lanes: float32, (2, lanes), zeros.
    """
    twice = np.empty(2 * length, np.float32)
    size, again = twice[:length], twice[length:]
    larger = np.empty(length, np.bool_)
    for row in range(distances.shape[0]):
        start, stop = row * length, (row + 1) * length
        mask = kept[start:stop]
        _sizes(model[start:stop], base[start:stop], size)
        again[:] = size
        _outrank(twice, distances[row], width, larger)
        _combine(low[start:stop], high[start:stop], larger, mask)
        _into_lanes(lanes[0], start, size)
        _mask(size, mask)
        _into_lanes(lanes[1], start, size)
