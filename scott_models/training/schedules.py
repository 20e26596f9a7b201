"""Compute schedules as pure functions of the number of an update, so that a resumed run needs only that integer.

Updates are counted from 1 to `total`; update k uses the value at k, so the value at 0 is never used and the last
update has exactly the final value. Source: paper, Table 6, with the released code's counting.
"""

import math


def linear(step: float, *, total: int, start: float, final: float) -> float:
    """Interpolate linearly from `start` at step 0 to `final` at step `total`."""
    return start + (final - start) * step / total


def warmup_flat_cosine(
    step: int, *, total: int, warmup: int, start: float, peak: float, final: float, flat: float
) -> float:
    """Compute a value that rises linearly, stays level and then falls by half a cosine.

    Args:
        step: number of the update; from `total` on the value is `final`.
        total: number of updates.
        warmup: steps of the linear rise from `start` to `peak`.
        flat: share of the steps after the warm-up that stay at `peak`, 0 to 1.
    """
    if step < warmup:
        return linear(step, total=warmup, start=start, final=peak)
    level = int(flat * (total - warmup))
    if step < warmup + level:
        return peak
    progress = 1.0 if step >= total else (step - warmup - level) / (total - warmup - level)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2
