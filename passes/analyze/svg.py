"""The picture of a graph as one SVG file: no scripts, no fonts, nothing from elsewhere; every text is escaped."""

from __future__ import annotations

import colorsys
import re
import zlib
from collections.abc import Iterable, Sequence
from html import escape

from coppice.core.space import Space
from coppice.passes.analyze.explain import Explanation, fold
from coppice.passes.analyze.layout import Layout, layout
from coppice.passes.analyze.picture import FROZEN, MOST_BOXES, Box, picture

WIDTH, HEIGHT, GAP, ROW_GAP, LANE = 184, 50, 22, 34, 12
"""Pixels: of a box, between neighbours, between layers, between lanes."""

MARGIN, LETTER, NAMES, ENTRIES = 24, 6.1, 44, 60
"""Pixels around everything and of a small letter; most letters of a module's name and of an entry of the legend."""

Entry = tuple[str, list[str]]
"""A line of the legend and its colours."""
MOST_ENTRIES, MOST_COLOURS = 48, 6

HUES = 21
STEP = 8
"""8 of 21 steps round the circle is 137.1 degrees, the golden angle to a third of a degree; it meets every hue."""
TINTS = ((68, 75), (50, 85), (80, 69))
"""Saturation and lightness in percent: another for the next hue, and for the next 21 families. All bear black text."""

GREY, NO_UNITS = "#d4d4d4", "#f6f6f6"

STYLE = """
text { font-family: "DejaVu Sans", Verdana, sans-serif; font-size: 10px; fill: #111; }
.title { font-size: 17px; font-weight: bold; } .head { font-size: 12px; font-weight: bold; }
.name { font-size: 11.5px; font-weight: bold; } .dim { fill: #555; } .cut { font-weight: bold; }
.box { fill: none; stroke: #444; } .module { stroke-width: 2; } .edge { fill: none; stroke-width: 1.6; }
.bracket { stroke: #bbb; stroke-width: 2; }
"""


def svg(space: Space, explanation: Explanation, most: int = MOST_BOXES) -> str:
    """The graph of ``space`` from top to bottom, coloured by family, with a legend; at most ``most`` boxes."""
    shown = picture(space, explanation, most)
    inputs = [box.kind == "placeholder" for box in shown.boxes]
    placed = layout(shown.edges, inputs, WIDTH + GAP, LANE)
    palette = colours([family.name for family in space.families])
    legend = [*_legend(explanation, palette), ("frozen", [GREY]), ("no units", [NO_UNITS])]
    drawing = _Drawing(placed, legend, palette, _gutter(shown.boxes))
    head = [explanation.verdict(), *_counts(shown.boxes, shown.calls)]
    return drawing.text(explanation.model, head, shown.boxes, shown.edges)


def _counts(boxes: Sequence[Box], calls: int) -> Iterable[str]:
    merged = sum(box.kind == "module" for box in boxes)
    if merged:
        yield f"{calls:,} calls are too many to draw: {merged} boxes with a thick frame stand for whole modules."
    yield "Colour: the family whose units a value has; grey: units that stay. Point at a box for its line and reasons."


