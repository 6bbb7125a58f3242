"""A sampler is a table: rows of numbers that say what to do with each answer of the network.

All right-hand sides of a row use the *old* registers: one row is one simultaneous assignment.

The state of a run is a few image-shaped registers. A row is one network call at X followed by

    registers <- update @ [registers, x_0, eps, z],      z ~ N(0, I)

where (x_0, eps) is what the denoiser says at X, with X = alpha x_0 + sigma eps at the row's noise level. A sampler is
a generator of such rows. It writes them with the unit vectors below, so that NumPy arithmetic is the notation:

    row(s, X=t.alpha * X0 + t.sigma * EPS)         # X becomes alpha_t x_0 + sigma_t eps; other registers stay

The numbers are float64 until they meet an image.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from ddpm_jax.names import unknown
from ddpm_jax.samplers.grids import Grid, Level, Pairs

REGISTERS = ("X", "SAVED", "ACC", "M1", "M2", "M3")  # X is always the next point to call the network at
X, SAVED, ACC, M1, M2, M3, X0, EPS, Z = np.eye(len(REGISTERS) + 3)


class Row(NamedTuple):
    """One network call at X = alpha x_0 + sigma eps, and what becomes of the registers.

    `variance` and `spread` are for wrappers around the denoiser. A learned log-variance lies `spread` above the log of
    `variance` at most (log beta above log beta_tilde); where nothing is learned, spread is 0. `of_x` are the weights of
    X that `eliminate_x` has written as alpha x_0 + sigma eps; None stands for zeros. `mean` is (coef1, coef2) of
    samplers whose X is coef1 x_0 + coef2 x + std z, as `ddpm`; (0, 0) of all others, so that what divides by it shows.
    `guidance` is what guidance reads here by name, such as its scale, see `guidance.on`; 0 where there is none.
    """

    time: Any  # what the network is told
    alpha: Any
    sigma: Any
    variance: Any  # of the transition that this row samples
    spread: Any
    update: Any  # [R, R + 3]
    of_x: Any = None  # [R]
    mean: Any = None  # [2]
    guidance: Any = None  # a mapping of names to numbers, or to [B] of them, one of each example


def guidance_of(row: Row) -> Mapping[str, Any]:
    """What guidance reads, by name; nothing where there is none."""
    return row.guidance if isinstance(row.guidance, Mapping) else {}


class Table(NamedTuple):
    """N rows stacked along a leading axis; X starts as init times standard normal, the other registers as 0.

    `first` is the number of the first row, by which the rows draw their noise: not 0 where a longer table is begun in
    the middle, see `start_at`; None stands for 0.
    """

    rows: Row
    init: Any
    first: Any = None

    @property
    def num_calls(self) -> int:
        """How often the network is called."""
        return len(self.rows.time)


def row(
    level: Level,
    *,
    variance: float | None = None,
    spread: float = 0.0,
    mean: tuple[float, float] = (0.0, 0.0),
    **assignments: np.ndarray,
) -> Row:
    """The row that calls the network at `level` and assigns combinations of the unit vectors to registers.

    Args:
      level: what the network is told, and how X is composed there.
      variance: as in Row; by default that of the Z in X.
      spread: as in Row.
      mean: as in Row.
      assignments: register=combination.

    Raises:
      ValueError: unknown register.
    """
    update = np.eye(len(REGISTERS), len(REGISTERS) + 3)
    for name, combination in assignments.items():
        if name not in REGISTERS:
            raise unknown("register", name, REGISTERS)
        update[REGISTERS.index(name)] = combination
    variance = update[0, -1] ** 2 if variance is None else variance
    return Row(level.time, level.alpha, level.sigma, variance, spread, update, np.zeros(len(REGISTERS)), mean, 0.0)


P = ParamSpec("P")


def sampler(generator: Callable[P, Iterator[Row]]) -> Callable[P, Table]:
    """A generator of rows becomes a function that returns the Table in normal form, no larger than it needs to be."""

    @functools.wraps(generator)
    def build(*args: P.args, **kwargs: P.kwargs) -> Table:
        rows = Row(*(np.asarray(column, np.float64) for column in zip(*generator(*args, **kwargs), strict=True)))
        init = np.hypot(rows.alpha[0], rows.sigma[0])  # 1 for a variance-preserving process
        return compact(eliminate_x(Table(rows, init)))

    return build


LevelsT = TypeVar("LevelsT", Grid, Pairs)


def start_at(make: Callable[[LevelsT], Table], grid: LevelsT, step: int) -> Table:
    """make(the grid from this step on), its rows numbered as the last ones of make(grid): what img2img runs.

    samplers.sample(..., x_t=x_t) then begins with x_t = alpha x_0 + sigma eps of that level, where nothing of earlier
    steps is known: samplers with a history begin as at their first step. What is left of a sampler without one is bit
    for bit what it would have drawn.

    Args:
      make: a sampler, with its options if any: lambda grid: samplers.unipc(grid, order=3).
      grid: of the whole table.
      step: in [0, N); 0 is the whole.

    Raises:
      ValueError: step outside [0, N); a sampler that goes up the grid, or cannot do as few steps.
    """
    whole, rest = make(grid), make(grid.rest(step))
    if rest.rows.time[-1] != whole.rows.time[-1]:
        raise ValueError(
            f"a table can be begun at a step of the grid where it goes down to the grid's end, got one that calls the "
            f"network last at time {rest.rows.time[-1]:g}, from the first step on at {whole.rows.time[-1]:g}"
        )
    return rest._replace(first=np.float64(whole.num_calls - rest.num_calls)) if step else whole


def eliminate_x(table: Table) -> Table:
    """X = alpha x_0 + sigma eps at every row, so no update needs X.

    Done in float64, this also removes cancelling terms: samplers written in (X, EPS) lose digits at tiny alpha, where
    X / alpha and eps sigma / alpha are both of size 1e3 to 1e4. The weights of X are kept as `of_x`, for denoisers
    whose x_0 and eps do not compose X.
    """
    rows = table.rows
    update = rows.update.copy()
    of_x = update[:, :, 0] if rows.of_x is None else rows.of_x + update[:, :, 0]
    update[:, :, -3] += update[:, :, 0] * rows.alpha[:, None]
    update[:, :, -2] += update[:, :, 0] * rows.sigma[:, None]
    update[:, :, 0] = 0
    return table._replace(rows=rows._replace(update=update, of_x=of_x))


def compact(table: Table) -> Table:
    """Without the registers that X never depends on: memory for images is what a register costs."""
    update = table.rows.update
    size = update.shape[1]
    # A register that only keeps its own value does not read it.
    reads = (update[:, :, :size] != np.eye(size)).any(axis=0) & (update[:, :, :size] != 0).any(axis=0)
    needed = np.zeros(size, bool)
    needed[0] = True
    for _ in range(size):
        needed |= reads[needed].any(axis=0)
    used = np.flatnonzero(needed)
    columns = [*used, size, size + 1, size + 2]
    of_x = None if table.rows.of_x is None else table.rows.of_x[:, used]
    return table._replace(rows=table.rows._replace(update=update[:, used][:, :, columns], of_x=of_x))


def show(table: Table) -> str:
    """The table as assignments, a line a row: what makes a dense matrix readable.

    Registers other than X are R1, R2, ...; a register that keeps its value is not mentioned.
    """
    size = table.rows.update.shape[1]
    registers = ["X", *(f"R{i}" for i in range(1, size))]
    names = [*registers, "X0", "EPS", "Z"]
    lines = [f"X <- {table.init:.5g} Z"]
    for time, alpha, sigma, _, _, update in zip(*(np.asarray(leaf) for leaf in table.rows[:6]), strict=True):
        assignments = []
        for i, name in enumerate(registers):
            if not np.array_equal(update[i], np.eye(1, size + 3, i)[0]):
                terms = [f"{w:+.4g} {names[j]}" for j, w in enumerate(update[i]) if w != 0]
                assignments.append(f"{name} <- {' '.join(terms) or '0'}")
        lines.append(f"t={time:8.3f} alpha={alpha:.5f} sigma={sigma:.5f}   {'; '.join(assignments)}")
    return "\n".join(lines)
