"""Makes `build/typing/tcc/`, symlinks that show type checkers the folders under their import names.

Type checkers cannot follow the import hook of an editable install; this tree is on their path
instead (`mypy_path` in pyproject.toml). Made anew each time, so that no file that is gone stays.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "typing" / "tcc"

shutil.rmtree(TREE, ignore_errors=True)
TREE.mkdir(parents=True)
sources = [path for path in (ROOT / "compiler").iterdir() if path.name != "__pycache__"]
sources += [ROOT / folder for folder in ("ir", "passes", "backends", "frontends")]
for source in sources:
    (TREE / source.name).symlink_to(source, target_is_directory=source.is_dir())
