"""Guidance against hand-written losses, and CKA against its textbook form and the authors' figures."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repertory import Step
from repertory.algorithms import SAM, Guidance
from repertory.algorithms.guidance import layer_alignment, linear_cka, match_by_depth
from repertory.algorithms.guidance.guide import guide_part
from repertory.core.activations import LayerOutputs
from repertory.errors import DataError, OptionError, UserError
from repertory.testing.assembly import through_a_file


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def textbook(x: Tensor, y: Tensor) -> Tensor:
    """CKA from its definition, with centred Gram matrices."""
    count = len(x)
    centre = torch.eye(count, dtype=x.dtype) - 1 / count
    k, m = (centre @ z.flatten(1) @ z.flatten(1).T @ centre for z in (x, y))
    return torch.trace(k @ m) / (k.norm() * m.norm())


def network(seed: int = 0, middle: nn.Module | None = None) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    middle = middle or nn.Identity()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), middle, nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
    return model


def guide_network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 2)
    ).double()


def batches(count: int = 4, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    return [(drawn(size, 6, seed=10 + i), torch.arange(size) % 3) for i in range(count)]


def stepper(model: nn.Module, *methods: Any, lr: float = 0.1, **options: Any) -> Step:
    return Step(model, torch.optim.SGD(model.parameters(), lr=lr), nn.CrossEntropyLoss(), list(methods), **options)


def guided_loss(model: nn.Sequential, guide: nn.Sequential, inputs: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """The paper's loss written out for `network` and `guide_network`, whose two hidden layers each are paired."""
    guide = copy.deepcopy(guide).eval()
    penalty = sum(1 - textbook(model[: i + 1](inputs), guide[: i + 1](inputs).detach()) for i in (0, 3))
    return nn.functional.cross_entropy(model(inputs), targets) + alpha * penalty


@pytest.mark.parametrize(("count", "widths"), [(5, (6, 9)), (40, (3, 4)), (12, (30, 2))])
def test_cka_and_its_gradient_equal_the_textbook_form(count: int, widths: tuple[int, int]) -> None:
    x, y = (3 + drawn(count, w, seed=w) for w in widths)
    x.requires_grad_()
    y.requires_grad_()
    found, expected = linear_cka(x, y), textbook(x, y)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, (x, y)), torch.autograd.grad(expected, (x, y)))


def test_cka_agrees_with_the_authors_code() -> None:
    """Values of linear_CKA of their rep_sims.py on these draws."""
    generator = torch.Generator().manual_seed(0)
    for count, *widths, theirs in ((5, 3, 7, 0.6120319835639304), (12, 3, 4, 0.41284666967537187)):
        x, y = (torch.randn(count, int(w), generator=generator, dtype=torch.float64) for w in widths)
        assert linear_cka(x, y).item() == pytest.approx(theirs, rel=1e-12)


def test_cka_ignores_rotation_scale_and_shift_alone() -> None:
    x, y = drawn(20, 6), drawn(20, 4, seed=1)
    rotation = torch.linalg.qr(drawn(6, 6, seed=2))[0]
    changed = 7 * x @ rotation + drawn(6, seed=3)
    torch.testing.assert_close(linear_cka(changed, y), linear_cka(x, y))
    torch.testing.assert_close(linear_cka(x, changed), torch.ones((), dtype=torch.float64))
    assert abs(linear_cka(x @ torch.diag(torch.arange(1.0, 7.0).double()), y) - linear_cka(x, y)) > 0.01


def test_cka_of_unrelated_noise_is_high_where_features_outnumber_examples() -> None:
    assert 0.85 < linear_cka(drawn(64, 512), drawn(64, 512, seed=1)) < 0.95
    assert linear_cka(drawn(4096, 8), drawn(4096, 8, seed=1)) < 0.02


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_constant_representation_has_alignment_and_gradient_zero(value: float) -> None:
    x = torch.full((9, 5), value, requires_grad=True)
    alignment = linear_cka(x, drawn(9, 3).float())
    alignment.backward()
    assert alignment.item() == 0.0
    assert not x.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_cka_neither_overflows_nor_vanishes_in_float32(scale: float) -> None:
    x, y = drawn(16, 40).float(), drawn(16, 30, seed=1).float()
    torch.testing.assert_close(linear_cka(scale * x, y), linear_cka(x, y))


def test_cka_of_what_is_not_finite_is_nan() -> None:
    x = drawn(5, 3)
    for bad in (float("nan"), float("inf")):
        x[0, 0] = bad
        assert linear_cka(x, drawn(5, 3, seed=1)).isnan()


def test_cka_refuses_one_example_and_unequal_numbers() -> None:
    for rows, others in ((1, 1), (4, 5)):
        with pytest.raises(DataError, match=rf"x has {rows} examples and y has {others}.*at least 2"):
            linear_cka(drawn(rows, 3), drawn(others, 3))


