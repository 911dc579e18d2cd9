"""What the records say of the claims of FRePo's paper: a judge for each kind of claim, a finding for each setting.

Where methods have several rows in a setting, the best of each counts. Rows of whole data sets and of views of them
(members of an attack, classes of a step) never meet.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.data.views import base_name
from harness.plan.jobs import WHOLE_DATA
from harness.plan.request import FLOOR
from harness.reports.comparisons import by_seed
from harness.reports.groups import OURS, Group, Result, config_of, plugin
from harness.reports.ratios import OWN, base_of, seconds_ratio, size_ratio, time_to, time_to_share
from harness.reports.render import short, times
from harness.reports.statistics import FEWEST_PAIRS, Interval, compare, interval_of_difference

RIVALS = ("dsa", "dm", "kip", "mtt")
"""The methods of table 1."""
MANY_CLASSES = ("cifar100", "tiny_imagenet", "cub200")
LEAK, NO_LEAK = 0.9, 0.55
"""AUC from which an attack tells members from others, and AUC up to which it does not: between those of table 4."""


class Finding(NamedTuple):
    """What the records say of a claim in one setting."""

    holds: bool | None
    """None: measured, but with too few values, or only a bound, so that nothing is decided."""
    words: str
    groups: tuple[Group, ...]
    n: int
    """How many values it rests on."""


# --- values that are compared -----------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """Values of a group by a key that pairs them with those of other groups: the seed, or more."""

    group: Group
    values: Mapping[Any, Sequence[float]]

    @property
    def mean(self) -> float:
        return statistics.fmean(value for own in self.values.values() for value in own)

    @property
    def n(self) -> int:
        return sum(map(len, self.values.values()))


def _ahead(ours: _Row, rival: _Row) -> tuple[float, Interval | None]:
    """Mean of ``ours`` less that of ``rival``, and its interval: of pairs where both were trained by one recipe.

    None where there are fewer than `FEWEST_PAIRS` values.
    """
    if ours.group.recipe == rival.group.recipe and (paired := compare(ours.values, rival.values)):
        return paired.difference, paired.interval if paired.pairs >= FEWEST_PAIRS else None
    known = None
    if min(ours.n, rival.n) >= FEWEST_PAIRS:
        known = interval_of_difference([*ours.values.values()], [*rival.values.values()])
    return ours.mean - rival.mean, known


def _difference(where: str, ours: _Row, rival: _Row, *, against: str = "") -> Finding:
    """Whether ``ours`` is above ``rival``."""
    difference, known = _ahead(ours, rival)
    shown = f" ({100 * known.low:+.1f} to {100 * known.high:+.1f}, over {known.over})" if known else ""
    words = f"{where}: {100 * difference:+.1f} points{shown} against {against or rival.group.method}"
    holds = None if known is None else known.low > 0
    return Finding(holds, words, (ours.group, rival.group), ours.n + rival.n)


def _against_best(where: str, rows: Sequence[_Row], rivals: Collection[str]) -> Iterator[Finding]:
    """The best row of ``OURS`` against the best row of ``rivals``, where there are both."""
    ours, others = ([row for row in rows if row.group.method in names] for names in ((OURS,), rivals))
    if ours and others:
        yield _difference(where, max(ours, key=lambda row: row.mean), max(others, key=lambda row: row.mean))


def _accuracies(groups: Iterable[Group]) -> dict[tuple[Any, ...], list[_Row]]:
    """Rows of the accuracy on whole data sets, by setting."""
    settings: dict[tuple[Any, ...], list[_Row]] = {}
    for group in groups:
        if group.values and (values := by_seed(group)) and not group.ceiling and not group.is_part:
            settings.setdefault((group.table, group.contest, *_sizes(group)), []).append(_Row(group, values))
    return settings


def _sizes(group: Group) -> tuple[Any, ...]:
    """Width of the network that distilled; width and most steps of the networks that were tested."""
    return group.distillation["width"], group.recipe.get("width"), group.recipe.get("steps")


def _is_one(group: Group, datasets: Collection[str]) -> bool:
    """Whether its data is one of ``datasets``, or a folder of images that is named after one, as a part of it is."""
    name = str(group.distillation["dataset"])
    folder = name.removeprefix("folder:").lower().replace("-", "_")
    return name in datasets or (name != folder and folder.startswith(tuple(datasets)))


def _task(group: Group) -> str:
    return f"{group.distillation['dataset']} at ipc {group.ipc}, {group.table[2]} protocol"


def _values(group: Group, evaluation: str, quantity: str) -> Iterator[tuple[int, Result, str, list[list[float]]]]:
    """Seed, result, what was asked beside the recipe, and series of every evaluation of that name that ended well.

    Values that are no series are series of one. An item of a list that makes a question of each is no part of what was
    asked.
    """
    known = plugin(evaluation)
    assert known is not None
    shown = known.quantities[quantity]
    for member in group.members:
        for result in member.results:
            if result.record["evaluation"] == evaluation and result.step is None and result.values(quantity):
                own = {name: value for name, value in json.loads(result.own).items() if name != known.each}
                values, config = result.values(quantity), config_of(result.record)
                series = shown.series(values, config) if shown.against else [[value] for value in values]
                yield member.seed, result, json.dumps(own, sort_keys=True), series


# --- section 4: accuracy and cost -------------------------------------------------------------------------------------


def accuracy(
    groups: Sequence[Group],
    rivals: Collection[str] = RIVALS,
    datasets: Collection[str] | None = None,
    ipcs: Collection[int] | None = None,
) -> Iterator[Finding]:
    """FRePo's accuracy against the best of ``rivals`` on every task."""
    for rows in _accuracies(groups).values():
        asked = rows[0].group.distillation
        if (datasets is None or _is_one(rows[0].group, datasets)) and (ipcs is None or asked["ipc"] in ipcs):
            yield from _against_best(_task(rows[0].group), rows, rivals)


