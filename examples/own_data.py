"""Compare two methods on a folder of images: here of shapes that are drawn for the purpose."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import repertory

SIDE, EACH = 16, 40


def draw(folder: Path) -> None:
    """Write `folder/circle`, `folder/square` and `folder/triangle` with images of noisy shapes."""
    random = np.random.default_rng(0)
    for shape in ("circle", "square", "triangle"):
        (folder / shape).mkdir(parents=True)
        for number in range(EACH):
            image = Image.new("L", (SIDE, SIDE))
            pen, size = ImageDraw.Draw(image), int(random.integers(4, 8))
            x, y = (int(place) for place in random.integers(0, SIDE - size, 2))
            if shape == "circle":
                pen.ellipse((x, y, x + size, y + size), fill=255)
            elif shape == "square":
                pen.rectangle((x, y, x + size, y + size), fill=255)
            else:
                pen.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=255)
            noisy = np.clip(np.asarray(image) + random.normal(0, 40, (SIDE, SIDE)), 0, 255)
            Image.fromarray(noisy.astype(np.uint8)).save(folder / shape / f"{number:03}.png")


def main() -> None:
    """Draw the images, compare, and print a line a method."""
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "shapes")
        found = repertory.compare(
            "lion",
            "gda-clip",
            data=f"{folder}/shapes",
            seeds=2,
            epochs=10,
            device="cpu",
            out=f"{folder}/comparison",
        )
        assert (Path(folder) / "comparison" / "report.html").exists()
    sizes = ", ".join(f"{found['data'][part]} {part}" for part in ("training", "validation", "test"))
    print(f"images: {sizes}")
    for row in found["rows"]:
        cost = f"{row['cost']['passes']:.2f} x the passes"
        print(f"{row['label']:9} {found['metric']} {row['mean']:.3f}, {cost}  {row['verdict'] or ''}")


# The runs happen in processes of their own, which import this file.
if __name__ == "__main__":
    main()
