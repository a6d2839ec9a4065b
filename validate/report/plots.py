"""The plots of a report, as SVG with colours from the page, for light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mconv.validate.report.names import short_names, shortened
from mconv.validate.report.summary import worst_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

Report = Mapping[str, Any]

# Placeholders for the colours of the page; plots use these colours for nothing else.
_INK, _FAINT = "#010203", "#040506"
_STYLE = {_INK: "var(--ink, #1d2129)", _FAINT: "var(--line, #c9ced6)"}
# Okabe and Ito's palette without black and yellow: distinct for the colour-blind, and visible on white and black.
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
_MARKERS = "osD^vP<>"
_PERCENTILES = {
    "p1": "1",
    "p5": "5",
    "p10": "10",
    "median": "50",
    "p90": "90",
    "p95": "95",
    "p99": "99",
    "p99_9": "99.9",
}
_PERCENTILES |= {"max": "max"}
# Inches: as wide as a phone at the size of its text, and twice that beside another plot on a desk.
_WIDTH, _LEGEND_ROW = 4.9, 0.17
# Where the name of a dot may be, in points: first beside it, then further off.
_PLACES = [(x, y) for far in (5, 14, 23, 32) for x in (8, -8) for y in (far, -far - 7)]
_ALONE = (
    "<style>:root{--ink:#1d2129;--line:#c9ced6}"
    "@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--line:#454b55}}</style>"
)


def size_plot(report: Report) -> str | None:
    """Size against mean KL divergence, one dot per artifact; None if there is nothing to show."""
    points = [(artifact, _mean_kl(report, artifact["file"])) for artifact in report["artifacts"]]
    shown = [(artifact, kl) for artifact, kl in points if kl and kl > 0]
    if not shown:
        return None
    unit, word = (1e9, "GB") if max(artifact["bytes"] for artifact, _ in shown) >= 1e9 else (1e6, "MB")
    with _figure("size", 3.4) as (figure, axes):
        names = []
        for artifact, kl in shown:
            place, look = (artifact["bytes"] / unit, kl), _look(report, artifact["file"])
            axes.plot(*place, linestyle="", markersize=8, label=_name(report, artifact["file"]), **look)
            name = axes.annotate(artifact["type"], place, (0, 0), textcoords="offset points", color=_INK)
            name.set_in_layout(False)
            names.append(name)
        axes.set_yscale("log")
        # Powers of ten would be formulas, which nothing here typesets.
        axes.yaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.15, y=0.2)
        axes.set_xlabel(f"size, {word}")
        axes.set_ylabel("mean KL divergence, nats a token")
        if len({artifact["type"] for artifact, _ in shown}) < len(shown):
            _legend(figure, axes)
        _place_names(figure, names)
        return _svg(figure)


def _place_names(figure: Figure, names: Sequence[Annotation]) -> None:
    """Place each name so that it covers neither a dot nor another name, if possible."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles what is where
    dots = [name.axes.transData.transform(name.xy) for name in names if name.axes]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    for name in names:
        for x, y in _PLACES:
            name.set(position=(x, y), horizontalalignment="left" if x > 0 else "right")
            box = name.get_window_extent()
            inside = figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            if inside and not box.count_overlaps(taken):
                break
        taken.append(box)


def alone(svg: str) -> str:
    """A plot as a separate file, including the colours that it otherwise takes from the page."""
    return svg.replace(">", f">{_ALONE}", 1)


def layer_plot(report: Report) -> str | None:
    """Relative error of the weights by layer, one line per artifact."""
    lines = [
        (
            row["file"],
            [(entry["layer"], entry["relative_rmse"]) for entry in row["by_layer"] if entry["layer"] is not None],
        )
        for row in report["weights"]["results"]
    ]
    lines = [(file, points) for file, points in lines if any(error for _, error in points)]
    if not lines:
        return None
    from matplotlib.ticker import MaxNLocator

    with _figure("layers", 3.0) as (figure, axes):
        for file, points in lines:
            layers, errors = zip(*points, strict=True)
            axes.plot(layers, errors, markersize=4, linewidth=1.2, label=_name(report, file), **_look(report, file))
        axes.set_ylim(0, 1.08 * max(error or 0 for _, points in lines for _, error in points))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("relative RMSE")
        _legend(figure, axes)
        return _svg(figure)


def kind_plot(report: Report) -> str | None:
    """Relative error of the weights by kind of tensor, one dot per artifact."""
    rows = [row for row in report["weights"]["results"] if any(entry["relative_rmse"] for entry in row["by_kind"])]
    if not rows:
        return None
    kinds = list(dict.fromkeys(entry["kind"] for row in rows for entry in row["by_kind"] if entry["relative_rmse"]))
    with _figure("kinds", 0.7 + 0.25 * len(kinds)) as (figure, axes):
        for row in rows:
            shown = [entry for entry in row["by_kind"] if entry["relative_rmse"]]
            points = [(entry["relative_rmse"], kinds.index(entry["kind"])) for entry in shown]
            look = _look(report, row["file"])
            axes.plot(*zip(*points, strict=True), linestyle="", markersize=6, label=_name(report, row["file"]), **look)
        axes.set_yticks(range(len(kinds)), kinds)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.05 * max(entry["relative_rmse"] or 0 for row in rows for entry in row["by_kind"]))
        axes.set_xlabel("relative RMSE")
        _legend(figure, axes)
        return _svg(figure)


