"""The command line for a set that is there already: ``python -m harness.evaluate_set FILE --dataset cifar10 …``.

Fresh networks are trained on it by a protocol and tested on real images that go through the set's own preprocessing,
whichever the protocol's is. What comes out stands beside the distilled sets, but for what distilling costs. Exit status
as of ``harness.run``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
from benchmarks import DATASETS, NETWORKS, PREPROCESSINGS
from benchmarks.errors import UserError, choose, printable
from benchmarks.protocols import PROTOCOLS
from harness.command_line import Parser, end, exit_status, file_path, finite, whole
from harness.launch.local import restart_with_environment
from harness.plan.experiments import BUDGETS, DEFAULT_OUTPUT, WIDTH, Job, Request, check, check_image_size, plan

if TYPE_CHECKING:
    from benchmarks.datasets import Benchmark
    from harness.records.artifact import Artifact
    from harness.records.importers import Imported
    from methods.base import Synthetic

PROGRAM = "python -m harness.evaluate_set"
DEFAULT_PROTOCOL, DEFAULT_BUDGET = "common", "quick"
# torch is imported where it is used: --help must not wait for it.


def _parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage=f"{program} FILE [FILE …] --dataset NAME --preprocess NAME --name NAME [options]",
        description="Evaluate a distilled set that is there already: of DC, DSA or DM (.pt), of MTT (images_best.pt\n"
        "labels_best.pt), of FRePo or KIP (.npz), or of this suite (.safetensors; evaluated as it\n"
        "was before, but for what is given here).",
        epilog=f"data sets       {', '.join(DATASETS)},\n                folder:PATH\n"
        f"preprocessings  {', '.join(PREPROCESSINGS)}\n"
        f"protocols       {', '.join(PROTOCOLS)}\nnetworks        {', '.join(NETWORKS)}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32),
        add_help=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-h", "--help", action="store_true", help="this text")
    add("files", type=file_path, nargs="*", metavar="FILE", help="one set: a file, or its images, labels and step size")
    add("--name", metavar="NAME", help="what the set is called in the tables")
    add("--dataset", metavar="NAME", help="what it was distilled from")
    add("--preprocess", metavar="NAME", help="the space its images lie in; a foreign file does not say")
    add("--experiment", type=whole, metavar="N", help="which one of a file of DC, DSA or DM with several (0)")
    add("--lr", type=finite, metavar="X", help="the step size that was learned with it, if no file has it")
    add("--label-space", metavar="NAME", help="of soft labels: probability, centred or logits (as their values say)")
    add(
        "--class-order",
        metavar="ORDER",
        help="what its label numbers mean: a file with a class on each line, or\n"
        "sorted, files, mtt, frepo, … (as its format says)",
    )
    add("--protocol", metavar="NAME", help=f"how networks are trained on it ({DEFAULT_PROTOCOL})")
    add("--network", metavar="NAME", help="which networks (the protocol's)")
    add("--width", type=whole, metavar="N", help=f"channels of their first block (by budget; {WIDTH} as published)")
    add("--depth", type=whole, metavar="N", help="their blocks (by image size)")
    add(
        "--budget",
        metavar="NAME",
        help=f"{', '.join(BUDGETS)}: width, networks and steps, and the table ({DEFAULT_BUDGET})",
    )
    add("--networks-evaluated", type=whole, metavar="N", help="networks trained on the set (by budget)")
    add("--evaluate-steps", type=whole, metavar="N", help="at most so many steps to train each of them (by budget)")
    add("--networks-at-once", type=whole, metavar="N", help="train N of them at a time (as is fastest; 1 on a CPU)")
    add("--seed", type=whole, metavar="N", help="of the networks and of the order and augmentation they see (0)")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (cuda if there is one)")
    add("--tf32", action="store_true", help="let a GPU round products to TF32")
    add(
        "--data-root",
        type=file_path,
        metavar="DIR",
        help="where data sets lie (FREPO_BENCH_DATA or a cache folder)",
    )
    add("--image-size", type=whole, metavar="N", help="resize real images to N×N")
    add("--download", action="store_true", help="fetch the data set if it is missing")
    add("--cache", type=file_path, metavar="DIR", help="for preprocessed data (FREPO_BENCH_CACHE)")
    add("--output", type=file_path, default=DEFAULT_OUTPUT, metavar="DIR", help=f"records and sets ({DEFAULT_OUTPUT})")
    add("--force", action="store_true", help="evaluate again what has a result")
    return parser


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> int:
    """Run the command line ``arguments`` (by default those of the process); returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_status(lambda: _main(arguments, program))


