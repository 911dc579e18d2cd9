"""Recipes and the loop that carries them out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import NETWORKS, NORMS, PREPROCESSINGS, training
from benchmarks.networks import Network, NetworkSpec, usual_norm
from benchmarks.protocols import FREPO_RECIPE, PROTOCOLS, Recipe, soft_labels_recipe, vico_recipe
from benchmarks.training import (
    Stack,
    accuracy,
    class_accuracies,
    half_squared_error,
    loss_gradient,
    predict,
    probabilities,
    train,
    train_together,
    warmup_cosine,
)
from methods.checks import Waiting

SPEC = NetworkSpec("convnet", 1, (8, 8), 3, width=4)
PLAIN = Recipe(loss="cross_entropy", optimiser="sgd", lr=0.1, batch_size=4, shuffle=True, epochs=2)
COSINE = replace(FREPO_RECIPE, augment="none")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> Network:
    return SPEC.build(generator())


def examples(count: int = 9) -> tuple[Tensor, Tensor]:
    """Images of three classes, a bright band each, and their class indices."""
    labels = torch.arange(count) % 3
    images = 0.3 * torch.randn(count, 1, 8, 8, generator=generator(1))
    for i, label in enumerate(labels.tolist()):
        images[i, 0, 3 * label : 3 * label + 2] += 2
    return images, labels


def fit(recipe: Recipe, **options: Any) -> Network:
    """A network trained on ``examples`` by ``recipe``."""
    images, labels = examples()
    trained = options.pop("network", None) or network()
    settings: dict[str, Any] = {"flip": True, "generator": generator(), "labels": labels, "label_space": "probability"}
    train(trained, images, recipe=recipe, **(settings | options))
    return trained


def parameters(trained: Network) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trained.parameters()])


# Recipes


@pytest.mark.parametrize(
    ("images", "steps"),
    [
        *[(10, 1000), (100, 2000), (200, 20000), (400, 5000), (500, 5000), (1000, 10000), (2000, 40000), (5000, 40000)],
        *[(1, 1000), (11, 2000), (101, 20000), (201, 5000), (501, 10000), (1001, 40000), (10000, 40000)],
    ],
)
def test_frepo_steps_by_number_of_images(images: int, steps: int) -> None:
    assert PROTOCOLS["frepo"].recipe.steps(images) == PROTOCOLS["kip"].recipe.steps(images) == steps


def test_vico_runs_one_epoch_more_than_it_counts() -> None:
    recipe = PROTOCOLS["vico"].recipe
    assert recipe.steps(100) == 1001 and recipe.steps(256) == 1001 and recipe.steps(257) == 2002
    assert recipe.drop_after == 502


def test_flip_rule() -> None:
    frepo, vico = PROTOCOLS["frepo"].recipe, PROTOCOLS["vico"].recipe
    assert frepo.flip(True, "cifar10") and vico.flip(True, "cifar10")
    assert vico.flip(True, "fashion_mnist") and not frepo.flip(True, "fashion_mnist")
    assert not frepo.flip(False, "digits") and not vico.flip(False, "digits")


def test_protocols_name_what_exists() -> None:
    named = ["vico", "mtt", "datm", "soft_labels", "ncfm", "frepo", "rat_bptt", "rcig", "kip", "common"]
    assert list(PROTOCOLS) == named
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.network in NETWORKS and protocol.distill_norm in (*NORMS, None) and protocol.test_norm in NORMS
        for dataset in ("digits", "cifar10", "folder:somewhere"):
            assert protocol.preprocess(dataset, 7) in PREPROCESSINGS


@pytest.mark.parametrize(
    ("protocol", "dataset", "ipc", "preprocessing"),
    [
        ("mtt", "cifar10", 1, "zca_kornia"),
        ("mtt", "cifar10", 10, "zca_kornia"),
        ("mtt", "cifar10", 50, "standardise_mtt"),
        ("mtt", "cifar100", 1, "zca_kornia"),
        ("mtt", "cifar100", 10, "standardise_mtt"),
        ("mtt", "cifar100", 50, "zca_kornia"),
        ("mtt", "tiny_imagenet", 1, "standardise_mtt"),
        ("datm", "cifar10", 50, "zca_kornia"),
        ("datm", "tiny_imagenet", 1, "zca_kornia"),
        ("datm", "digits", 1, "standardise_mtt"),
        ("frepo", "cifar10", 1, "zca_frepo"),
        ("frepo", "mnist", 1, "standardise"),
        ("frepo", "fashion_mnist", 50, "standardise"),
        ("vico", "cifar100", 1, "standardise_vico"),
        ("common", "cifar100", 1, "standardise"),
    ],
)
def test_published_preprocessing(protocol: str, dataset: str, ipc: int, preprocessing: str) -> None:
    assert PROTOCOLS[protocol].preprocess(dataset, ipc) == preprocessing


# Labels and losses


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_the_same_labels_in_every_form(loss: Literal["cross_entropy", "mse"]) -> None:
    _, labels = examples()
    onehot = F.one_hot(labels, 3).float()
    recipe = replace(PLAIN, loss=loss)
    expected = parameters(fit(recipe))
    torch.testing.assert_close(parameters(fit(recipe, labels=onehot)), expected)
    centred = parameters(fit(recipe, labels=onehot - 1 / 3, label_space="centred"))
    torch.testing.assert_close(centred, expected)


def test_soft_labels_are_used_as_they_are() -> None:
    _, labels = examples()
    soft = 0.7 * F.one_hot(labels, 3) + 0.1
    for loss in ("cross_entropy", "mse"):
        recipe = replace(PLAIN, loss=loss)
        assert not torch.allclose(parameters(fit(recipe, labels=soft)), parameters(fit(recipe)))
        centred = parameters(fit(recipe, labels=soft - 1 / 3, label_space="centred"))
        torch.testing.assert_close(centred, parameters(fit(recipe, labels=soft)))


def test_learned_regression_targets_become_probabilities() -> None:
    labels = torch.tensor([[0.6, 0.2, -0.5], [-0.9, -0.5, -0.7], [2.0, -1.0, -1.0]], dtype=torch.float64) - 0.1
    third = 1 / 3
    first = torch.tensor([0.5 + third, 0.1 + third, 0.0], dtype=torch.float64)
    expected = torch.stack((first / first.sum(), torch.eye(3, dtype=torch.float64)[1], torch.eye(3)[0].double()))
    torch.testing.assert_close(probabilities(labels), expected)


def test_half_squared_error_sums_over_classes_and_averages_over_the_batch() -> None:
    assert float(half_squared_error(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2))) == 1.25


# The loop


@pytest.mark.parametrize("augment", ["none", "dsa", "frepo"])
def test_the_generator_decides_everything(augment: Literal["none", "dsa", "frepo"]) -> None:
    before = torch.get_rng_state()
    recipe = replace(PLAIN, augment=augment)
    first = parameters(fit(recipe))
    assert torch.equal(first, parameters(fit(recipe)))
    assert not torch.equal(first, parameters(fit(recipe, generator=generator(1))))
    assert torch.equal(before, torch.get_rng_state())


def test_epochs_visit_every_image_once_in_a_new_order(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[int]] = []

    def spy(logits: Tensor, labels: Tensor) -> Tensor:
        batches.append(labels.tolist())
        return logits.sum()

    monkeypatch.setitem(training.LOSSES, "cross_entropy", spy)
    labels = torch.arange(9)
    fit(PLAIN, labels=labels)
    assert [len(batch) for batch in batches] == [4, 4, 1, 4, 4, 1]
    visited = [i for batch in batches for i in batch]
    first, second = visited[:9], visited[9:]
    assert sorted(first) == sorted(second) == list(range(9)) and first != second != list(range(9))
    batches.clear()
    fit(replace(PLAIN, shuffle=False), labels=labels)
    assert batches == 2 * [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_progress() -> None:
    steps: list[tuple[int, int]] = []
    fit(PLAIN, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(i, 6) for i in range(1, 7)]


def learning_rates(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, **options: Any) -> tuple[list[float], int]:
    """The rate of every update, and how many optimisers were made."""
    made: list[torch.optim.Optimizer] = []
    rates: list[float] = []
    make = training._optimiser

    def optimiser(*arguments: Any) -> torch.optim.Optimizer:
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(training, "_optimiser", optimiser)
    fit(recipe, progress=lambda done, total: rates.append(made[-1].param_groups[0]["lr"]), **options)
    return rates, len(made)


def test_the_rate_drops_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(vico_recipe(10), augment="none")
    rates, made = learning_rates(monkeypatch, recipe)
    assert rates == pytest.approx(7 * [0.01] + 4 * [0.001]) and made == 2


def test_the_rate_drops_after_every_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    """And in the last epoch, which is one more than E; the optimiser keeps its momentum."""
    recipe = replace(soft_labels_recipe(12), augment="none")
    rates, made = learning_rates(monkeypatch, recipe)
    steps = [0.01 * 0.3**drops for drops in range(5)]
    assert rates == pytest.approx([rate for rate in steps[:4] for _ in range(3)] + steps[4:]) and made == 1
    short, _ = learning_rates(monkeypatch, replace(soft_labels_recipe(3000), augment="none"), max_steps=8)
    assert short == pytest.approx([rate for rate in steps[:4] for _ in range(2)])
    shortest, _ = learning_rates(monkeypatch, recipe, max_steps=1)
    assert shortest == [0.01]


def test_the_rate_drops_late(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(PLAIN, epochs=12, batch_size=9, lr=1.0)
    late = replace(recipe, schedule="drops", drop_after=2, drop_wait=6, drop_factor=0.5)
    rates, _ = learning_rates(monkeypatch, late)
    assert rates == 8 * [1.0] + 2 * [0.5] + 2 * [0.25]
    rates, _ = learning_rates(monkeypatch, late, max_steps=6)
    assert rates == 4 * [1.0] + [0.5] + [0.25]


def test_adamw_decays_weights_apart_from_their_gradients() -> None:
    recipe = replace(PLAIN, optimiser="adamw", lr=1e-3, epochs=1, batch_size=9)
    start, decayed, plain = (
        parameters(each) for each in (network(), *(fit(replace(recipe, weight_decay=w)) for w in (0.5, 0.0)))
    )
    torch.testing.assert_close(plain - decayed, 0.5e-3 * start, rtol=1e-4, atol=1e-7)


def test_a_shortened_recipe_keeps_the_shape_of_its_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, _ = learning_rates(monkeypatch, replace(vico_recipe(1000), augment="none"), max_steps=10)
    assert rates == pytest.approx(5 * [0.01] + 5 * [0.001])
    rates, made = learning_rates(monkeypatch, COSINE, max_steps=20)  # of 1000, 500 of them warm-up
    assert rates == pytest.approx([warmup_cosine(step, 20, 3e-4, 10, 0.01) for step in range(20)]) and made == 1
    assert rates[0] == 0 and rates[10] == max(rates) == 3e-4 and rates[-1] < 0.05 * 3e-4
    for steps in (1, 2, 3):
        assert len(learning_rates(monkeypatch, COSINE, max_steps=steps)[0]) == steps


def test_max_steps_never_lengthens() -> None:
    assert torch.equal(parameters(fit(PLAIN, max_steps=100)), parameters(fit(PLAIN)))


def test_the_learned_rate_is_taken_where_the_recipe_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lr = torch.tensor(0.05, requires_grad=True)
    for recipe, expected in ((replace(PLAIN, learned_lr=True), 0.05), (PLAIN, 0.1)):
        assert learning_rates(monkeypatch, recipe, lr=lr)[0] == pytest.approx(6 * [expected])
    assert learning_rates(monkeypatch, replace(PLAIN, learned_lr=True))[0] == pytest.approx(6 * [0.1])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_learns(name: str) -> None:
    protocol = PROTOCOLS[name]
    spec = NetworkSpec(protocol.network, 1, (8, 8), 3, width=16, norm=protocol.test_norm)
    images, labels = examples(30)
    trained = spec.build(generator())
    recipe = replace(protocol.recipe, lr=10 * protocol.recipe.lr)  # so that few steps are enough
    before = accuracy(predict(trained, images), labels)
    train(trained, images, labels, "probability", recipe, flip=False, generator=generator(), max_steps=80)
    assert accuracy(predict(trained, images), labels) > max(0.9, before)


# Several at a time


def enlarged(images: Tensor, spec: NetworkSpec) -> Tensor:
    return F.interpolate(images, spec.image_size)


FORMS = [(name, norm) for name in NETWORKS for norm in NORMS if usual_norm(name, norm) == norm]  # type: ignore[arg-type]
"""Every network with every norm that it has."""
CONVNETS = [form for form in FORMS if form[0].startswith("convnet")]


def form(network: str, norm: Any) -> NetworkSpec:
    side = 8 if network.startswith("convnet") else 28
    return NetworkSpec(network, 1, (side, side), 3, width=4, norm=norm)


def alone_and_together(
    spec: NetworkSpec, recipe: Recipe, dtype: torch.dtype, steps: int = 5, **options: Any
) -> tuple[list[Network], list[Network]]:
    """Three networks, each with a generator of its own, trained one after the other and together."""
    images, labels = examples()
    images = enlarged(images, spec)
    settings: dict[str, Any] = {
        **{"flip": True, "lr": torch.tensor(0.02), "max_steps": steps},
        **options,
    }
    found = []
    for together in (False, True):
        networks = [spec.build(generator(seed), dtype=dtype) for seed in range(3)]
        generators = [generator(10 + seed) for seed in range(3)]
        given = (images.to(dtype), labels, "probability", replace(recipe, batch_size=4))
        if together:
            train_together(networks, *given, generators=generators, **settings)
        else:
            for network, own in zip(networks, generators, strict=True):
                train(network, *given, generator=own, **settings)
        found.append(networks)
    return found[0], found[1]


@pytest.mark.parametrize(
    ("name", "network", "norm"),
    [
        *((name, *form) for name in PROTOCOLS for form in CONVNETS),
        *(("vico", *form) for form in FORMS if form not in CONVNETS),
    ],
)
def test_networks_trained_together_are_those_trained_alone(name: str, network: Any, norm: Any) -> None:
    """Parameters, running statistics and logits; batches of four and of the one image that is left.

    In training mode the gradient of the bias before a norm is rounding, which Adam divides by 1e-8; in float32 that is
    a whole step. The norm takes the bias out of the logits again. In float32 it also depends on rounding whether an
    activation near zero passes its gradient, and deep networks have too many of them.
    """
    spec = form(network, norm)
    images = enlarged(examples(12)[0], spec)
    roundings = {torch.float64: 1e-10} | ({torch.float32: 1e-3} if (network, norm) in CONVNETS else {})
    for dtype, rounding in roundings.items():
        alone, together = alone_and_together(spec, PROTOCOLS[name].recipe, dtype)
        for ours, theirs in zip(together, alone, strict=True):
            if dtype == torch.float64:
                for value, expected in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
                    torch.testing.assert_close(value, expected, rtol=0, atol=1e-8)
            logits = theirs(images.to(dtype))
            torch.testing.assert_close(ours(images.to(dtype)), logits, rtol=0, atol=rounding)
        fresh = spec.build(generator(0), dtype=dtype)
        assert not torch.allclose(parameters(fresh), parameters(alone[0]), rtol=0, atol=1e-5), "they learnt"
        assert not torch.allclose(parameters(together[0]), parameters(together[1]))


def test_only_networks_that_keep_channels_apart_are_stacked() -> None:
    stacked = {name for name, norm in FORMS if Stack.holds(form(name, norm).build(generator()))}
    assert set(NETWORKS) - stacked == {"lenet", "mlp"}
    grouped = form("convnet", "none").build(generator())
    grouped.body[0].groups = 2
    assert not Stack.holds(grouped)

    class Other(type(network())):  # type: ignore[misc]
        def features(self, images: Tensor) -> Tensor:
            return 2 * super().features(images)

    assert not Stack.holds(Other(SPEC))


def test_progress_finds_the_parameters_of_its_step() -> None:
    images, labels = examples()
    networks = [network() for _ in range(2)]
    seen: list[Tensor] = []
    train_together(
        networks,
        images,
        labels,
        "probability",
        PLAIN,
        flip=True,
        generators=[generator(0), generator(1)],
        progress=lambda done, steps: seen.append(parameters(networks[1])),
    )
    for steps in (1, 3, 6):
        # PLAIN has no schedule that would shrink
        torch.testing.assert_close(seen[steps - 1], parameters(fit(PLAIN, generator=generator(1), max_steps=steps)))


@pytest.mark.parametrize("augment", ["none", "dsa", "frepo"])
def test_random_choices_do_not_depend_on_how_many_are_made_together(
    augment: Literal["none", "dsa", "frepo"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither do they reach beyond the last step: the generator is the caller's."""
    recipe = replace(PLAIN, augment=augment)
    found = []
    for block in (256, 1, 4):
        monkeypatch.setattr(training, "BLOCK", block)
        source = generator()
        found.append((parameters(fit(recipe, generator=source, max_steps=5)), source.get_state()))
    for values, state in found[1:]:
        assert torch.equal(values, found[0][0]) and torch.equal(state, found[0][1])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_step_waits_for_the_device(name: str, count: int) -> None:
    spec = NetworkSpec("convnet", 1, (8, 8), 3, width=4)
    images, labels = examples()
    with Waiting() as waiting:
        networks = [spec.build(generator(seed), device=images.device) for seed in range(count)]

        def progress(done: int, steps: int) -> None:
            waiting.armed = done < steps

        train_together(
            networks,
            images,
            labels,
            "probability",
            PROTOCOLS[name].recipe,
            flip=True,
            generators=[generator(seed) for seed in range(count)],
            max_steps=4,
            progress=progress,
        )


