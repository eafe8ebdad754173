"""The report's pictures: an analysed comparison in, matplotlib figures out.

No pyplot: figures have no global state and need no display. Colours are Okabe and Ito's (distinguishable with any
common colour vision), and every coloured agent has a marker of its own besides.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from experiments.report.analysis import OPTIMUM, REACHABLE, Comparison, SettingResult, highlights, seed_shares
from roi_env.measures import metrics

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ((0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (2.5, 2.5)))
GREY, DARK, INK = "#C4C4C4", "#6B6B6B", "#222222"
SKIP = "#BDBDBD"
# From cheap to dear; the ends of K tiers are always the ends of this list.
TIERS = ("#56B4E9", "#0072B2", "#E69F00", "#D55E00", "#882255")
REGRETS = {"policy": "#D55E00", "information": "#56B4E9", "luck": "#E3E3E3"}

STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ECECEC",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "roi",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Look:
    """How one agent is drawn everywhere in a report."""

    color: str
    marker: str
    dash: Any
    width: float
    shown: bool


def looks(comparison: Comparison) -> dict[str, Look]:
    """One look per agent: black optimum, six colours, dark grey fixed rules, light grey background."""
    coloured, fixed = highlights(comparison)
    result = {agent: Look(GREY, "", "-", 0.9, False) for agent in comparison.agents}
    for i, agent in enumerate(a for a in coloured if a != OPTIMUM):
        result[agent] = Look(OKABE_ITO[i], MARKERS[i], "-", 1.8, True)
    for i, agent in enumerate(fixed):
        result[agent] = Look(DARK, "1234"[i], DASHES[i], 1.2, True)
    if OPTIMUM in result:
        result[OPTIMUM] = Look("#000000", "*", "-", 1.8, True)
    return result


@contextmanager
def style() -> Iterator[None]:
    """The report's matplotlib settings, for as long as figures are made and rendered."""
    with mpl.rc_context(STYLE):
        yield


class Glyphs:
    """Outlines of letters, each written once in a page and used by all its pictures.

    Letters are outlines because a reader's machine may lack the font; they would be most of a picture's bytes.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def take(self, svg: str) -> str:
        """Move the letters defined in a picture here and let the picture refer to them."""
        own = {}
        for name, outline in _GLYPH.findall(svg):
            own[name] = self._names.setdefault(_short_path(outline), f"g{len(self._names)}")

        def use(found: re.Match[str]) -> str:
            # Places are hundredths of the font's size.
            return f'<use href="#{own[found[1]]}"' + (f' x="{float(found[2]):.0f}"' if found[2] else "")

        return _LETTER.sub(lambda m: use(m) if m[1] in own else m[0], _GLYPH.sub("", svg))

    def definitions(self) -> str:
        """An invisible SVG element that holds the letters; goes before the first picture."""
        paths = "".join(f'<path id="{name}" d="{d}" transform="scale(.015625)"/>' for d, name in self._names.items())
        return f'<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>{paths}</defs></svg>'


_GLYPH = re.compile(r'<path id="([^"]+)" d="([^"]*)"\s+transform="scale\(0\.015625\)"/>\s*')
_LETTER = re.compile(r'<use xlink:href="#([^"]+)"(?: transform="translate\((-?[\d.]+) 0\)")?')
_MARKERS = re.compile(r'(<g clip-path="[^"]*")>((?:<use [^>]*?( style="[^"]*")/>)(?:<use [^>]*?\3/>)*)(?=</g>)')
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_PLACES = re.compile(r'(?<=\s)(?:x|y)="[^"]*"|(?:translate|matrix)\([^)]*\)')


def _short_numbers(text: str) -> str:
    # Points are 1/72 inch: a hundredth of one is below what any screen shows. Scales are not places: they stay.
    return _NUMBER.sub(lambda n: f"{float(n[0]):.2f}".rstrip("0").rstrip("."), text)


def _short_path(data: str) -> str:
    """The same path in fewer bytes: a repeated command is implied, and letters need no blanks around them."""
    words: list[str] = []
    command = ""
    for word in _short_numbers(data).split():
        if not word.isalpha():
            words.append(word if words and words[-1].isalpha() else " " + word)
        elif word != command or word not in "LC":
            words.append(word)
            command = word
    return "".join(words)


def compact(svg: str, prefix: str, glyphs: Glyphs) -> str:
    """The same picture in fewer bytes: no comments, blanks, empty groups and identifiers that nothing refers to.

    Args:
        svg: what matplotlib wrote.
        prefix: unique in the page, for the identifiers that stay.
        glyphs: the page's letters; the picture's own move there.
    """
    svg = glyphs.take(svg[svg.index("<svg") :])
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*\n\s*", " ", svg).replace("> <", "><")
    svg = re.sub(r'(?<=\s)d="([^"]*)"', lambda m: f'd="{_short_path(m[1])}"', svg)
    svg = _PLACES.sub(lambda m: _short_numbers(m[0]), svg)
    svg = re.sub(r'style="[^"]*"', lambda m: m[0].replace(": ", ":").replace("; ", ";"), svg)
    names: dict[str, str] = {}
    for a, b in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg):
        if not re.fullmatch(r"g\d+", a):  # letters belong to the page
            names.setdefault(a or b, f"{prefix}-{len(names)}")
    # A marker's style is the same at every point of its line.
    svg = _MARKERS.sub(lambda m: m[1] + m[3] + ">" + m[2].replace(m[3], ""), svg)
    svg = re.sub(r'(href="#|url\(#)([^")]+)', lambda m: m[1] + names.get(m[2], m[2]), svg)
    svg = re.sub(r'\sid="([^"]+)"', lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", svg)
    return _ungroup(svg.replace("<defs></defs>", ""))


def _ungroup(svg: str) -> str:
    """Without the groups that say nothing about their content."""
    kept: list[bool] = []

    def keep(found: re.Match[str]) -> str:
        if found[0] == "</g>":
            return found[0] if kept.pop() else ""
        kept.append(found[0] != "<g>")
        return found[0] if kept[-1] else ""

    return re.sub(r"<g>|<g [^>]*[^/]>|</g>", keep, svg)


class Drawing(NamedTuple):
    """A drawn figure: what matplotlib wrote, and its width in inches."""

    svg: str
    width: float


def draw(figure: Figure) -> Drawing:
    """Draw a figure: nearly all the time of a report."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return Drawing(buffer.getvalue(), figure.get_figwidth())


