"""Checks of a method.

`CHECKS` are the conformance checks: each is called with a method's name and its class, and runs the method on a tiny
task. They need no data set, no GPU and no test framework, so a package of one's own runs them too:
``python -m harness.check_method NAME`` or ``@pytest.mark.parametrize("check", CHECKS)``.

`check_class`, `check_losses` and `check_synthetic` look at values, and the harness calls them in every cell.

Each raises UserError: one line with what was looked at, what came and what was expected.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import gc
import inspect
import io
import itertools
import json
import pickle
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks import DATASETS
from benchmarks.decoder import fits
from benchmarks.errors import UserError, choose, printable
from benchmarks.networks import NetworkSpec
from benchmarks.protocols import PROTOCOLS
from benchmarks.task import Task
from methods.base import LabelSpace, Method, Range, Store, Synthetic

TOLERANCE = 1e-3
"""How far a label may lie below 0, and a sum of labels from that of their space: rounding is far less."""

MOST_TUNED = 4
"""With more fields a dozen trials would leave most of the space unseen."""


class NotFinite(UserError):
    """A set of the right form with a value that is infinite or not a number."""


def check_class(cls: type[Method], where: str) -> None:
    """Check that no method is missing, that ``Config`` is a frozen dataclass of plain values, that ``PAPER``,
    ``BUDGETS`` and ``PROTOCOL`` name what exists, and that ``TUNE`` has ranges around the ``quick`` settings.

    Raises UserError where not.
    """
    config = config_of(cls, where)
    names = {field.name for field in dataclasses.fields(config)}
    for table, entries in (("PAPER", cls.PAPER), ("BUDGETS", cls.BUDGETS)):
        for key, changes in entries.items():
            if unknown := sorted(changes.keys() - names - {"steps"}):
                raise UserError(f"{where}: {table}[{key!r}] changes {', '.join(unknown)}, which Config does not have")
    try:
        choose("protocol", cls.PROTOCOL, PROTOCOLS)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    _check_tune(cls, where)


def _check_tune(cls: type[Method], where: str) -> None:
    """Check ``TUNE``. Raises UserError where it is not as `Method` says, or allows what ``Config`` refuses."""
    if len(cls.TUNE) > MOST_TUNED:
        raise UserError(f"{where}: TUNE has {len(cls.TUNE)} fields; expected at most {MOST_TUNED}, step sizes first")
    smoke, quick = (
        cls.Config(**{name: value for name, value in cls.BUDGETS.get(budget, {}).items() if name != "steps"})
        for budget in ("smoke", "quick")
    )
    kinds = get_type_hints(cls.Config) if cls.TUNE else {}
    for field, values in cls.TUNE.items():
        shown = f"{where}: TUNE[{field!r}]"
        if field not in kinds:
            raise UserError(f"{shown}: Config does not have it")
        kind = {int, float} & {kinds[field], *get_args(kinds[field])}
        if not isinstance(values, Range) or {type(values.low), type(values.high)} != kind:
            raise UserError(f"{shown} is {printable(repr(values))}; expected a Range of numbers of the field's type")
        if not (values.low < values.high < float("inf") and (values.low > 0 or not values.log)):
            raise UserError(f"{shown} is {values}; expected low below high, and above 0 where log is True")
        usual = getattr(quick, field)
        if usual is None or not values.low <= usual <= values.high:
            raise UserError(f"{shown} is {values}; expected the quick setting within, which is {usual}")
    for config, *ends in itertools.product((smoke, quick), *((each.low, each.high) for each in cls.TUNE.values())):
        try:
            dataclasses.replace(config, **dict(zip(cls.TUNE, ends, strict=True)))
        except UserError as error:
            raise UserError(f"{where}: TUNE has values that Config refuses: {error}") from None


def config_of(cls: type[Any], where: str) -> type[Any]:
    """The ``Config`` of a plugin that lacks no method, a frozen dataclass of plain values.

    Raises UserError where it is not so.
    """
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise UserError(f"{where} lacks {', '.join(f'{name}()' for name in missing)}")
    config = getattr(cls, "Config", None)
    frozen = isinstance(config, type) and dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    if not frozen:
        raise UserError(f"{where}: Config is {_shown(config)}; expected a frozen dataclass")
    assert isinstance(config, type)
    try:
        json.dumps(dataclasses.asdict(config()))
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}")
        raise UserError(f"{where}: Config() does not give numbers, text and lists of them ({reason})") from error
    return config


def check_losses(losses: object, where: str, device: torch.device) -> None:
    """Check what ``step`` returned: names → detached floating point tensors, 0-d, on ``device``; waits for no device.

    Raises UserError where not.
    """
    if not isinstance(losses, Mapping) or not losses:
        raise UserError(f"{where}: {_shown(losses)}; expected a dictionary of losses")
    for name, loss in losses.items():
        sound = isinstance(loss, Tensor) and loss.shape == () and loss.is_floating_point() and not loss.requires_grad
        if not (isinstance(name, str) and sound and loss.device == device):
            expected = f"names of detached 0-d floating point tensors on {device}"
            raise UserError(f"{where}: {name!r} is {_shown(loss)}; expected {expected}")


def check_synthetic(
    synthetic: object,
    where: str,
    *,
    classes: int,
    ipc: int,
    image: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    present: Sequence[int] | None = None,
    initial: bool = False,
) -> None:
    """Check for ``ipc`` images of each class, of shape ``image`` (C, H, W), class-major, with labels of their space.

    Labels are for ``classes`` classes. ``present``: those that have images, ascending; None: all.
    ``initial``: the set is as it was before the first step of a method that has steps. Then the largest label of every
    row (one of the largest) is that of its class, and centred labels sum to 0. Else only hard labels, whose rows hold
    the same two values in another order, must be class-major: labels that are learned may move.

    Raises NotFinite for a value that is not finite, and UserError for anything else.
    """
    if not isinstance(synthetic, Synthetic):
        raise UserError(f"{where}: {_shown(synthetic)}; expected a Synthetic")
    present = range(classes) if present is None else present
    count = len(present) * ipc
    expected = {"images": (count, *image), "labels": (count, classes)}
    for name, shape in expected.items():
        tensor = getattr(synthetic, name)
        if not _is(tensor, dtype, device) or tensor.shape != shape:
            said = f"detached {_name(dtype)} {shape} on {device}, for {len(present)} classes at ipc {ipc}"
            raise UserError(f"{where}: {name} are {_shown(tensor)}; expected {said}")
    factor = synthetic.factor
    if type(factor) is not int or factor < 1 or not fits(factor, image[1:]):
        said = f"a whole number from 1 that cuts {image[1]}×{image[2]} pixels into tiles that are not all padding"
        raise UserError(f"{where}: factor is {printable(repr(factor))}; expected {said}")
    rate = synthetic.lr
    if rate is not None and not (_is(rate, dtype, device) and rate.ndim <= 1 and rate.numel()):
        said = f"detached {_name(dtype)} on {device}, 0-d or one number per step"
        raise UserError(f"{where}: lr is {_shown(rate)}; expected {said}")
    if synthetic.label_space not in get_args(LabelSpace):
        known = " or ".join(", ".join(get_args(LabelSpace)).rsplit(", ", 1))
        raise UserError(f"{where}: label_space is {printable(repr(synthetic.label_space))}; expected {known}")
    for name, values in (("images", synthetic.images), ("labels", synthetic.labels), ("step size", rate)):
        if values is not None and not bool(values.isfinite().all()):
            raise NotFinite(f"{where}: a value of the {name} is not finite")
    _check_labels(synthetic, where, present, ipc, initial)


def _check_labels(synthetic: Synthetic, where: str, present: Sequence[int], ipc: int, initial: bool) -> None:
    labels, space = synthetic.labels, synthetic.label_space
    sums = labels.sum(1)
    came = f"{space} labels from {float(labels.min()):.4g} to {float(labels.max()):.4g}"
    came += f" with sums from {float(sums.min()):.4g} to {float(sums.max()):.4g}"
    if space == "probability" and not (
        bool((labels >= -TOLERANCE).all()) and bool(((sums - 1).abs() <= TOLERANCE).all())
    ):
        raise UserError(f"{where}: {came}; expected values from 0 to 1 with sums of 1")
    if space == "weighted" and not (bool((labels >= -TOLERANCE).all()) and bool((sums > 0).any())):
        raise UserError(f"{where}: {came}; expected values from 0 on, some above")
    if space == "centred" and initial and not bool((sums.abs() <= TOLERANCE).all()):
        raise UserError(f"{where}: {came}; expected sums of 0")
    if not initial and bool((labels == labels[:, :1]).all()):
        raise UserError(f"{where}: {came}, the same for every class; expected labels that tell classes apart")
    ordered = labels.sort(1).values
    hard = bool((ordered == ordered[0]).all()) and bool((ordered[0, :-1] == ordered[0, 0]).all())
    if initial or hard:
        order = torch.tensor(present, device=labels.device).repeat_interleave(ipc)
        other = labels.gather(1, order[:, None])[:, 0] < labels.max(1).values
        if bool(other.any()):
            row = int(other.nonzero()[0])
            raise UserError(
                f"{where}: the labels of image {row} name class {int(labels[row].argmax())}; expected class "
                f"{int(order[row])}, for sets are class-major"
            )


# The conformance checks

CLASSES, IPC, STEPS = 3, 2, 5
"""The tiny task, and the length of a run that is cut short after three steps or fewer."""


def tiny_task(seed: int = 0, dtype: torch.dtype = torch.float32) -> Task:
    """60 random 8×8 images of 3 classes, each class with a mean of its own; the data do not depend on ``seed``."""
    generator = torch.Generator().manual_seed(123)
    labels = torch.arange(60) % CLASSES
    means = torch.randn(CLASSES, 1, 8, 8, generator=generator)
    images = means[labels] + torch.randn(60, 1, 8, 8, generator=generator)
    spec = NetworkSpec("convnet", 1, (8, 8), CLASSES, width=4)
    return Task(
        images=images.to(dtype),
        labels=labels,
        num_classes=CLASSES,
        ipc=IPC,
        network=functools.partial(spec.build, dtype=dtype),
        generator=torch.Generator().manual_seed(seed),
        flip=False,
    )


def prepared(
    method: type[Method],
    seed: int = 0,
    store: Store | None = None,
    dtype: torch.dtype = torch.float32,
    task: Task | None = None,
) -> Method:
    """The method under its smoke budget on the tiny task, ready for the first step."""
    smoke = {key: value for key, value in method.BUDGETS.get("smoke", {}).items() if key != "steps"}
    running = method(task or tiny_task(seed, dtype), method.Config(**smoke), total_steps=STEPS)
    running.prepare({} if store is None else store)
    return running


def run(running: Method, steps: int) -> Synthetic:
    """Take ``steps`` steps, or none where the method has none; returns the set after them."""
    for _ in range(steps if running.iterative else 0):
        running.step()
    return running.synthetic()


def check_config(name: str, method: type[Method]) -> None:
    """Config is a frozen dataclass with every field documented; PAPER, BUDGETS and TUNE name what exists."""
    check_class(method, name)
    config = method.Config
    fields = {field.name for field in dataclasses.fields(config)}
    parts = [part for part in config.__mro__ if dataclasses.is_dataclass(part)]
    silent = sorted(fields.difference(*map(_documented, parts)))
    _expect(not silent, name, f"Config says nothing about {', '.join(silent)}; write a string below each field")
    unknown = sorted(method.BUDGETS.keys() - {"smoke", "quick", "long", "cost", "forecast"})
    _expect(not unknown, name, f"BUDGETS has {', '.join(unknown)}; expected smoke, quick, long, cost or forecast")
    for (dataset, ipc), changes in method.PAPER.items():
        _expect(dataset in DATASETS and ipc >= 1, name, f"PAPER has {(dataset, ipc)}; expected a data set and its ipc")
        config(**{key: value for key, value in changes.items() if key != "steps"})
    if not method.iterative:
        return
    missing = sorted({"smoke", "quick"} - method.BUDGETS.keys())
    _expect(not missing, name, f"BUDGETS lacks {', '.join(missing)}; a method with steps says how many these take")
    for key, changes in [*method.PAPER.items(), *method.BUDGETS.items()]:
        timed = key in ("long", "cost", "forecast")
        fitting = "steps" not in changes if timed else changes.get("steps", 0) >= 1
        wanted = "no steps: the time says how many" if timed else "steps, 1 or more"
        _expect(fitting, name, f"{key!r} has {changes.get('steps', 'no')} steps; expected {wanted}")


def _documented(config: type) -> set[str]:
    """The fields of a dataclass that a string below, or a comment beside or above, explains."""
    source = inspect.cleandoc("\n" + inspect.getsource(config))
    lines = source.splitlines()
    body = next(node.body for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    fields = set()
    for node, after in itertools.zip_longest(body, body[1:]):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            below = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            beside = "  # " in lines[node.lineno - 1]
            above = lines[node.lineno - 2].lstrip().startswith("#")
            if below or beside or above:
                fields.add(node.target.id)
    return fields


FORBIDDEN = {
    name: instead
    for instead, names in {
        "knows no harness": "harness tests",
        "touches no clock: the harness measures": "datetime time timeit",
        "touches no disk: prepare(store) keeps tensors": "os pathlib shutil tempfile open torch.load torch.save",
        "writes no log: step() returns losses": "logging tqdm print",
        "knows no command line and no process: Config holds settings": "argparse subprocess sys input",
        "draws from task.generator alone": "random torch.manual_seed",
        "never waits for the device": "torch.accelerator.synchronize torch.cuda.synchronize torch.xpu.synchronize",
    }.items()
    for name in names.split()
}
"""Modules that a method may not import and functions that it may not call → what a method does instead."""


def imported(source: str, package: str = "") -> Iterator[str]:
    """The full names of all modules that ``source`` imports, at the top or in a function.

    ``package``: what relative imports start from.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def forbidden(source: str, package: str = "") -> Iterator[str]:
    """Things that the source of a method does although no method may, a sentence each; ``package`` as in `imported`."""
    for module in imported(source, package):
        top, _, inner = module.partition(".")
        if top in FORBIDDEN:
            yield f"imports {module}; a method {FORBIDDEN[top]}"
        if top == "methods" and not (inner.split(".")[0] == "base" or inner.startswith("_")):
            yield f"imports {module}; a method imports no other method"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (called := ast.unparse(node.func)) in FORBIDDEN:
            yield f"calls {called}; a method {FORBIDDEN[called]}"


