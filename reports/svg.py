"""Charts as inline SVG: scales, axes, marks that say what they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .markup import Markup, element, joined

WIDTH, HEIGHT = 440.0, 250.0  # of a chart, in its own units; text is 12 high
LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 12.0, 40.0
LOOKS = 6  # colours that the style sheet has, s0 … s5
LARGEST = 1e15  # that an axis shows
SHAPES = ("circle", "square", "diamond", "up", "down", "cross")

Point = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """How marks and lines of one series look: a colour of the style sheet, a shape, hollow or not, dashed or not.

    No two series differ in colour alone.
    """

    colour: int = 0
    shape: str = "circle"
    hollow: bool = False
    dash: str | None = None
    size: float = 4.0

    @property
    def classes(self) -> str:
        """Of the elements."""
        return f"s{self.colour}" + (" hollow" if self.hollow else "")


def look(number: int) -> Look:
    """The so-manieth series' own."""
    dashes = (None, "6 3", "2 3", "8 3 2 3", "4 2", "1 2")
    return Look(
        number % LOOKS, SHAPES[number % len(SHAPES)], hollow=number // LOOKS % 2 == 1, dash=dashes[number % LOOKS]
    )


@dataclass(frozen=True)
class Scale:
    """Values from low to high as coordinates from start to end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The coordinate of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about as many as asked."""
    raw = max((high - low) / most, 1e-12 * max(abs(low), abs(high), 1.0))
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) + 0.0 for number in range(first, last + 1)]


def number(value: float) -> str:
    """As an axis shows it: as many digits as tell, a true minus."""
    text = f"{value:,.6g}" if abs(value) < 1e6 else f"{value:.3g}"
    return text.replace("-", "−")


def spread(values: Iterable[float], *, least: float = 1e-9, most: float = math.inf) -> tuple[float, float]:
    """The range that an axis is to show: of the values, some of it above and below, and nothing above `most`."""
    found = list(values)
    low, high = max(min(found), -LARGEST), min(max(found), LARGEST)
    margin = max(0.04 * (high - low), least, 1e-9 * max(abs(low), abs(high)))
    return low - margin, max(high, min(high + margin, most))


def text(x: float, y: float, content: object, anchor: str = "start", class_: str | None = None) -> Markup:
    """A line of text."""
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


def mark(x: float, y: float, tip: str, style: Look) -> Markup:
    """A mark that says what it is when it is pointed at, or reached with the arrow keys."""
    told = element("title", tip)
    common = {"class_": f"mark {style.classes}", "tabindex": "-1", "role": "img", "aria_label": tip}
    if style.shape == "circle":
        return element("circle", told, cx=x, cy=y, r=style.size, **common)
    return element("path", told, d=_outline(style.shape, x, y, style.size), **common)


