"""Train one recipe, save it, and predict with what was saved."""

from __future__ import annotations

import tempfile
from pathlib import Path

import repertory
from repertory.datasets import load


def main() -> None:
    """Fit SAF on top of Lion, and load the model from its folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        repertory.fit("saf:start=2,lag=1+lion", data="digits", out=out, epochs=6, device="cpu")
        print(*sorted(path.name for path in out.iterdir()), sep=", ")
        model = repertory.load(out)
    print({name: round(value, 3) for name, value in model.about["metrics"]["test"].items()})

    # Raw inputs: the model brings its own preprocessing.
    digits = load("digits")
    for row, target in zip(model.predict(digits.inputs[:5]).rows(), digits.targets, strict=False):
        print(f"digit {target}: {row['prediction']} ({row['probability']:.0%})")


if __name__ == "__main__":
    main()