def kernel_regression(groups: Sequence[Group], datasets: Collection[str], *, similar: bool) -> Iterator[Finding]:
    """Kernel regression on the features of the trained network against the network itself."""
    for rows in _accuracies(groups).values():
        for row in rows:
            group = row.group
            krr = {member.seed: member.values("krr_accuracy") for member in group.members}
            if group.method != OURS or not _is_one(group, datasets) or not any(krr.values()):
                continue
            kernel = _Row(group, {seed: values for seed, values in krr.items() if values})
            found = _difference(_task(group), kernel, row, against="the network")
            difference, _ = _ahead(kernel, row)
            if similar and found.holds is not None:
                found = found._replace(holds=abs(difference) <= 0.01)
            yield found


def learned_labels(groups: Sequence[Group]) -> Iterator[Finding]:
    """FRePo with learned labels against FRePo with fixed ones, which are equal in all else."""
    for rows in _accuracies(groups).values():
        ours = [row for row in rows if row.group.method == OURS]
        for row in ours:
            if row.group.records[0]["config"].get("learn_label") and _is_one(row.group, MANY_CLASSES):
                fixed = {**row.group.settings, "config.learn_label": False}
                for other in ours:
                    if other.group.settings == fixed:
                        yield _difference(_task(row.group), row, other, against="fixed labels")


def time_to_equal_accuracy(groups: Sequence[Group]) -> Iterator[Finding]:
    """Seconds of MTT and of FRePo until the accuracy that MTT ends with: evaluated alike, or each as its paper does."""
    for rival in groups:
        apart = (*OWN, "network") if rival.on_own_network else OWN
        base = base_of(rival, [group for group in groups if group.on_own_network == rival.on_own_network], apart)
        if rival.method != "mtt" or base is None:
            continue
        if base.test != rival.test and not (rival.on_own_network and _sizes(base) == _sizes(rival)):
            continue
        if len(rival.curve) > 1 and len(base.curve) > 1:
            target = statistics.fmean(rival.curve[-1].values)
            own, other = time_to(base.curve, target), time_to(rival.curve, target)
            count = len(base.curve[-1].values) + len(rival.curve[-1].values)
            if other is None:
                continue
            words = f"{_task(rival)}: to {target:.1%} FRePo "
            if own is None:
                yield Finding(False, f"{words}does not come in the time measured", (base, rival), count)
                continue
            # Seconds are an upper bound where the first point measured has the accuracy already.
            ratio, early, rival_early = other[0] / own[0], own[1], other[1]
            bound = ("", "at most ", "at least ", "perhaps ")[2 * early + rival_early]
            holds: bool | None = ratio >= 100
            if (rival_early and holds) or (early and not holds):
                holds = None
            start, rival_start = (statistics.fmean(group.costs("prepare_seconds") or [0.0]) for group in (base, rival))
            prepared = times((other[0] + rival_start) / (own[0] + start))
            operations = size_ratio(rival, base, "flops_per_step")
            counted = f"; an iteration of mtt has {times(operations)} the operations" if operations else ""
            words += f"takes {short(own[0])} s and mtt {short(other[0])} s: {bound}{times(ratio)}"
            words += f", with preparation {bound}{prepared}{counted}"
            yield Finding(holds, words, (base, rival), count)