def check_source(name: str, method: type[Method]) -> None:
    """The file names its paper, and uses no clock, disk, log or other method."""
    module = sys.modules[method.__module__]
    for mistake in forbidden(inspect.getsource(module), module.__package__ or ""):
        raise UserError(f"{name}: the file {mistake}")
    year = re.search(r"\b(19|20)\d\d\b", module.__doc__ or "")
    cited = bool(year or (module.__doc__ and not method.iterative))
    _expect(cited, name, "the file does not begin with its paper; expected authors, title and year in its docstring")


def check_set(name: str, method: type[Method]) -> None:
    """Shapes, order, dtype and labels of the set are right before the first step and after the third."""
    for dtype, steps in itertools.product((torch.float32, torch.float64), (0, 3)):
        running = prepared(method, dtype=dtype)
        synthetic, where = run(running, steps), f"{name} after {steps} steps in {_name(dtype)}"
        check_synthetic(
            synthetic,
            where,
            classes=CLASSES,
            ipc=IPC,
            image=(1, 8, 8),
            dtype=dtype,
            device=running.task.device,
            initial=steps == 0 and running.iterative,
        )
        if synthetic.label_space == "probability" or steps == 0:
            error = (synthetic.labels.sum(1) - float(synthetic.label_space != "centred")).abs().max()
            _expect(bool(error <= 1e-5), where, f"sums of labels are wrong by {float(error):.1g}; expected rounding")