# Predictions


@pytest.mark.parametrize(("network", "norm"), FORMS)
def test_predictions_do_not_depend_on_the_chunks_and_leave_the_network_alone(
    network: Any, norm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = form(network, norm)
    trained = spec.build(generator(), dtype=torch.float64)
    images = enlarged(examples()[0].double(), spec)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    whole = predict(trained, images)
    assert whole.shape == (9, 3) and not whole.requires_grad and not trained.training
    for size, parts in ((1, 9 * [1]), (4, [4, 4, 1]), (9, [9])):
        monkeypatch.setattr(training, "CPU_CHUNK_BYTES", size * 8 * trained.map_size(*spec.image_size))
        assert [len(part) for part in training.chunks(trained, images)] == parts
        torch.testing.assert_close(predict(trained, images), whole, rtol=1e-12, atol=1e-12)
        doubled = training.features(trained, images, lambda features: 2 * trained.head(features))
        torch.testing.assert_close(doubled, 2 * whole, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize(
    ("width", "side", "dtype", "size"),
    [
        (32, 32, torch.float32, 32),
        (32, 64, torch.float32, 8),
        (64, 32, torch.float64, 8),
        (128, 512, torch.float32, 1),  # one image has more
    ],
)
def test_a_chunk_has_four_mebibytes_of_first_maps(width: int, side: int, dtype: torch.dtype, size: int) -> None:
    spec = NetworkSpec("convnet", 3, (side, side), 3, width=width, depth=1)
    images = torch.empty(1, dtype=dtype).expand(2, 3, side, side)
    assert training.chunk_size(spec.build(generator()), images) == size


def test_accuracy_is_the_fraction_of_rows_that_are_right() -> None:
    logits = torch.tensor([[0.1, 0.3, 0.2], [5.0, 1.0, 2.0], [0.0, 0.0, 1.0]])
    assert accuracy(logits, torch.tensor([1, 0, 1])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("norm", "training_mode", "parts"), [("instance", True, 3), ("batch", True, 1), ("batch", False, 3)]
)
def test_the_gradient_is_summed_over_chunks_of_images_that_do_not_see_each_other(
    norm: Any, training_mode: bool, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = examples(12)
    images = images.double()
    net = replace(SPEC, norm=norm).build(generator(), dtype=torch.float64).train(training_mode)
    expected = F.cross_entropy(net(images), labels)
    gradients = torch.autograd.grad(expected, list(net.parameters()))
    monkeypatch.setattr(training, "CPU_CHUNK_BYTES", 5 * 4 * 8 * 8 * 8)
    net.register_forward_pre_hook(lambda _, batch: sizes.append(len(batch[0])))
    sizes: list[int] = []
    loss, summed = loss_gradient(net, images, labels)
    assert len(sizes) == parts and sum(sizes) == 12
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    for ours, theirs in zip(summed, gradients, strict=True):
        assert not ours.requires_grad
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_accuracy_by_class() -> None:
    logits = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    labels = torch.tensor([0, 0, 0, 1])
    assert class_accuracies(logits, labels) == [2 / 3, 0.0, None]
    assert accuracy(logits, labels) == 0.5
