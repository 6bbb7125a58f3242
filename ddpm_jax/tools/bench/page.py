"""All measurements of a folder as one page."""

from collections.abc import Sequence
from typing import Any

from ddpm_jax.host import html
from ddpm_jax.tools.bench import blocks, machine
from ddpm_jax.tools.bench.blocks import Block, Comparison, Curves, Facts, Missing
from ddpm_jax.tools.bench.interleave import Spread


def page(measurements: Sequence[dict[str, Any]]) -> str:
    """HTML of measurements as `files` reads them: each with its command, date, machine and blocks."""
    parts = []
    for measurement in measurements:
        found = measurement["machine"]
        load = ", ".join(f"{value:.1f}" for value in found["load_average"])
        parts += [
            html.heading(f"{measurement['part']}: {measurement['label']}"),
            html.code(measurement["command"]),
            html.paragraph(f"{found['date']}; {machine.sentence(found)}; load average when it began {load}"),
        ]
        for block in measurement["blocks"]:
            parts += of_block(block)
    return html.page("ddpm-jax bench", [html.paragraph(EXPLANATION), *parts])


EXPLANATION = (
    "Every contestant runs once a round, each round beginning with another one. Times and ratios are medians; in "
    "brackets the interval that holds the true median with the probability given, from order statistics of the rounds."
)


def of_block(block: Block) -> list[str]:
    """HTML of one block."""
    title = [] if isinstance(block, Missing) else [html.paragraph(block.title)]
    if isinstance(block, Comparison):
        parts = [*title, html.table(*comparison(block))] if block.seconds else title
        return parts + missing("Not measured", block.missing) + note(block.note)
    if isinstance(block, Facts):
        return [*title, html.table(block.header, block.rows), *note(block.note)]
    if isinstance(block, Curves):
        return [*title, curves(block), *note(block.note)]
    return missing(block.title, block.reasons)


def comparison(block: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows of its table."""
    flops, share = bool(block.flops), block.share_of_product
    header = ["", "rounds", "ms", f"{block.unit}s/s", f"{block.reference} is x as fast"]
    header += ["GFLOP/s"] * flops + ["of the matrix product's"] * any(share(name) for name in block.seconds)
    rows = []
    for name in block.seconds:
        time = block.time(name)
        compared = block.reference in block.seconds and name != blocks.PRODUCT
        row = [name, str(time.n), interval(time, 1e3), number(block.items / time.median)]
        row.append(interval(block.ratio(name)) if compared else "")
        if flops:
            row.append(number(block.flops[name] / time.median / 1e9) if name in block.flops else "")
        if len(header) > len(row):
            found = share(name)
            row.append("" if found is None else interval(found))
        rows.append(row)
    return header, rows


def interval(found: Spread, unit: float = 1) -> str:
    """Median [low, high] coverage."""
    low, high = number(unit * found.low), number(unit * found.high)
    return f"{number(unit * found.median)} [{low}, {high}] {100 * found.coverage:.0f} %"


def number(value: float) -> str:
    """Three digits, and never an exponent: whole numbers from 1000 on."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def missing(title: str, reasons: dict[str, str]) -> list[str]:
    return [html.paragraph(f"{title}: {name}: {reason}") for name, reason in reasons.items()]


def note(text: str) -> list[str]:
    return [html.paragraph(text)] if text else []


def curves(block: Curves) -> str:
    """A plot; where matplotlib is not installed, its points."""
    try:
        from matplotlib.figure import Figure  # slow to import; Figure draws without a display
    except ImportError:
        points = [[name, *map(number, point)] for name, line in block.lines.items() for point in line]
        return html.table(["(a plot where matplotlib is installed)", block.x, block.y], points)
    return html.plot(plotted(block, Figure))


def plotted(block: Curves, Figure: Any) -> Any:
    """The figure of curves."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    styles = ["-", "--", ":", "-."]
    for i, (name, points) in enumerate(block.lines.items()):
        axes.plot(*zip(*points, strict=True), styles[i // 10 % 4], marker="o", markersize=3, label=name)
    axes.set(xlabel=block.x, ylabel=block.y)
    if "x" in block.log:
        axes.set_xscale("log")
    if "y" in block.log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7)
    return figure
