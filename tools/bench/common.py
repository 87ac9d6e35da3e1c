"""The form that all benchmarks of the toolkit have: ratios of two things timed side by side, one printed line for each.

Both things run in turns inside one process on one thread, and CPU time is counted, not wall-clock time, so that other
work on the machine disturbs both alike. A ratio is taken in each round; the line shows the median and the quartiles.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Sequence

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One measured quantity and what it should be.

    Args:
        name: what is measured, against what
        measure: takes the number of rounds, returns one value for each (or a single one, for what does not vary)
        bar: the value to reach; None for information only
        unit: `x` for a ratio of CPU times, else the unit of the value
        better: whether lower or higher values are better
    """

    name: str
    measure: Callable[[int], Sequence[float]]
    bar: Optional[float] = None
    unit: str = "x"
    better: str = "lower"

    def reaches_bar(self, value: float) -> bool:
        return self.bar is None or (value <= self.bar if self.better == "lower" else value >= self.bar)


def paired(
    build: Callable[[], tuple[Call, Call]], factor: float = 1.0, seconds: float = 0.2
) -> Callable[[int], list[float]]:
    """Measures CPU time of one call over CPU time of the other, divided by `factor`, in rounds.

    Args:
        build: returns the two calls; run only if the row is wanted
        seconds: CPU time that a round takes at least; calls alternate within a round
    """

    def measure(rounds: int) -> list[float]:
        calls, results = build(), [None, None]
        count = max(1, round(seconds / max(sum(_cpu_time(call) for call in calls), 1e-6))) if rounds > 1 else 1
        ratios, collecting = [], gc.isenabled()
        gc.disable()
        try:
            for _ in range(rounds):
                spent = [0.0, 0.0]
                for repeat in range(count):
                    # Who goes first changes from turn to turn: the second finds the caches as the first left them.
                    for which in (0, 1) if repeat % 2 else (1, 0):
                        start = time.process_time()
                        result = calls[which]()
                        spent[which] += time.process_time() - start
                        # Kept until the next turn, as a network keeps what its layers return: without it a small layer
                        # would write to the same cached memory each time.
                        results[which] = result
                ratios.append(spent[0] / spent[1] / factor)
                gc.collect(0)
        finally:
            if collecting:
                gc.enable()
        return ratios

    return measure


def _cpu_time(call: Call) -> float:
    call()  # warm-up
    start = time.process_time()
    call()
    return time.process_time() - start


def main(make_rows: Callable[[bool], Sequence[Row]], description: str, argv: Optional[Sequence[str]] = None) -> None:
    """Command line of a benchmark: prints its rows.

    With `--check` the exit code is 1 where a row is short of its bar or could not be measured.

    Args:
        make_rows: builds the rows; is told whether to be quick (small sizes)
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rows", nargs="+", metavar="TEXT", default=[""], help="rows with one of these in the name")
    parser.add_argument("--rounds", type=int, default=15, help="paired rounds for each row; fewer than 7 mean little")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round, only to see that it works")
    parser.add_argument("--check", action="store_true", help="exit 1 where a row is short of its bar or not measured")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    torch.set_num_threads(1)
    settle_allocator()
    rows = [row for row in make_rows(args.quick) if any(text in row.name for text in args.rows)]
    if not rows:
        parser.error(f"no row's name contains {' or '.join(args.rows)}")
    print(f"# {cpu_model()} · torch {torch.__version__} · {torch.get_num_threads()} thread · {datetime.date.today()}")
    width, units = max(len(row.name) for row in rows), max(len(row.unit) for row in rows)
    print(f"{'':{width}}  {'measured':>8} {'quartiles':>16}  {'bar':>10}")
    short = 0
    for row in rows:
        torch.manual_seed(0)
        try:
            values = row.measure(1 if args.quick else args.rounds)
        except ModuleNotFoundError as error:
            short += 1
            print(f"{row.name:{width}}  not measured: {error.name} is not installed")
            continue
        median = statistics.median(values)
        quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else []
        spread = " .. ".join(_plain(quartile) for quartile in quartiles[::2])
        bar = "" if row.bar is None else f"{'<=' if row.better == 'lower' else '>='} {_plain(row.bar)}"
        verdict = "" if row.bar is None else "ok" if row.reaches_bar(median) else "short"
        short += not row.reaches_bar(median)
        line = f"{row.name:{width}}  {_plain(median):>8} {spread:>16}  {bar:>10}  {row.unit:<{units}}  {verdict}"
        print(line.rstrip(), flush=True)
    if args.check and short:
        sys.exit(1)


def settle_allocator() -> None:
    """Frees one large block, after which glibc keeps freed memory, as it does in any process that has run for a while.

    Its thresholds for giving memory back start low and grow with the largest block freed; until then calls that free
    much are timed with the page faults of getting it again.
    """
    torch.empty(30 * 2**20, dtype=torch.uint8)


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3f}"
