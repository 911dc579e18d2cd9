"""The claims of FRePo's paper as data: what each says, which measurement decides it, and what the records say of it.

Zhou, Nezhadarya and Ba, Dataset Distillation using Neural Feature Regression, NeurIPS 2022: abstract, sections 4 and 5.

A verdict is about what was measured, on the device, data and width that stand beside it. *Confirmed*: the measurement
has the sign or the size of the claim, and where it is a difference, its interval excludes 0. *Not tested here*: no
record decides it.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.errors import printable
from harness.plan.request import FLOOR
from harness.reports import judges
from harness.reports.groups import NONE, Group
from harness.reports.judges import LEAK, MANY_CLASSES, NO_LEAK, Finding
from harness.reports.render import Table, listed, literal, span
from harness.reports.statistics import FEWEST_PAIRS

Word = Literal["confirmed", "not confirmed", "not tested here"]
SHOWN = 6
"""Settings that are told one by one."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and what decides it."""

    where: str
    text: str
    decided_by: str
    judge: Callable[[Sequence[Group]], Iterable[Finding]]
    most: bool = False
    """Whether it is claimed for most settings; else it must hold in all."""


@dataclass(frozen=True)
class Verdict:
    """A claim and what was measured of it."""

    where: str
    claimed: str
    decided_by: str
    measured: str
    on: str
    """Device, data sets, sizes."""
    n: str
    """How many values it rests on."""
    word: Word


def verdicts(groups: Sequence[Group]) -> list[Verdict]:
    """All claims, in the order of the paper. What was run to see that it runs has numbers without meaning."""
    groups = [group for group in groups if group.table[1] != "smoke"]
    return [_verdict(claim, list(claim.judge(groups))) for claim in CLAIMS]


def _verdict(claim: Claim, findings: Sequence[Finding]) -> Verdict:
    held = [finding.holds for finding in findings if finding.holds is not None]
    word: Word = "not tested here"
    if held:
        enough = sum(held) > len(held) / 2 if claim.most else all(held)
        word = "confirmed" if enough else "not confirmed"
    findings = sorted(findings, key=lambda finding: finding.holds is None)
    told = [finding.words + ("" if finding.holds is not None else " (undecided)") for finding in findings]
    counted = f"in {sum(held)} of {len(held)} settings: " if len(held) > 1 else ""
    more = f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return Verdict(
        claim.where,
        claim.text,
        claim.decided_by,
        counted + "; ".join(told[:SHOWN]) + more if told else NONE,
        _on([group for finding in findings for group in finding.groups]),
        str(sum(finding.n for finding in findings)) if findings else NONE,
        word,
    )


def _on(groups: Sequence[Group]) -> str:
    if not groups:
        return NONE
    widths = span(int(group.distillation["width"]) for group in groups)
    budgets = listed(group.table[1] for group in groups)
    return f"{listed(group.table[0] for group in groups)}; budget {budgets}; width {widths}"


# --- the claims -------------------------------------------------------------------------------------------------------

