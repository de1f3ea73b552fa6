"""Turn new raw input into a batch that a trained model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from repertory.core.texts import text_bytes
from repertory.datasets import columns as tables
from repertory.datasets import images
from repertory.datasets.columns import Column
from repertory.datasets.raw_arrays import array_inputs, read_arrays
from repertory.errors import DataError


@dataclass(frozen=True)
class Encoder:
    """How raw input became the inputs of a data set, to do the same with new input.

    Args:
        kind: "image", "table", "sequence", "text" or "graph".
        shape: shape of one input.
        columns: of a table, of pairs of texts, or of the nodes of graphs, in order.

    >>> encoder = Encoder("table", (2,), (Column("age"), Column("height")))
    >>> Encoder.from_dict(encoder.to_dict()) == encoder
    True
    """

    kind: str
    shape: tuple[int, ...]
    columns: tuple[Column, ...] = ()

    def encode(self, path: str) -> tuple[Tensor, list[str]]:
        """Read new input.

        Args:
            path: for images, a file or a folder of any depth; for tables, a CSV, TSV or Parquet file with the
                columns of the training table, target or not; for texts, a table with the training table's
                passages, or a `.txt` file with a text a line; for graphs, a folder or table as for training, labelled
                or not; for all other kinds, `.npy` or `.npz` with an array `x`.

        Returns:
            Inputs `(examples, *shape)`, for texts `(texts, length)`, and a name for each: the file's path below
            the folder, or the row from 1.

        Raises:
            DataError: if the input cannot be read, or does not fit what the model was trained on.
        """
        place = Path(path).expanduser()
        if not place.exists():
            raise DataError(f"{path!r} does not exist; give the path of new input")
        if self.kind == "graph":
            from repertory.datasets.graphs import read_new

            rows = read_new(place, self.columns, self.shape[0])
            return rows, [str(row + 1) for row in range(len(rows))]
        if self.kind == "text":
            texts = self._from_texts(place)
            return self.texts(texts), [str(row + 1) for row in range(len(texts))]
        if place.suffix.lower() in {".npy", ".npz"}:
            inputs = self._from_arrays(place)
            return inputs, [str(row + 1) for row in range(len(inputs))]
        if self.kind == "image":
            return self._from_images(place)
        if self.kind == "table" and place.suffix.lower() in tables.SUFFIXES:
            text = [column.name for column in self.columns if column.categories is not None]
            frame = tables.read_frame(place, text)
            return tables.encode_frame(self.columns, frame, str(place)), [str(row + 1) for row in range(len(frame))]
        allowed = f"{', '.join(tables.SUFFIXES)}, .npy and .npz" if self.kind == "table" else ".npy and .npz with x"
        raise DataError(f"{path!r} is not read as {self.kind} input; allowed are {allowed}")

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return texts as bytes `(texts, length)`, cut and filled up as those of the training data.

        An encoder of texts takes them as passages, and as queries with a dimension more: `texts(...)[:, None]`.
        """
        return text_bytes(texts, self.shape[-1])

    def _from_texts(self, place: Path) -> list[str]:
        passage = self.columns[1].name
        if place.suffix.lower() == ".txt":
            try:
                found = [line.strip() for line in place.read_text(encoding="utf-8-sig").splitlines()]
            except UnicodeDecodeError:
                raise DataError(f"{str(place)!r} is not UTF-8 text; save it as UTF-8") from None
            found = [line for line in found if line]
        elif place.suffix.lower() in tables.SUFFIXES:
            frame = tables.read_frame(place, [passage])
            if passage not in frame.columns:
                raise DataError(
                    f"{str(place)!r} lacks the column {passage!r} of the passages; it has {', '.join(frame.columns)}"
                )
            tables.refuse_flaws(frame[[passage]], str(place), "fill them in or remove the rows")
            found = frame[passage].astype(str).tolist()
        else:
            raise DataError(
                f"{str(place)!r} is not read as texts; allowed are {', '.join(tables.SUFFIXES)} and .txt, a text a line"
            )
        if not found:
            raise DataError(f"{str(place)!r} holds no texts; add some")
        return found

    def image_files(self, path: str) -> tuple[list[Path], list[str]]:
        """Return the image files of new input, which is one or a folder of them, and a name for each.

        Raises:
            DataError: if there are none, or headers cannot be read.
        """
        place = Path(path).expanduser()
        if not place.exists():
            raise DataError(f"{path!r} does not exist; give the path of new input")
        paths = images.scan(place)[0] if place.is_dir() else [place]
        if not paths:
            raise DataError(f"{str(place)!r} holds no images; allowed are {', '.join(sorted(images.SUFFIXES))}")
        if bad := images.probe(paths)[1]:
            raise images.unreadable(bad, len(paths), "replace or remove them")
        return paths, [path.relative_to(place).as_posix() if place.is_dir() else path.name for path in paths]

    def _from_images(self, place: Path) -> tuple[Tensor, list[str]]:
        paths, names = self.image_files(str(place))
        channels, height, width = self.shape
        inputs, bad = images.decode(paths, (channels, height, width))
        if bad:
            raise images.unreadable(bad, len(paths), "replace or remove them")
        return inputs, names

    def _from_arrays(self, place: Path) -> Tensor:
        arrays = read_arrays(place)
        if "x" not in arrays:
            raise DataError(f"{str(place)!r} lacks the array x; it has {', '.join(arrays) or 'none'}")
        named = [column.name for column in self.columns if column.categories is not None]
        if named:
            raise DataError(
                f"{str(place)!r} cannot hold the text columns {', '.join(named)}; give a CSV or Parquet file"
            )
        values = arrays["x"]
        if self.kind == "sequence" and values.ndim == 2 and self.shape[0] == 1:
            values = values[:, None]
        modality, inputs = array_inputs(values, str(place))
        if modality != self.kind or tuple(inputs.shape[1:]) != self.shape:
            raise DataError(
                f"{str(place)!r} has {modality} inputs of shape {tuple(inputs.shape[1:])}, "
                f"but the model takes {self.kind} inputs of shape {self.shape}"
            )
        return inputs

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (ready for JSON) that `from_dict` turns back into an equal encoder."""
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "columns": [
                {
                    "name": column.name,
                    "categories": None if column.categories is None else list(column.categories),
                }
                for column in self.columns
            ],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Encoder:
        """Rebuild an encoder from `to_dict`'s result."""
        columns = tuple(
            Column(column["name"], None if column["categories"] is None else tuple(column["categories"]))
            for column in plain["columns"]
        )
        return cls(plain["kind"], tuple(plain["shape"]), columns)
