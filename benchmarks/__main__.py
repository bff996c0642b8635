"""Run the benchmarks and print what was measured beside what is promised. A miss does not fail: machines differ."""

from __future__ import annotations

import argparse
import functools
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack

from benchmarks import backlog, disk, idle, pickup, report, request_response, throughput
from benchmarks.measure import Plan, Row
from benchmarks.progress import Teller

BENCHMARKS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "throughput": throughput.measure,
    "request_response": request_response.measure,
    "pickup": pickup.measure,
    "backlog": backlog.measure,
    "idle": idle.measure,
    "disk": disk.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what jobq promises.")
    parser.add_argument("--on", choices=["redis", "valkey"], help="on a server of its own, instead of memory and files")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this one; may be given several times")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs: for a look, not for a comparison")
    parser.add_argument("--million", action="store_true", help="with --on: a backlog of a million jobs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # End what was started, as after Ctrl-C.
    with ExitStack() as ending:
        if options.on is None:
            benchmarks, server = BENCHMARKS, None
        else:
            benchmarks, server = _on_server(options.on, ending)
        unknown = [name for name in options.only or () if name not in benchmarks]
        if unknown:
            parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(benchmarks)}")
        chosen = {name: benchmarks[name] for name in options.only or benchmarks}
        sections = _measure(chosen, Plan(options.quick, options.million))
    (report.print_json if options.json else report.print_table)(sections, server)
    return 0


def _on_server(kind: str, ending: ExitStack) -> tuple[dict[str, Callable[[Plan], Iterator[Row]]], str]:
    # Imported here, because the others do without what the extra redis brings.
    from benchmarks.servers import SERVER_BENCHMARKS
    from benchmarks.servers.server import own_server

    server = ending.enter_context(own_server(kind))
    return {name: functools.partial(measure, server) for name, measure in SERVER_BENCHMARKS.items()}, str(server)


def _measure(
    benchmarks: Mapping[str, Callable[[Plan], Iterator[Row]]], plan: Plan
) -> Sequence[tuple[str, Sequence[Row]]]:
    sections = []
    with Teller(len(benchmarks)) as teller:
        for name, measure in benchmarks.items():
            teller.begin(name)
            rows = []
            for row in measure(plan):
                teller.found(row)
                rows.append(row)
            teller.end()
            sections.append((name, rows))
    return sections


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
