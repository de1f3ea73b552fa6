"""Trained models in a folder: weights, recipe, classes and preprocessing; plain data, nothing that runs by itself."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repertory.datasets import Dataset, Encoder, Normaliser, Splits
from repertory.datasets.new_bags import bags_of
from repertory.errors import DataError, UserError
from repertory.recipe import Recipe, locate
from repertory.training.bag_predictions import DEFAULTS, BagPredictions, number_bags, score_bags
from repertory.training.build import build_learner
from repertory.training.dense import predict_masks
from repertory.training.evaluate import embed, predict
from repertory.training.image_masks import ImageMasks
from repertory.training.learner import Learner
from repertory.training.mask_files import MaskPredictions

_FORMAT = 1
_OWN = tuple(f"repertory.{room}" for room in ("models", "losses", "layers", "transforms", "estimators", "adapters"))
_WEIGHTS, _RECIPE, _ABOUT = "weights.safetensors", "recipe.yaml", "model.json"
_AFTER = "after."
"""What the names of tensors begin with that belong to parts of the slot `after`."""


@dataclasses.dataclass
class Predictions:
    """What a model says of some inputs.

    Args:
        ids: name of each input: its file, or the row of the table.
        outputs: logits `(examples, classes)`, or values `(examples, 1)` in the target's unit.
        classes: names of the classes, empty for regression.
        columns: what else is known of each input, by name.
    """

    ids: list[str]
    outputs: Tensor
    classes: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping an input: `input`, and `prediction` with the `probability` of each class, or the value.

        Further columns stand after `input`.
        """
        further = [dict(zip(self.columns, values)) for values in zip(*self.columns.values())] or [{}] * len(self.ids)
        if not self.classes:
            values = self.outputs.flatten().tolist()
            return [{"input": i, **more, "prediction": v} for i, more, v in zip(self.ids, further, values)]
        probabilities = self.outputs.softmax(1)
        return [
            {
                "input": name,
                **more,
                "prediction": self.classes[int(row.argmax())],
                "probability": round(float(row.max()), 6),
                **{f"p({label})": round(float(p), 6) for label, p in zip(self.classes, row)},
            }
            for name, more, row in zip(self.ids, further, probabilities)
        ]


