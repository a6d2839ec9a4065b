"""The plots of a report, as SVG that takes its colours from the page: readable in the light and in the dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Mapping[str, Any]

# Colours that no plot uses otherwise stand for those of the page.
_INK, _FAINT = "#010203", "#040506"
_STYLE = {_INK: "var(--ink, #1d2129)", _FAINT: "var(--line, #c9ced6)"}
# Okabe and Ito's palette without its black and yellow: apart for the colour-blind, and on white as on black.
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
_MARKERS = "osD^vP<>"
_DASHES, _DASH_NAMES = ("-", "--", ":", "-."), ("solid", "dashed", "dotted", "dash-dotted")
_PERCENTILES = ("p1", "p5", "p10", "median", "p90", "p95", "p99", "p99_9", "max")
_ALONE = (
    "<style>:root{--ink:#1d2129;--line:#c9ced6}"
    "@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--line:#454b55}}</style>"
)


def size_plot(report: Report) -> str | None:
    """Size against mean KL divergence, each artifact a dot; None where there is nothing to show."""
    points = [(artifact, _mean_kl(report, artifact["file"])) for artifact in report["artifacts"]]
    shown = [(artifact, kl) for artifact, kl in points if kl]
    if not shown:
        return None
    unit, word = (1e9, "GB") if max(artifact["bytes"] for artifact, _ in shown) >= 1e9 else (1e6, "MB")
    with _figure("size", 6.2, 3.6) as (figure, axes):
        for place, (artifact, kl) in enumerate(sorted(shown, key=lambda point: point[0]["bytes"])):
            size = artifact["bytes"] / unit
            axes.plot(size, kl, linestyle="", markersize=8, **_look(report, artifact["file"]))
            # Neighbours have their names on different sides of their dots.
            offset = (8, -11) if place % 2 else (8, 5)
            axes.annotate(artifact["type"], (size, kl), textcoords="offset points", xytext=offset, color=_INK)
        axes.set_yscale("log")
        # Powers of ten would be formulas, which nothing here typesets.
        axes.yaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.15, y=0.2)
        axes.set_xlabel(f"size, {word}")
        axes.set_ylabel("mean KL divergence, nats a token")
        return _svg(figure)


def alone(svg: str) -> str:
    """A plot as a file of its own, with the colours that it takes from the page otherwise."""
    return svg.replace(">", f">{_ALONE}", 1)


def layer_plot(report: Report) -> str | None:
    """Relative error of the weights by layer, a line an artifact."""
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

    with _figure("layers", 6.2, 3.2) as (figure, axes):
        for file, points in lines:
            layers, errors = zip(*points, strict=True)
            axes.plot(layers, errors, markersize=4, linewidth=1.2, label=_name(report, file), **_look(report, file))
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("relative RMSE")
        _legend(axes)
        return _svg(figure)


def kind_plot(report: Report) -> str | None:
    """Relative error of the weights by kind of tensor, a dot an artifact."""
    rows = [row for row in report["weights"]["results"] if any(entry["relative_rmse"] for entry in row["by_kind"])]
    if not rows:
        return None
    kinds = list(dict.fromkeys(entry["kind"] for row in rows for entry in row["by_kind"] if entry["relative_rmse"]))
    with _figure("kinds", 6.2, 0.9 + 0.3 * len(kinds)) as (figure, axes):
        for row in rows:
            shown = [entry for entry in row["by_kind"] if entry["relative_rmse"]]
            points = [(entry["relative_rmse"], kinds.index(entry["kind"])) for entry in shown]
            look = _look(report, row["file"])
            axes.plot(*zip(*points, strict=True), linestyle="", markersize=6, label=_name(report, row["file"]), **look)
        axes.set_yticks(range(len(kinds)), kinds)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("relative RMSE")
        _legend(axes)
        return _svg(figure)


def percentile_plot(report: Report) -> str | None:
    """The distribution of KL divergence over the tokens of all texts, a line an artifact and text."""
    rows = [row for row in report["kl"]["results"] if row["kl"]["max"]]
    if not rows:
        return None
    texts = list(dict.fromkeys(row["text"] for row in rows))
    with _figure("percentiles", 6.2, 3.6) as (figure, axes):
        for row in rows:
            # A token that both find equally likely has none, or less than none where only rounding is left.
            values = [row["kl"][name] if (row["kl"][name] or 0) > 0 else None for name in _PERCENTILES]
            axes.plot(
                range(len(_PERCENTILES)),
                [float("nan") if value is None else value for value in values],
                linestyle=_DASHES[texts.index(row["text"]) % 4],
                markersize=4,
                linewidth=1.2,
                label=_name(report, row["file"]) if row["text"] == texts[0] else None,
                **_look(report, row["file"]),
            )
        axes.set_yscale("log")
        # Powers of ten would be formulas, which nothing here typesets.
        axes.yaxis.set_major_formatter("{x:g}")
        labels = [name.replace("p", "").replace("_", ".") + (" %" if name[0] == "p" else "") for name in _PERCENTILES]
        axes.set_xticks(range(len(_PERCENTILES)), labels)
        names = [f"{_DASH_NAMES[place % 4]}: {_shortened(PurePath(text).name)}" for place, text in enumerate(texts)]
        axes.set_xlabel("percentile of the tokens" + ("\n" + ", ".join(names) if len(texts) > 1 else ""))
        axes.set_ylabel("KL divergence, nats")
        _legend(axes)
        return _svg(figure)


def perplexity_plot(report: Report) -> str | None:
    """What perplexity rose by on each text, with its standard error, a dot an artifact."""
    rows = [row for row in report["kl"]["results"] if row["ln_ratio"] is not None]
    if not rows:
        return None
    texts = list(dict.fromkeys(row["text"] for row in rows))
    files = list(dict.fromkeys(row["file"] for row in rows))
    with _figure("perplexity", 6.2, 1.1 + 0.22 * len(texts) * (len(files) + 1)) as (figure, axes):
        for number, file in enumerate(files):
            of_file = [row for row in rows if row["file"] == file]
            axes.errorbar(
                [100 * row["ln_ratio"] for row in of_file],
                [texts.index(row["text"]) + (number + 0.5) / len(files) * 0.7 - 0.35 for row in of_file],
                xerr=[100 * (row["ln_ratio_standard_error"] or 0) for row in of_file],
                linestyle="",
                markersize=6,
                capsize=3,
                label=_name(report, file),
                **_look(report, file),
            )
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(range(len(texts)), [_shortened(PurePath(text).name) for text in texts])
        axes.set_ylim(len(texts) - 0.5, -0.5)
        axes.set_xlabel("ln(perplexity / the reference's), in hundredths, with its standard error")
        _legend(axes)
        return _svg(figure)


def _mean_kl(report: Report, file: str) -> float | None:
    """Over all texts, by their tokens."""
    rows = [row for row in report["kl"]["results"] if row["file"] == file and row["kl"]["mean"] is not None]
    tokens = sum(row["tokens"] for row in rows)
    return sum(row["kl"]["mean"] * row["tokens"] for row in rows) / tokens if tokens else None


def _look(report: Report, file: str) -> dict[str, Any]:
    """The colour and the marker that an artifact has in every plot."""
    place = [artifact["file"] for artifact in report["artifacts"]].index(file) % len(_SERIES)
    return {"color": _SERIES[place], "marker": _MARKERS[place]}


def _name(report: Report, file: str) -> str:
    """The type of an artifact, and its name where another one has that type."""
    types = {artifact["file"]: artifact["type"] for artifact in report["artifacts"]}
    shared = list(types.values()).count(types[file]) > 1
    return f"{types[file]} ({_shortened(PurePath(file).name)})" if shared else types[file]


def _shortened(text: str, width: int = 28) -> str:
    return text if len(text) <= width else text[: width - 1] + "\u2026"


@contextmanager
def _figure(name: str, width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty plot of so many inches, in the style of the page."""
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
        figure = Figure(figsize=(width, height), layout="constrained", label=name)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        yield figure, axes


