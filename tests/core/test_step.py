"""The step without methods is a plain training loop; with them, their calls nest in the order of the list."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from repertory import Method, Step
from repertory.core.method import Inner
from repertory.core.state import Run, State
from repertory.errors import ConflictError, OptionError, UserError


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    return model


def batches(count: int = 4, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, generator=generator), torch.randint(2, (size,), generator=generator))
        for _ in range(count)
    ]


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def stepped(*methods: Method, **options: object) -> tuple[list[Tensor], list[float]]:
    model = network()
    step = Step(model, sgd(model), nn.CrossEntropyLoss(), methods, **options)
    losses = [step(batch).item() for batch in batches()]
    return [p.detach() for p in model.parameters()], losses


def plain(clip_norm: float | None = None) -> tuple[list[Tensor], list[float]]:
    model, losses = network(), []
    optimizer = sgd(model)
    for inputs, targets in batches():
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return [p.detach() for p in model.parameters()], losses


class Wrapping(Method):
    """Writes down when its calls begin and end."""

    def __init__(self, slug: str, log: list[str]) -> None:
        super().__init__()
        self.slug = slug  # type: ignore[misc]
        self.log = log

    def noted(self, call: str, state, inner):  # type: ignore[no-untyped-def]
        self.log.append(f"{call}[{self.slug}")
        result = inner(state)
        self.log.append(f"{call}]{self.slug}")
        return result

    def step(self, state, inner):  # type: ignore[no-untyped-def]
        return self.noted("step", state, inner)

    def gradient(self, state, inner):  # type: ignore[no-untyped-def]
        return self.noted("gradient", state, inner)

    def loss(self, state, inner):  # type: ignore[no-untyped-def]
        return self.noted("loss", state, inner)


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_without_methods_it_is_a_plain_loop(clip_norm: float | None) -> None:
    (weights, losses), (expected, expected_losses) = stepped(clip_norm=clip_norm), plain(clip_norm)
    torch.testing.assert_close(weights, expected)
    assert losses == pytest.approx(expected_losses)


@pytest.mark.parametrize("parts", [2, 4, 6])
def test_micro_batches_of_any_sizes_make_the_update_of_the_whole_batch(parts: int) -> None:
    (weights, losses), (expected, expected_losses) = stepped(accumulate=parts), plain()
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)
    assert losses == pytest.approx(expected_losses)


def test_the_calls_nest_with_the_first_method_outermost() -> None:
    log: list[str] = []
    model = network()
    step = Step(model, sgd(model), nn.CrossEntropyLoss(), [Wrapping("a", log), Wrapping("b", log)])
    step(batches(1)[0])
    opening = ["step[a", "step[b", "gradient[a", "gradient[b", "loss[a", "loss[b"]
    assert log == [*opening, "loss]b", "loss]a", "gradient]b", "gradient]a", "step]b", "step]a"]
    assert step.explain() == "step[a, b] > gradient[a, b] > loss[a, b]"


@pytest.mark.parametrize("form", ["pair", "triple", "mapping"])
def test_a_batch_may_be_a_pair_a_triple_or_a_mapping(form: str) -> None:
    inputs, targets = batches(1)[0]
    index = torch.arange(6)
    batch = {
        "pair": (inputs, targets),
        "triple": [inputs, targets, index],
        "mapping": {"input": inputs, "target": targets, "index": index},
    }[form]
    model = network()
    loss = Step(model, sgd(model), nn.CrossEntropyLoss())(batch)
    assert loss.item() == pytest.approx(plain()[1][0])


@pytest.mark.parametrize("batch", [torch.zeros(2, 3), (1, 2, 3, 4), "cats"])
def test_what_is_no_batch_is_refused(batch: object) -> None:
    model = network()
    with pytest.raises(UserError, match="a batch is a mapping with 'input' and 'target'"):
        Step(model, sgd(model), nn.CrossEntropyLoss())(batch)  # type: ignore[arg-type]


def test_a_batch_without_input_is_refused() -> None:
    model = network()
    with pytest.raises(UserError, match="the batch has image, label but no 'input'"):
        Step(model, sgd(model), nn.CrossEntropyLoss())({"image": torch.zeros(1), "label": torch.zeros(1)})


@pytest.mark.parametrize(("options", "name"), [({"accumulate": 0}, "accumulate"), ({"clip_norm": -1.0}, "clip_norm")])
def test_bad_options_are_refused_by_name(options: dict[str, object], name: str) -> None:
    with pytest.raises(OptionError, match=name):
        stepped(**options)


class Twice(Method):
    """Takes two gradients, the second of half of the batch, after looking at every example's loss."""

    slug = "twice"

    def gradient(self, state, inner):  # type: ignore[no-untyped-def]
        loss = inner(state)
        self.values = state.run.losses(state.replace(evaluation=1))
        inner(state.select(torch.arange(3)).replace(evaluation=2))
        return loss


