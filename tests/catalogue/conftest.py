"""A catalogue of a few made-up methods in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repertory.catalogue import FOLDERS

Write = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "src" / "repertory"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def write(root: Path) -> Write:
    """Write a method's module; what is not given gets a plain value."""

    def write_method(
        slug: str,
        *,
        use: str = "always",
        idea: str = "An idea.",
        package: bool = False,
        more: str = "",
        **fields: Any,
    ) -> Path:
        values = {
            "slug": slug,
            "name": slug.upper(),
            "title": f"On {slug}",
            "authors": "A. Author et al.",
            "year": 2021,
            "venue": "ICLR 2021",
            "link": "https://example.org/paper",
            "kind": "algorithm",
            "entry": slug.upper().replace("-", ""),
            "problems": ("something else",),
            "defaults": {"rho": 0.05},
            **fields,
        }
        card = "\n".join(f"    {name}={value!r}," for name, value in values.items())
        stem = slug.replace("-", "_")
        folder = root / FOLDERS[values["kind"]]
        path = folder / stem / "__init__.py" if package else folder / f"{stem}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'r"""What {slug} is.\n\n## Idea\n{idea}\n\n## Use it when\n{use}\n\n## Equations\n'
            f'$$ w \\leftarrow w_1 * w_2 $$\n"""\n\nimport a_package_that_does_not_exist\n\n'
            f"CARD = Card(\n{card}\n)\n{more}",
            encoding="utf-8",
        )
        return path

    return write_method
