"""Let jobs flow and look at what grows; ends with 1 if something grew beyond its bound."""

from __future__ import annotations

import argparse
import signal
import sys

from benchmarks import report
from benchmarks.progress import Teller
from growth.place import KINDS, opened
from growth.scenes import SCENES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m growth", description="See that nothing grows but the backlog.")
    parser.add_argument("--storage", choices=KINDS, default="file")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each scene that takes as long as it is let")
    parser.add_argument("--only", action="append", choices=list(SCENES), help="only this; may be given several times")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # End what was started, as after Ctrl-C.
    sections = []
    chosen = options.only or list(SCENES)
    with Teller(len(chosen)) as teller:
        for name in chosen:
            teller.begin(name)
            with opened(options.storage) as place:
                rows = list(SCENES[name](place, options.minutes * 60))
            for row in rows:
                teller.found(row)
            teller.end()
            sections.append((name, rows))
    (report.print_json if options.json else report.print_table)(sections)
    return int(any(row.passed is False for _, rows in sections for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