def memory(groups: Sequence[Group]) -> Iterator[Finding]:
    """Peak memory of MTT over that of FRePo, at the largest width of every task."""
    for base, rival in _largest(groups, ("mtt",)).values():
        ratio = size_ratio(rival, base, "headline")
        if ratio is not None:
            words = f"{_network(rival)}: {times(ratio)} the peak memory"
            yield Finding(ratio >= 10, words, (base, rival), len(base.counted) + len(rival.counted))


def iteration(groups: Sequence[Group]) -> Iterator[Finding]:
    """Seconds of an iteration of other methods over those of FRePo, at the largest width of every task."""
    for base, rival in _largest(groups, ("mtt", "dsa", "dm")).values():
        seconds, operations = seconds_ratio(rival, base), size_ratio(rival, base, "flops_per_step")
        if seconds is not None:
            counted = f" ({times(operations)} the operations)" if operations else ""
            words = f"{_network(rival)}: {rival.method} takes {times(seconds[0])} the time{counted}"
            yield Finding(seconds[0] > 1, words, (base, rival), len(base.step_seconds) + len(rival.step_seconds))


def _largest(groups: Sequence[Group], rivals: Collection[str]) -> dict[tuple[Any, ...], tuple[Group, Group]]:
    """FRePo and a rival whose costs compare, for the largest width of every device, task and network."""
    found: dict[tuple[Any, ...], tuple[Group, Group]] = {}
    for rival in sorted(groups, key=lambda group: int(group.distillation["width"])):
        base = base_of(rival, [group for group in groups if group.table == rival.table])
        if rival.method in rivals and base is not None and base.method == OURS and not rival.evaluated:
            found[rival.method, rival.table, rival.contest, rival.distillation["network"]] = base, rival
    return found


def _network(group: Group) -> str:
    asked = group.distillation
    return f"{asked['dataset']} at ipc {asked['ipc']}, {asked['network']}, width {asked['width']}"


def time_to_most(groups: Sequence[Group]) -> Iterator[Finding]:
    """The time to 92 % of the final accuracy, in the setting of the claim alone."""
    for group in groups:
        asked = group.distillation
        if (group.method, asked["dataset"], asked["ipc"], group.table[1]) == (OURS, "cifar100", 1, "paper"):
            known = time_to_share(group)
            if known is not None:
                words = f"{'at most ' * known[1]}{short(known[0])} s"
                yield Finding(known[0] <= 385, words, (group,), len(group.values))


def nothing(groups: Sequence[Group]) -> Iterator[Finding]:
    """No evaluation measures it."""
    yield from ()


# --- table 2: other architectures -------------------------------------------------------------------------------------

OWN_NETWORK, OWN_WITHOUT_NORM = "own", "own:none"


def _architectures(groups: Sequence[Group]) -> dict[tuple[Any, ...], dict[str, list[_Row]]]:
    """Rows of the evaluation ``cross_architecture``, by setting and by architecture."""
    settings: dict[tuple[Any, ...], dict[str, list[_Row]]] = {}
    for group in groups:
        values: dict[tuple[str, str], dict[Any, list[float]]] = {}
        for seed, result, own, networks in _values(group, "cross_architecture", "accuracy"):
            architecture = " ".join(config_of(result.record)["architectures"])
            values.setdefault((own, architecture), {})[seed] = [value for (value,) in networks]
        for (own, architecture), by in values.items():
            rows = settings.setdefault((group.table, group.contest, *_sizes(group), own), {})
            rows.setdefault(architecture, []).append(_Row(group, by))
    return settings