def test_layers_are_matched_by_relative_depth_with_halves_to_even() -> None:
    def places(p: int, q: int) -> list[str]:
        return [place for _, place in match_by_depth([str(i) for i in range(p)], [str(j) for j in range(q)])]

    assert places(3, 9) == ["0", "4", "8"]
    assert places(9, 3) == ["0", "0", "0", "1", "1", "1", "2", "2", "2"]
    assert places(1, 4) == ["0"]


def test_outputs_come_in_the_order_of_calls_with_one_row_an_example() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 5)
            self.shared = nn.Linear(3, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.shared(self.shared(inputs))
            return self.rnn(hidden.transpose(0, 1))[0]

    model = Odd()
    outputs = LayerOutputs(model)
    with outputs.recorded(4) as seen:
        model(torch.zeros(4, 7, 3))
    model(torch.zeros(4, 7, 3))
    assert [(name, tuple(value.shape)) for name, value in seen.items()] == [
        ("shared", (4, 7, 3)),
        ("shared@2", (4, 7, 3)),
        ("rnn", (4, 7, 5)),
    ]


def test_gradient_is_that_of_the_loss_written_out() -> None:
    model, guide, (inputs, targets) = network(), guide_network(), batches()[0]
    loss = stepper(model, Guidance(guide, alpha=0.7), lr=0.0)((inputs, targets))
    twin = network()
    expected = guided_loss(twin, guide, inputs, targets, 0.7)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()])


def test_each_part_of_a_split_batch_is_aligned_by_itself() -> None:
    model, guide, (inputs, targets) = network(), guide_network(), batches()[0]
    stepper(model, Guidance(guide), lr=0.0, accumulate=2)((inputs, targets))
    twin = network()
    for part, classes in zip(inputs.chunk(2), targets.chunk(2)):
        (guided_loss(twin, guide, part, classes, 1.0) / 2).backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()])


def test_behind_sam_both_gradients_are_those_of_the_whole_loss() -> None:
    model, guide, (inputs, targets) = network(), guide_network(), batches()[0]
    step = stepper(model, SAM(rho=0.3), Guidance(guide), lr=0.0)
    step((inputs, targets))
    twin = network()
    guided_loss(twin, guide, inputs, targets, 1.0).backward()
    norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += 0.3 * parameter.grad / norm
            parameter.grad = None
    guided_loss(twin, guide, inputs, targets, 1.0).backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()])
    assert (step.run.counts.forward, step.run.counts.backward) == (32, 16)


def test_a_guide_equal_to_the_network_changes_nothing() -> None:
    model, (inputs, targets) = network(), batches()[0]
    loss = stepper(model, Guidance(network()), lr=0.0)((inputs, targets))
    twin = network()
    plain = stepper(twin, lr=0.0)((inputs, targets))
    torch.testing.assert_close(loss, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()])


def trained(*methods: Any, steps: int = 4) -> list[Tensor]:
    model = network()
    step = stepper(model, *methods)
    for batch in batches(steps):
        step(batch)
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("guide", ["auto", guide_network()])
def test_alpha_zero_is_the_base_bit_for_bit(guide: Any) -> None:
    assert all(torch.equal(a, b) for a, b in zip(trained(Guidance(guide, alpha=0.0)), trained()))


def test_guide_is_left_out_after_stop() -> None:
    model, guide = network(), guide_network()
    step = stepper(model, Guidance(guide, stop=2))
    twin = network()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for number, (inputs, targets) in enumerate(batches(4)):
        step((inputs, targets))
        optimizer.zero_grad()
        guided_loss(twin, guide, inputs, targets, 1.0 if number < 2 else 0.0).backward()
        optimizer.step()
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))
    assert step.run.counts.forward == 4 * 8 + 2 * 8


def test_network_runs_once_a_step() -> None:
    def statistics(*methods: Any) -> list[Tensor]:
        model = network(middle=nn.BatchNorm1d(8))
        step = stepper(model, *methods, lr=0.0)
        for batch in batches():
            step(batch)
        return list(model.buffers())

    assert all(torch.equal(a, b) for a, b in zip(statistics(Guidance(guide_network())), statistics()))


def test_guide_is_a_frozen_copy_in_evaluation_mode() -> None:
    guide = guide_network()
    method = Guidance(guide)
    step = stepper(network(), method)
    step.methods[0].train()
    before = copy.deepcopy(method.state_dict())
    for batch in batches():
        step(batch)
    tensors = {name: value for name, value in before.items() if isinstance(value, Tensor)}
    assert all(torch.equal(method.state_dict()[name], value) for name, value in tensors.items())
    assert all(
        torch.equal(value, guide.state_dict()[name.removeprefix("guide.model.")]) for name, value in tensors.items()
    )
    assert guide.training
    assert all(parameter.requires_grad for parameter in guide.parameters())
    assert len(step.run.parameters) == 6
    assert not any(module._forward_hooks for module in guide.modules())