def check_classes(name: str, method: type[Method]) -> None:
    """Where only some classes have images, as in continual learning, the set has ipc images of each of those."""
    for present, steps in itertools.product(([0, 2], [1]), (0, 3)):
        task = tiny_task()
        rows = torch.isin(task.labels, torch.tensor(present))
        task = dataclasses.replace(task, images=task.images[rows], labels=task.labels[rows])
        check_synthetic(
            run(prepared(method, task=task), steps),
            f"{name} after {steps} steps where only the classes {present} have images",
            classes=CLASSES,
            present=present,
            ipc=IPC,
            image=(1, 8, 8),
            dtype=task.dtype,
            device=task.device,
            initial=steps == 0 and method.iterative,
        )


def check_steps(name: str, method: type[Method]) -> None:
    """Each step updates the images and returns finite losses; learned labels move."""
    if not method.iterative:
        return
    running = prepared(method)
    cycle = running.steps_per_cycle
    _expect(isinstance(cycle, int) and cycle >= 1, name, f"steps_per_cycle is {cycle!r}; expected 1 or more")
    first = running.synthetic()
    for step in (1, 2, 3):
        where, before = f"{name} in step {step}", running.synthetic()
        losses = running.step()
        check_losses(losses, where, running.task.device)
        for loss, value in losses.items():
            _expect(bool(value.isfinite()), where, f"the loss {loss!r} is {float(value)}; expected a finite number")
        moved = not torch.equal(running.synthetic().images, before.images)
        _expect(moved, where, "the images stay as they were; expected one update of them")
    if getattr(running.config, "learn_label", first.label_space == "centred"):
        moved = not torch.equal(running.synthetic().labels, first.labels)
        _expect(moved, name, "learned labels stay as they were in 3 steps; expected updates, or learn_label False")