class SavedModel(nn.Module):
    """A trained model with its preprocessing.

    Args:
        learner: the network and its criterion.
        recipe: how it was trained.
        encoder: from a path to a batch of raw inputs.
        normaliser: from raw inputs to what the network takes.
        about: task, classes, metrics, versions.
        refiners: what changes embeddings that are searched together, in this order.
    """

    def __init__(
        self,
        learner: Learner,
        recipe: Recipe,
        encoder: Encoder,
        normaliser: Normaliser,
        about: Mapping[str, Any],
        refiners: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        self.learner = learner
        self.recipe = recipe
        self.encoder = encoder
        self.normaliser = normaliser
        self.about = dict(about)
        self.classes = tuple(about["classes"])
        self.refiners = tuple(refiners)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `(batch, classes)`, or values `(batch, 1)`, for raw inputs `(batch, ...)`."""
        output: Tensor = self.learner(self.normaliser(inputs))
        return output

    def predict(
        self, data: str | Path | Tensor, *, bags: Sequence[Any] | None = None, instances: bool = False
    ) -> Predictions | MaskPredictions | BagPredictions:
        """Predict for a path (image, folder of images, table, array) or a batch of raw inputs.

        Args:
            data: a path, or raw inputs `(batch, ...)`.
            bags: of a model of the scenario bags, the bag of each input; by default the column or array of the training
                data, or the folder that an image is in.
            instances: of a model of the scenario bags, predict single instances, which need no bags.

        Returns:
            One prediction an input; masks of a model of the scenario segmentation, of the size of each image; one
            prediction a bag of a model of the scenario bags, with those of the instances.

        Raises:
            DataError: if the path cannot be read, the inputs have another shape than in training, or nothing says which
                are of one bag.
            UserError: if the model predicts nothing, or bags are given to one of another scenario.
        """
        if self.about["task"] != "bags" and (bags is not None or instances):
            raise UserError(
                f"bags and instances are for models of the scenario bags; this one was trained for "
                f"{self.about['task']}: leave them out"
            )
        if self.about["task"] == "pairs":
            raise UserError(
                "a model of pairs of texts predicts nothing, it embeds texts to search by; in Python call embed and "
                "embed_queries of what repertory.load returns"
            )
        if self.about["task"] == "segmentation" and _images_at(data):
            files, ids = self.encoder.image_files(str(data))
            channels, height, width = self.encoder.shape
            shape = channels, height, width
            own = ImageMasks(self.learner, files, shape, len(self.classes), self.normaliser)
            return MaskPredictions(ids, own, self.classes)
        inputs, ids = self._read(data)
        if self.about["task"] == "segmentation":
            masks = predict_masks(self.learner, inputs, len(self.classes), self.normaliser)
            return MaskPredictions(ids, masks, self.classes)
        if self.about["task"] == "bags":
            return self._predict_bags(data, inputs, ids, bags, instances)
        return Predictions(ids, predict(self.learner, inputs, self.normaliser), self.classes)

    def _predict_bags(
        self, data: str | Path | Tensor, inputs: Tensor, ids: list[str], bags: Sequence[Any] | None, instances: bool
    ) -> Predictions | BagPredictions:
        kept = {**DEFAULTS, **self.about.get("bags", {})}
        if bags is None and not isinstance(data, Tensor):
            bags = bags_of(str(data), ids, self.encoder.kind, kept["column"], required=not instances)
        if bags is None and not instances:
            raise DataError("nothing says which inputs are of one bag; give bags=, or ask for instances=True")
        if bags is None:
            return Predictions(ids, predict(self.learner, inputs, self.normaliser), self.classes)
        names, groups = number_bags(bags, len(inputs))
        outputs, scores, weights = score_bags(self.learner, inputs, groups, self.normaliser, kept["pool"])
        columns: dict[str, Sequence[Any]] = {"bag": [names[number] for number in groups.tolist()]}
        if weights is not None:
            columns["weight"] = [round(weight, 6) for weight in weights.tolist()]
        each = Predictions(ids, outputs, self.classes, columns)
        sizes = groups.bincount().tolist()
        return each if instances else BagPredictions(names, scores, kept["threshold"], sizes, self.classes, each)

    def embed(self, data: str | Path | Tensor) -> tuple[Tensor, list[str]]:
        """Return what a path or a batch of raw inputs is searched by, and a name for each.

        Returns:
            `(examples, dim)` float32, and the file or row of each.

        Raises:
            DataError: if the path cannot be read, or the inputs have another shape than in training.
        """
        inputs, ids = self._read(data)
        return embed(self.learner, inputs, self.normaliser), ids

    def refine(self, embeddings: Tensor, groups: Tensor | None = None) -> Tensor:
        """Return embeddings as the recipe's last parts change them (a re-ranking, say); else as they are.

        Args:
            embeddings: all that are searched together, queries and gallery `(rows, dim)`.
            groups: the camera of each row `(rows,)`, for parts that ask.
        """
        given = {} if groups is None else {"groups": groups}
        for each in self.refiners:
            embeddings = each.refine(embeddings, **given)
        return embeddings

    def embed_queries(self, texts: Sequence[str]) -> Tensor:
        """Return what texts search by, `(texts, dim)` float32, for a model of pairs of texts; `embed` takes passages.

        Raises:
            UserError: if the model does not take texts.
        """
        if self.encoder.kind != "text":
            raise UserError(f"the model takes {self.encoder.kind} inputs, not texts; call embed")
        return embed(self.learner, self.encoder.texts(texts)[:, None], self.normaliser).squeeze(1)

    def _read(self, data: str | Path | Tensor) -> tuple[Tensor, list[str]]:
        if isinstance(data, Tensor):
            inputs, ids = data, [str(i) for i in range(len(data))]
        else:
            inputs, ids = self.encoder.encode(str(data))
        # A model of pairs takes passages one by one.
        shape = tuple(self.about["in_shape"])[1 if self.encoder.kind in ("text", "graph") else 0 :]
        # New graphs may be larger than those of the training.
        given = tuple(inputs.shape[2 if self.encoder.kind == "graph" else 1 :])
        if given != shape:
            raise DataError(f"the inputs have shape {given}, the model was trained on {shape}")
        return inputs, ids


def save_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    recipe: Recipe,
    dataset: Dataset,
    splits: Splits,
    about: Mapping[str, Any],
    after: Sequence[Any] = (),
) -> None:
    """Write weights (safetensors), recipe (YAML), and classes and preprocessing (JSON) to a folder.

    Args:
        folder: made if it is not there.
        weights: the trained learner's state.
        recipe: how it was trained.
        dataset: what it was trained on.
        splits: its parts, with the normaliser.
        about: further plain values to keep (metrics, versions, command).
        after: the applied parts of the recipe's slot `after`; what they refine embeddings by is kept.
    """
    import yaml
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    kept = {f"{_AFTER}{number}.{name}": value for number, part in enumerate(after) if hasattr(part, "refinement")
            for name, value in part.refinement().items()}  # fmt: skip
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in {**weights, **kept}.items()}
    save_file(tensors, folder / _WEIGHTS)
    (folder / _RECIPE).write_text(
        yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    plain = {
        "format": _FORMAT,
        "task": dataset.task,
        "classes": list(splits.classes),
        "in_shape": list(dataset.in_shape),
        "outputs": dataset.outputs,
        "encoder": dataset.encoder.to_dict(),
        "normaliser": splits.normaliser.to_dict(),
        "data": dataset.describe(),
        **about,
    }
    (folder / _ABOUT).write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load(folder: str | Path, *, trust: bool = False) -> SavedModel:
    """Load a model that `repertory fit` saved.

    Weights and preprocessing are plain data. The recipe names the functions that build the network; those of this
    package and of `torch.nn` are called, any other only with `trust`.

    Args:
        folder: what `--out` named.
        trust: call functions of other packages that the recipe names; only for a folder whose sender you trust.

    Raises:
        UserError: if it is not such a folder, a file in it is damaged or foreign, or it names foreign code.
    """
    import yaml
    from safetensors import SafetensorError

    folder = Path(folder)
    missing = [name for name in (_WEIGHTS, _RECIPE, _ABOUT) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} is not a saved model: {', '.join(missing)} missing; name the folder that "
            "'repertory fit --out' wrote"
        )
    try:
        return _read(folder, trust)
    except UserError:
        raise
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, yaml.YAMLError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise UserError(
            f"{folder} holds a damaged or foreign model ({reason[:160]}); train it again with 'repertory fit'"
        ) from error


def _images_at(data: str | Path | Tensor) -> bool:
    return not isinstance(data, Tensor) and Path(data).suffix.lower() not in {".npy", ".npz"}


def _read(folder: Path, trust: bool) -> SavedModel:
    import yaml
    from safetensors.torch import load_file

    about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    if about.get("format") != _FORMAT:
        raise UserError(
            f"{folder} has format {about.get('format')!r}, this version reads {_FORMAT}; train it again "
            "with 'repertory fit'"
        )
    recipe = Recipe.from_dict(yaml.safe_load((folder / _RECIPE).read_text(encoding="utf-8")))
    tensors = load_file(folder / _WEIGHTS)
    encoder, normaliser = Encoder.from_dict(about["encoder"]), Normaliser.from_dict(about["normaliser"])
    in_shape, outputs = tuple(about["in_shape"]), int(about["outputs"])
    if not trust:
        _check_origin(folder, recipe)
    if recipe.model.options.get("pretrained"):
        plain = dataclasses.replace(recipe.model, options={**recipe.model.options, "pretrained": False})
        recipe = recipe.replace(model=plain)
    learner = build_learner(recipe, in_shape, outputs, seed=0, dense=about["task"] == "segmentation")
    if recipe.objective is not None and _own(recipe.objective.factory.partition(":")[0]):
        found = recipe.objective.build()
        learner = found.rebuild(learner, outputs) if hasattr(found, "rebuild") else learner
    refiners = []
    for number, part in enumerate(recipe.after):
        made = part.build()
        if hasattr(made, "rebuild"):
            learner = made.rebuild(learner, outputs, **_asked(made, recipe, in_shape, outputs))
        if hasattr(made, "refinement"):
            start = f"{_AFTER}{number}."
            held = [name for name in tensors if name.startswith(start)]
            made.load_refinement({name.removeprefix(start): tensors.pop(name) for name in held})
        if hasattr(made, "refine"):
            refiners.append(made)
    try:
        learner.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{folder}: the weights do not fit the recipe's network ({reason[:160]}); train it again"
        ) from error
    return SavedModel(learner, recipe, encoder, normaliser, about, refiners).eval()


def _asked(made: Any, recipe: Recipe, in_shape: tuple[int, ...], outputs: int) -> dict[str, Any]:
    """What a part wants for rebuilding beside the network: `fresh(**options)`, one with other options of the model."""

    def fresh(**options: Any) -> Learner:
        model = dataclasses.replace(recipe.model, options={**recipe.model.options, **options})
        return build_learner(recipe.replace(model=model), in_shape, outputs, seed=0)

    return {"fresh": fresh} if "fresh" in inspect.signature(made.rebuild).parameters else {}


def _check_origin(folder: Path, recipe: Recipe) -> None:
    for part in (recipe.model, recipe.criterion, *recipe.surgery, *recipe.after):
        module = part.factory.partition(":")[0]
        home = getattr(locate(part.factory), "__module__", "") if _own(module) else ""
        if not _own(home):
            raise UserError(
                f"the model in {folder} is built by {part.factory!r}, which is not part of repertory; if "
                "you trust whoever made it, "
                f"load it with trust=True (repertory predict --trust)"
            )


def _own(module: str) -> bool:
    return module.startswith(_OWN) or module == "torch.nn" or module.startswith("torch.nn.modules.")
