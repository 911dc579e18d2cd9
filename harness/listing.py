"""What has a name, and which options it has: the texts of ``--list`` and of ``--help`` beside names."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import methods
from benchmarks import DATASETS
from benchmarks.data.names import FORMS
from benchmarks.errors import UserError, choose, printable
from benchmarks.protocols import PROTOCOLS
from harness import evaluations, launch
from harness.plan.budgets import BUDGETS
from harness.plan.experiments import EXPERIMENTS
from harness.plan.options import describe
from harness.plan.planning import asked_configs, resolve
from harness.plan.request import Request


def hyperparameters(parsed: argparse.Namespace) -> str:
    """The hyper-parameters as they stand for the first data set, ipc and budget asked for; options of evaluations."""
    dataset, ipc = (parsed.datasets or ("digits",))[0], (parsed.ipcs or (1,))[0]
    budget, names = parsed.budget or Request.budget, parsed.methods or ()
    asked = getattr(parsed, "evaluations", None) or ()  # `harness.tune` asks for none by name
    request = Request(methods=names, datasets=(dataset,), ipcs=(ipc,), budget=budget, evaluations=asked or None)
    resolved = resolve({name: methods.get(name) for name in names}, dataset, ipc, budget, {})
    configs = {name: config for name, (config, _) in resolved.items()}
    configs |= asked_configs(request, asked, budget)
    configs |= launcher_options(parsed.launcher)
    return f"Options, with the values they have on {dataset}, ipc {ipc}, budget {budget}:\n{describe(configs)}"


def launcher_options(name: str | None) -> dict[str, Any]:
    """The launcher ``name``, if there is one, with its options as they are by default."""
    return {} if name is None else {name: launch.defaults(choose("launcher", name, launch.LAUNCHERS))}


def listing() -> str:
    """Methods with citation and native protocol, data sets, networks, evaluations, protocols."""
    from benchmarks import networks

    def described(registry: Any, words: Callable[[Any], str]) -> dict[str, str]:
        texts = {}
        for name in registry.names():
            try:
                texts[name] = words(registry.get(name))
            except UserError as error:  # one package that is broken does not hide the others
                texts[name] = printable(str(error))
        return texts

    cited = described(methods, lambda method: f"{_citation(method)} [protocol {method.PROTOCOL}]")
    asked = described(evaluations, lambda evaluation: " ".join((evaluation.__doc__ or "").split()))
    built = described(networks, lambda network: " ".join((network.__doc__ or "").partition("\n\n")[0].split()))
    lines = ["methods", *_columns(cited)]
    lines += ["data sets", *_columns({**DATASETS, **dict(zip(FORMS.values(), _OTHERS, strict=True))})]
    lines += ["networks", *_columns(built)]
    lines += ["evaluations", *_columns(asked)]
    lines += ["protocols (native or common)", *(f"  {name}" for name in PROTOCOLS)]
    lines += ["budgets", *_columns({name: budget.meaning for name, budget in BUDGETS.items()})]
    lines += ["experiments", *_columns({name: known.meaning for name, known in EXPERIMENTS.items()})]
    return "\n".join(lines)


_OTHERS = ("your own images in folders of classes", "in a layout of Hugging Face", "a file of MedMNIST")


def _columns(texts: Mapping[str, str]) -> list[str]:
    width = max(map(len, texts), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in texts.items()]


def _citation(method: type[Any]) -> str:
    """The first paragraph about the method that has a year in it, which is the paper; else the first."""
    paragraphs = (sys.modules[method.__module__].__doc__ or method.__doc__ or "").split("\n\n")
    cited = next((text for text in paragraphs if re.search(r"\b(19|20)\d\d\b", text)), paragraphs[0])
    return " ".join(cited.split())