def to_svg(drawing: Drawing, prefix: str, description: str, glyphs: Glyphs) -> str:
    """A drawing as inline SVG that can stand beside others in one page.

    Args:
        drawing: of the figure.
        prefix: unique in the page; identifiers get it so that clip paths of two figures cannot be mixed up.
        description: what a reader who cannot see the picture should know.
        glyphs: the page's letters; the picture's own are added.
    """
    svg = compact(drawing.svg, prefix, glyphs)
    width = round(drawing.width * 112)
    text = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"|height="[\d.]+pt" version="1.1"|width="[\d.]+pt"',
        "",
        svg.replace("<svg", f'<svg role="img" aria-label="{text}" style="--natural:{width}px"', 1),
        count=3,
    )


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart: as close to their places as a minimum gap inside [low, high] allows.

    Args:
        positions: wanted places, any order.
        gap: least distance between two labels (shrunk when they cannot all fit).
        low: lowest place.
        high: highest place.
    """
    count = len(positions)
    gap = min(gap, (high - low) / max(count - 1, 1))
    order = np.argsort(positions, kind="stable")
    # Isotonic regression (pool adjacent violators) of the wanted places minus the gaps already used.
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):
        blocks.append([positions[i] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size), blocks[-1][1] + size]
    flat = [mean for mean, size in blocks for _ in range(int(size))]
    result = [0.0] * count
    for rank, i in enumerate(order):
        result[i] = min(max(flat[rank], low), high - (count - 1) * gap) + rank * gap
    return result


_DEEP_PATH: Final = re.compile(r"(?:[^\s'\"(,=/]*/)+([^\s'\",)/]+/[^\s'\",)/]+)")


def labels(agents: Iterable[str], width: int = 80) -> dict[str, str]:
    """Names as pictures show them: paths by their last two parts, lines of about ``width`` characters."""
    short = {agent: re.sub(r"['\"]", "", _DEEP_PATH.sub(r"\1", agent)) for agent in agents}
    twice = Counter(short.values())
    return {agent: _wrapped(agent if twice[text] > 1 else text, width) for agent, text in short.items()}


def _wrapped(text: str, width: int) -> str:
    lines = [""]
    for part in re.findall(r"[^(,/=-]*[(,/=-]?", text):
        if len(lines[-1]) + len(part) > width and lines[-1]:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _columns(names: Iterable[str]) -> int:
    """Of a legend as wide as a report."""
    return max(1, min(4, 112 // (8 + max(map(len, names), default=0))))


def legend(look: dict[str, Look], references: bool = True) -> Figure:
    """The one legend that holds for every picture of the report."""
    shown = [a for a in look if look[a].shown]
    names = labels(shown)
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=s.color, marker=s.marker, ls=s.dash, lw=s.width, label=names[a], ms=7)
        for a, s in look.items()
        if a in names
    ]
    if any(not v.shown for v in look.values()):
        handles.append(Line2D([], [], color=GREY, lw=1.5, label="other agents"))
    if references:
        handles.append(Line2D([], [], color=DARK, ls=":", lw=1.4, label="informed, oracle"))
    columns = _columns(names.values())
    figure = Figure(figsize=(9.6, 0.25 * -(-len(handles) // columns) + 0.1))
    figure.legend(handles=handles, ncols=columns, loc="center", mode="expand", handlelength=2.6, borderaxespad=0)
    return figure


def curves(family: Sequence[SettingResult], look: dict[str, Look]) -> Figure:
    """Score against budget, and the same as a share of the optimum, with 95 % bands."""
    figure = Figure(figsize=(9.6, 4.4))
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1, 1.15)})
    budgets = np.array([s.budget for s in family])
    reachable = [REACHABLE] if all(REACHABLE in s.references for s in family) else []
    for name in ("oracle", "informed", OPTIMUM, *reachable):
        found = np.array([s.reference_interval(name) for s in family])
        color, dash = ("#000000", "--" if name == REACHABLE else "-") if name in (OPTIMUM, REACHABLE) else (DARK, ":")
        left.plot(budgets, found[:, 0], color=color, ls=dash, lw=1.6, zorder=4)
        left.fill_between(budgets, found[:, 1], found[:, 2], color=color, alpha=0.10, lw=0, zorder=1)
    if any(s.is_bracket for s in family):
        low, high = ([f(s) for s in family] for f in (lambda s: s.reference(OPTIMUM), lambda s: s.upper))
        left.fill_between(budgets, low, high, color="#000000", alpha=0.25, lw=0)
        right.fill_between(budgets, 1, np.divide(high, low), color="#000000", alpha=0.15, lw=0)
    ends: dict[str, tuple[float, float]] = {}
    lowest = [0.95]
    for agent in reversed(look):
        taken = [s for s in family if agent in s.entries]
        if not taken or agent == OPTIMUM:
            continue
        style_, x = look[agent], [s.budget for s in taken]
        score = np.array([s.interval(agent, "score") for s in taken])
        share = np.array([s.normalised(agent) for s in taken])
        for axes, y in ((left, score), (right, share)):
            options = {"color": style_.color, "lw": style_.width, "ls": style_.dash, "zorder": 3 if style_.shown else 2}
            axes.plot(x, y[:, 0], marker=style_.marker, ms=5.5, **options)
            if style_.shown:
                axes.fill_between(x, y[:, 1], y[:, 2], color=style_.color, alpha=0.13, lw=0, zorder=1)
        for setting in taken if style_.shown else ():
            _seed_points(right, setting, agent, setting.budget, style_.color)
        if style_.shown:
            ends[agent] = (x[-1], float(share[-1, 0]))
            lowest.append(float(share[:, 0].min()))
    # Where nothing can be won shares are not numbers.
    brackets = [s.upper / s.reference(OPTIMUM) for s in family if s.reference(OPTIMUM) > 0]
    top: float = max([1.0, *brackets, *(y for _, y in ends.values() if math.isfinite(y))])
    # Weak agents leave this panel rather than flatten it; the left one has them.
    floor = min(y for y in lowest if y > 0.8) - 0.02
    top += 0.1 * (top - floor)
    right.set_ylim(floor, top)
    right.axhline(1, color="#000000", lw=1.6, zorder=4)
    if reachable:
        shares = [s.reference(REACHABLE) / s.reference(OPTIMUM) if s.reference(OPTIMUM) else math.nan for s in family]
        right.plot(budgets, shares, color="#000000", ls="--", lw=1.6, zorder=4)
    named = {agent: end for agent, end in ends.items() if end[1] > floor}
    named[OPTIMUM] = (budgets[-1], 1.0)
    places = spread([y for _, y in named.values()], 0.05 * (top - floor), floor, top)
    names = labels(named, 30)
    for (agent, end), place in zip(named.items(), places, strict=True):
        color = look[agent].color if agent in look else "#000000"
        right.annotate(
            names[agent],
            end,
            xytext=(1.07, (place - floor) / (top - floor)),
            textcoords="axes fraction",
            va="center",
            color=color,
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.7, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
            annotation_clip=False,
        )
    for axes in (left, right):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(budgets, [s.budget_text for s in family])
        axes.set_xlabel(f"budget B ({'tokens, ' if family[0].unit == 'tokens' else ''}log scale)")
        axes.margins(x=0.04)
    left.set_ylim(bottom=0)
    ceiling = left.get_ylim()[1]
    last = {name: family[-1].reference(name) for name in ("oracle", "informed", OPTIMUM, *reachable)}
    for name, place in zip(last, spread(list(last.values()), 0.05 * ceiling, 0, ceiling), strict=True):
        left.annotate(
            "train laws'\noptimum" if name == REACHABLE else name, (budgets[-1], place), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9,
            color="#000000" if name in (OPTIMUM, REACHABLE) else DARK, annotation_clip=False,
        )  # fmt: skip
    left.set_title("Score (correct answers, weighted)")
    right.set_title("Share of the optimum" + (" of these questions" if reachable else ""))
    right.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def _seed_points(axes: Axes, setting: SettingResult, agent: str, x: float | None, color: str, y: float = 0.0) -> None:
    """Every training seed's share of the optimum as a small dot: up from ``x``, or where that is None along ``y``."""
    shares = seed_shares(setting, agent)
    if shares is not None:
        places = (np.full(len(shares), x), shares) if x is not None else (shares, np.full(len(shares), y))
        axes.plot(*places, ls="", marker="o", ms=3.2, color=color, alpha=0.8, mew=0, zorder=5)


