"""The Sinkhorn operator: from any square matrix to a doubly stochastic one, with its derivative."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx


def sinkhorn_operator(scores: Float[Tensor, "*batch n n"], rounds: int = 20) -> Float[Tensor, "*batch n n"]:
    """exp(scores) scaled along rows and columns until both sum to one.

    In the log domain, so that no score over- or underflows. The derivative is that of the limit, by the implicit
    function theorem (one linear system per matrix), whatever the number of rounds: nothing is kept of them.

    Args:
        scores: one matrix or many.
        rounds: of scaling columns, then rows.

    Returns:
        Rows that sum to one, and columns that do so nearly.

    Source: Sinkhorn 1964; the derivative as in Eisenberger et al., A unified framework for implicit Sinkhorn
        differentiation, arXiv:2205.06688, for marginals of ones.

    Examples:
        >>> import torch
        >>> from isthmus.align.learned.doubly_stochastic import sinkhorn_operator
        >>> sinkhorn_operator(torch.tensor([[0.0, 0.0], [0.0, 0.0]]))
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    found = _Sinkhorn.apply(scores, rounds)
    assert isinstance(found, Tensor)
    return found


class _Sinkhorn(torch.autograd.Function):
    """Forward: the rounds. Backward: the limit's derivative."""

    @staticmethod
    def forward(ctx: FunctionCtx, scores: Tensor, rounds: int) -> Tensor:
        log = scores
        for _ in range(rounds):
            log = log - log.logsumexp(-2, keepdim=True)
            log = log - log.logsumexp(-1, keepdim=True)
        found = log.exp()
        ctx.save_for_backward(found)  # pyright: ignore[reportAttributeAccessIssue]
        return found

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        """With G = P * grad: G - P * (t_a + t_b), where t takes the change of both marginals back.

        [[diag a, P], [P^T, diag b]] t = (rows of G, columns of G) is singular (a constant may go from t_a to t_b):
        the last of t_b is zero, and the rest follows from the Schur complement of diag a.
        """
        (p,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        g = p * grads[0]
        rows, columns = p.sum(-1), p.sum(-2)
        tiny = torch.finfo(p.dtype).tiny
        scaled = p / rows.clamp_min(tiny)[..., None]
        schur = torch.diag_embed(columns) - p.mT @ scaled
        right = g.sum(-2) - (scaled.mT @ g.sum(-1)[..., None])[..., 0]
        # Where P is nearly a permutation the system is nearly singular: nothing moves there, a little damping says so.
        eye = torch.eye(p.shape[-1] - 1, dtype=p.dtype, device=p.device)
        damped = schur[..., :-1, :-1] + 10 * torch.finfo(p.dtype).eps * eye
        solved = torch.linalg.solve(damped, right[..., :-1]) if eye.numel() else right[..., :-1]
        t_b = torch.nn.functional.pad(solved, (0, 1))
        t_a = (g.sum(-1) - (p @ t_b[..., None])[..., 0]) / rows.clamp_min(tiny)
        return g - p * (t_a[..., :, None] + t_b[..., None, :]), None