def check_copy(name: str, method: type[Method]) -> None:
    """The set belongs to the caller: no step changes it, and overwriting it changes no step."""
    running = prepared(method)
    mine = running.synthetic()
    before = _content(mine)
    run(running, 1)
    kept = _content(mine) == before
    for tensor in _tensors(vars(mine)):
        tensor.zero_()
    _expect(kept, name, "a step changed a set that synthetic() had returned; return clones")
    same = _content(run(running, 1)) == _content(run(prepared(method), 2))
    _expect(same, name, "overwriting a set that synthetic() had returned changed the method; return clones")


def check_task(name: str, method: type[Method]) -> None:
    """The task's images and labels stay as they are."""
    task, untouched = tiny_task(), tiny_task()
    run(prepared(method, task=task), 3)
    for field in ("images", "labels"):
        same = torch.equal(getattr(task, field), getattr(untouched, field))
        _expect(same, name, f"task.{field} was written to; work on a copy")


def check_memory(name: str, method: type[Method]) -> None:
    """No graph survives a step, and memory does not grow with the steps."""

    def held() -> int:
        gc.collect()
        tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
        graph = any(tensor.grad_fn is not None for tensor in tensors)
        _expect(not graph, name, "a tensor holds its graph after a step; detach what is kept")
        storages = [tensor.untyped_storage() for tensor in tensors]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    gc.collect()
    gc.freeze()  # what was there before is not looked at
    try:
        running = prepared(method)
        sizes = []
        for _ in range(4):
            run(running, 5)
            sizes.append(held())
    finally:
        gc.unfreeze()
    # What is made on first use (an optimiser's state, say) may grow for a while; a leak grows in every window.
    steady = any(later <= earlier for earlier, later in itertools.pairwise(sizes))
    _expect(steady, name, f"bytes of tensors grow every 5 steps: {sizes}; something is appended and never freed")
    attached = any(tensor.requires_grad for tensor in _tensors(running.state_dict()))
    _expect(not attached, name, "state_dict() has a tensor that requires a gradient; detach it")


