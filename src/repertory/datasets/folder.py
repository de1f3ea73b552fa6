"""Read a folder of class folders of images, with or without train, validation and test folders above them.

A folder `unlabelled` beside the class folders, or beside train, holds images without a class.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from statistics import median

import torch

from repertory.datasets.dataset import Dataset
from repertory.datasets.encoder import Encoder
from repertory.datasets.images import decode, is_hidden, probe, scan, unreadable
from repertory.errors import DataError, OptionError

PART_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""What a folder of a part may be called."""
_UNLABELLED = "unlabelled"
_LAYOUT = "expected FOLDER/CLASS/image files, or FOLDER/train/CLASS/... with test and val beside train"


def load_folder(path: Path, spec: str, image_size: int | None = None, skip_bad: bool = False) -> Dataset:
    """Read images whose class is the name of their folder.

    Args:
        path: the folder.
        spec: what the user typed.
        image_size: side in pixels; by default the median shorter side, as a multiple of 8 from 8 to 64.
        skip_bad: go on without the images that cannot be read.

    Returns:
        The data set; images are greyscale where all files are, else RGB.

    Raises:
        DataError: if the folders are not laid out as expected, or images cannot be read.
        OptionError: if `image_size` is not at least 1.
    """
    return load_folder_with_paths(path, spec, image_size, skip_bad)[0]


def load_folder_with_paths(
    path: Path, spec: str, image_size: int | None = None, skip_bad: bool = False
) -> tuple[Dataset, list[Path]]:
    """Read images as `load_folder` does, and return the file of each labelled one too."""
    if image_size is not None and image_size < 1:
        raise OptionError(f"image_size={image_size} must be at least 1 pixel, for example 64")
    notes: list[str] = []
    found, others = _find(path, notes)
    if others:
        notes.append(f"{_count(others, 'file')} ignored: no image, or outside a class folder")
    classes = tuple(sorted({label for files in found.values() for label in files}))
    paths = [file for files in found.values() for label in classes for file in files.get(label, [])]
    loose = _without_class(path, paths, notes)
    labels = [k for files in found.values() for k, label in enumerate(classes) for _ in files.get(label, [])]
    targets = torch.tensor(labels)
    sizes = torch.tensor([sum(map(len, files.values())) for files in found.values()])
    parts = torch.arange(len(found)).repeat_interleave(sizes)

    headers, closed = probe([*paths, *loose])
    if not headers:
        raise _bad(closed, [*paths, *loose])
    grey = sum(is_grey for _, is_grey in headers)
    channels = 1 if grey == len(headers) else 3
    if grey and channels == 3:
        notes.append(f"{_count(grey, 'greyscale image')} of {len(headers)} were converted to RGB")
    side = image_size
    if side is None:
        typical = median(shorter for shorter, _ in headers)
        side = min(64, max(8, 8 * round(typical / 8)))
        notes.append(f"images were brought to {side}x{side} (median shorter side {typical:g}; image_size changes it)")
    files = [*paths, *loose]
    images, broken = decode([file for file in files if file not in closed], (channels, side, side))
    bad = {file: {**closed, **broken}[file] for file in files if file in closed or file in broken}
    if bad and not skip_bad:
        raise _bad(bad, files)
    if bad:
        whole = torch.tensor([file not in broken for file in files if file not in closed])
        kept = torch.tensor([file not in bad for file in paths])
        images, targets, parts = images[whole], targets[kept], parts[kept]
        paths = [file for file in paths if file not in bad]
        notes.append(f"{_count(len(bad), 'image')} of {len(files)} could not be read, left out")
    fixed = {part: (parts == k).nonzero().flatten() for k, part in enumerate(found)} if len(found) > 1 else {}
    dataset = Dataset(
        name=path.resolve().name,
        spec=spec,
        task="classification",
        modality="image",
        inputs=images[: len(targets)],
        targets=targets,
        classes=classes,
        encoder=Encoder("image", (channels, side, side)),
        fixed=fixed,
        notes=tuple(notes),
        unlabelled=images[len(targets) :] if len(images) > len(targets) else None,
    )
    return dataset, paths


