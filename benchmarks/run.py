"""Times tcc against eager PyTorch and Inductor.

    python benchmarks/run.py                          # all cases, 1 and 2 threads
    python benchmarks/run.py softmax minilm --threads 1 --quick --markdown out.md

A case is named by any part of its name. Each thread count runs in a fresh process whose pools have
that size. Errors are against the same function in float64, relative to its largest magnitude.
Where a case only has to move its bytes, the column `limit` is the time to move them, and `of limit`
how close tcc comes to it. `--peers eager,inductor,onnxruntime,openvino,flex,tcc` adds ONNX Runtime,
OpenVINO and, for attentions, FlexAttention as Inductor compiles it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KNOWN = ("eager", "inductor", "onnxruntime", "openvino", "flex", "tcc")


def main() -> int:
    options = parse()
    if options.child:
        Path(options.child).write_text(json.dumps(measure_here(options)))
        return 0
    if options.list:
        from cases import CASES

        print("\n".join(sorted(CASES)))
        return 0
    rows: list[Row] = []
    sections: list[tuple[str, str]] = []
    for threads in options.threads:
        found = measure_in_child(threads)
        if isinstance(found, int):
            return found
        rows += found
        title = f"{threads} thread{'s' if threads > 1 else ''}"
        sections.append((title, report(found, options.peers, markdown=False)))
        print(f"{title}\n\n{sections[-1][1]}\n", flush=True)
        sections[-1] = (title, report(found, options.peers, markdown=True))
    if options.markdown:
        parts = [f"### {title}\n\n{text}\n" for title, text in sections]
        Path(options.markdown).write_text("\n".join(parts))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cases", nargs="*", help="parts of the names of cases (default: all)")
    parser.add_argument("--threads", default="1,2", metavar="N,...", help="one table each")
    parser.add_argument("--peers", default="eager,inductor,tcc", help="comma-separated")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--warm", action="store_true", help="let compilers use their usual caches")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there, too")
    parser.add_argument("--json", metavar="FILE", help="write all statistics there")
    parser.add_argument(
        "--malloc",
        choices=["keep", "default"],
        default="keep",
        help="`keep`: freed memory is reused (default); `default`: each large result is new memory",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.peers = options.peers.split(",")
    counts = options.threads.split(",")
    if not all(count.isdigit() and int(count) for count in counts):
        parser.error("--threads wants positive numbers, such as 1,2")
    options.threads = [int(count) for count in counts]
    unknown = sorted(set(options.peers) - set(KNOWN))
    if unknown:
        parser.error(f"no such peer: {unknown[0]}")
    return options


def measure_in_child(threads: int) -> list[Row] | int:
    """Runs this script again, with thread pools of size `threads` and empty compiler caches."""
    arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="tcc-benchmark-") as folder:
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
        if "default" not in arguments and "--malloc=default" not in arguments:
            # glibc would give large results back to the system: each call pays their page faults
            environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
        environment.setdefault("CXX", "g++")
        if "--warm" not in arguments:
            environment["TCC_CACHE_DIR"] = str(Path(folder, "tcc"))
            environment["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder, "inductor"))
        result = Path(folder, "rows.json")
        command = [sys.executable, __file__, *arguments, "--child", str(result)]
        done = subprocess.run(command, env=environment, check=False)
        if done.returncode:
            return done.returncode
        rows: list[Row] = json.loads(result.read_text())
        return rows


def measure_here(options: argparse.Namespace) -> list[Row]:
    """One row per case, in a process that `measure_in_child` has set up."""
    import harness
    import torch
    from cases import CASES, exact
    from limits import moves
    from peers import Built, applies, build

    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    wanted = [name for name in CASES if any(part in name for part in options.cases or [""])]
    if not wanted:
        print(f"no case has {options.cases} in its name; --list shows all", file=sys.stderr)
        sys.exit(2)
    effort: dict[str, Any] = (
        {"rounds": 5, "window_s": 0.01, "budget_s": 4.0} if options.quick else {}
    )
    rows: list[Row] = []
    for name in sorted(wanted):
        print(f"  {name} ...", file=sys.stderr, flush=True)
        with torch.no_grad():
            function, inputs = CASES[name].make()
            truth = exact(function, inputs)
            built = {
                peer: build(peer, CASES[name], function, inputs)
                for peer in options.peers
                if applies(peer, CASES[name])
            }
            live = {peer: b for peer, b in built.items() if isinstance(b, Built)}
            calls = {peer: b.call for peer, b in live.items()}
            if CASES[name].streams:
                calls["limit"], moved = moves(inputs, truth)
            timings = harness.measure(calls, threads=threads, **effort)
        row: Row = {"case": name, "threads": threads} | {peer: {} for peer in options.peers}
        if "limit" in timings:
            row["limit"] = timings["limit"].to_json() | {"bytes": moved}
        for peer, b in built.items():
            row[peer] = {"error": b} if isinstance(b, str) else timings[peer].to_json()
        for peer, b in live.items():
            row[peer] |= {"first_s": b.seconds, "max_error": harness.max_error(b.result, truth)}
        rows.append(row)
    return rows


def report(rows: list[Row], peers: list[str], *, markdown: bool) -> str:
    """The table, and under it the reasons for each `-`; `best` is the fastest of the others."""
    from harness import table

    others = [peer for peer in peers if peer != "tcc"]
    ratios = [f"{peer}/tcc" for peer in [*others, "best"]] if "tcc" in peers else []
    errors = [peer for peer in ("tcc", "eager") if peer in peers]
    compilers = [peer for peer in ("tcc", "inductor") if peer in peers]
    limits = ["limit ms", "of limit"] if any("limit" in row for row in rows) else []
    header = ["case", *(f"{peer} ms" for peer in peers), *ratios, *limits]
    header += [f"{peer} error" for peer in errors] + [f"{peer} build s" for peer in compilers]
    lines: list[list[str]] = []
    failures: dict[str, list[str]] = {}
    for row in rows:
        line = [row["case"], *(number(row, peer, "ms", ".3f") for peer in peers)]
        times = [row[peer].get("ms", math.inf) for peer in others]
        for time in [*times, min(times, default=math.inf)] if ratios else []:
            both = time < math.inf and "ms" in row["tcc"]
            line.append(f"{time / row['tcc']['ms']:.2f}x" if both else "-")
        if limits:
            line += of_limit(row)
        line += [number(row, peer, "max_error", ".0e") for peer in errors]
        line += [number(row, peer, "first_s", ".1f") for peer in compilers]
        lines.append(line)
        for peer in peers:
            if "error" in row[peer]:
                failures.setdefault(f"{peer}: {row[peer]['error']}", []).append(row["case"])
    mark = "- " if markdown else "  "
    bullets = [f"{mark}{failure} ({', '.join(cases)})" for failure, cases in failures.items()]
    return "\n".join(
        [table(header, lines, markdown=markdown), *([""] if bullets else []), *bullets]
    )


def of_limit(row: Row) -> list[str]:
    """The time to move a case's bytes, and the share of it in tcc's time."""
    if "limit" not in row:
        return ["-", "-"]
    least: float = row["limit"]["ms"]
    ours = row.get("tcc", {}).get("ms")
    return [f"{least:.3f}", "-" if ours is None else f"{100 * least / ours:.0f} %"]


def number(row: Row, peer: str, key: str, form: str) -> str:
    return format(row[peer][key], form) if key in row[peer] else "-"


if __name__ == "__main__":
    sys.exit(main())