def transfer(groups: Sequence[Group]) -> Iterator[Finding]:
    """FRePo against the best other method on every architecture that did not distil."""
    for by_architecture in _architectures(groups).values():
        for architecture, rows in by_architecture.items():
            if architecture != OWN_NETWORK:
                yield from _against_best(f"{_task(rows[0].group)}, {architecture}", rows, RIVALS)


def norm(groups: Sequence[Group]) -> Iterator[Finding]:
    """Sets that were distilled with instance norm, tested with it and without."""
    for by_architecture in _architectures(groups).values():
        for row in by_architecture.get(OWN_NETWORK, ()):
            if row.group.distillation["norm"] == "instance" and row.group.method in ("dsa", "dm", "mtt"):
                for bare in by_architecture.get(OWN_WITHOUT_NORM, ()):
                    if bare.group is row.group:
                        where = f"{_task(row.group)}, {row.group.method}"
                        yield _difference(where, row, bare, against="the same network without norm")


# --- section 5: applications ------------------------------------------------------------------------------------------


class _Continual(NamedTuple):
    """A setting of continual learning in which methods compare."""

    table: tuple[Any, ...]
    dataset: str
    ipc: int
    width: int
    leak: bool
    tested: tuple[Any, ...]
    """Width and most steps of the networks."""
    class_steps: int


def _continual(groups: Sequence[Group]) -> dict[_Continual, list[_Row]]:
    """Rows of the accuracy after the last step, of every order of the classes and seed."""
    settings: dict[_Continual, dict[str, tuple[Group, dict[Any, list[float]]]]] = {}
    for group in groups:
        for seed, result, _, series in _values(group, "continual_learning", "continual_accuracy"):
            asked, config = group.distillation, config_of(result.record)
            name, (width, *tested) = base_name(asked["dataset"]), _sizes(group)
            key = _Continual(
                group.table, name, asked["ipc"], width, config["leak"], tuple(tested), int(config["class_steps"])
            )
            # Another order is another view of the data, and another group.
            alike = json.dumps([group.method, group.recipe, group.records[0]["config"]], sort_keys=True)
            _, values = settings.setdefault(key, {}).setdefault(alike, (group, {}))
            values[config["order"], seed] = [network[-1] for network in series]
    return {key: [_Row(*row) for row in rows.values()] for key, rows in settings.items()}


def _continual_words(setting: _Continual) -> str:
    return f"{setting.dataset} at ipc {setting.ipc} in {setting.class_steps} steps, {setting.table[2]} protocol"


def continual(groups: Sequence[Group]) -> Iterator[Finding]:
    """FRePo against the best other method after the last step."""
    for setting, rows in _continual(groups).items():
        yield from _against_best(_continual_words(setting), rows, (*RIVALS, FLOOR, "herding"))


def fewer_steps(groups: Sequence[Group]) -> Iterator[Finding]:
    """FRePo in the fewest steps against FRePo in more."""
    by_task: dict[_Continual, list[tuple[int, _Row]]] = {}
    for setting, rows in _continual(groups).items():
        ours = [row for row in rows if row.group.method == OURS]
        if ours:
            row = max(ours, key=lambda row: row.mean)
            by_task.setdefault(setting._replace(class_steps=0), []).append((setting.class_steps, row))
    for found in by_task.values():
        (fewest, row), *others = sorted(found, key=lambda pair: pair[0])
        for steps, other in others:
            where = f"{base_name(row.group.distillation['dataset'])}, {fewest} steps"
            yield _difference(where, row, other, against=f"{steps} steps")


def at_once(groups: Sequence[Group]) -> Iterator[Finding]:
    """FRePo's buffer of sets of single steps against half as many images that were distilled from all classes."""
    whole = _accuracies(groups)
    for setting, rows in _continual(groups).items():
        for row in (row for row in rows if row.group.method == OURS):
            for others in whole.values():
                for other in others:
                    asked = other.group.distillation
                    known = other.group.table, asked["dataset"], 2 * asked["ipc"], asked["width"]
                    if other.group.method == OURS and known == setting[:4]:
                        difference, _ = _ahead(row, other)
                        found = _difference(_continual_words(setting), row, other, against="half the images at once")
                        yield found if found.holds is None else found._replace(holds=difference <= 0.01)