def _without_class(path: Path, labelled: list[Path], notes: list[str]) -> list[Path]:
    """Find the images in a folder `unlabelled`, none of which may be among the labelled ones."""
    folder = path / _UNLABELLED
    if not folder.is_dir():
        return []
    files, _ = scan(folder)
    if not files:
        raise DataError(f"{folder} has no images; add some, or remove the folder")
    sizes = {file.stat().st_size for file in files}
    alike = [file for file in labelled if file.stat().st_size in sizes]
    known = {hashlib.sha256(file.read_bytes()).digest(): file for file in alike}
    same = [(f, known[digest]) for f in files if (digest := hashlib.sha256(f.read_bytes()).digest()) in known]
    if same:
        raise DataError(
            f"{len(same)} of {_count(len(files), 'image')} in {folder} are labelled ones too, such as "
            f"{same[0][0].name}, which is {same[0][1]}; what has a label must not be among the unlabelled: remove these"
        )
    notes.append(f"{_count(len(files), 'image')} of the folder {_UNLABELLED} have no label")
    return files


def _find(path: Path, notes: list[str]) -> tuple[dict[str, dict[str, list[Path]]], int]:
    folders = [folder for folder in _subfolders(path) if folder.name != _UNLABELLED]
    by_part = {PART_NAMES[folder.name.lower()]: folder for folder in folders if folder.name.lower() in PART_NAMES}
    aside = [folder for folder in folders if folder not in by_part.values()]
    # Among pictures of vehicles, "train" is a class.
    if "train" not in by_part or (aside and not _subfolders(by_part["train"])):
        if by_part and len(by_part) == len(folders):
            raise DataError(f"{path} has {' and '.join(sorted(by_part))} but no train folder; {_LAYOUT}")
        files, others = _classes_in(path, passed_over=_UNLABELLED)
        return {"train": files}, others
    if aside:
        notes.append(f"folders beside train were ignored: {', '.join(folder.name for folder in aside)}")
    found: dict[str, dict[str, list[Path]]] = {}
    others = 0
    for part in ("train", "validation", "test"):
        if part in by_part:
            found[part], more = _classes_in(by_part[part])
            others += more
    if "test" in found and not found["train"].keys() & found["test"].keys():
        # The customary layout of a search: the test part has classes of its own.
        notes.append("train and test have other classes, as for a search among unseen ones (--scenario retrieval)")
        return found, others
    for part, files in found.items():
        differing = [
            f"only in {here}: {', '.join(sorted(only))}"
            for here, only in (
                ("train", found["train"].keys() - files),
                (part, files.keys() - found["train"]),
            )
            if only
        ]
        if differing:
            raise DataError(
                f"{path}: the classes of train and {part} differ ({'; '.join(differing)}); make them the same"
            )
    return found, others


def _classes_in(path: Path, passed_over: str = "") -> tuple[dict[str, list[Path]], int]:
    folders = [folder for folder in _subfolders(path) if folder.name != passed_over]
    loose = [entry for entry in path.iterdir() if entry.is_file() and not is_hidden(entry.name)]
    if not folders:
        held = f"{len(loose)} files but no class folders" if loose else "nothing in it"
        raise DataError(f"{path} has {held}; {_LAYOUT}")
    scanned = {folder.name: scan(folder) for folder in folders}
    empty = [name for name, (files, _) in scanned.items() if not files]
    if empty:
        raise DataError(
            f"{path}: class folders without images: {', '.join(empty)}; add images or remove the folders ({_LAYOUT})"
        )
    if len(folders) == 1:
        raise DataError(f"{path} has one class folder only ({folders[0].name}); at least 2 are needed; {_LAYOUT}")
    return {name: files for name, (files, _) in scanned.items()}, len(loose) + sum(n for _, n in scanned.values())


def _subfolders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def _bad(bad: dict[Path, str], paths: list[Path]) -> DataError:
    return unreadable(bad, len(paths), "replace or remove them, or go on without them with --skip-bad (skip_bad=True)")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