def percentile_plot(report: Report) -> str | None:
    """The distribution of KL divergence over the tokens, one line per artifact, for the text with the worst result."""
    shown = [row for row in report["kl"]["results"] if (row["kl"]["max"] or 0) > 0]
    of_files = ([row for row in shown if row["file"] == artifact["file"]] for artifact in report["artifacts"])
    rows = [row for of_file in of_files if (row := worst_text(of_file))]
    if not rows:
        return None
    with _figure("percentiles", 3.4) as (figure, axes):
        for row in rows:
            # A token that both models find equally likely has zero divergence, or slightly less due to rounding.
            values = [row["kl"][name] if (row["kl"][name] or 0) > 0 else None for name in _PERCENTILES]
            axes.plot(
                range(len(_PERCENTILES)),
                [float("nan") if value is None else value for value in values],
                markersize=4,
                linewidth=1.2,
                label=_name(report, row["file"]),
                **_look(report, row["file"]),
            )
        axes.set_yscale("log")
        # Powers of ten would be formulas, which nothing here typesets.
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xticks(range(len(_PERCENTILES)), list(_PERCENTILES.values()))
        axes.set_xlabel("percentile of the tokens")
        axes.set_ylabel("KL divergence, nats")
        _legend(figure, axes)
        return _svg(figure)


def perplexity_plot(report: Report) -> str | None:
    """The increase of perplexity on each text, with its standard error, one dot per artifact."""
    rows = [row for row in report["kl"]["results"] if row["ratio"] is not None]
    if not rows:
        return None
    texts = list(dict.fromkeys(row["text"] for row in rows))
    files = list(dict.fromkeys(row["file"] for row in rows))
    names = short_names(texts)
    with _figure("perplexity", 0.7 + 0.14 * len(texts) * (len(files) + 1)) as (figure, axes):
        for number, file in enumerate(files):
            of_file = [row for row in rows if row["file"] == file]
            axes.errorbar(
                [100 * (row["ratio"] - 1) for row in of_file],
                [texts.index(row["text"]) + (number + 0.5) / len(files) * 0.7 - 0.35 for row in of_file],
                xerr=[100 * (row["ratio_standard_error"] or 0) for row in of_file],
                linestyle="",
                markersize=5,
                capsize=2,
                label=_name(report, file),
                **_look(report, file),
            )
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(range(len(texts)), [shortened(names[text], 20) for text in texts])
        axes.set_ylim(len(texts) - 0.5, -0.5)
        axes.set_xlabel("% above the perplexity of the reference")
        _legend(figure, axes)
        return _svg(figure)


def _mean_kl(report: Report, file: str) -> float | None:
    """The mean over all texts, weighted by their tokens."""
    rows = [row for row in report["kl"]["results"] if row["file"] == file and row["kl"]["mean"] is not None]
    tokens = sum(row["tokens"] for row in rows)
    return sum(row["kl"]["mean"] * row["tokens"] for row in rows) / tokens if tokens else None


def _look(report: Report, file: str) -> dict[str, Any]:
    """The colour and marker of an artifact in every plot."""
    place = [artifact["file"] for artifact in report["artifacts"]].index(file)
    turn = place // len(_SERIES)  # the same colour again comes with another marker
    return {"color": _SERIES[place % len(_SERIES)], "marker": _MARKERS[(place + turn) % len(_MARKERS)]}


def _name(report: Report, file: str) -> str:
    """The type of an artifact, and its name if another one has the same type."""
    types = {artifact["file"]: artifact["type"] for artifact in report["artifacts"]}
    shared = list(types.values()).count(types[file]) > 1
    return f"{types[file]} ({shortened(short_names(types)[file])})" if shared else types[file]


@contextmanager
def _figure(name: str, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty plot in the style of the page; the height is in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": _FAINT,
        "grid.linewidth": 0.5,
        "text.color": _INK,
        "text.parse_math": False,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "legend.frameon": False,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained", label=name)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        yield figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    """List the artifacts below the plot, in as many columns as fit."""
    handles, names = axes.get_legend_handles_labels()
    if len(handles) > 1:
        columns = max(1, min(len(handles), 48 // (6 + max(map(len, names)))))
        figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * (1 + -(-len(handles) // columns)))
        figure.legend(handles, names, loc="outside lower center", ncols=columns)


def _svg(figure: Figure) -> str:
    title = figure.get_label()
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    svg = text[text.index("<svg") :]
    # Some ids are derived from memory addresses; and all plots of a page share one namespace.
    for number, name in enumerate(dict.fromkeys(re.findall(r' id="([^"]+)"', svg))):
        svg = re.sub(rf'(?<=["#]){re.escape(name)}(?=["\)])', f"{title}-{number}", svg)
    for stand_in, colour in _STYLE.items():
        svg = svg.replace(stand_in, colour)
    # The page sets the size; the aspect ratio follows from the view box.
    svg = re.sub(r' width="[^"]*"', ' class="plot"', svg, count=1)
    return re.sub(r' height="[^"]*"', "", svg, count=1)


_PLOTS: Sequence[tuple[str, str, Any]] = (
    ("Size against KL divergence", "Lower and further left is better. Mean over the tokens of all texts.", size_plot),
    (
        "KL divergence over the tokens",
        "On the text with the largest mean: the worst tokens count too.",
        percentile_plot,
    ),
    ("Perplexity by text", "With its standard error; one text understates a loss.", perplexity_plot),
    ("Error of the weights by layer", "Root mean square error over the root mean square of the weights.", layer_plot),
    ("Error of the weights by kind of tensor", "The same, by what the tensor does.", kind_plot),
)


def plots(report: Report) -> list[tuple[str, str, str]]:
    """Title, caption and SVG of every plot for which the report has numbers."""
    made = ((title, caption, plot(report)) for title, caption, plot in _PLOTS)
    return [(title, caption, svg) for title, caption, svg in made if svg is not None]