class Waiting(TorchFunctionMode):
    """Once ``armed``, refuses what would wait for a device: copies to it that block, and reading from it.

    Tensors that were there before are taken for those on the device, and so is what is computed with them or is moved.
    Random draws and counts would be on the host, where they may be read.
    """

    READS: ClassVar = {
        *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.equal, torch.equal, torch.allclose),
        *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__contains__),
        *(Tensor.nonzero, torch.nonzero, torch.masked_select, Tensor.masked_select, torch.unique, Tensor.unique),
    }

    def __init__(self, name: str = "a step") -> None:
        super().__init__()
        self.name = name
        self.armed = False
        self.host: dict[int, Tensor] = {}

    def on_host(self, value: object) -> bool:
        return all(id(tensor) in self.host for tensor in _tensors(value))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        values = (*args, *kwargs.values())
        device = any(isinstance(value, torch.device) for value in values)
        if self.armed and func == Tensor.to and device:
            _expect(any(value is True for value in values), self.name, "a copy to the device needs non_blocking=True")
        if self.armed and not self.on_host(values):
            _expect(func not in self.READS, self.name, f"{func.__name__} waits for the device to be read")
            if func == Tensor.__getitem__:
                mask = any(index.dtype == torch.bool for index in _tensors([args[1]]))
                _expect(not mask, self.name, "how many entries a mask picks waits for the device; use torch.where")
        made = func(*args, **kwargs)
        if device and isinstance(made, Tensor) and self.on_host([made]):
            made = made.view_as(made)  # on the device it would be another
        elif not device and self.on_host(values):
            self.host |= {id(tensor): tensor for tensor in _tensors([made])}
        return made


