"""Whether a difference is one: tests that assume nothing about the distribution of times."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

#: Below this a difference counts as significant. With a hundred comparisons in a table expect one by chance.
LEVEL = 0.01
PAIRED = "Wilcoxon signed rank over rounds, two-sided"
UNPAIRED = "Mann-Whitney U over rounds, two-sided"


def paired(ratios: ArrayLike) -> float:
    """How likely ratios as far from 1 as these are if both kernels are equally fast (Wilcoxon 1945): 0 .. 1.

    The ratios are of times taken a moment apart, one a round; rounds count as independent.
    """
    from scipy.stats import wilcoxon

    logs = np.log(ratios)
    return 1.0 if not np.any(logs) else float(wilcoxon(logs).pvalue)


def unpaired(old: ArrayLike, new: ArrayLike) -> float:
    """How likely samples as far apart as these are if they come from one distribution (Mann and Whitney 1947)."""
    from scipy.stats import mannwhitneyu

    return 1.0 if np.ptp(np.append(old, new)) == 0 else float(mannwhitneyu(old, new).pvalue)
