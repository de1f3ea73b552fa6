"""The folder of a comparison: plan, recipes, splits, one result a run, and the summary."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from repertory.compare.files import write_json, write_yaml
from repertory.compare.plan import Plan
from repertory.errors import UserError


class RunFolder:
    """One comparison's files. A result is written in one move as soon as its run has ended.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def find(cls, plan: Plan, out: str | Path | None, resume: bool) -> RunFolder:
        """Return the folder for a plan, or the one it was begun in; nothing is written.

        Args:
            plan: what will be run.
            out: the folder, None for a name under `runs/` made from data and methods.
            resume: go on with what lies there.

        Raises:
            UserError: if the folder holds another comparison, or this one without `resume`.
        """
        if out is None:
            return cls._default(plan, resume)
        folder = cls(Path(out))
        folder._check(plan, resume)
        return folder

    def begin(self, plan: Plan) -> None:
        """Make the folder and write the plan.

        Raises:
            UserError: if it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "plan.json", {"fingerprint": plan.fingerprint(), **plan.to_dict()})
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"--out {str(self.path)!r} is a file; name a folder") from error
        except OSError as error:
            raise UserError(
                f"cannot write to {str(self.path)!r}: {error.strerror}; choose another folder with --out"
            ) from error

    @classmethod
    def _default(cls, plan: Plan, resume: bool) -> RunFolder:
        words = [plan.dataset.name, *(slug for arm in plan.arms[1:] for slug in arm.slugs)]
        stem = safe_name("-".join(dict.fromkeys(words)))[:80]
        number = 1
        while True:
            folder = cls(Path("runs") / (stem if number == 1 else f"{stem}-{number}"))
            saved = folder.saved_fingerprint()
            if saved is None or (resume and saved == plan.fingerprint()):
                return folder
            number += 1

    def _check(self, plan: Plan, resume: bool) -> None:
        saved = self.saved_fingerprint()
        if saved is None:
            if self.path.is_dir() and any(self.path.iterdir()):
                raise UserError(f"--out {str(self.path)!r} holds other files; name a new or empty folder")
            return
        if saved != plan.fingerprint():
            raise UserError(
                f"--out {str(self.path)!r} holds another comparison (other data, methods or settings); "
                "name a new folder, or "
                f"repeat its own command with --resume"
            )
        if not resume:
            raise UserError(
                f"--out {str(self.path)!r} holds this comparison already; add --resume to complete it, "
                "or name a new folder"
            )

    def saved_fingerprint(self) -> str | None:
        """Return the fingerprint of the plan that lies there, None where none does."""
        try:
            return str(json.loads((self.path / "plan.json").read_text(encoding="utf-8"))["fingerprint"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, LookupError, TypeError, OSError):
            return "damaged"

    def budget(self) -> dict[str, Any]:
        """Return the budget that the saved plan was begun with."""
        return dict(json.loads((self.path / "plan.json").read_text(encoding="utf-8"))["budget"])

    def result(self, key: str) -> dict[str, Any] | None:
        """Return the saved result of a run; one that failed, or cannot be read, counts as not run."""
        try:
            saved = json.loads((self.path / "results" / f"{key}.json").read_text(encoding="utf-8"))
            return None if saved["status"] == "failed" else dict(saved)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def save_result(self, key: str, result: dict[str, Any]) -> dict[str, Any]:
        """Write the result of one run, its split and tables apart; return it without these."""
        for name, columns in result.pop("tables", {}).items():
            _write_table(self.path / name / f"{key}.parquet", columns)
        indices = result.pop("indices", None)
        if indices is not None:
            split = self.path / "splits" / f"seed-{result['split_seed']}.json"
            if not split.exists():
                write_json(split, indices)
        write_json(self.path / "results" / f"{key}.json", result)
        return result

    def save_recipe(self, label: str, recipe: dict[str, Any]) -> None:
        """Write the recipe of one arm."""
        write_yaml(self.path / "recipes" / f"{safe_name(label)}.yaml", recipe)

    def save_table(self, results: list[dict[str, Any]]) -> None:
        """Write one Parquet row a run: label, seed, status, every metric and every cost."""
        rows = [
            {
                "label": r["label"],
                "method": r["method"],
                "seed": r["seed"],
                "status": r["status"],
                "error": r["error"],
                **{f"{part}_{name}": value for part, values in r["metrics"].items() for name, value in values.items()},
                **r["cost"],
            }
            for r in results
        ]
        _write_table(self.path / "results.parquet", rows)


def _write_table(path: Path, rows: Any) -> None:
    import pandas as pd

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    pd.DataFrame(rows).to_parquet(partial, index=False)
    partial.replace(path)


def safe_name(text: str) -> str:
    """Return a name for a file that says what it is of; what was changed is told apart by a short hash.

    >>> safe_name("lion")
    'lion'
    >>> safe_name("esam:rho=0.1")
    'esam-rho-0.1-00a565'
    """
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "x"
    return clean if clean == text else f"{clean}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