def test_copies_of_the_network_carry_neither_guide_nor_recorder() -> None:
    model = network()
    stepper(model, Guidance(guide_network()))
    hooks = [hook for module in copy.deepcopy(model).modules() for hook in module._forward_hooks.values()]
    assert len(hooks) == 3
    assert all(hook.outputs is None for hook in hooks)  # type: ignore[attr-defined]


def test_named_pairs_are_the_only_ones() -> None:
    model, guide, (inputs, targets) = network(), guide_network(), batches()[0]
    loss = stepper(model, Guidance(guide, match=["2=4", "5=5"]), lr=0.0)((inputs, targets))
    guide.eval()
    found = layer_alignment(model, guide, inputs, {"2": "4", "5": "5"})
    assert list(found) == [("2", "4"), ("5", "5")]
    plain = nn.functional.cross_entropy(model(inputs), targets).detach()
    assert float(loss) == pytest.approx(float(plain) + sum(1 - value for value in found.values()), rel=1e-12)
    by_name = stepper(network(), Guidance(guide, match="name"), lr=0.0)((inputs, targets))
    by_hand = stepper(network(), Guidance(guide, match=["0=0", "3=3"]), lr=0.0)((inputs, targets))
    assert torch.equal(by_name, by_hand)


@pytest.mark.parametrize(
    ("guide", "shape", "kind"),
    [
        ("auto", (1, 8, 8), "Conv2d"),
        ("auto", (2, 16), "Conv1d"),
        ("auto", (6,), "Linear"),
        ("repertory:mlp:width=4", (6,), "Linear"),
        ("timm:test_resnet", (3, 32, 32), "Conv2d"),
    ],
)
def test_named_guides_are_built_to_the_data(guide: str, shape: tuple[int, ...], kind: str) -> None:
    def step() -> Step:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))
        model(torch.zeros(2, *shape))
        made = stepper(model, Guidance(guide))
        made((drawn(8, *shape).float(), torch.arange(8) % 3))
        return made

    first, second = step(), step()
    built = first.methods[0].guide
    assert isinstance(built, nn.Module)
    assert kind in [type(module).__name__ for module in built.modules()]
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), second.methods[0].guide.parameters()))  # type: ignore[union-attr]


def test_a_guide_built_with_the_first_batch_comes_back_from_a_checkpoint() -> None:
    first = stepper(network().float(), Guidance(), seed=0)
    second = stepper(network().float(), Guidance(), seed=1)
    data = [(inputs.float(), targets) for inputs, targets in batches()]
    for batch in data[:2]:
        first(batch)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert [float(first(batch)) for batch in data[2:]] == [float(second(batch)) for batch in data[2:]]


def test_a_saved_model_guides_with_its_network(tmp_path: Path) -> None:
    from repertory.scenarios.fit import fit

    saved = fit(data="digits", model="repertory:mlp", out=tmp_path / "guide", epochs=1, device="cpu")
    method = Guidance(str(tmp_path / "guide"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    stepper(model, method)((torch.randn(8, 1, 8, 8), torch.arange(8)))
    expected = saved.learner.network.state_dict()
    assert method.guide is not None
    found = method.guide.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


class Broken(nn.Sequential):
    """A guide whose second layer overflows."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(1e308 * inputs.square())


@pytest.mark.parametrize(
    ("options", "size", "error", "message"),
    [
        ({"match": {"9": "0"}}, 8, OptionError, "match names '9', which Sequential has not"),
        ({"match": ["0=nine"]}, 8, OptionError, "match names 'nine', which Sequential has not"),
        ({"match": {"0@2": "0"}}, 8, OptionError, "'0@2', but in the guide it did not run"),
        ({"guide": nn.Sequential(nn.Linear(6, 3)).double()}, 8, OptionError, "match='depth' pairs no layers"),
        ({"guide": nn.Linear(5, 3).double()}, 8, UserError, r"guide Linear cannot take inputs of shape \(8, 6\)"),
        ({"guide": Broken(*guide_network())}, 8, UserError, "output of its layer '0' is not finite"),
        ({}, 1, DataError, "single example; raise batch_size"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], size: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        stepper(network(), Guidance(**{"guide": guide_network(), **options}))(
            (drawn(size, 6), torch.zeros(size, dtype=torch.int64))
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha=-1.0 is not allowed"),
        ({"stop": 0}, "stop=0 is not allowed"),
        ({"match": "width"}, "match='width' is not allowed"),
        ({"match": ["layer1"]}, r"match=\['layer1'\] is not allowed"),
        ({"guide": 3}, "guide=3 is not allowed"),
        ({"guide": "resnet18"}, "guide 'resnet18' is not of the form"),
        ({"guide": "repertory:poolfomer_tiny"}, "did you mean poolformer_tiny"),
        ({"guide": "timm:resnet18:pretrained"}, "'pretrained' in 'timm:resnet18:pretrained' is not of"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Guidance(**options)


def test_a_mistyped_factory_is_found_before_training() -> None:
    with pytest.raises(UserError, match="has no 'Linea'; did you mean"):
        guide_part("torch.nn:Linea")
