"""Runs generated launchers in Triton's interpreter: `python -m tcc.backends.triton._interpret
FOLDER`, in a process of its own.

The folder holds `jobs.json`, a list of {"source", "launcher", "inputs", "sizes"}, and one `N.npz`
of inputs per job; the results are written to `N.out.npz`, an error as text to `N.error`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Job:
    """One call of a launcher with NumPy arrays, in the order of its parameters, and sizes by
    name.
    """

    source: str
    launcher: str
    inputs: Sequence[Any]
    sizes: Mapping[str, int]


def interpret_all(jobs: Sequence[Job], timeout_s: float = 600) -> list[list[Any]]:
    """The results of all jobs, from one child process; an error of a job is raised as T0366."""
    from tcc.ir.diagnostics import CompileError

    with tempfile.TemporaryDirectory(prefix="tcc-triton-") as name:
        folder = Path(name)
        table = []
        for n, job in enumerate(jobs):
            (folder / f"{n}.py").write_text(job.source, encoding="utf-8")
            np.savez(folder / f"{n}.npz", *[np.asarray(x) for x in job.inputs])
            table.append({"launcher": job.launcher, "sizes": dict(job.sizes)})
        (folder / "jobs.json").write_text(json.dumps(table), encoding="utf-8")
        command = [sys.executable, "-m", "tcc.backends.triton._interpret", str(folder)]
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise CompileError(
                "T0366",
                f"Triton's interpreter ended with {done.returncode}: {done.stderr[-2000:]}",
                helps="check that torch and triton are installed together",
            )
        results: list[list[Any]] = []
        for n in range(len(jobs)):
            error = folder / f"{n}.error"
            if error.exists():
                raise CompileError(
                    "T0366",
                    f"the kernels of `{jobs[n].launcher}` failed:\n{error.read_text()}",
                    helps="this is a bug in tcc: please report it with the source",
                )
            with np.load(folder / f"{n}.out.npz") as data:
                results.append([data[f"arr_{i}"] for i in range(len(data.files))])
        return results


def _main(folder: Path) -> None:
    import torch

    from tcc.backends.triton._toolchain import load

    for n, job in enumerate(json.loads((folder / "jobs.json").read_text())):
        try:
            module = load((folder / f"{n}.py").read_text(encoding="utf-8"))
            with np.load(folder / f"{n}.npz") as data:
                inputs = [torch.from_numpy(data[f"arr_{i}"]) for i in range(len(data.files))]
            out = getattr(module, job["launcher"])(*inputs, **job["sizes"])
            np.savez(
                folder / f"{n}.out.npz",
                *[t.numpy() for t in (out if isinstance(out, tuple) else (out,))],
            )
        except Exception:
            (folder / f"{n}.error").write_text(traceback.format_exc(), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
