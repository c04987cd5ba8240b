"""Choice of the reference view: the one whose frame the network predicts cameras and rays in when no poses are given.

Letters: B scenes, V views, C channels. From three views on the reference is moved to the front of the sequence before
the first cross-view block and every result is put back into the input order.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from da3gs.errors import InputError


def _first(tokens: Tensor) -> Tensor:
    return torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)


def _middle(tokens: Tensor) -> Tensor:
    return torch.full((len(tokens),), tokens.shape[1] // 2, dtype=torch.int64, device=tokens.device)


def _similarity(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Unit tokens and their cosine similarities with a zeroed diagonal."""
    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    return unit, unit @ unit.transpose(1, 2) - torch.eye(tokens.shape[1], dtype=tokens.dtype, device=tokens.device)


def _saddle_balanced(tokens: Tensor) -> Tensor:
    """The view nearest the middle of the range in mean similarity, token norm and token variance."""
    unit, similarity = _similarity(tokens)
    metrics = torch.stack(
        [similarity.sum(-1) / (tokens.shape[1] - 1), tokens.norm(dim=-1), unit.var(dim=-1, unbiased=True)]
    )
    low, high = metrics.amin(-1, keepdim=True), metrics.amax(-1, keepdim=True)
    balance = ((metrics - low) / (high - low + 1e-8) - 0.5).abs().sum(0)
    return balance.argmin(-1)


def _saddle_sim_range(tokens: Tensor) -> Tensor:
    """The view with the widest range of similarities.

    As released, the range includes the zeroed diagonal, so with positive similarities the two views of the most
    similar pair tie and rounding picks one.
    """
    _, similarity = _similarity(tokens)
    return (similarity.amax(-1) - similarity.amin(-1)).argmax(-1)


STRATEGIES: dict[str, Callable[[Tensor], Tensor]] = {
    "saddle_balanced": _saddle_balanced,
    "first": _first,
    "middle": _middle,
    "saddle_sim_range": _saddle_sim_range,
}


def select_reference(class_tokens: Float[Tensor, "B V C"], strategy: str) -> Int64[Tensor, " B"]:
    """Index of the reference view of every scene, from the class tokens before the first cross-view block.

    Args:
        class_tokens: Raw class token per view. With fewer than three views the answer is 0.
        strategy: A key of `STRATEGIES`.

    Raises:
        InputError: Unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"unknown reference view strategy {strategy!r}; expected one of {', '.join(STRATEGIES)}")
    if class_tokens.shape[1] < 3:
        return _first(class_tokens)
    return STRATEGIES[strategy](class_tokens.detach().float())


def reference_first(reference: Int64[Tensor, " B"], views: int) -> Int64[Tensor, "B V"]:
    """View order with the reference in front: [ref, 0 .. ref-1, ref+1 .. V-1]. Its argsort is the way back."""
    position = torch.arange(views, device=reference.device).expand(len(reference), views)
    chosen = reference[:, None]
    return torch.where(position == 0, chosen, torch.where(position <= chosen, position - 1, position))
