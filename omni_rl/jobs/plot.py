"""Draws a run's curves as one SVG file: the reward, the held-out reward, and how far the policies were apart. Imports
no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from omni_rl.api.steps import StepLine
from omni_rl.consistency.shown import NOT_A_NUMBER
from omni_rl.counting import counted

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, GAP, BOTTOM = 64, 16, 40, 36, 40
UPPER = 220
"""The height of the reward's panel in pixels; the panel of the policies' difference has the rest."""
INK, FAINT = "#1f2933", "#d5dbe1"


@dataclass(frozen=True)
class Series:
    """A curve of a panel: `points` of (step, value), joined by a line if `line`, and marked with dots if `dots`."""

    name: str
    colour: str
    points: Sequence[tuple[int, float]]
    dots: bool = False
    line: bool = True


@dataclass(frozen=True)
class Panel:
    """A frame of the plot, which begins at `top`, is `height` pixels high, and shows values from `low` to `high`.
    `label` is the format of the values on its axis."""

    title: str
    top: float
    height: float
    low: float
    high: float
    label: str

    def y(self, value: float) -> float:
        """Return the vertical position of a value in pixels; values outside of the panel's range are drawn at its
        edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.top + self.height * (1 - share)


def plot(run: str, steps: Sequence[StepLine]) -> str:
    """Return the run's curves as an SVG document. `steps` are the steps of one attempt in order, at least one. The
    reward's panel shows 0 to 1, and as much more as its values need."""
    sampled = Series("sampled", "#7b8794", _training(steps, "reward"))
    held_out = Series("held out", "#0b7285", _training(steps, "held_out_reward"), dots=True)
    apart = Series(
        "mean |d|",
        "#c92a2a",
        [(step.step, value) for step in steps if (value := step.figures["logprob_abs_diff_mean"]) is not None],
    )
    highest = max([value for _, value in apart.points] or [0.0]) or 1e-9
    # Steps whose difference is not a number get a dot above all values, where it is not taken for a value.
    lost = Series(
        NOT_A_NUMBER,
        "#c92a2a",
        [(step.step, 1.25 * highest) for step in steps if step.figures["logprob_abs_diff_mean"] is None],
        dots=True,
        line=False,
    )
    rewards = [value for series in (sampled, held_out) for _, value in series.points]
    low, high = min([0.0, *rewards]), max([1.0, *rewards])
    panels = [
        (Panel("reward", TOP, UPPER, low, high, "{:.1f}" if high - low < 100 else "{:.0f}"), [sampled, held_out]),
        (
            Panel("mean |d| of the policies' logprobs", TOP + UPPER + GAP, _lower(), 0.0, 1.25 * highest, "{:.1e}"),
            [apart, lost],
        ),
    ]
    first, last = steps[0].step, max(steps[-1].step, steps[0].step + 1)
    bad = [step for step in steps if step.severity != "ok"]
    verdict = "every step ok" if not bad else f"{len(bad)} of {counted(len(steps), 'step')} not ok"
    body = [_text(LEFT, 22, f"{run}: {counted(len(steps), 'step')}, {verdict}", size=15, weight=600)]
    for panel, series in panels:
        body += _frame(panel, first, last)
        for its in series:
            body += _curve(panel, its, first, last)
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "step", anchor="middle"))
    body += _legend([sampled, held_out, *([lost] if lost.points else [])])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}" role="img">\n'
        f"<title>{escape(run)}</title>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _training(steps: Sequence[StepLine], name: str) -> list[tuple[int, float]]:
    values = ((step.step, step.training.get(name)) for step in steps)
    return [(step, value) for step, value in values if value is not None]


def _lower() -> float:
    return HEIGHT - BOTTOM - TOP - UPPER - GAP


def _x(step: float, first: int, last: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (last - first)


def _frame(panel: Panel, first: int, last: int) -> list[str]:
    found = [_text(LEFT, panel.top - 6, panel.title)]
    for tick in range(5):
        value = panel.low + (panel.high - panel.low) * tick / 4
        y = panel.y(value)
        found.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{FAINT}"/>')
        found.append(_text(LEFT - 6, y + 4, panel.label.format(value), anchor="end"))
    for tick in range(5):
        step = first + (last - first) * tick / 4
        found.append(_text(_x(step, first, last), panel.top + panel.height + 16, f"{step:.0f}", anchor="middle"))
    return found


def _curve(panel: Panel, series: Series, first: int, last: int) -> list[str]:
    places = [(_x(step, first, last), panel.y(value)) for step, value in series.points]
    found = []
    if series.line:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        found.append(f'<polyline points="{line}" fill="none" stroke="{series.colour}" stroke-width="1.6"/>')
    if series.dots:
        found += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{series.colour}"/>' for x, y in places]
    return found


def _legend(series: Sequence[Series]) -> list[str]:
    found = []
    for number, its in enumerate(series):
        x = WIDTH - RIGHT - 90 * (len(series) - number)
        found.append(f'<line x1="{x}" x2="{x + 18}" y1="18" y2="18" stroke="{its.colour}" stroke-width="2"/>')
        found.append(_text(x + 23, 22, its.name))
    return found


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: int = 400) -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
