"""Line charts as inline SVG, drawn with nothing but the standard library."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 440, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 26, 34
# Told apart by people who see few colours (Okabe and Ito), and by their dashes in print.
STYLES = {
    "blurred": ("#999999", "6 3"),
    "tfp": ("#e69f00", "2 3"),
    "tfi": ("#56b4e9", "8 3 2 3"),
    "restored": ("#d55e00", ""),
    "spikes": ("#009e73", ""),
}


def line_chart(
    lines: Mapping[str, Sequence[float]],
    labels: Mapping[str, str],
    title: str,
    x_name: str,
    y_name: str,
) -> str:
    """An SVG figure with a line for each entry.

    Args:
      lines: key of `STYLES` -> values; all of one length.
      labels: key -> what to call it.
      title: says what is shown, for those who do not see it.
      x_name, y_name: what the axes count.
    """
    values = [value for line in lines.values() for value in line if math.isfinite(value)]
    low, high, ticks = _ticks(min(values, default=0.0), max(values, default=1.0))
    count = max((len(line) for line in lines.values()), default=1)

    def x(i: int) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (i / (count - 1) if count > 1 else 0.5)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/><text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{tick:g}</text>'
        )
    for i in sorted({0, count // 2, count - 1}):
        parts.append(f'<text x="{x(i):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{i}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_name)}</text>'
    )
    parts.append(f'<text x="4" y="12">{escape(y_name)}</text>')
    for name, line in lines.items():
        parts.append(_line(name, labels[name], [(x(i), y(v), v) for i, v in enumerate(line)]))
    return "".join([*parts, "</svg>", legend(lines, labels)])


def picture(chart: str) -> str:
    """A chart of `line_chart` as the text of an SVG file; what its page says of it is left out."""
    return (
        chart[: chart.index("</svg>") + 6]
        .replace(
            "<svg ",
            '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff" '
            'font-family="sans-serif" font-size="12" ',
        )
        .replace('class="grid"', 'stroke="#ccc"')
    )


def _line(name: str, label: str, points: list[tuple[float, float, float]]) -> str:
    colour, dash = STYLES[name]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, value in points if math.isfinite(value))
    drawn = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"'
    drawn += f' stroke-dasharray="{dash}"/>' if dash else "/>"
    if len(points) > 200:
        return drawn
    dots = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}">'
        f"<title>{escape(label)}, {i}: {value:.4g}</title></circle>"
        for i, (x, y, value) in enumerate(points)
        if math.isfinite(value)
    )
    return drawn + "".join(dots)


def legend(lines: Mapping[str, object], labels: Mapping[str, str]) -> str:
    """What the lines are; empty for a single one."""
    if len(lines) < 2:
        return ""
    entries = []
    for name in lines:
        colour, dash = STYLES[name]
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        entries.append(
            f'<li><svg class="key" viewBox="0 0 28 8" aria-hidden="true"><line x1="0" x2="28" '
            f'y1="4" y2="4" stroke="{colour}" stroke-width="3"{dashes}/></svg>'
            f"{escape(labels[name])}</li>"
        )
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _ticks(low: float, high: float) -> tuple[float, float, list[float]]:
    """A range that holds both, and round numbers in it."""
    span = max(high - low, 1e-6 * max(abs(high), 1.0))
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return first * step, last * step, [round(i * step, 10) for i in range(first, last + 1)]