def _outline(shape: str, x: float, y: float, size: float) -> str:
    corners: dict[str, Sequence[Point]] = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        "up": [(0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
        "down": [(0, 1.2), (1.15, -0.9), (-1.15, -0.9)],
        "cross": [(-1, -0.35), (-0.35, -1), (0, -0.65), (0.35, -1), (1, -0.35), (0.65, 0), (1, 0.35), (0.35, 1),
                  (0, 0.65), (-0.35, 1), (-1, 0.35), (-0.65, 0)],
    }  # fmt: skip
    return "M" + "L".join(f"{x + size * dx:.2f} {y + size * dy:.2f}" for dx, dy in corners[shape]) + "Z"


def drawing(label: str, *parts: object, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """An SVG that scales with the page; the label is what it shows, for those who do not see it."""
    return element(
        "svg",
        element("title", label),
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="group",
        aria_label=label,
        tabindex="0",
        class_="plot",
    )


def swatch(style: Look, *, line: bool = False) -> Markup:
    """The sign of a series, for a legend."""
    plain = Look(style.colour, style.shape, style.hollow, style.dash, 4.5)
    parts: list[Markup] = []
    if line:
        parts.append(element("path", d="M1 8H23", class_=f"line {style.classes}", stroke_dasharray=style.dash))
    else:
        shape = "M7.5 8a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z"
        outline = shape if plain.shape == "circle" else _outline(plain.shape, 12.0, 8.0, plain.size)
        parts.append(element("path", d=outline, class_=f"mark {plain.classes}"))
    return element("svg", *parts, viewBox="0 0 24 16", width="24", height="16", aria_hidden="true")


@dataclass
class Panel:
    """A chart with two axes; marks are added in the order in which they are drawn.

    Attributes:
        label: what it shows.
        x: low and high of the values.
        y: likewise.
        x_label: below.
        y_label: above the left axis.
        width: in units of the drawing.
        height: likewise.
    """

    label: str
    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    width: float = WIDTH
    height: float = HEIGHT
    whole: bool = False  # whether only whole numbers stand below
    parts: list[Markup] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._y_ticks = ticks(*self.y)
        self._x_ticks = [tick for tick in ticks(*self.x) if self.x[0] <= tick <= self.x[1]]
        if self.whole:
            self._x_ticks = [tick for tick in self._x_ticks if tick == round(tick)]
        self.at_x = Scale(*self.x, LEFT, self.width - RIGHT)
        self.at_y = Scale(self._y_ticks[0], self._y_ticks[-1], self.height - BOTTOM, TOP + 16.0)

    def line(self, points: Sequence[Point], style: Look) -> None:
        """Through the points."""
        told = " ".join(f"{self.at_x(x):.2f},{self.at_y(y):.2f}" for x, y in points)
        self.parts.append(element("polyline", points=told, class_=f"line {style.classes}", stroke_dasharray=style.dash))

    def steps(self, points: Sequence[Point], style: Look) -> None:
        """A line that stays where it is until the next point."""
        told = [points[0]]
        for (_, before), (x, y) in pairwise(points):
            told += [(x, before)] * (y != before) + [(x, y)]
        self.line(told, style)

    def mark(self, x: float, y: float, tip: str, style: Look) -> None:
        """At a point."""
        self.parts.append(mark(self.at_x(x), self.at_y(y), tip, style))

    def whisker(self, x: float, low: float, high: float, style: Look) -> None:
        """From low to high: what chance may do."""
        top, bottom = (self.at_y(value) for value in (high, low))
        middle = self.at_x(x)
        outline = f"M{middle:.2f} {top:.2f}V{bottom:.2f}M{middle - 3:.2f} {top:.2f}h6M{middle - 3:.2f} {bottom:.2f}h6"
        self.parts.append(element("path", d=outline, class_=f"line thin {style.classes}"))

    def rule(self, y: float, label: str) -> None:
        """A level across the chart."""
        at, right = self.at_y(y), self.width - RIGHT
        self.parts.append(element("line", x1=LEFT, x2=right, y1=at, y2=at, class_="rule"))
        self.parts.append(text(right, at - 4.0, label, "end", "small"))

    def drawn(self) -> Markup:
        """The chart."""
        right, bottom = self.width - RIGHT, self.height - BOTTOM
        grid = [
            joined(
                (
                    element("line", x1=LEFT, x2=right, y1=self.at_y(tick), y2=self.at_y(tick), class_="grid"),
                    text(LEFT - 6.0, self.at_y(tick) + 4.0, number(tick), "end"),
                )
            )
            for tick in self._y_ticks
        ]
        below = [text(self.at_x(tick), bottom + 16.0, number(tick), "middle") for tick in self._x_ticks]
        frame = element("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis")
        names = [
            text((LEFT + right) / 2, self.height - 6.0, self.x_label, "middle", "name"),
            text(4.0, 14.0, self.y_label, "start", "name"),
        ]
        axes = element("g", *grid, *below, frame, *names, aria_hidden="true")
        return drawing(self.label, axes, *self.parts, width=self.width, height=self.height)
