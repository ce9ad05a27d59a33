"""The course of a training run as one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from coppice.core.cost import METRICS
from coppice.core.errors import UnsupportedError, UsageError

COLOURS = {"params": "#8c6bb1", "macs": "#1f78b4", "bytes": "#33a02c"}
PALETTE = ("#1f3b57", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#666666")
HEIGHT = 300
"""Pixels of one panel."""


def plot_run(lines: Sequence[Mapping[str, Any]], title: str = "") -> str:
    """HTML of zero and redundant units, cost and target, and everything that was logged, over steps.

    Raises `UnsupportedError` where plotly is not installed, `UsageError` where nothing was logged.
    """
    if not lines:
        raise UsageError("nothing was logged yet", place="plot", remedy="call run.log(loss=...) in the loop")
    try:
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise UnsupportedError("a plot needs plotly", place="plot", remedy='pip install "coppice[plot]"') from error
    panels = [panel for panel in (_units(lines), _cost(lines), _logged(lines), _rates(lines)) if panel[1]]
    figure = make_subplots(
        rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.06, subplot_titles=[name for name, _ in panels]
    )
    for row, (name, curves) in enumerate(panels, start=1):
        for curve in curves:
            figure.add_trace(go.Scatter(mode="lines", legend=f"legend{row}", **curve), row=row, col=1)
        if name == COST:
            figure.update_yaxes(tickformat=".0%", rangemode="tozero", row=row, col=1)
    figure.update_xaxes(title_text="step", row=len(panels), col=1)
    for row in range(1, len(panels) + 1):
        top = figure.layout[f"yaxis{row if row > 1 else ''}"].domain[1]
        figure.layout[f"legend{row if row > 1 else ''}"] = {"y": top, "yanchor": "top"}
    figure.update_layout(
        title=html.escape(title), template="plotly_white", height=HEIGHT * len(panels) + 120, hovermode="x unified"
    )
    page: str = figure.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False})
    return page


UNITS, COST, LOGGED, RATE = "units", "cost, of the full model", "logged", "learning rate"
Curves = list[dict[str, Any]]


def _units(lines: Sequence[Mapping[str, Any]]) -> tuple[str, Curves]:
    names = {"redundant": {"color": "#999999", "dash": "dot"}, "zero": {"color": "#e31a1c"}}
    if not any(line.get("redundant") for line in lines):
        return UNITS, []
    return UNITS, [_curve(lines, name, lambda line, n=name: line.get(n), style) for name, style in names.items()]


def _cost(lines: Sequence[Mapping[str, Any]]) -> tuple[str, Curves]:
    curves: Curves = []
    for metric in METRICS:
        for kind, style in (("cost", {}), ("target", {"dash": "dash"})):
            label = metric if kind == "cost" else f"{metric}, target"
            style = {"color": COLOURS[metric], **style}
            curves.append(_curve(lines, label, lambda line, k=kind, m=metric: line.get(k, {}).get(m), style))
    return COST, [curve for curve in curves if curve["x"]]


def _logged(lines: Sequence[Mapping[str, Any]]) -> tuple[str, Curves]:
    known = {"step", "seconds", "lr", "cost", "target", "redundant", "zero"}
    names = dict.fromkeys(name for line in lines for name in line if name not in known)
    curves = [_curve(lines, name, lambda line, n=name: line.get(n), _colour(k)) for k, name in enumerate(names)]
    return LOGGED, curves


def _rates(lines: Sequence[Mapping[str, Any]]) -> tuple[str, Curves]:
    count = max(len(_list(line.get("lr"))) for line in lines)

    def rate(line: Mapping[str, Any], k: int) -> Any:
        rates = _list(line.get("lr"))
        return rates[min(k, len(rates) - 1)] if rates else None

    label = "lr" if count == 1 else "lr of group {}"
    curves = [_curve(lines, label.format(k), lambda line, k=k: rate(line, k), _colour(k)) for k in range(count)]
    return RATE, curves


def _colour(k: int) -> dict[str, Any]:
    return {"color": PALETTE[k % len(PALETTE)]}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _curve(lines: Sequence[Mapping[str, Any]], name: str, value: Any, style: Mapping[str, Any]) -> Any:
    """One curve over the steps where ``value(line)`` is a number."""
    points = [(line["step"], y) for line in lines if isinstance(y := value(line), (int, float))]
    x, y = [x for x, _ in points], [y for _, y in points]
    return {"name": html.escape(name), "x": x, "y": y, "line": dict(style)}