@pytest.mark.parametrize("accumulate", [1, 2])
def test_passes_are_counted_in_examples(accumulate: int) -> None:
    model = network()
    step = Step(model, sgd(model), nn.CrossEntropyLoss(), [Twice()], accumulate=accumulate)
    step(batches(1)[0])
    counts = step.run.counts
    assert (counts.forward, counts.backward, counts.steps) == (6 + 6 + 3, 6 + 3, 1)


def test_a_second_gradient_replaces_the_first() -> None:
    model, reference = network(), network()
    Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), [Twice()])(batches(1)[0])
    inputs, targets = batches(1)[0]
    nn.functional.cross_entropy(reference(inputs[:3]), targets[:3]).backward()
    expected = [p.detach() - 0.1 * p.grad for p in reference.parameters() if p.grad is not None]
    torch.testing.assert_close([p.detach() for p in model.parameters()], expected)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_losses_of_examples_come_in_the_order_of_the_batch_without_gradient(accumulate: int) -> None:
    model, method = network(), Twice()
    inputs, targets = batches(1)[0]
    expected = nn.functional.cross_entropy(model(inputs), targets, reduction="none").detach()
    Step(model, sgd(model), nn.CrossEntropyLoss(), [method], accumulate=accumulate)((inputs, targets))
    torch.testing.assert_close(method.values, expected)
    assert not method.values.requires_grad


def test_losses_of_examples_are_refused_where_the_criterion_gives_one_number() -> None:
    model = network()
    step = Step(model, sgd(model), nn.CrossEntropyLoss(weight=torch.ones(2)), [Twice()])
    with pytest.raises(ConflictError, match="CrossEntropyLoss gives one number for the batch"):
        step(batches(1)[0])


class Growing(Method):
    """Replaces the last layer before training and brings a parameter of its own."""

    slug = "growing"
    lr_scale = 10.0

    def setup(self, run: Run) -> None:
        run.model[2] = nn.Linear(5, 2)
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)

    def loss(self, state, inner):  # type: ignore[no-untyped-def]
        return inner(state) * self.scale


def test_what_methods_bring_reaches_an_optimizer_that_is_made_after_setup() -> None:
    model, method = network(), Growing()
    step = Step(model, functools.partial(torch.optim.SGD, lr=0.1), nn.CrossEntropyLoss(), [method])
    groups = {group["name"]: group for group in step.optimizer.param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == {"model": 0.1, "growing": pytest.approx(1.0)}
    assert groups["model"]["params"][2] is model[2].weight
    assert groups["growing"]["params"] == [method.scale]
    step(batches(1)[0])
    assert method.scale.item() != 1.0
    assert method.frozen.item() == 1.0


def test_an_optimizer_made_before_the_network_was_changed_is_refused() -> None:
    model = network()
    with pytest.raises(ConflictError, match=r"2 parameters that the network no longer has after setup of growing"):
        Step(model, sgd(model), nn.CrossEntropyLoss(), [Growing()])


class Bringing(Method):
    """Brings a parameter and leaves the network as it is."""

    slug = "bringing"
    lr_scale = 3.0

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


def test_what_methods_bring_is_added_to_an_optimizer_that_exists_and_frozen_layers_are_not() -> None:
    model, method = network(), Bringing()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    Step(model, optimizer, nn.CrossEntropyLoss(), [method])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.3)


def test_the_criterion_s_parameters_are_trained_at_their_own_rate() -> None:
    class Scaled(nn.CrossEntropyLoss):
        lr_scale = 100.0

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return super().forward(output * self.scale, target)

    model, criterion = network(), Scaled()
    step = Step(model, functools.partial(torch.optim.SGD, lr=0.1), criterion)
    step(batches(1)[0])
    assert [(g["name"], g["lr"]) for g in step.optimizer.param_groups] == [("model", 0.1), ("criterion", 10.0)]
    assert criterion.scale.item() != 1.0


def test_a_stale_gradient_does_not_enter_the_next_step() -> None:
    model = network()
    step = Step(model, sgd(model), nn.CrossEntropyLoss())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    for batch in batches():
        step(batch)
    torch.testing.assert_close([p.detach() for p in model.parameters()], plain()[0])


class Epochs(Method):
    """Notes the epoch at whose end it is called."""

    slug = "epochs"
    needs = frozenset({"epochs"})

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[int] = []

    def epoch_end(self, run: Run) -> None:
        self.ended.append(run.epoch)


