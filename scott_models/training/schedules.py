"""Schedules as pure functions of the update's number, so that a resumed run needs that one integer.

Updates are counted from 1 to `total`; update k uses the value at k, so the value at 0 is never used and the last
update has exactly the final value. Source: paper, Table 6, with the released code's counting.
"""

import math


def linear(step: float, *, total: int, start: float, final: float) -> float:
    """From `start` (step 0) to `final` (step `total`) in a straight line."""
    return start + (final - start) * step / total


def warmup_flat_cosine(
    step: int, *, total: int, warmup: int, start: float, peak: float, final: float, flat: float
) -> float:
    """Linear from `start` to `peak` over `warmup` steps, level, then half a cosine down to `final`.

    Args:
        flat: share of the steps after the warm-up that stay at the peak, 0 to 1.
    """
    if step < warmup:
        return linear(step, total=warmup, start=start, final=peak)
    level = int(flat * (total - warmup))
    if step < warmup + level:
        return peak
    progress = 1.0 if step >= total else (step - warmup - level) / (total - warmup - level)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2
