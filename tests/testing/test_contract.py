"""The checks catch what they are for: each is shown a method with one fault."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from repertory import Method
from repertory.algorithms import SAM
from repertory.algorithms.saf import SAF
from repertory.errors import OptionError, UserError
from repertory.testing import CheckFailure, Tiny, check_method, checks_for
from repertory.testing.check import CHECKS


class QuickSAF(SAF):
    """SAF that acts within the few steps of a check."""

    def __init__(self, weight: float = 0.3, temperature: float = 5.0, start: int = 0, lag: int = 1) -> None:
        super().__init__(weight, temperature, start, lag)


class InertSAF(QuickSAF):
    """Does everything but weigh its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = 1e-30


class ForgetfulSAF(QuickSAF):
    """Keeps its record out of its state."""

    def state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        return {}

    def load_state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        return None


class Noisy(Method):
    """Multiplies the loss by a draw."""

    slug = "noisy"

    def draw(self, state) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.rand((), generator=state.run.generator(self.slug))

    def loss(self, state, inner):  # type: ignore[no-untyped-def]
        return inner(state) * (1 + self.draw(state))


class GlobalTorch(Noisy):
    """Draws from torch's global generator."""

    def draw(self, state):  # type: ignore[no-untyped-def]
        return torch.rand(())


class GlobalNumPy(Noisy):
    """Draws from NumPy's global generator."""

    def draw(self, state):  # type: ignore[no-untyped-def]
        return torch.tensor(np.random.rand(), dtype=torch.float32)


class GlobalPython(Noisy):
    """Draws from Python's global generator."""

    def draw(self, state):  # type: ignore[no-untyped-def]
        return torch.tensor(random.random())


class SystemNoise(Noisy):
    """Draws differently every time."""

    def draw(self, state):  # type: ignore[no-untyped-def]
        return torch.tensor(random.SystemRandom().random())


class Unseeded(Noisy):
    """Its generator is not part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.Generator().manual_seed(0)

    def draw(self, state):  # type: ignore[no-untyped-def]
        return torch.rand((), generator=self.own)


class Exploding(Method):
    """Loses its loss."""

    slug = "exploding"

    def loss(self, state, inner):  # type: ignore[no-untyped-def]
        return inner(state) * float("nan")


class Ascending(Method):
    """Climbs."""

    slug = "ascending"

    def gradient(self, state, inner):  # type: ignore[no-untyped-def]
        loss = inner(state)
        for parameter in state.run.parameters:
            parameter.grad.neg_()
        return loss


class SumOfMicroBatches(Method):
    """Sums where it should average, so that micro-batches change the update."""

    slug = "sum-of-micro-batches"

    def loss(self, state, inner):  # type: ignore[no-untyped-def]
        return inner(state).sum()


class OwnRank(Method):
    """Scales the gradient by what only one process sees."""

    slug = "own-rank"

    def gradient(self, state, inner):  # type: ignore[no-untyped-def]
        loss = inner(state)
        for parameter in state.run.parameters:
            parameter.grad.mul_(state.batch["input"].mean().abs())
        return loss


class Breaking(Method):
    """Leaves the graph."""

    slug = "breaking"

    def loss(self, state, inner):  # type: ignore[no-untyped-def]
        loss = inner(state)
        return loss * 2 if loss.mean().item() > 0 else loss


class Pickled(Method):
    """Saves an object."""

    slug = "pickled"

    def get_extra_state(self):  # type: ignore[no-untyped-def]
        return {"object": random.Random(0)}

    def set_extra_state(self, state):  # type: ignore[no-untyped-def]
        pass


class Lenient(Method):
    """Takes any option.

    >>> Lenient(0.1).rate
    0.2
    """

    slug = "lenient"

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.rate = rate

    def undocumented(self) -> None:
        pass


@pytest.mark.parametrize(
    ("faulty", "check", "says"),
    [
        (InertSAF, "differs_from_baseline", "does nothing"),
        (ForgetfulSAF, "resume_mid_epoch_is_exact", "is not the uninterrupted one"),
        (Unseeded, "resume_mid_epoch_is_exact", "is not the uninterrupted one"),
        (Pickled, "state_round_trip", "weights_only"),
        (GlobalTorch, "global_generator_untouched", "of torch was used"),
        (GlobalNumPy, "global_generator_untouched", "of NumPy was used"),
        (GlobalPython, "global_generator_untouched", "of Python was used"),
        (SystemNoise, "same_seed_same_numbers", "two runs from one seed differ"),
        (Exploding, "loss_finite_and_falls", "not finite"),
        (Ascending, "loss_finite_and_falls", "went from"),
        (Exploding, "bfloat16_is_finite", "not finite"),
        (SumOfMicroBatches, "accumulate_equals_one_batch", "another update"),
        (OwnRank, "two_processes_equal_one", "different weights"),
        (Breaking, "no_graph_break", "graph"),
        (Lenient, "bad_options_are_refused", "rate='much' is accepted"),
        (Lenient, "docstring_example_runs", "1 of 1 examples fail"),
        (Lenient, "public_docstrings", "undocumented"),
        (Noisy, "docstring_example_runs", "has no example"),
    ],
)
def test_a_fault_is_caught(faulty: type, check: str, says: str) -> None:
    with pytest.raises(CheckFailure, match=says):
        check_method(faulty, only=check)


@pytest.mark.parametrize("sound", [QuickSAF, Noisy])
def test_a_sound_method_passes_what_catches_the_faulty_ones(sound: type) -> None:
    for check in (
        "same_seed_same_numbers",
        "differs_from_baseline",
        "resume_mid_epoch_is_exact",
        "state_round_trip",
    ):
        assert check_method(sound, only=check)[0].status == "passed"
    assert check_method(sound, only="global_generator_untouched")[0].status == "passed"


class LoopOnly(SGD):
    """Another update when vectorised."""

    def step(self, closure=None):  # type: ignore[no-untyped-def]
        if self.param_groups[0]["foreach"]:
            self.param_groups[0]["lr"] *= 1.0001
        return super().step(closure)


class NoClosure(SGD):
    """Forgets the closure."""

    def step(self, closure=None):  # type: ignore[no-untyped-def]
        super().step()


class OneRate(SGD):
    """Takes the first group's learning rate for all."""

    def step(self, closure=None):  # type: ignore[no-untyped-def]
        for group in self.param_groups:
            group["lr"] = 0.1
        return super().step(closure)


