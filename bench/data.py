"""The data plane, measured: rates beside other loaders and the decoder alone, resume, order, memory, node, remote.

Everything in one run, on one process, file cache warm; what counts are the ratios. Needs a quiet machine.

    make bench                                      # with all peers, in an environment of their own
    python -m bench.data --json data.json
    python -m bench.data --only resume,order
"""

import argparse
import json
import sys
import time
from importlib import import_module
from pathlib import Path

from bench.dataset import PHOTOS, Workload
from bench.turns import Figures

PARTS = {
    "table": "bench.table",
    "workers": "bench.workers",
    "step": "bench.step",
    "resume": "bench.resume",
    "order": "bench.order_cost",
    "memory": "bench.loader_memory",
    "node": "bench.node",
    "remote": "bench.remote",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_parts, default=list(PARTS), metavar="A,B", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="of all contenders, after one that does not count")
    parser.add_argument(
        "--photos",
        type=Path,
        default=PHOTOS,
        metavar="DIR",
        help="with bg/*.jpg and fg/*.png (default: ../shared/real; rendered rooms where it is not there)",
    )
    parser.add_argument("--big", type=Path, metavar="SHARDS", help="400,000 training tuples (default: made, 3.2 GB)")
    parser.add_argument("--quick", action="store_true", help="few tuples, one round, no peers with own formats")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    workload = Workload(
        arguments.photos, arguments.big, 1 if arguments.quick else arguments.rounds, quick=arguments.quick
    )
    figures: Figures = {}
    for part in arguments.only:
        print(f"{part} …", file=sys.stderr, flush=True)
        began = time.monotonic()
        figures |= import_module(PARTS[part]).measure(workload)
        sys.stdout.flush()
        print(f"{part}: {time.monotonic() - began:.0f} s\n", file=sys.stderr, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def _parts(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: unknown; parts are {', '.join(PARTS)}")
    return chosen


if __name__ == "__main__":
    main()