def parse(arguments: Sequence[str], program: str = PROGRAM) -> argparse.Namespace:
    """The options. Raises UserError for what is wrong without a look into the files or the data."""
    given = _parser(program).parse(arguments)
    if given.help:
        return given
    if not given.files:
        raise UserError(f"no file is given; for instance: {program} images_best.pt labels_best.pt --dataset cifar10")
    _check_names(given)
    if given.budget == "cost":
        raise UserError("--budget cost evaluates nothing: take smoke, quick or paper")
    if given.name is not None and (given.name in methods.names() or not given.name.strip()):
        raise UserError(f"--name {given.name!r} is a method of this suite or empty: name the set, as in mtt_released")
    if given.name is not None and given.name != printable(given.name):
        raise UserError(f"--name {given.name!r} cannot be printed: take letters and digits")
    if given.lr is not None and not given.lr > 0:
        raise UserError(f"--lr must be a positive number, not {given.lr:g}")
    return given


def _check_names(given: argparse.Namespace) -> None:
    """Raises UserError for a name that is not known."""
    for kind, name, known in (
        ("preprocessing", given.preprocess, PREPROCESSINGS),
        ("protocol", given.protocol, PROTOCOLS),
        ("network", given.network, NETWORKS),
        ("budget", given.budget, BUDGETS),
        ("label space", given.label_space, ("probability", "centred", "logits")),
    ):
        if name is not None:
            choose(kind, name, known)


def _main(arguments: Sequence[str], program: str) -> int:
    given = parse(arguments, program)
    if given.help:
        _parser(program).print_help()
        return 0
    restart_with_environment()
    from harness import cell
    from harness.records import importers
    from harness.run import carry_out

    found = importers.read(given.files, experiment=given.experiment)
    if found.own is not None:
        _fill_in(given, found.own.cell, found.own.preprocess.name)
    _complete(given)
    job, synthetic, provenance = prepare(given, found, command=shlex.join([*program.split(), *arguments]))
    for line in _notes(job, found, synthetic, provenance):
        print(line, file=sys.stderr)

    def look(benchmark: Benchmark) -> Mapping[str, Any]:
        if found.own is not None:
            return {}
        doubts = importers.pixel_doubts(
            synthetic.images.to(benchmark.test_images.device), benchmark.task.images, benchmark.preprocess
        )
        for line in doubts:
            print(f"warning: {line}", file=sys.stderr)
        return {"doubts": [*provenance["doubts"], *doubts]}

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS gives the same bits every time
    return carry_out(
        [job],
        given.output,
        lambda job: cell.run(job, given=cell.Given(_on(job.device, synthetic), provenance, look)),
        force=given.force,
    )


def prepare(given: argparse.Namespace, found: Imported, *, command: str) -> tuple[Job, Synthetic, dict[str, Any]]:
    """The cell of the evaluation, the set as it fits the data set, and where it comes from for the record.

    Raises UserError as `plan`, `class_order` and `fitted` do.
    """
    from benchmarks.datasets import load_raw
    from benchmarks.folders import default_cache, default_root
    from harness.records.class_orders import class_order, own_order
    from harness.records.importers import doubts, fitted

    protocol = PROTOCOLS[given.protocol]
    if given.lr is not None:
        if not protocol.recipe.learned_lr:
            raise UserError(f"--lr means nothing under --protocol {protocol.name}, which has a step size of its own")
        import torch

        found = dataclasses.replace(found, lr=torch.tensor(given.lr))
    request = Request(
        # A selection method is planned with neither steps nor hyper-parameters, and so is a set that is there already.
        methods=("random_real",),
        datasets=(given.dataset,),
        network=given.network or protocol.network,
        widths=None if given.width is None else (given.width,),
        seeds=(given.seed,),
        **{
            name: getattr(given, name)
            for name in (
                *("depth", "budget", "device", "data_root", "cache", "image_size", "download"),
                *("networks_evaluated", "evaluate_steps", "networks_at_once", "tf32", "output"),
            )
        },
        command=command,
    )
    check(request)
    check_image_size(given.dataset, given.image_size)
    root = given.data_root or default_root()
    raw = load_raw(
        given.dataset,
        root,
        image_size=given.image_size,
        download=given.download,
        cache=given.cache or default_cache(),
    )
    if found.own is None:
        order = class_order(given.dataset, raw.class_names, root, found.source, given.class_order)
    elif given.class_order is None:
        order = own_order(found.own.class_names, raw.class_names)
    else:
        raise UserError("--class-order means nothing for a set of this suite, which names its classes: leave it out")
    synthetic = fitted(
        found,
        raw.class_names,
        raw.train_images.shape[1:],
        given.label_space,
        order=order.classes,
        most=len(raw.train_images),
    )
    ipc = _checked_ipc(synthetic, given.files[0], found.own, len(raw.class_names), raw.train_images.shape[1:])
    (job,) = plan(dataclasses.replace(request, ipcs=(ipc,)))
    made_from = None if found.own is None else found.own.cell.get("data_fingerprint")
    if made_from not in (None, job.cell.data_fingerprint):
        raise UserError(f"{given.files[0]} was made from other images than those of {given.dataset}")
    config = {
        "sha256": [digest for _, digest in found.files],
        "experiment": found.experiment,
        "label_space": "logits" if given.label_space == "logits" else synthetic.label_space,
        "lr": given.lr,
    }
    if not order.is_ours:
        config["class_order"] = order.classes
    provenance = {
        "files": [{"name": name, "sha256": digest} for name, digest in found.files],
        "class_order": order.described,
        "doubts": doubts(synthetic, raw.class_names) if found.own is None else [],
    }
    evaluated = dataclasses.replace(
        job.cell, method=given.name, protocol=protocol.name, norm=protocol.test_norm, preprocess=given.preprocess
    )
    return dataclasses.replace(job, cell=evaluated, config=json.loads(json.dumps(config))), synthetic, provenance


