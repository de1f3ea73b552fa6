"""The index of methods, read from their modules without importing them."""

from repertory.catalogue.entry import Entry
from repertory.catalogue.index import FOLDERS, entries, get, select

__all__ = ["FOLDERS", "Entry", "entries", "get", "select"]