def _legend(axes: Axes) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _svg(figure: Figure) -> str:
    title = figure.get_label()
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    svg = text[text.index("<svg") :]
    # Some names come from where objects lie in memory; and all plots of a page share one space of names.
    for number, name in enumerate(dict.fromkeys(re.findall(r' id="([^"]+)"', svg))):
        svg = re.sub(rf'(?<=["#]){re.escape(name)}(?=["\)])', f"{title}-{number}", svg)
    for stand_in, colour in _STYLE.items():
        svg = svg.replace(stand_in, colour)
    # The size is the page's to choose; the shape follows from the view box.
    svg = re.sub(r' width="[^"]*"', ' class="plot"', svg, count=1)
    return re.sub(r' height="[^"]*"', "", svg, count=1)


_PLOTS: Sequence[tuple[str, str, Any]] = (
    ("Size against loss", "Lower and further left is better.", size_plot),
    ("KL divergence over the tokens", "How far the worst tokens are, and not only the mean.", percentile_plot),
    ("Perplexity by text", "One text understates a loss: each has its row.", perplexity_plot),
    ("Error of the weights by layer", "Root mean square error over the root mean square of the weights.", layer_plot),
    ("Error of the weights by kind of tensor", "The same, by what the tensor does.", kind_plot),
)


def plots(report: Report) -> list[tuple[str, str, str]]:
    """Title, caption and SVG of every plot that the report has numbers for."""
    made = ((title, caption, plot(report)) for title, caption, plot in _PLOTS)
    return [(title, caption, svg) for title, caption, svg in made if svg is not None]