def colours(names: Sequence[str]) -> list[tuple[str, str]]:
    """For each family a colour to fill with and one for lines: the hue that its name asks for, or the next by golden
    angle that is still free."""
    result: list[tuple[str, str]] = []
    free: set[int] = set()
    room = max(1, HUES // (2 * len(names))) if names else 1
    for k, name in enumerate(names):
        if k % HUES == 0:
            free = set(range(HUES))
        wish = [(zlib.crc32(name.encode()) + STEP * n) % HUES for n in range(HUES)]
        hue = next(h for apart in range(room, 0, -1) for h in wish if _clear(h, free, apart))
        free.discard(hue)
        saturation, lightness = TINTS[(hue + k // HUES) % len(TINTS)]
        result.append((_hex(hue, lightness, saturation), _hex(hue, 42, 50)))
    return result


def _hex(hue: int, lightness: int, saturation: int) -> str:
    rgb = colorsys.hls_to_rgb(hue / HUES, lightness / 100, saturation / 100)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _clear(hue: int, free: set[int], apart: int) -> bool:
    return all((hue + d) % HUES in free for d in range(1 - apart, apart))


def _legend(explanation: Explanation, palette: list[tuple[str, str]]) -> list[Entry]:
    """A line for each family; where they are many, one for those of one size whose names differ only in numbers."""
    families = explanation.families
    fill = {family.name: colour for family, (colour, _) in zip(families, palette, strict=True)}
    if len(families) <= MOST_ENTRIES:
        return [(f"{family.name}: {family.size} units", [fill[family.name]]) for family in families]
    return [
        (
            f"{name}: {size} units" + (f", {len(own)} families" if own[1:] else ""),
            [fill[family.name] for family in own[:MOST_COLOURS]],
        )
        for name, size, own in fold(families)
    ]


def _gutter(boxes: Sequence[Box]) -> float:
    """Pixels for the longest name of a module."""
    return 40 + LETTER * min(NAMES, max((len(box.module) for box in boxes), default=0))


class _Drawing:
    """Collects the elements of one picture."""

    def __init__(self, placed: Layout, legend: list[Entry], palette: list[tuple[str, str]], gutter: float) -> None:
        self.placed, self.legend, self.palette = placed, legend, palette
        self.left = MARGIN + gutter
        self.swatches = 16 * max(len(fills) for _, fills in legend) + 4
        self.column = self.swatches + 20 + LETTER * min(ENTRIES, max(len(text) for text, _ in legend))
        right = max([*(x + WIDTH for x in placed.x), *placed.lanes.values(), 0.0])
        self.width = max(self.left + right, MARGIN + self.column, 600.0) + MARGIN
        self.top = 0.0
        self.parts: list[str] = []

    def text(self, title: str, head: list[str], boxes: list[Box], edges: list[tuple[int, int]]) -> str:
        self._head(title, head)
        self._brackets(boxes)
        self._edges(boxes, edges)
        for k, box in enumerate(boxes):
            self._box(k, box)
        height = self._y(len(self.placed.rows)) + MARGIN
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {self.width:.0f} {height:.0f}">\n<style>{STYLE}</style>\n'
            f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(self.parts) + "\n</svg>\n"
        )

    # ---- head and legend ---------------------------------------------------------------------------------------------

    def _head(self, title: str, head: list[str]) -> None:
        self._say(MARGIN, MARGIN + 14, title, "title")
        y = MARGIN + 34.0
        for text in head:
            for line in _wrapped(text, int((self.width - 2 * MARGIN) / (0.93 * LETTER))):
                self._say(MARGIN, y, line)
                y += 15
        columns = max(1, int((self.width - 2 * MARGIN) / self.column))
        y += 6
        for n, (text, fills) in enumerate(self.legend):
            x, at = MARGIN + n % columns * self.column, y + n // columns * 18
            for k, fill in enumerate(fills):
                swatch = f'x="{x + 16 * k:.0f}" y="{at:.0f}" width="14" height="12" fill="{fill}" stroke="#444"'
                self.parts.append(f"<rect {swatch}/>")
            self._say(x + self.swatches, at + 10, _cut(text, ENTRIES, left=True), whole=text)
        self.top = y + (len(self.legend) - 1) // columns * 18 + 18 + MARGIN

    # ---- modules at the left ---------------------------------------------------------------------------------------

    def _brackets(self, boxes: list[Box]) -> None:
        """A line and a name beside the rows of one module."""
        names = [_common([boxes[v].module for v in row if boxes[v].module]) for row in self.placed.rows]
        start = 0
        for k in range(1, len(names) + 1):
            if k < len(names) and names[k] == names[start]:
                continue
            if names[start]:
                y1, y2 = self._y(start), self._y(k - 1) + HEIGHT
                x = round(self.left) - 22
                self.parts.append(f'<line class="bracket" x1="{x}" y1="{y1:.0f}" x2="{x}" y2="{y2:.0f}"/>')
                text = names[start]
                self._say(x - 6, (y1 + y2) / 2 + 4, _cut(text, NAMES, left=True), "dim", anchor="end", whole=text)
            start = k

    # ---- edges -------------------------------------------------------------------------------------------------------

    def _edges(self, boxes: list[Box], edges: list[tuple[int, int]]) -> None:
        layer, used = self.placed.layer, [0] * (len(self.placed.rows) + 1)
        shift: dict[tuple[int, int], float] = {}

        def level(gap: int, lane: int) -> float:
            """The height at which a lane's edge crosses a gap between rows: lanes beside each other keep apart."""
            if (gap, lane) not in shift:
                shift[gap, lane] = 7 + 4 * (used[gap] % 6)
                used[gap] += 1
            return self._y(gap) - ROW_GAP + shift[gap, lane]

        for u, v in edges:
            x1, y1, x2, y2 = self._x(u), self._y(layer[u]) + HEIGHT, self._x(v), self._y(layer[v])
            if layer[v] - layer[u] == 1:
                middle = (y1 + y2) / 2
                path = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {x2:.0f} {y2 - 4:.0f}"
            else:
                lane = self.left + self.placed.lanes[u] + WIDTH / 2
                corners = [(x1, level(layer[u] + 1, u)), (lane, level(layer[u] + 1, u)),
                           (lane, level(layer[v], u)), (x2 + 14, level(layer[v], u))]  # fmt: skip
                path = _rounded([(x1, y1), *corners, (x2 + 14, y2 - 4)])
                x2 += 14
            colour = self._edge_colour(boxes[u])
            self.parts.append(f'<path class="edge" stroke="{colour}" d="{path}"/>')
            self.parts.append(f'<path fill="{colour}" d="M{x2:.0f} {y2:.0f}l-4 -7h8z"/>')

    def _edge_colour(self, box: Box) -> str:
        """The family's hue, darker; grey where a value has several families or none."""
        own = [k for k in box.shares if k != FROZEN]
        return self.palette[own[0]][1] if len(own) == 1 else "#999"

    # ---- boxes -------------------------------------------------------------------------------------------------------

    def _box(self, k: int, box: Box) -> None:
        x, y = self._x(k) - WIDTH / 2, self._y(self.placed.layer[k])
        self.parts.append(f"<g><title>{_text(chr(10).join(box.notes))}</title>")
        bands = sorted(box.shares.items(), key=lambda item: -item[1])[:6]
        total, at = sum(share for _, share in bands), x
        if not total:
            self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{WIDTH}" height="{HEIGHT}" fill="{NO_UNITS}"/>')
        for family, share in sorted(bands, key=lambda item: (item[0] == FROZEN, item[0])):
            wide = WIDTH * share / total
            colour = GREY if family == FROZEN else self.palette[family][0]
            self.parts.append(f'<rect x="{at:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{HEIGHT}" fill="{colour}"/>')
            at += wide
        kind = "box module" if box.kind == "module" else "box"
        self.parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{WIDTH}" height="{HEIGHT}"/>')
        own = box.title if box.kind != "module" else _cut(box.title, 24, left=True)
        self._say(x + 7, y + 16, _cut(own, 24), "name")
        self._say(x + 7, y + 30, _cut(box.shape, 30))
        if box.kind == "module":
            self._say(x + 7, y + 43, f"{box.calls} calls", "dim")
        elif box.parameters:
            self.parts.append(f'<text x="{x + 7:.0f}" y="{y + 43:.0f}">{_widths(box)}</text>')
        self.parts.append("</g>")

    def _say(self, x: float, y: float, text: str, kind: str = "", anchor: str = "", whole: str = "") -> None:
        attributes = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
        tip = f"<title>{_text(whole)}</title>" if whole and whole != text else ""
        self.parts.append(f'<text x="{x:.0f}" y="{y:.0f}"{attributes}>{tip}{_text(text)}</text>')

    def _x(self, k: int) -> float:
        return self.left + WIDTH / 2 + self.placed.x[k]

    def _y(self, row: int) -> float:
        return self.top + row * (HEIGHT + ROW_GAP)


def _widths(box: Box) -> str:
    """``weight 64×3×3×3, bias 64`` with the axes that can be cut in bold, as markup."""
    shown: list[str] = []
    room = 34
    for name, rows in box.parameters:
        leaf = name.rpartition(".")[2]
        room -= len(leaf) + sum(len(str(row.size)) + 1 for row in rows) + 1
        if room < 0 and shown:
            return ", ".join([*shown, "..."])
        sizes = (f'<tspan class="cut">{row.size}</tspan>' if row.removable else str(row.size) for row in rows)
        shown.append(f"{_text(_cut(leaf, 16))} {'×'.join(sizes)}")
    return ", ".join(shown)


def _rounded(points: Sequence[tuple[float, float]], radius: float = 6) -> str:
    """A path along ``points``, all of whose turns are right angles, with round corners."""
    path = "M{:.0f} {:.0f}".format(*points[0])
    for (x0, y0), (x1, y1), (x2, y2) in zip(points, points[1:], points[2:], strict=False):
        before, after = abs(x1 - x0) + abs(y1 - y0), abs(x2 - x1) + abs(y2 - y1)
        r = min(radius, before / 2, after / 2)
        a, b = r / max(before, 1e-9), r / max(after, 1e-9)
        path += f"L{x1 + a * (x0 - x1):.1f} {y1 + a * (y0 - y1):.1f}"
        path += f"Q{x1:.1f} {y1:.1f} {x1 + b * (x2 - x1):.1f} {y1 + b * (y2 - y1):.1f}"
    return path + "L{:.0f} {:.0f}".format(*points[-1])


def _common(names: Sequence[str]) -> str:
    """The longest dotted prefix of all ``names``."""
    parts = [name.split(".") for name in names]
    shared = 0
    while parts and all(len(p) > shared and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return ".".join(parts[0][:shared]) if parts else ""


def _wrapped(text: str, most: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= most:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines


def _cut(text: str, most: int, left: bool = False) -> str:
    """At most ``most`` characters, with dots where some are left out."""
    if len(text) <= most:
        return text
    return "\u2026" + text[1 - most :] if left else text[: most - 1] + "\u2026"


def _text(text: str) -> str:
    """``text`` as character data or an attribute's value: escaped, without what XML cannot hold."""
    return escape(re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text), quote=True)
