"""Frontends: one file each, from some notation to a verified cascade."""