def forest(setting: SettingResult, look: dict[str, Look]) -> Figure:
    """Optimum-normalised score of every agent with its interval: the picture when there is only one budget."""
    ranking = setting.ranking()[::-1]
    figure = Figure(figsize=(9.6, 0.9 + 0.26 * len(ranking)))
    axes = figure.subplots()
    for y, agent in enumerate(ranking):
        value, low, high = setting.normalised(agent)
        color = look[agent].color if look[agent].shown else DARK
        axes.plot([low, high], [y, y], color=color, lw=2, solid_capstyle="butt")
        _seed_points(axes, setting, agent, None, INK, y + 0.27)
        axes.plot(value, y, marker=look[agent].marker or "o", color=color, ms=6)
    axes.axvline(1, color="#000000", lw=1.2)
    if setting.is_bracket:
        axes.axvspan(1, setting.upper / setting.reference(OPTIMUM), color="#000000", alpha=0.12, lw=0)
    axes.set_yticks(range(len(ranking)), labels(ranking).values())
    axes.set_ylim(-0.6, len(ranking) - 0.4)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    recorded = " of these questions" if setting.questions is not None else ""
    axes.set_xlabel(f"share of the optimum{recorded} (95 % interval; small dots: training seeds)")
    return figure


def regret_split(family: Sequence[SettingResult]) -> Figure:
    """Stacked bars: score, and what is missing from the oracle's score by cause."""
    agents = family[-1].ranking()[::-1]
    figure = Figure(figsize=(9.6, 1.25 + 0.24 * len(agents)))
    panels: list[Axes] = list(np.atleast_1d(figure.subplots(1, len(family), sharey=True)))
    for axes, setting in zip(panels, family, strict=True):
        best, informed, oracle = (setting.reference(n) for n in (OPTIMUM, "informed", "oracle"))
        for y, agent in enumerate(agents):
            if agent not in setting.entries:
                continue
            score, low, high = setting.interval(agent, "score")
            axes.barh(y, min(score, best), color="#8FA3AD", height=0.72)
            for start, stop, cause in (
                (score, best, "policy"),
                (max(best, score), informed, "information"),
                (max(informed, best, score), oracle, "luck"),
            ):
                if stop > start:
                    axes.barh(y, stop - start, left=start, color=REGRETS[cause], height=0.72)
            if score > best:  # read more than the published features: earned part of the information regret
                axes.barh(y, score - best, left=best, color="#009E73", height=0.72)
            if setting.is_bracket:
                axes.barh(
                    y, setting.upper - best, left=best, fill=False, hatch="////", edgecolor=DARK, lw=0, height=0.72
                )
            axes.plot([low, high], [y, y], color=INK, lw=1.1)
        axes.axvline(best, color="#000000", lw=1.2)
        axes.set_title(f"B = {setting.budget_text}")
        axes.set_xlim(0, oracle or 1)
        axes.set_ylim(-0.6, len(agents) - 0.4)
        axes.set_xlabel("score per exam")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, pad=5)
    panels[0].set_yticks(range(len(agents)), labels(agents).values())
    handles = [Patch(color="#8FA3AD", label="score (line: 95 % interval)")]
    handles += [
        Patch(color=REGRETS["policy"], label="policy: optimum − score"),
        Patch(color=REGRETS["information"], label="information: informed − optimum"),
        Patch(color=REGRETS["luck"], label="luck: oracle − informed"),
    ]
    if any(s.is_bracket for s in family):
        handles.append(Patch(fill=False, hatch="////", edgecolor=DARK, lw=0, label="optimum: between these ends"))
    if any(e.mean("score") > s.reference(OPTIMUM) for s in family for n, e in s.entries.items() if n != OPTIMUM):
        handles.append(Patch(color="#009E73", label="above the optimum"))
    figure.legend(handles=handles, ncols=min(len(handles), 4), loc="outside upper left", fontsize=9)
    return figure


