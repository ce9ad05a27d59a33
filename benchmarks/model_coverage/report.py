"""Rows to text."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def sound(row: dict[str, Any]) -> bool:
    return row["stage"] == "checked" and max(row.get("error", 0.0), row.get("other_error", 0.0)) <= 1e-9


def line(row: dict[str, Any]) -> str:
    return f"{row['tool']} {row['key']}: {row['stage']} {row.get('failure', '')} {row.get('error', '')} {row.get('other_error', '')}"


def show(rows: list[dict[str, Any]]) -> None:
    c = Console(width=200)
    for r in rows:
        c.print(r["key"], r["stage"], r.get("families"), r.get("prunable"), r.get("class_kept"), r.get("why"), r["seconds"] if "seconds" in r else "", r.get("other_error"), r.get("failure", ""))


def markdown(rows: list[dict[str, Any]], versions: dict[str, str]) -> str:
    return ""