class Densifying(SGD):
    """Takes sparse gradients, and moves every row."""

    def step(self, closure=None):  # type: ignore[no-untyped-def]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data += 1


@pytest.mark.parametrize(
    ("faulty", "check"),
    [
        (LoopOnly, "foreach_equals_loop"),
        (NoClosure, "closure"),
        (OneRate, "param_groups"),
        (Densifying, "refuses_sparse"),
    ],
)
def test_a_fault_of_an_optimizer_is_caught(faulty: type, check: str) -> None:
    with pytest.raises(CheckFailure):
        check_method(faulty, only=check)


def test_the_optimizer_of_torch_passes_the_checks_of_protocol() -> None:
    for check in ("foreach_equals_loop", "closure", "param_groups", "refuses_sparse"):
        assert check_method(SGD, only=check)[0].status == "passed"


class WrongSlopeFunction(torch.autograd.Function):
    @staticmethod
    def forward(context, value):  # type: ignore[no-untyped-def]
        return value.clone()

    @staticmethod
    def backward(context, slope):  # type: ignore[no-untyped-def]
        return 2 * slope


class WrongSlopeLoss(nn.CrossEntropyLoss):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return super().forward(WrongSlopeFunction.apply(output), target)


class HalfSumLoss(nn.CrossEntropyLoss):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return super().forward(output, target) / (2 if self.reduction == "sum" else 1)


class CoupledLoss(nn.CrossEntropyLoss):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return super().forward(output - output.mean(0), target)


@pytest.mark.parametrize(
    ("faulty", "check"),
    [(WrongSlopeLoss, "gradcheck"), (HalfSumLoss, "reduction"), (CoupledLoss, "per_example")],
)
def test_a_fault_of_a_loss_is_caught(faulty: type, check: str) -> None:
    with pytest.raises(CheckFailure):
        check_method(faulty, only=check)
    assert check_method(nn.CrossEntropyLoss, only=check)[0].status == "passed"


class Greedy:
    """Chooses a row twice."""

    def choose(self, bench) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.tensor([1, 1, 2])