def test_the_end_of_an_epoch_reaches_methods_before_it_is_counted() -> None:
    model, method = network(), Epochs()
    step = Step(model, sgd(model), nn.CrossEntropyLoss(), [method], epochs=4)
    step.end_epoch()
    step.end_epoch()
    assert method.ended == [0, 1]
    assert (step.run.epoch, step.run.progress) == (2, 0.5)


def test_a_loop_that_never_ends_its_epochs_is_told_so() -> None:
    model = network()
    step = Step(model, sgd(model), nn.CrossEntropyLoss(), [Epochs()], epochs=4, examples=12)
    *first, last = batches(6)
    for batch in first:
        step(batch)
    with pytest.raises(UserError, match=r"epochs goes by epochs; call step.end_epoch\(\)"):
        step(last)


def test_targets_that_are_missing_reach_a_criterion_that_needs_none() -> None:
    model = network()

    def spread(output: Tensor, target: None) -> Tensor:
        return output.square().sum(1)

    loss = Step(model, sgd(model), spread)({"input": batches(1)[0][0]})
    assert loss.item() > 0


def test_the_model_s_output_is_on_the_state_of_the_loss() -> None:
    class Reading(Method):
        slug = "reading"

        def loss(self, state, inner):  # type: ignore[no-untyped-def]
            assert state.output is None
            values = inner(state)
            self.shapes = (tuple(state.output.shape), tuple(values.shape))
            return values

    model, method = network(), Reading()
    Step(model, sgd(model), nn.CrossEntropyLoss(), [method])(batches(1)[0])
    assert method.shapes == ((6, 2), (6,))


class Limited(Method):
    """Lets no more than a few examples be differentiated at once."""

    slug = "limited"

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.sizes: list[int] = []

    def setup(self, run: Run) -> None:
        run.micro_batch = self.limit

    def loss(self, state, inner):  # type: ignore[no-untyped-def]
        self.sizes.append(len(state.batch["input"]))
        return inner(state)


@pytest.mark.parametrize(
    ("limit", "accumulate", "sizes"), [(4, 1, [3, 3]), (2, 1, [2] * 3), (6, 1, [6]), (4, 3, [2] * 3)]
)
def test_a_method_limits_what_is_differentiated_at_once(limit: int, accumulate: int, sizes: list[int]) -> None:
    method = Limited(limit)
    weights, _ = stepped(method, accumulate=accumulate)
    assert method.sizes[: len(sizes)] == sizes
    torch.testing.assert_close(weights, stepped()[0])


def test_the_batch_size_that_a_method_asks_for_is_saved() -> None:
    def step() -> Step:
        model = network()
        return Step(model, sgd(model), nn.CrossEntropyLoss())

    first, second = step(), step()
    first.run.batch_size = 24
    second.load_state_dict(first.state_dict())
    assert second.run.batch_size == 24
    older = first.state_dict()
    del older["run"]["batch_size"]
    second.load_state_dict(older)


def test_an_optimizer_that_needs_a_closure_gets_one() -> None:
    model, ours = network(), network()
    settings = {"lr": 0.5, "max_iter": 4, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(model.parameters(), **settings)
    step = Step(ours, functools.partial(torch.optim.LBFGS, **settings), nn.CrossEntropyLoss(), clip_norm=0.5)
    calls = 0
    for inputs, targets in batches(2):

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            return loss

        expected = optimizer.step(closure)
        torch.testing.assert_close(step((inputs, targets)), expected.detach())
    torch.testing.assert_close(list(ours.parameters()), list(model.parameters()))
    assert step.run.counts.forward == step.run.counts.backward == 6 * calls
    assert step.run.counts.steps == 2


def test_a_method_sees_the_further_evaluations_of_such_an_optimizer() -> None:
    seen: list[int] = []

    class Watching(Method):
        slug = "watching"

        def loss(self, state: State, inner: Inner) -> Tensor:
            seen.append(state.evaluation)
            return inner(state)

    make = functools.partial(torch.optim.LBFGS, max_iter=3)
    Step(network(), make, nn.CrossEntropyLoss(), [Watching()])(batches(1)[0])
    assert seen == [0, 1, 2]


def test_loss_scaling_and_a_closure_do_not_go_together() -> None:
    with pytest.raises(ConflictError, match=r"LBFGS evaluates the loss several times a step.*precision='bf16'"):
        Step(network(), torch.optim.LBFGS, nn.CrossEntropyLoss(), precision="fp16")


def test_a_method_that_needs_views_says_how_to_give_them() -> None:
    class Viewing(Method):
        slug = "viewing"
        needs = frozenset({"views"})

    model = network()
    step = Step(model, sgd(model), nn.CrossEntropyLoss(), [Viewing()])
    with pytest.raises(ConflictError, match=r"viewing needs 'views'.*'views': \[first, second\].*views=2"):
        step(batches(1)[0])