def _unit(setting: SettingResult) -> str:
    """What costs are shown in."""
    return "tokens" if setting.unit == "tokens" else "US dollars"


def _in_dollars(axis: Axis, setting: SettingResult) -> None:
    """Number an axis of micro-dollars in dollars."""
    if setting.unit != "tokens":
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda micro, place: f"{micro / 10**6:.4g}"))


def pareto(family: Sequence[SettingResult], look: dict[str, Look]) -> Figure:
    """Score against tokens spent, with the agents that nobody beats on both joined by a line."""
    columns = min(len(family), 3)
    rows = -(-len(family) // columns)
    figure = Figure(figsize=(9.6, 3.5 * rows))
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in panels[len(family) :]:
        axes.set_axis_off()
    for axes, setting in zip(panels, family, strict=False):
        points = {a: (e.mean("tokens"), e.mean("score")) for a, e in setting.entries.items()}
        # Agents far below the optimum would squeeze the others into a corner.
        floor = 0.6 * setting.reference(OPTIMUM)
        front, best = [], -np.inf
        for agent in sorted(points, key=lambda a: (points[a][0], -points[a][1])):
            if points[agent][1] > best:
                front.append(points[agent])
                best = points[agent][1]
        front = [point for point in front if point[1] >= floor]
        if front:
            axes.plot(*zip(*front, strict=True), color=INK, lw=1, drawstyle="steps-post", alpha=0.55, zorder=1)
        for agent in reversed(look):
            if agent not in points or points[agent][1] < floor:
                continue
            style_ = look[agent]
            (x, x0, x1), (y, y0, y1) = setting.interval(agent, "tokens"), setting.interval(agent, "score")
            color, z = style_.color, (4 if style_.shown else 2)
            if style_.shown:  # intervals of the others would hide the marks
                axes.plot([x0, x1], [y, y], color=color, lw=1, zorder=z)
                axes.plot([x, x], [y0, y1], color=color, lw=1, zorder=z)
            axes.plot(x, y, marker=style_.marker or "o", color=color, ls="", ms=7 if style_.shown else 4, zorder=z)
        axes.axvline(setting.budget, color=DARK, lw=1, ls=":")
        axes.text(setting.budget, 0.02, "budget ", rotation=90, ha="right", transform=axes.get_xaxis_transform())
        axes.axhline(setting.reference(OPTIMUM), color="#000000", lw=0.8)
        axes.set_title(f"B = {setting.budget_text}")
        _in_dollars(axes.xaxis, setting)
        axes.set_xlabel(f"{_unit(setting)} spent per exam")
        axes.set_xlim(right=setting.budget * 1.03)
    panels[0].set_ylabel("score per exam")
    return figure


def tier_choice(comparison: Comparison, setting: SettingResult, agents: Sequence[str]) -> Figure | None:
    """Heat maps: chance of each action by difficulty (rows) and remaining budget (columns)."""
    tables = {a: t for a in agents if (t := comparison.table("choices", setting.id, a)) is not None}
    if not tables:
        return None
    actions = action_names(setting)
    bins = sorted({int(b) for t in tables.values() for b in t["difficulty_bin"][t["mass"] > 0]})
    names = {int(b): str(n) for t in tables.values() for b, n in _pairs(t)}
    shown = labels(tables, 16)
    figure = Figure(figsize=(9.6, 0.8 + len(tables) * (0.45 + 0.11 * max(len(bins), 6))))
    grid = figure.subplots(len(tables), len(actions), sharex=True, sharey=True, squeeze=False)
    palette = mpl.colormaps["cividis"].copy()
    image: Any = None
    for row, (agent, table) in zip(grid, tables.items(), strict=True):
        mass = np.zeros((len(actions), len(bins), 10))
        used = {name: column[table["mass"] > 0] for name, column in table.items()}
        where = (used["action"].astype(int), np.searchsorted(bins, used["difficulty_bin"]))
        np.add.at(mass, (*where, np.clip(used["remaining_bin"].astype(int), 0, 9)), used["mass"])
        total = mass.sum(0)
        # Cells visited less than once in ten thousand decisions are noise: blank.
        share = np.where(total > 1e-4 * total.sum(), mass / np.where(total > 0, total, 1), np.nan)
        for action, axes in enumerate(row):
            # One small picture a panel, scaled without smoothing: quadrilaterals would be half of the report's bytes.
            image = axes.imshow(
                share[action], cmap=palette, vmin=0, vmax=1, interpolation="none", origin="lower", aspect="auto",
                extent=(0, 100, 0, len(bins)),
            )  # fmt: skip
            axes.set_facecolor("#F4F4F4")
            axes.grid(visible=False)
            if axes in grid[0]:
                axes.set_title(actions[action], color=INK)
        step = max(1, -(-len(bins) // 4))
        row[0].set_yticks(np.arange(0, len(bins), step) + 0.5, [names[b] for b in bins[::step]], fontsize=8)
        row[0].set_ylabel(shown[agent], fontweight="bold")
        for axes in row[1:]:
            axes.tick_params(axis="y", length=0)
    for axes in grid[-1]:
        axes.set_xticks([0, 50, 100])
        axes.set_xlabel("% of B left")
    bar = figure.colorbar(image, ax=grid, shrink=min(1.0, 2.5 / len(tables)), aspect=22, pad=0.01)
    bar.set_label("P(action)")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def trajectories(comparison: Comparison, setting: SettingResult, agents: Sequence[str]) -> Figure | None:
    """One exam: how each agent's budget falls task by task, by tier, right or wrong."""
    tables = {a: t for a in agents if (t := comparison.table("trajectory", setting.id, a)) is not None}
    if not tables:
        return None
    columns = 2 if len(tables) == 4 else min(3, len(tables))
    rows = -(-len(tables) // columns)
    figure = Figure(figsize=(9.6, 0.45 + 2.25 * rows))
    panels = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    colors, actions = action_colors(setting), action_names(setting)
    size = 11 if setting.row["num_tasks"] <= 12 else 6
    for axes in panels[len(tables) :]:
        axes.set_axis_off()
    for axes, (agent, t) in zip(panels, tables.items(), strict=False):
        score = 0
        for i in np.argsort(t["position"]):
            x, action = int(t["position"][i]) + 1, int(t["action"][i])
            before, after = float(t["remaining_before"][i]), float(t["remaining_after"][i])
            right, cut = bool(t["correct"][i]), bool(t["overspent"][i])
            if action == 0:
                axes.plot([x - 0.36, x + 0.36], [before, before], color="#8A8A8A", lw=2.5)
                continue
            score += right and not cut
            axes.bar(x, before - after, bottom=after, width=0.72, color=colors[action], edgecolor="white", lw=0.4)
            mark, ink = ("✂", "#B00020") if cut else ("✓", "#00664B") if right else ("✗", "#B00020")
            axes.annotate(
                mark, (x, before), xytext=(0, 1.5), textcoords="offset points", ha="center", color=ink, fontsize=size
            )
        axes.set_title(f"{agent}: {score} right", fontsize=9.5)
        axes.grid(axis="x", visible=False)
        axes.set_xlim(0.3, setting.row["num_tasks"] + 0.7)
        axes.set_ylim(0, setting.budget * 1.13)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.label_outer()
    for axes in panels[max(0, len(tables) - columns) : len(tables)]:
        axes.set_xlabel("task")
        axes.tick_params(labelbottom=True)
    for axes in panels[::columns]:
        _in_dollars(axes.yaxis, setting)
        axes.set_ylabel(f"{_unit(setting)} left")
    handles: list[Line2D | Patch] = [Line2D([], [], color="#8A8A8A", lw=2.5, label="skip")]
    handles += [Patch(color=colors[k], label=actions[k]) for k in range(1, len(actions))]
    handles += [
        Line2D([], [], ls="", marker=f"${m}$", color=c, ms=8, label=n)
        for m, c, n in (("✓", "#00664B", "right"), ("✗", "#B00020", "wrong"), ("✂", "#B00020", "cut at the budget"))
    ]
    figure.legend(handles=handles, ncols=len(handles), loc="outside upper left", fontsize=9, handlelength=1.3)
    return figure


def profile(comparison: Comparison, setting: SettingResult, look: dict[str, Look]) -> Figure:
    """Performance profile: share of exams on which an agent reaches a share tau of the optimum."""
    figure = Figure(figsize=(9.6, 3.8))
    axes = figure.subplots()
    best, weights = setting.references[OPTIMUM], comparison.weights(setting)
    ratios = {a: metrics.exam_ratios(setting.entries[a].values["score"], best) for a in setting.entries}
    shown = [a for a in ratios if look[a].shown and a != OPTIMUM]
    leading = [a for a in setting.ranking() if a in shown][:4]
    spread_ = np.concatenate([ratios[a].ravel() for a in leading or ratios])
    # Sampled scores scatter far around the optimum; exact ones stay close below it.
    low = float(np.clip(np.quantile(spread_, 0.02) - 0.2, 0.4, 0.75))
    high = max(1.02, float(np.quantile(spread_, 0.98)))
    tau = np.linspace(low, high, 121)
    for agent in reversed(look):
        if agent not in ratios or agent == OPTIMUM:
            continue
        style_ = look[agent]
        share = metrics.performance_profile(ratios[agent], tau)
        line = {"color": style_.color, "ls": style_.dash, "lw": style_.width, "zorder": 3 if style_.shown else 1}
        turns = _turns(share)
        axes.plot(tau[turns], share[turns], **line)
        if style_.shown:
            # Marks start at different places, so that coinciding curves stay countable.
            at = slice(5 + 3 * shown.index(agent), None, 24)
            axes.plot(tau[at], share[at], color=style_.color, ls="", marker=style_.marker, ms=5.5, zorder=3)
        if style_.shown and style_.color != DARK:
            band = np.quantile(metrics.performance_profile(ratios[agent], tau, weights), (0.025, 0.975), axis=0)
            turns = _turns(*band)
            axes.fill_between(tau[turns], *band[:, turns], color=style_.color, alpha=0.12, lw=0)
    axes.axvline(1, color="#000000", lw=1.2)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share τ of the exam's optimum")
    axes.set_ylabel("exams reaching at least τ")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(tau[0], tau[-1])
    return figure


def _turns(*curves: metrics.Floats) -> npt.NDArray[np.bool_]:
    """Where curves over the same places change: what lies between on a level needs no points."""
    values = np.stack(curves)
    level = (np.diff(values, axis=1) == 0).all(0)
    return np.concatenate([[True], ~(level[:-1] & level[1:]), [True]])


def improvement(comparison: Comparison, setting: SettingResult, agents: Sequence[str]) -> Figure:
    """Matrix of P(row scores more than column on the same exam), ties counting one half. Columns are numbered like rows."""
    names = [a for a in setting.ranking() if a in agents]
    count = len(names)
    weights = comparison.weights(setting)
    figure = Figure(figsize=(min(9.6, 2.6 + 0.82 * count), 0.8 + 0.5 * count))
    axes = figure.subplots()
    value = np.full((count, count), np.nan)
    sure = np.zeros((count, count), dtype=bool)
    for i, a in enumerate(names):
        for j, b in enumerate(names[:i]):
            x, y = setting.entries[a], setting.entries[b]
            value[i, j] = metrics.probability_of_improvement(x.values["score"], y.values["score"])
            value[j, i] = 1 - value[i, j]
            found = metrics.interval(
                value[i, j],
                metrics.probability_of_improvement(
                    x.values["score"], y.values["score"], weights, x.seed_weights, y.seed_weights
                ),
            )
            # All exams alike leave no interval; six of them would do so by chance once in 32 (sign test).
            always = value[i, j] in (0, 1) and not setting.no_interval and len(setting.exams) > 5
            sure[i, j] = sure[j, i] = found.low > 0.5 or found.high < 0.5 or always
    edges = np.arange(count + 1) - 0.5
    axes.pcolormesh(edges, edges, value, cmap="PuOr_r", vmin=-0.45, vmax=1.45, edgecolors="white", linewidth=1)
    axes.invert_yaxis()
    for i, j in zip(*np.nonzero(np.isfinite(value)), strict=True):
        axes.text(j, i, f"{value[i, j]:.2f}", ha="center", va="center", color=INK if sure[i, j] else DARK, fontsize=9,
                  fontweight="bold" if sure[i, j] else "normal")  # fmt: skip
    axes.set_xticks(range(count), map(str, range(1, count + 1)))
    axes.xaxis.tick_top()
    axes.set_yticks(range(count), [f"{name}  {row}" for row, name in enumerate(labels(names).values(), 1)])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


def calibration(comparison: Comparison, setting: SettingResult, look: dict[str, Look]) -> Figure | None:
    """Believed against actual success and tokens of the attempts that were chosen, one mark per agent and tier."""
    shown = [a for a in look if look[a].shown]
    tables = {a: t for a in shown if (t := comparison.table("tier_calibration", setting.id, a)) is not None}
    if not tables:
        return None
    figure = Figure(figsize=(9.6, 4.3))
    for axes, name, unit in zip(
        figure.subplots(1, 2), ("success", "tokens"), ("P(correct)", f"{_unit(setting)} per attempt"), strict=True
    ):
        top = 0.0
        for agent, t in reversed(tables.items()):
            for action in np.unique(t["action"]):
                rows = (t["action"] == action) & (t["mass"] > 0)
                if not rows.any():
                    continue
                weights = t["mass"][rows]
                x, y = (np.average(t[f"{side}_{name}"][rows], weights=weights) for side in ("expected", "actual"))
                if not np.isfinite([x, y]).all():
                    continue
                top = max(top, float(x), float(y))
                axes.scatter(
                    x, y, s=30 + 22 * (int(action) - 1), marker=look[agent].marker, color=look[agent].color, alpha=0.85,
                    linewidths=1.6 if look[agent].marker in "1234" else 0,
                )  # fmt: skip
        top = 1.0 if name == "success" else 1.08 * top or 1.0
        axes.axline((0, 0), slope=1, color=DARK, lw=1)
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        if name == "tokens":
            _in_dollars(axes.xaxis, setting)
            _in_dollars(axes.yaxis, setting)
        axes.set_xlabel(f"believed {unit}")
        axes.set_ylabel(f"actual {unit}")
        axes.set_title("Success of chosen attempts" if name == "success" else "Cost of chosen attempts")
    return figure


def positions(comparison: Comparison, setting: SettingResult, look: dict[str, Look]) -> Figure | None:
    """By place in the exam: how often the task is reached, skipped, and answered right."""
    shown = [a for a in look if look[a].shown]
    tables = {a: t for a in shown if (t := comparison.table("positions", setting.id, a)) is not None}
    if not tables:
        return None
    figure = Figure(figsize=(9.6, 3.1))
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (name, title) in zip(
        panels, (("reached", "Task reached"), ("skip", "Skipped"), ("correct", "Answered right")), strict=True
    ):
        for agent, t in reversed(tables.items()):
            places = np.unique(t["position"])
            y = [t[name][t["position"] == p].mean() for p in places]
            style_ = look[agent]
            axes.plot(places + 1, y, color=style_.color, ls=style_.dash, marker=style_.marker, ms=4.5, lw=1.3)
        axes.set_title(title)
        axes.set_xlabel("place in the exam")
        axes.set_ylim(0, 1.03)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def _pairs(table: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    return zip(table["difficulty_bin"], table["difficulty_label"], strict=True)


def action_names(setting: SettingResult) -> list[str]:
    """Skip, then the tiers by name, cheapest first."""
    names = setting.row.get("tier_names")
    known = [str(n) for n in names] if names is not None else []
    return ["skip", *(known or [f"tier {k + 1}" for k in range(setting.row["num_tiers"])])]


def action_colors(setting: SettingResult) -> list[str]:
    """Colour of each action, skip first."""
    count = setting.row["num_tiers"]
    palette = ListedColormap(TIERS) if count <= len(TIERS) else mpl.colormaps["viridis"]
    ends = np.linspace(0, 3 / 4 if count <= 4 else 1, count) if count > 1 else [0.3]
    return [SKIP, *(mpl.colors.to_hex(palette(float(x))) for x in ends)]


def learning_setting(comparison: Comparison, family: Sequence[SettingResult], focus: SettingResult) -> SettingResult:
    """The setting of a family whose learning curves are drawn: the one in focus, or else the first that has any."""
    return next((s for s in (focus, *family) if comparison.table("learning", s.id) is not None), focus)


def learning(comparison: Comparison, setting: SettingResult) -> Figure | None:
    """Validation score of agents that learn in the environment, against environment steps and against CPU time.

    None where no agent of the setting has a curve. Every such agent is drawn, in colours of this picture alone: it is
    about them. Lines are means over training seeds, bands reach from the lowest seed to the highest.
    """
    rows = comparison.table("learning", setting.id)
    if rows is None:
        return None
    agents = [a for a in setting.ranking() if (rows["agent"] == a).any()]
    names = labels(agents)
    figure = Figure(figsize=(9.6, 4.2))
    panels = figure.subplots(1, 2, sharey=True)
    low = high = 1.0  # recorded validation exams can be luckier than their optimum
    for i, agent in enumerate(agents):
        own = {k: v[rows["agent"] == agent] for k, v in rows.items()}
        seeds = np.unique(own["seed"])
        runs = [{k: v[own["seed"] == seed] for k, v in own.items()} for seed in seeds]
        points = min(len(run["steps"]) for run in runs)
        score = np.stack([run["normalised"][:points] for run in runs])
        low, high = min(low, float(np.quantile(score.mean(0), 0.15))), max(high, float(score.mean(0).max()))
        color, dash = OKABE_ITO[i % len(OKABE_ITO)], ("-", *DASHES)[i // len(OKABE_ITO)]
        for axes, name in zip(panels, ("steps", "cpu_seconds"), strict=True):
            x = np.stack([run[name][:points] for run in runs]).mean(0)
            marker = MARKERS[i % len(MARKERS)]
            axes.plot(x, score.mean(0), color=color, ls=dash, marker=marker, ms=4, label=names[agent])
            axes.fill_between(x, score.min(0), score.max(0), color=color, alpha=0.12, lw=0)
    for axes in panels:
        axes.axhline(1, color="#000000", lw=1.4)
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(max(low - 0.02, 0.0), high + 0.005)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    panels[0].set_ylabel("validation score, share of the optimum")
    panels[0].set_xlabel("environment steps (log scale)")
    panels[1].set_xlabel("CPU seconds of training (log scale)")
    columns = _columns(names.values())
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=columns, loc="outside upper left", fontsize=9)
    return figure
