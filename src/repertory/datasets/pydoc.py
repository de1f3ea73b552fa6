"""Pairs of texts from the documentation of Python's own library: what something is for, and the rest said about it."""

from __future__ import annotations

import ast
import functools
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from repertory.datasets.dataset import Dataset
from repertory.datasets.texts import from_pairs
from repertory.errors import DataError

_MODULES = """
_collections_abc _pydecimal _pydatetime _pyio abc argparse ast asyncio base64 bdb bz2 calendar cmd code codecs
collections concurrent configparser contextlib ctypes dataclasses datetime difflib dis doctest email enum fractions
ftplib functools graphlib gzip hmac http imaplib importlib inspect ipaddress json locale logging lzma mimetypes
multiprocessing numbers optparse os pathlib pdb pickletools pkgutil platform poplib queue random selectors shutil
smtplib socket socketserver ssl statistics subprocess tarfile tempfile textwrap threading traceback typing unittest
urllib weakref wsgiref xml xmlrpc zipfile
"""
"""Modules with much documentation for their size; those that a version of Python lacks are left out."""

_LENGTH = 256
_LEAST_WORDS, _LEAST_CHARACTERS = 3, 40
"""Of a query, and of a passage."""


def load_pydoc(name: str, spec: str) -> Dataset:
    """Return a pair for each documented class and function: the first sentence without its name, and what follows it.

    The modules are read as text and not imported. The pairs are always the same for one version of Python.

    Raises:
        DataError: if this Python comes without its sources.
    """
    queries, passages = _texts()
    return from_pairs([("summary", queries), ("details", passages)], name, spec, length=_LENGTH)


@functools.cache
def _texts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    pairs: dict[tuple[str, str], None] = {}
    for path in _sources(folder):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                pair = split_summary(node.name, ast.get_docstring(node) or "")
                if len(pair[0].split()) >= _LEAST_WORDS and len(pair[1]) >= _LEAST_CHARACTERS:
                    pairs.setdefault(pair)
    if not pairs:
        raise DataError(f"'pydoc' is made of the sources of Python's library, which {folder} lacks; install them")
    queries, passages = zip(*pairs)
    return queries, passages


def _sources(folder: Path) -> Iterator[Path]:
    for module in _MODULES.split():
        yield from filter(Path.is_file, [folder / f"{module}.py"])
        inside = (folder / module).rglob("*.py")
        yield from sorted(path for path in inside if not {"test", "tests"} & set(path.parts))


def split_summary(name: str, document: str) -> tuple[str, str]:
    """Split a docstring into its first sentence, without the name of what it documents, and the rest.

    >>> split_summary("rmtree", "Let rmtree delete a directory tree.\\n\\nErrors are raised.")
    ('Let delete a directory tree.', 'Errors are raised.')
    """
    paragraph, _, rest = document.partition("\n\n")
    first, *more = re.split(r"(?<=[.!?:])\s+", " ".join(paragraph.split()), maxsplit=1)
    summary = re.sub(rf"\b{re.escape(name)}\b", " ", first)
    return " ".join(summary.split()), " ".join([*more, *rest.split()])
