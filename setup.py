"""Maps the top-level folders onto the import name `tcc`; sub-packages are discovered."""

from setuptools import find_packages, setup

FOLDERS = {"tcc": "compiler", **{f"tcc.{f}": f for f in ("ir", "passes", "backends", "frontends")}}
packages = [
    name
    for package, folder in FOLDERS.items()
    for name in (package, *(f"{package}.{sub}" for sub in find_packages(folder)))
]
# the error pages travel with the code: `tcc explain --code` prints them
setup(package_dir={**FOLDERS, "tcc.docs": "docs"}, packages=[*packages, "tcc.docs"])
