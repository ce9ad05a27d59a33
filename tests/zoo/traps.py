"""TRAPS: tiny networks, each with one place where naive zero-invariance goes wrong or a layout is easily misread."""

from __future__ import annotations

from zoo import (
    traps_buffers,
    traps_cat,
    traps_io,
    traps_mix,
    traps_params,
    traps_point,
    traps_reduce,
    traps_shape,
    traps_shared,
    traps_write,
)
from zoo.case import Case, registry

TRAPS: dict[str, Case] = registry(
    traps_point.CASES,
    traps_reduce.CASES,
    traps_mix.CASES,
    traps_shape.CASES,
    traps_cat.CASES,
    traps_params.CASES,
    traps_shared.CASES,
    traps_io.CASES,
    traps_write.CASES,
    traps_buffers.CASES,
)