def check_no_waiting(name: str, method: type[Method]) -> None:
    """No step waits for the device: draws reach it without blocking, and nothing is read from it."""
    task = tiny_task()
    with Waiting(f"{name} in a step") as waiting:
        running = prepared(method, task=task)
        waiting.armed = True
        for _ in range(3 if method.iterative else 0):
            running.step()


def check_seeds(name: str, method: type[Method]) -> None:
    """Runs of one seed agree bit for bit, whether the store is empty or full; another seed differs."""
    store: Store = {}
    first, again, other = (_content(run(prepared(method, seed, store), 3)) for seed in (0, 0, 1))
    _expect(first == again, name, "a second run of the same seed, its store filled, gives another set; draw alike")
    _expect(first != other, name, "another seed gives the same set; draw from task.generator")


def check_store(name: str, method: type[Method]) -> None:
    """Stored tensors depend on no seed, lie on the CPU, and are not made twice."""

    def kept(seed: int, store: Store) -> dict[str, dict[str, bytes]]:
        prepared(method, seed, store)
        plain = all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in _tensors(store))
        _expect(plain, name, "the store holds a tensor with a graph or on a device; detach it and move it to the CPU")
        return {key: {part: tensor.numpy().tobytes() for part, tensor in entry.items()} for key, entry in store.items()}

    store: Store = {}
    same = kept(0, store) == kept(1, {})
    _expect(same, name, "another seed stores other tensors; draw them from benchmarks.task.generator_for(...)")
    entries = dict(store)
    prepared(method, 1, store)
    reused = store.keys() == entries.keys() and all(store[key] is entry for key, entry in entries.items())
    _expect(reused, name, "prepare() stored again what was there; take it from the store")


def check_resume(name: str, method: type[Method]) -> None:
    """A run that is saved and continued elsewhere agrees bit for bit with an uninterrupted run."""
    store: Store = {}
    straight = prepared(method, store=store)
    run(straight, 2)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed = prepared(method, store=store)
    try:
        state = torch.load(file, weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{name}: state_dict() holds objects; expected tensors, numbers, text and lists") from None
    resumed.load_state_dict(state)
    same = _content(run(resumed, 3)) == _content(run(straight, 3))
    _expect(same, name, "a run that was resumed gives another set; state_dict() lacks something that steps depend on")


def check_global_state(name: str, method: type[Method]) -> None:
    """The random states of torch, numpy and Python and the default dtype stay as they are."""

    def states() -> dict[str, object]:
        return {
            "the random state of torch": torch.get_rng_state().tolist(),
            "the random state of numpy": repr(np.random.get_state(legacy=False)),
            "the random state of Python": random.getstate(),
            "the default dtype": torch.get_default_dtype(),
        }

    before = states()
    run(prepared(method), 2)
    for state, value in states().items():
        _expect(value == before[state], name, f"{state} changed; draw from task.generator, and pass dtypes")


CHECKS: tuple[Callable[[str, type[Method]], None], ...] = (
    check_config,
    check_source,
    check_set,
    check_classes,
    check_steps,
    check_copy,
    check_task,
    check_memory,
    check_no_waiting,
    check_seeds,
    check_store,
    check_resume,
    check_global_state,
)
"""The conformance checks: each is called with the name of a method and its class, and raises UserError.

The first line of each docstring says what holds where it passes.
"""


def _expect(condition: bool, where: str, otherwise: str) -> None:
    if not condition:
        raise UserError(f"{where}: {otherwise}")


def _content(synthetic: Synthetic) -> bytes:
    """All that a synthetic set holds, as bytes."""
    return b"".join(tensor.numpy().tobytes() for tensor in _tensors(vars(synthetic)))


def _tensors(value: object) -> Iterator[Tensor]:
    """All tensors in mappings, lists and tuples, however deep."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _is(value: object, dtype: torch.dtype, device: torch.device) -> bool:
    return isinstance(value, Tensor) and (value.dtype, value.device, value.requires_grad) == (dtype, device, False)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        graph = ", part of a graph" if value.requires_grad else ""
        return f"{_name(value.dtype)} {tuple(value.shape)} on {value.device}{graph}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "nothing" if value is None else f"of type {type(value).__name__}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
