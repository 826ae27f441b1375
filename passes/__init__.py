"""Passes: one file each, named as the pass; a file that starts with `_` is machinery that passes share."""