def _checked_ipc(synthetic: Synthetic, file: Path, own: Artifact | None, classes: int, image: Sequence[int]) -> int:
    """Images per class: what a set of this suite says, else as many as there are. Raises UserError as
    `check_synthetic` does."""
    import torch

    from methods.checks import check_synthetic

    said = None if own is None else own.cell.get("ipc")
    ipc = said if isinstance(said, int) and said > 0 else max(1, len(synthetic.images) // classes)
    where, cpu = str(file), torch.device("cpu")
    check_synthetic(synthetic, where, classes=classes, ipc=ipc, image=image, dtype=torch.float32, device=cpu)
    return ipc


def _fill_in(given: argparse.Namespace, own: Mapping[str, Any], preprocess: str) -> None:
    """What a set of this suite knows about itself; the command line has the last word."""
    if given.preprocess not in (None, preprocess):
        raise UserError(f"{given.files[0]} says that its preprocessing is {preprocess}: leave out --preprocess")
    given.preprocess = preprocess
    names = ["dataset", "seed", "image_size"]
    if given.budget is None:
        names += ["budget", "width", "networks_evaluated", "evaluate_steps"]
    if given.protocol is None:
        names += ["protocol", "network", "depth"]
    if given.dataset is None and str(own.get("dataset", "")).startswith("folder:"):
        raise UserError(f"--dataset is missing: say where the images of {own['dataset']} lie, as folder:PATH")
    for name in names:
        value = own.get(name)  # a set that somebody saved by hand need not know all of it
        if getattr(given, name) is None and value is not None:
            if type(value) is not (str if name in ("dataset", "budget", "protocol", "network") else int):
                raise UserError(f"{given.files[0]} is damaged: its {name} is {value!r}")
            setattr(given, name, value)
    _check_names(given)
    if given.name is None and "method" in own:
        given.name = f"{own['method']}_reevaluated"


def _complete(given: argparse.Namespace) -> None:
    """Raises UserError for what a foreign file does not say, and nobody else did."""
    if given.preprocess is None:
        from harness.records.importers import USED_BY

        listed = "; ".join(f"{name}: {papers}" for name, papers in USED_BY.items())
        raise UserError(
            f"--preprocess is missing, and the file does not say how its images were preprocessed. {listed}"
        )
    for flag, value in (("--dataset", given.dataset), ("--name", given.name)):
        if value is None:
            raise UserError(f"{flag} is missing; see --help")
    given.protocol = given.protocol or DEFAULT_PROTOCOL
    given.budget = given.budget or DEFAULT_BUDGET
    given.seed = given.seed or 0


def _notes(job: Job, found: Imported, synthetic: Synthetic, provenance: Mapping[str, Any]) -> list[str]:
    """What was understood, and what one might not expect."""
    cell = job.cell
    protocol = PROTOCOLS[cell.protocol]
    which = f", experiment {found.experiment} of {found.experiments}, counted from 0" if found.experiments else ""
    lines = [
        f"{cell.method}: {len(synthetic.images)} images, {cell.ipc} per class, {synthetic.label_space} labels{which}; "
        f"protocol {cell.protocol}, {cell.network}, width {cell.width}"
    ]
    lines += [f"Class order: {provenance['class_order']}."] if found.own is None else []
    lines += [f"warning: {line}" for line in provenance["doubts"]]
    usual = protocol.preprocess(cell.dataset, cell.ipc)
    if usual != cell.preprocess:
        lines.append(f"Real images go through {cell.preprocess}, the set's own, instead of the protocol's {usual}.")
    steps = protocol.recipe.steps(len(synthetic.images))
    if cell.evaluate_steps is not None and cell.evaluate_steps < steps:
        lines.append(
            f"Networks are trained for {cell.evaluate_steps} steps, the recipe's {steps} shortened by --budget "
            f"{cell.budget} or --evaluate-steps."
        )
    if protocol.recipe.learned_lr and synthetic.lr is None:
        lines.append(f"No learned step size is given (--lr): networks are trained with {protocol.recipe.lr:g}.")
    return lines


def _on(device: str, synthetic: Synthetic) -> Synthetic:
    return dataclasses.replace(
        synthetic,
        images=synthetic.images.to(device),
        labels=synthetic.labels.to(device),
        lr=None if synthetic.lr is None else synthetic.lr.to(device),
    )


if __name__ == "__main__":
    end(main())