AUC = ("threshold_auc", "lr_auc", "mlp_auc", "rf_auc", "knn_auc")


class _Attack(NamedTuple):
    """A setting of membership inference in which methods compare: the same data, attacks and training."""

    words: str
    device: str
    budget: str
    version: str
    width: int
    own: str


def _attacks(groups: Sequence[Group], quantity: str, *, first: bool = False) -> dict[_Attack, list[_Row]]:
    """Rows of the evaluation ``membership_inference`` after the longest training, or the shortest, by setting."""
    settings: dict[_Attack, dict[str, _Row]] = {}
    for group in groups:
        by: dict[_Attack, dict[Any, list[float]]] = {}
        for seed, result, own, networks in _values(group, "membership_inference", quantity):
            asked, config, version = group.distillation, config_of(result.record), result.record["protocol_version"]
            words = f"{asked['dataset']}, augmentation {config['augment']}, {config['lengths'][-1]} steps"
            setting = _Attack(words, *group.table[:2], version, asked["width"], own)
            by.setdefault(setting, {})[seed] = [series[0 if first else -1] for series in networks]
        sets = " ".join(record["identity"] for record in group.records)  # no recipe: it stands in all rows of its sets
        for setting, values in by.items():
            settings.setdefault(setting, {}).setdefault(sets, _Row(group, values))
    return {setting: [*rows.values()] for setting, rows in settings.items()}


def _of(rows: Iterable[_Row], method: str) -> list[_Row]:
    return [row for row in rows if row.group.method == method]


def leaks(groups: Sequence[Group]) -> Iterator[Finding]:
    """The largest AUC of five attackers on real data, and on FRePo's set."""
    every = [_attacks(groups, quantity) for quantity in AUC]
    for setting in every[0]:
        real, ours, subset = (
            [row.mean for by in every for row in _of(by.get(setting, ()), method)]
            for method in (WHOLE_DATA, OURS, FLOOR)
        )
        used = [row for by in every for row in by.get(setting, ()) if row.group.method in (WHOLE_DATA, OURS)]
        if real and ours:
            beside = f", a random subset of its size {max(subset):.2f}" if subset else ""
            words = f"{setting.words}: largest AUC on real data {max(real):.2f}, on FRePo's set {max(ours):.2f}{beside}"
            yield Finding(
                max(real) >= LEAK and max(ours) <= NO_LEAK,
                words,
                tuple({id(row.group): row.group for row in used}.values()),
                sum(row.n for row in used),
            )


def useful(groups: Sequence[Group]) -> Iterator[Finding]:
    """Accuracy of networks that are trained on FRePo's set against those on a subset of its size."""
    for setting, rows in _attacks(groups, "accuracy").items():
        for ours in _of(rows, OURS):
            for subset in _of(rows, FLOOR):
                if ours.group.contest == subset.group.contest:
                    yield _difference(setting.words, ours, subset, against="a random subset")


def grows_with_training(groups: Sequence[Group]) -> Iterator[Finding]:
    """AUC of the threshold attack after the shortest and the longest training, on real data and on FRePo's set."""
    begin = {
        (setting, id(row.group)): row.mean
        for setting, rows in _attacks(groups, AUC[0], first=True).items()
        for row in rows
    }
    for setting, rows in _attacks(groups, AUC[0]).items():
        for real in _of(rows, WHOLE_DATA):
            for ours in _of(rows, OURS):
                starts = [begin[setting, id(row.group)] for row in (real, ours)]
                words = (
                    f"{setting.words}: AUC on real data from {starts[0]:.2f} to {real.mean:.2f}, on FRePo's set from "
                    f"{starts[1]:.2f} to {ours.mean:.2f}"
                )
                holds = real.mean >= starts[0] + 0.1 and ours.mean <= NO_LEAK
                yield Finding(holds, words, (real.group, ours.group), 2 * (real.n + ours.n))