class Everything:
    """Chooses all rows."""

    def choose(self, bench) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.arange(len(bench.splits.train))


@pytest.mark.parametrize(("faulty", "says"), [(Greedy, "twice"), (Everything, "all examples")])
def test_a_fault_of_a_selection_is_caught(faulty: type, says: str) -> None:
    with pytest.raises(CheckFailure, match=says):
        check_method(faulty, only="selection")


class Wider:
    """Changes the structure of the network and cannot rebuild it."""

    def apply(self, model, bench):  # type: ignore[no-untyped-def]
        model.network.append(nn.Linear(bench.outputs, bench.outputs))
        return model


class Rebuilding(Wider):
    """Changes the structure and can."""

    def rebuild(self, model, outputs):  # type: ignore[no-untyped-def]
        model.network.append(nn.Linear(outputs, outputs))
        return model


def test_a_changed_model_that_cannot_be_rebuilt_is_caught() -> None:
    assert check_method(Rebuilding, only="saved_model_is_rebuilt")[0].status == "passed"
    with pytest.raises(CheckFailure, match="Unexpected key"):
        check_method(Wider, only="saved_model_is_rebuilt")


class LocalLoss(nn.Module):
    """Needs to be told a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target, reduction="none") * self.factor


TINY = {"LocalLoss": Tiny(arguments={"factor": 2.0})}


def test_required_arguments_come_from_the_table_in_the_module() -> None:
    assert check_method(LocalLoss, only="differs_from_baseline")[0].status == "passed"


def test_an_expected_failure_is_reported_with_its_reason() -> None:
    (result,) = check_method(
        InertSAF,
        expected_failures={"differs_from_baseline": "it is switched off"},
        only="differs_from_baseline",
    )
    assert result.text == "expected failure: it is switched off"


def test_an_expected_failure_that_passes_is_a_failure() -> None:
    with pytest.raises(CheckFailure, match=r"expected to fail.*but it passes"):
        check_method(
            Noisy,
            expected_failures={"differs_from_baseline": "it is switched off"},
            only="differs_from_baseline",
        )


def test_an_expected_failure_of_an_unknown_check_is_refused() -> None:
    with pytest.raises(OptionError, match="did you mean differs_from_baseline"):
        check_method(SAM, expected_failures={"differs_from_base": "a slip"})


def test_failures_are_returned_when_asked_for() -> None:
    results = check_method(InertSAF, only="differs_from_baseline", raise_on_failure=False)
    assert [(result.name, result.status) for result in results] == [("differs_from_baseline", "failed")]


@pytest.mark.parametrize("method", ["sam", "repertory.algorithms.sam:SAM", SAM])
def test_a_method_is_found_by_slug_by_path_and_as_a_class(method: object) -> None:
    assert check_method(method, only="neutral_equals_baseline")[0].status == "passed"


def test_which_checks_concern_a_method_follows_from_its_kind() -> None:
    assert "closure" in checks_for(SGD)
    assert "closure" not in checks_for(SAM)
    assert set(checks_for(SAM)) <= set(CHECKS)


def test_a_class_of_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="cannot tell what kind of method 'Fraction' is"):
        check_method("fractions:Fraction")


@pytest.mark.parametrize("path", ["sklearn.naive_bayes:GaussianNB", "sklearn.preprocessing:StandardScaler"])
def test_an_estimator_of_scikit_learn_is_checked_as_it_is(path: str) -> None:
    for check in ("sklearn_clone", "same_seed_same_numbers", "global_generator_untouched"):
        assert check_method(path, only=check)[0].status == "passed"
    for check in ("differs_from_baseline", "refined_embeddings"):
        assert check_method(path, only=check)[0].status == "not applicable"


class Shifting:
    """Refines embeddings by their order, which it must not."""

    def fit(self, X: Any, y: Any = None) -> Shifting:
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {}

    def refine(self, embeddings: Tensor, labels: Any = None, groups: Any = None) -> Tensor:
        return embeddings.cumsum(0)


def test_refined_embeddings_that_depend_on_the_order_of_rows_are_found_out() -> None:
    result = check_method(Shifting, only="refined_embeddings", raise_on_failure=False)[0]
    assert result.status == "failed"
    assert "in another order of the rows the result differs" in result.reason
