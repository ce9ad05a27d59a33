"""Whether a difference is one: tests that assume nothing about the distribution of times."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

#: A difference counts where p is below LEVEL and where it is larger than what the places of buffers in memory make. Of
#: 300 pairs of one kernel with itself, a quarter had p below LEVEL, differing by 0.2 % (median) to 1.8 % (most); on the
#: same buffers one in fifty had.
LEVEL, PLACEMENT = 0.01, 1.02
#: Two runs differ by more: 104 pairs of one kernel with itself by 2 % (median), 7 % (one in ten) and 15 % (most), on
#: cores shared with other work.
RUNS = 1.1
PAIRED = f"Wilcoxon signed rank over rounds, two-sided, p < {LEVEL}, and a median of {PLACEMENT} or more either way"
UNPAIRED = f"Mann-Whitney U over rounds, two-sided, p < {LEVEL}, and a ratio of {RUNS} or more either way"


def differs(ratio: float, p_value: float, least: float = PLACEMENT) -> bool:
    """Whether a median ratio of times tells kernels apart; less than ``least`` either way does not."""
    return p_value < LEVEL and not 1 / least < ratio < least


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
