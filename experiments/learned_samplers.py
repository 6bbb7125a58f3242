"""Learned samplers against every hand-made one of as many calls: errors to the teacher, and distance to real data.

Run:       ddpm-jax learn-sampler runs/digits --num-steps 6                  (and 5, 8, 10)
           python experiments/learned_samplers.py runs/digits OUT.json runs/digits/samplers/learned_*.json
           with files of other runs: what transfers; with files of --num-pairs 8, 16, ...: how few suffice
Needs:     minutes on a CPU, for digits; of MNIST a quarter of an hour
Expect:    Shaul et al. 2024 (arXiv:2403.01329): several dB more than the best hand-made solver at 5 to 10 calls
Measured:  docs/learned_samplers.md

Errors are on pairs of another seed than any that was learned from or watched: of each pair the root mean square over
the pixels (of images in [-1, 1]), of the pairs the geometric mean and the root mean square. The best hand-made sampler
is chosen on these same pairs, in its favour, for each measure: all run on the first of the pairs, and those that are
nearest there by either measure on all of them. A file of another noise schedule is moved to the same
noise levels. The Frechet distance is that of `ddpm-jax bench solvers`: of Gaussians fitted to real images and to
samples in the space of the real images' first 64 principal components; no network judges.
"""

import json
import sys
from pathlib import Path
from typing import Any

from ddpm_jax import images, opening
from ddpm_jax.distil import files
from ddpm_jax.distil.command import TEACHER, TEACHER_GRID, network_of
from ddpm_jax.distil.fit import Errors, Network, Pairs, draw, errors_of, pair_key
from ddpm_jax.distil.start import HandMade, hand_made, ranked
from ddpm_jax.evaluate.samples import frechet
from ddpm_jax.host.storage import write_atomically
from ddpm_jax.samplers import Table
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.schedules import Schedule
from ddpm_jax.tools.bench import components
from ddpm_jax.tools.bench.solvers import SAMPLES, real_images

SEED, PAIRS, BATCH, TEACHER_STEPS = 12345, 128, 64, 100
FIRST, NEAREST = 32, 12  # of the pairs, all hand-made samplers; of these by each measure, on all pairs
SAMPLES_FROM = 2**30  # index of the first image that distances are measured on


def load(name: str, schedule: Schedule) -> tuple[Table, bool]:
    """The table of a file, and whether it had to be moved to this schedule's times."""
    learned = files.load(Path(name))
    try:
        files.check_schedule(learned, schedule)
    except ValueError:
        return files.retimed(learned, schedule).table(), True
    return learned.table(), False


def shortlisted(candidates: list[HandMade], network: Network, pairs: Pairs) -> list[HandMade]:
    """The nearest of all on the first pairs by either measure, with their errors on all pairs."""
    first = ranked(candidates, network, pairs._replace(targets=pairs.targets[:FIRST]))
    by_measure = (sorted(first, key=lambda item, m=m: item.error(m))[:NEAREST] for m in Errors._fields)
    kept = {item.name: item for items in by_measure for item in items}
    return ranked(list(kept.values()), network, pairs)


def main(run: str, out: str, *names: str) -> None:
    """Evaluate the files; OUT.json is written anew after each."""
    source, key = opening.open(run, print), pair_key(SEED)
    network = network_of(source)
    teacher = make_table(TEACHER, source.schedule, TEACHER_STEPS, TEACHER_GRID)
    pairs = Pairs(key, 0, draw(network, teacher, key, 0, PAIRS, BATCH))
    real = real_images(opening.data_of(run, source))
    axes = components.projection(real)
    reference = components.gaussian(real, axes)

    def distance(table: Table) -> float:
        drawn = images.to_uint8(draw(network, table, key, SAMPLES_FROM, SAMPLES, BATCH))
        return frechet.distance(components.gaussian(drawn, axes), reference)

    twice = make_table(TEACHER, source.schedule, 2 * TEACHER_STEPS, TEACHER_GRID)
    exactness = errors_of(network, twice, pairs, BATCH)._asdict()
    result: dict[str, Any] = {
        "run": run,
        "teacher": {"to_twice_the_calls": exactness, "frechet": distance(teacher)},
        "samplers": [],
    }
    print(json.dumps(result["teacher"]), flush=True)
    candidates: dict[int, int] = {}
    nearest: dict[int, list[HandMade]] = {}
    for name in names:
        table, moved = load(name, source.schedule)
        n = table.num_calls
        if n not in candidates:
            every = list(hand_made(source.schedule, n))
            candidates[n], nearest[n] = len(every), shortlisted(every, network, pairs)
        found = errors_of(network, table, pairs, BATCH)
        line: dict[str, Any] = {
            "file": name, "num_calls": n, "moved": moved, "of_hand_made": candidates[n],
            "learned": found._asdict() | {"frechet": distance(table)},
        }  # fmt: skip
        for measure in found._fields:
            best = min(nearest[n], key=lambda item, m=measure: item.error(m))
            line[f"best_by_{measure}"] = best.errors._asdict() | {"name": best.name, "frechet": distance(best.table)}
            line[f"ratio_of_{measure}"] = getattr(best.errors, measure) / getattr(found, measure)
        result["samplers"].append(line)
        write_atomically(Path(out), json.dumps(result, indent=1) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