CLAIMS = (
    Claim(
        "abstract, §4.2, table 1",
        "Higher test accuracy than DSA, DM, KIP and MTT in most settings",
        "accuracy of the best row of FRePo less that of the best row of the others, on the same data at the same ipc "
        "and width: the interval is above 0",
        judges.accuracy,
        most=True,
    ),
    Claim(
        "abstract, §4.2, table 1",
        "Above all with many classes at one image per class: CIFAR-100 28.7 against 24.3 %, Tiny ImageNet 15.4 against "
        "8.8 %, CUB-200 12.4 against 2.2 %",
        "the same on cifar100, tiny_imagenet, cub200 and parts of them at ipc 1",
        functools.partial(judges.accuracy, datasets=MANY_CLASSES, ipcs=(1,)),
    ),
    Claim(
        "abstract, §4.2, figure 3 a, b",
        "Two orders of magnitude faster than MTT: the accuracy at which MTT ends in 38 instead of 3805 s",
        "seconds until the accuracy that MTT ends with, on curves evaluated alike, or each as its paper does: at least "
        "100 times",
        judges.time_to_equal_accuracy,
    ),
    Claim(
        "abstract, §4.2, figure 3 d",
        "An order of magnitude less memory than MTT",
        "peak memory of an iteration on the same network, largest width: at least 10 times",
        judges.memory,
    ),
    Claim(
        "§4.2, figure 3 c",
        "An iteration takes much less time than one of DSA, DM or MTT",
        "median seconds of an iteration on the same network, largest width: more than FRePo's",
        judges.iteration,
    ),
    Claim(
        "§4.2",
        "92 % of the final accuracy after 385 s (CIFAR-100, ipc 1, on their GPU)",
        "seconds to 92 % of the final accuracy on cifar100 at ipc 1 under budget paper: at most 385",
        judges.time_to_most,
    ),
    Claim(
        "§4.2, table 1",
        "On complex data sets the KRR predictor is better than the network",
        "KRR accuracy less accuracy on cifar100, tiny_imagenet, cub200 and parts of them: the interval is above 0",
        functools.partial(judges.kernel_regression, datasets=MANY_CLASSES, similar=False),
    ),
    Claim(
        "§4.2, table 1",
        "On MNIST the KRR predictor is as good as the network",
        "KRR accuracy less accuracy on mnist: within one point",
        functools.partial(judges.kernel_regression, datasets=("mnist",), similar=True),
    ),
    Claim(
        "§4.2",
        "Learned labels are crucial with many labels",
        "FRePo with learned labels less FRePo with fixed ones (--frepo.learn-label False) on cifar100, tiny_imagenet, "
        "cub200 and parts of them: the interval is above 0",
        judges.learned_labels,
    ),
    Claim(
        "§4.2, figures 1, 4 a to c",
        "Distilled images look real, and the better they look the higher the accuracy",
        "pictures of the sets are there to look at; no evaluation measures how real an image looks",
        judges.nothing,
    ),
    Claim(
        "§4.2, table 2",
        "Better than DSA, DM, KIP and MTT on every architecture that did not distil",
        "cross_architecture, each architecture apart: the interval of the difference to the best other is above 0",
        judges.transfer,
    ),
    Claim(
        "§4.2, table 2",
        "Sets distilled with instance norm (DSA, DM, MTT) lose much where the network has none",
        "cross_architecture, own less own:none: the interval is above 0",
        judges.norm,
    ),
    Claim(
        "§4.3, table 3",
        "Better than MTT on ImageNette and ImageWoof at 128²",
        "accuracy of FRePo less that of MTT on imagenette and imagewoof: the interval is above 0",
        functools.partial(judges.accuracy, rivals=("mtt",), datasets=("imagenette", "imagewoof")),
    ),
    Claim(
        "§1, §4.3, table 3",
        "ImageNet-1K at 64²: 7.5 % with one image per class, where as many real images give 1.1 %",
        "accuracy of FRePo less that of random_real on imagenet64: the interval is above 0",
        functools.partial(judges.accuracy, rivals=(FLOOR,), datasets=("imagenet64",)),
    ),
    Claim(
        "abstract, §5.1, figure 5 a, b",
        "Continual learning: much better than random, herding, DSA and DM after the last of 5 and 10 steps",
        "continual_learning, accuracy on all classes after the last step: the interval of the difference to the best "
        "other is above 0",
        judges.continual,
    ),
    Claim(
        "§5.1",
        "The more steps, the lower FRePo's final accuracy",
        "continual_learning, fewest steps less more steps: the interval is above 0",
        judges.fewer_steps,
    ),
    Claim(
        "§5.1",
        "Distilled step by step, twice the images are only as good as those distilled from all classes at once",
        "continual_learning less accuracy at half the ipc on the whole data set: at most one point more",
        judges.at_once,
    ),
    Claim(
        "abstract, §5.2, table 4",
        "Attackers tell members from networks trained on real data, and not from networks trained on FRePo's set",
        f"membership_inference, longest training, largest AUC of five attackers: real data at least {LEAK}, FRePo's "
        f"set at most {NO_LEAK}. A random subset of its size stands beside; true-positive rates are in the tables",
        judges.leaks,
    ),
    Claim(
        "§5.2, table 4",
        "Training on FRePo's set retains model performance: better than a real subset of its size",
        "membership_inference, accuracy after the longest training, less that of random_real: the interval is above 0",
        judges.useful,
    ),
    Claim(
        "§5.2, figure 5 c, d",
        "AUC keeps rising with more training on real data, and stays low on distilled data",
        f"membership_inference, AUC of the threshold attack: real data gain at least 0.1, FRePo's set stays up "
        f"to {NO_LEAK}",
        judges.grows_with_training,
    ),
)


def claims_table(judged: Sequence[Verdict]) -> Table:
    """All claims with their verdicts."""
    return Table(
        caption="Claims of Zhou, Nezhadarya and Ba (FRePo, NeurIPS 2022), abstract and sections 4 and 5, and what was "
        "measured here. A verdict is about the device, data, budget and width beside it; it is about the paper's "
        "setting only where these are the paper's (a GPU, budget paper, width 128).",
        columns=("claim", "in the paper", "decided by", "measured", "on", "n", "verdict"),
        rows=tuple((v.claimed, v.where, v.decided_by, v.measured, v.on, v.n, v.word) for v in judged),
        bold=frozenset(),
        notes=(
            "Differences: accuracy in points with a 95 % interval (nested bootstrap), in pairs where both were trained "
            "by one recipe. An interval over networks alone is of a single distillation. From fewer than "
            f"{FEWEST_PAIRS} values there is no interval and no verdict. n: values of all "
            "settings that are told of, undecided ones too.",
        ),
    )


def claims_lines(judged: Sequence[Verdict]) -> str:
    """The same for a terminal, a paragraph each."""
    lines = []
    for each in judged:
        line = f"{each.word.upper()}: {each.claimed} ({each.where}). {_measured(each)}".rstrip()
        lines.append(textwrap.fill(printable(line), 100))
    return "\n\n".join(lines)


def claims_markdown(judged: Sequence[Verdict]) -> str:
    """The same as Markdown, a point each: no table is wide enough for them."""
    lines = []
    for each in judged:
        measured = _measured(each) or f"It is decided by: {each.decided_by}."
        lines.append(f"- **{literal(each.claimed)}** ({each.where}): *{each.word}*. {literal(measured)}")
    table = claims_table(judged)
    return "\n\n".join([literal(table.caption), "\n".join(lines), *map(literal, table.notes)]) + "\n"


def _measured(verdict: Verdict) -> str:
    """What was measured, on what, and from how many values; nothing where nothing was."""
    return "" if verdict.n == NONE else f"{verdict.measured}. On {verdict.on}; n = {verdict.n}."


def claims_rows(judged: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The rows of ``claims.csv``."""
    return [vars(verdict) for verdict in judged]
