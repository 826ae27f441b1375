"""Backends: one folder each, with one entry function `build(mapping, target)`; `targets` describes machines."""
