"""Run the benchmarks and print what was measured beside what is promised. A miss does not fail: machines differ."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator

from benchmarks import backlog, disk, idle, pickup, report, request_response, throughput
from benchmarks.measure import Plan, Row

BENCHMARKS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "throughput": throughput.measure,
    "request_response": request_response.measure,
    "pickup": pickup.measure,
    "backlog": backlog.measure,
    "idle": idle.measure,
    "disk": disk.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what jobq promises.")
    parser.add_argument("--only", choices=BENCHMARKS, action="append", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs: for a look, not for a comparison")
    options = parser.parse_args()
    sections = []
    for name in options.only or BENCHMARKS:
        print(f"{name} …", end=" ", file=sys.stderr, flush=True)
        started = time.perf_counter()
        sections.append((name, list(BENCHMARKS[name](Plan(options.quick)))))
        print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    (report.print_json if options.json else report.print_table)(sections)


if __name__ == "__main__":
    main()
