"""A request → the jobs that it asks for. The configuration of a method is resolved here, before it is constructed.

Defaults of ``Config`` come first, then ``PAPER`` for the data set and ipc, then ``BUDGETS`` for the budget, then the
command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data.names import recorded
from benchmarks.data.views import FORMS, base_name, split
from benchmarks.data.views import parse as parse_views
from benchmarks.errors import UserError, printable
from harness import devices, evaluations
from harness.limits import show_bytes, total_bytes
from harness.plan.budgets import BUDGETS, COST, default_width
from harness.plan.jobs import ACCURACY, HARD_LABELS, WHOLE_DATA, Distillation, Job, Question, as_json, from_json
from harness.plan.options import flag_of, parse, typed
from harness.plan.request import TENSORBOARD, Evaluating, Request

if TYPE_CHECKING:
    from benchmarks.datasets import RawData
    from methods.base import Method


def plan(request: Request, left_out: list[str] | None = None) -> list[Job]:
    """The jobs of ``request``; data set by data set, all methods of a seed together; questions about several sets last.

    ``left_out``: takes a line for each setting without a published source that a forecast or an experiment leaves out,
    and for data that an experiment names itself and that are not here.

    Loads the data to check it. Raises UserError for folders that cannot be written, missing or unreadable data, an ipc
    above the smallest class, a depth that the images do not allow, hyper-parameters that do not exist or do not fit, a
    budget without published settings, and a device that is not there.
    """
    import methods
    from benchmarks.data.views import apply
    from benchmarks.datasets import PUBLISHED, stand_in
    from benchmarks.folders import default_cache, default_root

    device = device_of(request, there=not request.forecast)
    cache = request.cache or default_cache()
    root = request.data_root or default_root()
    classes = {name: methods.get(name) for name in request.methods}
    for name in (name for name, method in classes.items() if method.float64):
        devices.check_float64(name, device)
    if request.memory_limit is not None and device == "mps":
        raise UserError("--memory-limit cannot be kept on mps: leave it out")
    missing = unpublished(request)
    if left_out is not None:
        left_out += [f"{name} on {dataset}, ipc {ipc}: no published setting" for name, dataset, ipc in missing]
    # Before the data and folders: a mistyped hyper-parameter should neither wait for a download nor leave a trace.
    resolved = {
        (dataset, ipc): resolve(
            {name: method for name, method in classes.items() if (name, dataset, ipc) not in missing},
            *(dataset, ipc, request.budget, request.options),
        )
        for dataset, ipc in itertools.product(request.datasets, request.ipcs)
    }
    inquiries = inquiries_of(request, request.asked_evaluations, request.budget)
    if not request.forecast:
        check_writable(request.output, "--output")
        check_writable(cache, "cache folder" if request.cache is None else "--cache")
    seeds = BUDGETS[request.budget].seeds if request.seeds is None else request.seeds
    grid = list(
        itertools.product(
            request.ipcs, request.widths or (default_width(request.budget, device),), seeds, request.methods
        )
    )

    def job(raw: RawData, source: str, view: str, ipc: int, width: int, seed: int, name: str) -> Job:
        config, steps = resolved[source, ipc][name]
        distillation = _distillation(request, classes[name], name, raw, ipc, width, seed, steps, device)
        config = as_json(config)
        return Job(
            distillation=distillation,
            config=config,
            asked={"budget": request.budget, "protocol": request.protocol},
            questions=(),
            source=source + view,
            device=device,
            data_root=str(root),
            cache=str(cache),
            folder=str(request.output / distillation.name(config)),
            command=request.command,
            curve_points=request.curve_points if classes[name].iterative else 0,
            reduced=request.budget == COST and _is_reduced(classes[name], distillation, config),
            set_bytes=set_bytes(raw, ipc),
            tf32=request.tf32,
            time_limit_seconds=request.time_limit,
            cell_timeout_seconds=request.cell_timeout,
            checkpoint_seconds=request.checkpoint_every,
            tensorboard=request.log == TENSORBOARD,
        )

    def asking(job: Job, of: Iterable[Inquiry], raw: RawData) -> Job:
        native = classes[job.distillation.method].PROTOCOL
        job = dataclasses.replace(job, questions=questions(of, job.distillation, native))
        check_networks(job, raw)
        return job

    jobs: list[Job] = []
    for source in request.datasets:
        cells = [each for each in grid if each[3] in resolved[source, each[0]]]
        try:
            if request.forecast and base_name(source) in PUBLISHED:
                whole = stand_in(source, request.image_size)
            else:
                whole = load_data(source, root, cache, request)
        except UserError as reason:
            if not request.own_data or left_out is None:
                raise
            command = request.command + ("" if "--only" in request.command else f" --only {source}")
            left_out.append(f"{reason}. Where it is, this makes its part: {command}")
            continue
        data = {view: apply(whole, parse_views(f"folder:{view}")[1]) for view in views_of(inquiries)}
        distilled = {view: [job(raw, source, view, *each) for each in cells] for view, raw in data.items()}
        own = [
            asking(each, [i for i in inquiries if i.views == (view,)], data[view])
            for view, of_view in distilled.items()
            for each in of_view
        ]
        for views in dict.fromkeys(inquiry.views for inquiry in inquiries if len(inquiry.views) > 1):
            asked = [inquiry for inquiry in inquiries if inquiry.views == views]
            for *before, last in zip(*(distilled[view] for view in views), strict=True):
                sequence = dataclasses.replace(last, before=tuple(before), curve_points=0)
                own.append(asking(sequence, asked, data[views[-1]]))
        if request.ceiling:
            own += _ceilings(own, request.output)
        if request.interleave:
            own = _interleaved(own, request.output)
        jobs += own
    return merged(jobs)


def merged(jobs: Iterable[Job]) -> list[Job]:
    """``jobs``, with a single one for each key, which asks all questions; those about several sets come last."""
    by_key: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        earlier = by_key.get(job.key, job)
        asked = (*earlier.questions, *(q for q in job.questions if q not in earlier.questions))
        points = max(earlier.curve_points, job.curve_points)
        by_key[job.key] = dataclasses.replace(earlier, questions=asked, curve_points=points)
    return sorted(by_key.values(), key=lambda job: bool(job.before))


@dataclass(frozen=True)
class Inquiry:
    """An evaluation as it is asked for, and the views of the data set from which the sets are distilled."""

    evaluation: str
    config: Any
    views: tuple[str, ...]
    """One for each set that the question is about, in their order; empty text: the data set itself."""


def inquiries_of(request: Evaluating, names: Iterable[str], budget: str) -> list[Inquiry]:
    """What is asked of the sets by the evaluations ``names``; a list makes an inquiry for each of its items.

    Raises UserError as `asked_configs` does, and where an evaluation names views that do not exist, or several although
    it asks about one set.
    """
    made = []
    for name in names:
        evaluation = evaluations.get(name)
        for config in _configs(request, name, budget):
            views = tuple(evaluation(config).views())
            if evaluation.sets == "one" and len(views) != 1:
                raise UserError(f"{name} asks about one set, and names {len(views)} views of the data")
            for view in views:
                if split(view)[0]:
                    raise UserError(f"{name} asks about the view {view!r} of a data set; views are {FORMS}")
            made.append(Inquiry(name, config, views))
    return made


def _configs(request: Evaluating, name: str, budget: str) -> list[Any]:
    """The configurations of the evaluation ``name``: several where the field that it names as ``each`` has a list."""
    evaluation, words = evaluations.get(name), typed(name, request.options.get(name, ()))
    each = evaluation.each
    if each is None:
        return [asked_configs(request, [name], budget)[name]]
    listed = [item for word in words.get(each, ()) for item in word.split(",") if item]
    if len(listed) > 1 and not isinstance(getattr(evaluation.Config(), each), tuple):
        made = []
        for item in dict.fromkeys(listed):
            own = [
                token for field, values in {**words, each: [item]}.items() for token in (f"--{name}.{field}", *values)
            ]
            one = dataclasses.replace(request, options={**request.options, name: own})
            made.append(asked_configs(one, [name], budget)[name])
        return made
    config = asked_configs(request, [name], budget)[name]
    items = getattr(config, each)
    if not isinstance(items, tuple):
        return [config]
    return [dataclasses.replace(config, **{each: (item,)}) for item in dict.fromkeys(items)]


def views_of(inquiries: Iterable[Inquiry]) -> list[str]:
    """Every view from which a set is distilled, in the order of the inquiries; without any, the data set itself."""
    return list(dict.fromkeys(view for inquiry in inquiries for view in inquiry.views)) or [""]


def asked_configs(request: Evaluating, names: Iterable[str], budget: str) -> dict[str, Any]:
    """Evaluation → its configuration as asked for: the defaults, then the ``budget``, then the command line.

    Raises UserError for an option that does not exist or does not fit.
    """
    from harness.evaluations.training import Training

    usual = {"steps": BUDGETS[budget].evaluate_steps, "networks": BUDGETS[budget].networks_evaluated}
    told = {
        "protocol": request.protocol,
        "network": None if request.network == "native" else request.network,
        "steps": request.evaluate_steps,
        "networks": request.networks_evaluated,
        "networks_at_once": request.networks_at_once,
    }
    defaults = {}
    for name in names:
        evaluation = evaluations.get(name)
        trains = issubclass(evaluation.Config, Training)
        fields = {**(usual if trains else {}), **evaluation.BUDGETS.get(budget, {})}
        fields |= {key: value for key, value in told.items() if trains and value is not None}
        defaults[name] = evaluation.Config(**{key: value for key, value in fields.items() if value is not None})
    flags = {"networks": "networks_evaluated", "steps": "evaluate_steps", "networks_at_once": "networks_at_once"}
    for name, tokens in request.options.items():
        for field in flags.keys() & typed(name, tokens).keys() if name in defaults else ():
            if getattr(request, flags[field]) is not None:
                both = f"{flag_of(name, field)} and --{flags[field].replace('_', '-')}"
                raise UserError(f"{both} say the same: leave one of them out")
    return parse(defaults, request.options)


def questions(asked: Iterable[Inquiry], distillation: Distillation, native: str) -> tuple[Question, ...]:
    """What is ``asked``, as it is asked of a set of ``distillation``; of some methods also with hard labels.

    ``native``: the protocol of the method's paper. Raises UserError for a protocol or network that does not exist.
    """
    import methods
    from harness.evaluations.training import Training, resolved

    beside = False
    with contextlib.suppress(UserError):  # a set that was made elsewhere, or whose method is not installed here
        beside = methods.get(distillation.method).hard_labels_beside
    made = list[Question]()
    for inquiry in asked:
        config = inquiry.config
        if isinstance(config, Training):
            config = resolved(config, distillation.to_dict(), native)
        names = [inquiry.evaluation, *[HARD_LABELS] * (beside and inquiry.evaluation == ACCURACY)]
        questions = [Question(name, as_json(config), evaluations.get(name).grows) for name in names]
        made += [question for question in questions if question not in made]
    return tuple(made)


def check_networks(job: Job, raw: RawData) -> None:
    """Raises UserError where a network that ``job`` asks to be trained does not fit the images of ``raw``."""
    from benchmarks.networks import NetworkSpec, usual_norm
    from harness.evaluations.training import Training

    channels, height, width = raw.train_images.shape[1:]
    for question in job.questions:
        config = from_json(evaluations.get(question.evaluation).Config, question.config)
        if isinstance(config, Training):
            own = NetworkSpec(
                name=config.network or job.distillation.network,
                in_channels=channels,
                image_size=(height, width),
                num_classes=len(raw.class_names),
                width=config.width or job.distillation.width,
                depth=config.depth,
                norm=usual_norm(config.network or job.distillation.network, "none"),
            )
            config.spec(own)


def _interleaved(jobs: Sequence[Job], output: Path) -> list[Job]:
    """A job for each ipc, width and seed in ``jobs``, with those of the other methods beside it."""
    together: dict[tuple[int, int, int], list[Job]] = {}
    for job in jobs:
        together.setdefault((job.distillation.ipc, job.distillation.width, job.distillation.seed), []).append(job)
    made = []
    for group in together.values():
        names = ", ".join(sorted(job.distillation.method for job in group))
        distillations = [dataclasses.replace(job.distillation, interleaved=names) for job in group]
        first, *others = [
            dataclasses.replace(job, distillation=own, folder=str(output / own.name(job.config)))
            for job, own in zip(group, distillations, strict=True)
        ]
        made.append(dataclasses.replace(first, beside=tuple(others)))
    return made


def _ceilings(jobs: Sequence[Job], output: Path) -> list[Job]:
    """A job for each recipe, network and preprocessing in ``jobs``, about networks trained on all real images."""
    from benchmarks.networks import usual_norm

    def ceiling(job: Job) -> Job:
        distillation = dataclasses.replace(
            job.distillation,
            method=WHOLE_DATA,
            ipc=0,
            norm=usual_norm(job.distillation.network, "none"),
            steps=None,
            seconds=None,
            seconds_include_prepare=False,
            memory_limit_bytes=None,
            seed=jobs[0].distillation.seed,
        )
        return dataclasses.replace(
            job,
            distillation=distillation,
            config={},
            folder=str(output / distillation.name({})),
            curve_points=0,
            set_bytes=0,
            before=tuple(map(ceiling, job.before)),
        )

    return merged(map(ceiling, jobs))


def resolve(
    classes: Mapping[str, type[Method]], dataset: str, ipc: int, budget: str, options: Mapping[str, Sequence[str]]
) -> dict[str, tuple[Any, int | None]]:
    """Method → its configuration for this data set, ipc and budget, and the number of outer steps.

    Raises UserError for ``paper`` without a published setting, and for options that do not exist or do not fit.
    """
    defaults, steps = {}, {}
    for name, method in classes.items():
        if budget == COST and not method.iterative:
            raise UserError(f"{name} has no steps that --budget cost could time: leave it out")
        published = method.PAPER.get((base_name(dataset), ipc))
        if budget == "paper" and not has_published(method, dataset, ipc):
            known: dict[str, list[str]] = {}
            for other, number in method.PAPER:
                known.setdefault(other, []).append(str(number))
            listed = ", ".join(f"{other} {'/'.join(numbers)}" for other, numbers in known.items()) or "nothing"
            raise UserError(
                f"no published setting for {name} on {dataset} at ipc {ipc}: take --budget quick (published: {listed})"
            )
        changes = {**(published or {})}
        if budget != "paper":
            named = budget if budget in method.BUDGETS else BUDGETS[budget].like or budget
            changes |= {"steps": BUDGETS[budget].steps, **method.BUDGETS.get(named, {})}
        number = changes.pop("steps", None)
        steps[name] = number if method.iterative and BUDGETS[budget].seconds is None else None
        defaults[name] = dataclasses.replace(method.Config(), **changes)
    configs = parse(defaults, options)
    return {name: (configs[name], steps[name]) for name in classes}


def has_published(method: type[Method], dataset: str, ipc: int) -> bool:
    """Whether ``--budget paper`` has settings for ``method``; one without steps needs none."""
    return not method.iterative or "steps" in method.PAPER.get((base_name(dataset), ipc), {})


def unpublished(request: Request) -> list[tuple[str, str, int]]:
    """(method, data set, ipc) that a forecast or an experiment of ``--budget paper`` leaves out.

    None where nothing would be left of a forecast.
    """
    import methods

    if request.budget != "paper" or not (request.forecast or request.experiment):
        return []
    asked = [
        (name, dataset, ipc)
        for name, dataset, ipc in itertools.product(request.methods, request.datasets, request.ipcs)
        if methods.get(name).iterative
    ]
    missing = [each for each in asked if not has_published(methods.get(each[0]), *each[1:])]
    return missing if request.experiment or len(missing) < len(asked) else []


def _is_reduced(method: type[Method], distillation: Distillation, config: Mapping[str, Any]) -> bool:
    """Whether a cost cell prepares less than the method does: what its ``BUDGETS`` change for it is in force."""
    published = method.PAPER.get((base_name(distillation.dataset), distillation.ipc), {})
    full = as_json(dataclasses.replace(method.Config(), **{k: v for k, v in published.items() if k != "steps"}))
    return any(config[name] != full[name] for name in method.BUDGETS.get(COST, {}) if name != "steps")


def device_of(request: Evaluating, *, there: bool = True) -> str:
    """The device that is asked for. Raises UserError as `devices.find` does, and for TF32 where there is none.

    A launcher other than the local one runs the cells on machines with devices of their own.
    """
    device = devices.find(request.device, there=there and request.launcher == "local")
    if request.tf32 and not device.startswith("cuda"):
        raise UserError("--tf32 needs a CUDA device")
    return device


def _distillation(
    request: Request,
    method: type[Method],
    name: str,
    raw: RawData,
    ipc: int,
    width: int,
    seed: int,
    steps: int | None,
    device: str,
) -> Distillation:
    from benchmarks.networks import NetworkSpec, usual_norm
    from benchmarks.protocols import PROTOCOLS
    from benchmarks.task import class_sizes

    own = PROTOCOLS[method.PROTOCOL]
    protocol = own if request.protocol == "native" else PROTOCOLS[request.protocol]
    seconds = request.seconds if request.steps or request.seconds else BUDGETS[request.budget].seconds
    channels, height, breadth = raw.train_images.shape[1:]
    network = protocol.network if request.network is None or request.network == "native" else request.network
    spec = NetworkSpec(
        name=network,
        in_channels=channels,
        image_size=(height, breadth),
        num_classes=len(raw.class_names),
        width=width,
        depth=request.depth,
        norm=request.norm or usual_norm(network, protocol.distill_norm or own.distill_norm or own.test_norm),  # type: ignore[arg-type]  # checked there
    )
    if not request.forecast:
        _fits(4 * spec.parameters(), device, f"--widths {width}: the parameters of the network alone")
    count, smallest = min((size, c) for c, size in class_sizes(raw.train_labels).items())
    if ipc > count:
        few = f"class {raw.class_names[smallest]!r} has {count} training images"
        raise UserError(f"ipc {ipc} is too many for {raw.name}: {few}")
    return Distillation(
        method=name,
        dataset=raw.name,
        data_fingerprint=raw.fingerprint,
        ipc=ipc,
        image_size=request.image_size,
        preprocess=protocol.preprocess(raw.name, ipc),
        network=spec.name,
        width=spec.width,
        depth=spec.blocks,
        norm=spec.norm,
        seed=seed,
        steps=None if not method.iterative or seconds is not None else (request.steps or steps),
        seconds=seconds if method.iterative else None,
        seconds_include_prepare=request.seconds_include_prepare and method.iterative,
        cost_only=request.budget == COST,
        device_kind=device.partition(":")[0],
        dtype="float32",
        tf32=request.tf32,
        memory_limit_bytes=request.memory_limit,
    )


def set_bytes(raw: RawData, ipc: int) -> int:
    """About how many bytes the file of a set takes: images and labels in float32."""
    shown = int((raw.train_labels.bincount() > 0).sum())
    return 4 * ipc * shown * (raw.train_images[0].numel() + len(raw.class_names))


def load_data(source: str, root: Path, cache: Path, request: Evaluating) -> RawData:
    """The data set ``source``, with the name that records have. Raises UserError where it is missing or too large."""
    from benchmarks.datasets import PUBLISHED

    if (size := request.image_size) is not None:
        shape = PUBLISHED.get(base_name(source))
        pixels = size**2 * (1 if shape is None else (shape.train + shape.test) * shape.channels)
        _fits(pixels, "cpu", f"--image-size {size}: the images alone")
    raw = loaded(source, root, request.image_size, request.download, cache)
    base, suffix = split(source)
    # A path belongs to this machine; the fingerprint tells two folders of the same name apart.
    raw = dataclasses.replace(raw, name=recorded(base) + suffix)
    if raw.left_out:
        _tell(raw.left_out)
    return raw


@functools.lru_cache(maxsize=1)
def loaded(source: str, root: Path, image_size: int | None, download: bool, cache: Path) -> RawData:
    """The data set, for which the parts of an experiment, or of a report, ask one after another."""
    from benchmarks.datasets import load_raw

    return load_raw(source, root, image_size=image_size, download=download, cache=cache)


@functools.cache
def _tell(line: str) -> None:
    """Say ``line`` to the user, once however many experiments load the same data."""
    print(printable(line), file=sys.stderr, flush=True)


def _fits(needed: int, device: str, what: str) -> None:
    """Raises UserError where ``needed`` bytes are more than the machine has: that is a slip, and no measurement."""
    room = total_bytes(device)
    if room is not None and needed > room:
        raise UserError(f"{what} would take {show_bytes(needed)}, and there are {show_bytes(room)}")


def check_writable(folder: Path, what: str) -> None:
    """Make ``folder`` and write a file as large as a record into it. Raises UserError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise UserError(f"{what} {folder} cannot be written ({reason}): name another folder") from error
