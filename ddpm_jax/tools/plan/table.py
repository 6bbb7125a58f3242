"""Plans side by side: a Markdown table with a column for each slice."""

from collections.abc import Callable, Sequence

from ddpm_jax.tools.plan.chips import parse
from ddpm_jax.tools.plan.planner import Cost, Plan

MIB = 2**20


def table(plans: Sequence[Plan]) -> str:
    """Rows of numbers, all of one chip but for images, and a column for each plan; "-" where nothing was compiled."""
    rows: list[tuple[str, Callable[[Plan], str]]] = [
        ("", lambda plan: plan.topology),
        ("chips", lambda plan: str(plan.num_chips)),
        ("images", lambda plan: str(plan.num_images)),
        ("network calls", lambda plan: str(plan.num_calls)),
        ("fits", lambda plan: "yes" if plan.fits else "no"),
        *((f"{name}, MiB", _state(name)) for name in ("parameters", "ema", "optimizer")),
        ("other arguments and padding, MiB", _cost(_padding)),
        ("activations, MiB", _cost(lambda plan, cost: f"{cost.activation_bytes / MIB:.1f}")),
        ("used, MiB", _cost(lambda plan, cost: f"{cost.used_bytes / MIB:.1f}")),
        ("memory, MiB", lambda plan: f"{parse(plan.topology).chip.hbm_bytes / MIB:.0f}"),
        ("GFLOP", _cost(lambda plan, cost: f"{cost.flops / 1e9:.1f}")),
        ("memory traffic, GB", _cost(lambda plan, cost: f"{cost.hbm_bytes / 1e9:.2f}")),
        ("collectives", _cost(_exchanges)),
        *((f"{name}, ms", _bound(name)) for name in ("compute", "memory", "communication")),
        ("step, ms at least", _cost(lambda plan, cost: f"{cost.seconds * 1e3:.3f}")),
        ("images/s at most", _cost(lambda plan, cost: f"{cost.images_per_second:.0f}")),
        ("limit", _cost(lambda plan, cost: cost.roofline.limit)),
        ("compile, s", _cost(lambda plan, cost: f"{cost.compile_seconds:.0f}")),
    ]
    if all(plan.num_calls == 1 for plan in plans):
        rows = [row for row in rows if row[0] != "network calls"]
    cells = [[label, *(cell(plan) for plan in plans)] for label, cell in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(plans) + 1)]
    line = lambda row: (
        "| "
        + " | ".join(f"{row[0]:{widths[0]}}" if i == 0 else f"{row[i]:>{widths[i]}}" for i in range(len(row)))
        + " |"
    )
    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def _cost(cell: Callable[[Plan, Cost], str]) -> Callable[[Plan], str]:
    return lambda plan: "-" if plan.cost is None else cell(plan, plan.cost)


def _state(name: str) -> Callable[[Plan], str]:
    return lambda plan: f"{plan.state_bytes[name] / MIB:.1f}" if name in plan.state_bytes else "-"


def _bound(name: str) -> Callable[[Plan], str]:
    return _cost(lambda plan, cost: f"{getattr(cost.roofline, name) * 1e3:.3f}")


def _padding(plan: Plan, cost: Cost) -> str:
    return f"{(cost.argument_bytes - sum(plan.state_bytes.values())) / MIB:.1f}"


def _exchanges(plan: Plan, cost: Cost) -> str:
    among = lambda size: "" if size == plan.num_chips else f" among {size}"
    return ", ".join(
        f"{one.count} {one.operation} of {one.num_bytes / MIB:.1f} MiB{among(one.group_size)}" for one in cost.exchanges
    ) or "none"  # fmt: skip
