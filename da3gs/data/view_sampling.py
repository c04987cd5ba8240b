"""Which views make a training sample, and how that changes over a run.

Letters: n frames of a scene in their order.
"""

import random
from dataclasses import dataclass

from da3gs.errors import InputError


def views_of_batch(rng: random.Random, views: tuple[int, int], available: int, *, single: bool = False) -> int:
    """Number of views of every sample of a batch: uniform between the bounds, as far as there are so many."""
    if single:
        return 1
    low, high = min(views[0], available), min(views[1], available)
    return rng.randint(low, high)


def neighbouring_frames(rng: random.Random, frames: int, count: int, gap: tuple[int, int]) -> list[int]:
    """`count` frames of a sequence in random order, neighbours a random number of frames within `gap` apart.

    A scene too short for the gap drawn gets the widest one that fits.

    Raises:
        InputError: The scene has fewer frames.
    """
    if frames < count:
        raise InputError(f"a sample of {count} views needs as many frames; the scene has {frames}")
    widest = (frames - 1) // max(1, count - 1)
    step = max(1, min(rng.randint(*gap), widest)) if count > 1 else 1
    start = rng.randint(0, frames - 1 - step * (count - 1))
    chosen = [start + step * place for place in range(count)]
    rng.shuffle(chosen)
    return chosen


@dataclass(frozen=True)
class ViewSamplingConfig:
    """Context and target views of a scene whose frames have an order (a video, a walk).

    Attributes:
        context: Fewest and most context views.
        targets: Target views per sample.
        gap: Fewest and most frames between neighbouring context views at the end of the curriculum.
        first_gap: The same at its start (narrow baselines are easier).
        warm_up_steps: Micro-batches over which the bounds move from `first_gap` to `gap`.
        target_margin: Targets may lie this many frames outside the span of the context (0: interpolation only).
    """

    context: tuple[int, int] = (2, 6)
    targets: int = 2
    gap: tuple[int, int] = (4, 22)
    first_gap: tuple[int, int] = (2, 8)
    warm_up_steps: int = 0
    target_margin: int = 0

    def __post_init__(self):
        if not 1 <= self.context[0] <= self.context[1] or self.targets < 1:
            raise InputError(
                f"context must be (fewest, most) >= 1 and targets >= 1; got {self.context}, {self.targets}"
            )
        for name in ("gap", "first_gap"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise InputError(f"{name} must be (fewest, most) frames with 1 <= fewest <= most; got {low}, {high}")

    def gap_at(self, step: int) -> tuple[int, int]:
        """Bounds on the frames between neighbouring context views at a step of the run."""
        share = 1.0 if self.warm_up_steps <= 0 else min(1.0, step / self.warm_up_steps)
        low, high = (round(start + share * (end - start)) for start, end in zip(self.first_gap, self.gap, strict=True))
        return low, high

    def sample(self, frames: int, context: int, step: int, rng: random.Random) -> tuple[list[int], list[int]]:
        """Context and target frames: evenly spread context with a drawn gap, targets between (or near) them.

        A scene too short for the gap gets the widest one that fits. No target is a context frame.

        Raises:
            InputError: Fewer frames than context and target views together.
        """
        needed = context + self.targets
        if frames < needed:
            raise InputError(f"a sample of {context} context and {self.targets} target views needs {needed} frames; "
                             f"the scene has {frames}")  # fmt: skip
        low, high = self.gap_at(step)
        # The span must hold the targets too, and the scene must hold the span.
        least = -(-(needed - 1) // max(1, context - 1))
        most = max(1, (frames - 1) // max(1, context - 1))
        gap = min(max(rng.randint(low, high), least), most)
        span = gap * (context - 1) if context > 1 else max(self.targets + 1, gap)
        span = min(max(span, needed - 1), frames - 1)
        start = rng.randint(0, frames - 1 - span)
        chosen = [start + round(i * span / max(1, context - 1)) for i in range(context)]
        if context == 1:
            chosen = [start + span // 2]
        first, last = max(0, start - self.target_margin), min(frames - 1, start + span + self.target_margin)
        free = [frame for frame in range(first, last + 1) if frame not in chosen]
        return chosen, sorted(rng.sample(free, self.targets))
