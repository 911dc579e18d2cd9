"""The registries: a file is a method or an evaluation, and so is an entry point; errors help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import methods
from benchmarks import NETWORK_REGISTRY, NETWORKS, networks
from benchmarks.errors import UserError
from benchmarks.networks import Network, NetworkSpec
from benchmarks.registry import Registry
from benchmarks.task import generator_for
from harness import evaluations
from harness.evaluations.base import Evaluation
from harness.run import main
from methods.base import Method
from tests.test_documents import ROOT, blocks

Install = Callable[..., None]

METHOD = """
from dataclasses import dataclass
from methods.base import Method

@dataclass(frozen=True)
class Config:
    rate: float = 0.1

class Mine(Method):
    Config = Config
    def step(self): ...
    def synthetic(self): ...
    def state_dict(self): ...
    def load_state_dict(self, state): ...
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs under a plugin's name a package of one module, given its source and the name of its class."""

    def installed(name: str, module: str, source: str, group: str = methods.ENTRY_POINTS, plugin: str = "Mine") -> None:
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:{plugin}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return installed


def refusal(name: str, get: Callable[[str], object] = methods.get) -> str:
    with pytest.raises(UserError) as caught:
        get(name)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_file_is_a_method() -> None:
    files = {path.stem for path in Path(methods.__file__).parent.glob("*.py")}
    expected = sorted(stem for stem in files if not stem.startswith("_") and stem != "base")
    expected.remove("checks")
    assert [name for name in methods.names() if name in expected] == expected
    for name in expected:
        cls = methods.get(name)
        assert issubclass(cls, Method)
        assert cls.__module__ == f"methods.{name}"


def test_an_unknown_name_gets_the_list_and_the_nearest_match() -> None:
    message = refusal("random_rael")
    assert "did you mean 'random_real'?" in message
    assert all(name in message for name in methods.names())
    assert "did you mean" not in refusal("xyzzy")


@pytest.mark.parametrize("name", ["base", "checks", "_unroll", "__init__", ""])
def test_what_is_not_a_method_is_unknown(name: str) -> None:
    assert "unknown method" in refusal(name)


def test_an_installed_method_is_found(install: Install) -> None:
    install("mine", "package_of_mine", METHOD)
    assert "mine" in methods.names()
    assert methods.get("mine").__name__ == "Mine"
    assert "did you mean 'mine'?" in refusal("mime")


def test_a_built_in_method_is_not_replaced(install: Install) -> None:
    install("mtt", "package_of_mtt", METHOD)
    assert methods.names().count("mtt") == 1
    assert methods.get("mtt").__module__ == "methods.mtt"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_package_that_is_not_there", "No module named 'a_package_that_is_not_there'"),
        ("def broken(:", "SyntaxError"),
        ("raise RuntimeError('first line\\nsecond line')", "first line"),
        ("", "has no attribute 'Mine'"),
        ("class Mine: ...", "not a subclass"),
        ("Mine = 3", "not a subclass"),
        (METHOD.replace("    def step(self): ...\n", ""), "lacks step()"),
        (METHOD.replace("    Config = Config\n", ""), "Config is nothing; expected a frozen dataclass"),
        (METHOD.replace("@dataclass(frozen=True)\n", ""), "Config is the class Config; expected a frozen dataclass"),
        (METHOD.replace("(frozen=True)", ""), "Config is the class Config; expected a frozen dataclass"),
        (METHOD.replace("Config = Config", "Config = Config()"), "Config is of type Config; expected a frozen"),
        (METHOD.replace("float = 0.1", "float"), "(TypeError: Config.__init__() missing 1 required"),
        (METHOD.replace("float = 0.1", "object = print"), "Config() does not give numbers, text and lists"),
        (METHOD + "    BUDGETS = {'quick': {'steps': 3, 'rats': 1}}", "BUDGETS['quick'] changes rats"),
        (METHOD + "    PAPER = {('mnist', 1): {'rats': 1}}", "PAPER[('mnist', 1)] changes rats"),
        (METHOD + "    PROTOCOL = 'mttt'", "unknown protocol 'mttt': did you mean 'mtt'?"),
    ],
    ids=[
        *("import", "syntax", "multi-line", "attribute", "class", "number"),
        *("method", "no-config", "plain-config", "mutable-config", "config-object", "no-default", "no-json"),
        *("budget", "paper", "protocol"),
    ],
)
def test_an_installed_method_that_cannot_be_used(install: Install, source: str, reason: str) -> None:
    install("theirs", "package_of_theirs", source)
    assert "theirs" in methods.names(), "listing imports nothing"
    message = refusal("theirs")
    assert reason in message
    assert "package_of_theirs:Mine" in message


def test_a_broken_package_does_not_hide_the_others(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("theirs", "package_of_theirs", "import a_package_that_is_not_there")
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert "theirs       method 'theirs' (package_of_theirs:Mine) cannot be loaded" in shown
    assert "[protocol mtt]" in shown


def test_a_file_without_a_method_says_so() -> None:
    registry = Registry("method", "methods", others=("base",), group=methods.ENTRY_POINTS)
    message = refusal("checks", lambda name: registry.get(name, Method, lambda cls, shown: None))
    assert message == "methods/checks.py holds no Method: name it _checks.py if it is not meant to be one"


def test_listing_does_not_import_torch() -> None:
    code = (
        "import sys, methods\nfrom benchmarks import NETWORKS\nfrom harness import evaluations\n"
        "methods.names(), evaluations.names()\nsys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


EVALUATION = """
from dataclasses import dataclass
from harness.evaluations.base import Evaluation, Quantity
from harness.evaluations.training import NetworkEvaluation, Training

@dataclass(frozen=True)
class Config(Training):
    rate: float = 0.1

class Mine(NetworkEvaluation):
    Config = Config
    quantities = {"rate": Quantity("rate")}
    def test(self, network, synthetic, benchmark): ...
"""


def test_files_and_entry_points_are_evaluations(install: Install) -> None:
    assert {"accuracy"} <= set(evaluations.names()) and not {"base", "training"} & set(evaluations.names())
    for name in evaluations.names():
        assert issubclass(evaluations.get(name), Evaluation)
    assert "did you mean 'accuracy'?" in refusal("acuracy", evaluations.get)
    install("mine", "evaluation_of_mine", EVALUATION, evaluations.ENTRY_POINTS)
    assert "mine" in evaluations.names() and "mine" not in methods.names()
    assert evaluations.get("mine").__name__ == "Mine"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_package_that_is_not_there", "No module named 'a_package_that_is_not_there'"),
        ("Mine = 3", "not a subclass of harness.evaluations.base.Evaluation"),
        (EVALUATION.replace("def test", "def tset"), "lacks test()"),
        (EVALUATION.replace("(NetworkEvaluation)", "(Evaluation)"), "lacks run()"),
        (EVALUATION.replace("Config = Config", "Config = 3"), "Config is of type int; expected a frozen dataclass"),
        (EVALUATION.replace("Config(Training)", "Config"), "Config must inherit from harness.evaluations.training"),
        (
            EVALUATION.replace("    quantities", "    quantity"),
            "quantities must map the name of each value to a Quantity",
        ),
        (EVALUATION.replace('{"rate": Quantity("rate")}', "{}"), "quantities must map the name of each value"),
        (EVALUATION.replace('Quantity("rate")', '"rate"'), "quantities must map the name of each value"),
        (EVALUATION + "    grows = 'netwrks'", "grows is 'netwrks', which is no field of its Config"),
        (
            EVALUATION.replace('Quantity("rate")', 'Quantity("rate", at="lengths")'),
            "a quantity is at 'lengths', which is no field of its Config",
        ),
        (EVALUATION + "    sets = 'two'", "sets is 'two'; it must be 'one' or 'sequence'"),
    ],
    ids=["import", "number", "test", "run", "config", "training", "none", "empty", "text", "grows", "at", "sets"],
)
def test_an_installed_evaluation_that_cannot_be_used(
    install: Install, source: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install("theirs", "evaluation_of_theirs", source, evaluations.ENTRY_POINTS)
    message = refusal("theirs", evaluations.get)
    assert reason in message and "evaluation_of_theirs:Mine" in message
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert reason in shown and re.search(r"^ +accuracy +Top-1 accuracy", shown, re.M), "it hides the others"


NETWORK = """
from benchmarks.networks import Network
from torch import nn

class Mine(Network):
    depth = 1
    norms = ("none", "batch")

    def __init__(self, spec):
        super().__init__(spec)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(spec.in_channels * 64, 4))
        self.head = nn.Linear(4, spec.num_classes)
"""


def test_classes_of_families_and_entry_points_are_networks(install: Install) -> None:
    assert networks.names() == list(NETWORKS)
    for name in networks.names():
        assert issubclass(networks.get(name), Network) and networks.get(name).__doc__
    files = Path(networks.__file__).parent.glob("*.py")
    families = {networks.get(name).__module__.rpartition(".")[2] for name in NETWORKS}
    assert {path.stem for path in files} == {*families, "__init__", "base", "layers"}
    install("mine", "network_of_mine", NETWORK, NETWORK_REGISTRY.group)
    install("mlp", "network_of_mlp", NETWORK, NETWORK_REGISTRY.group)
    assert "mine" in networks.names() and networks.get("mlp").__module__ == "benchmarks.networks.mlp"
    spec = NetworkSpec("mine", 1, (8, 8), 3, norm="batch")
    assert spec.blocks == 1 and spec.parameters() == 64 * 4 + 4 + 4 * 3 + 3
    assert "did you mean 'mine'?" in refusal("mime", networks.get)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_package_that_is_not_there", "No module named 'a_package_that_is_not_there'"),
        ("class Mine: ...", "not a subclass of benchmarks.networks.base.Network"),
        (NETWORK.replace("depth = 1", ""), "depth must be its number of blocks, or None where spec.blocks decides"),
        (NETWORK.replace("depth = 1", "depth = 0"), "depth must be its number of blocks"),
        (NETWORK.replace('"batch"', '"layer"'), "norms are ('none', 'layer'); expected one or more of none, batch"),
        (NETWORK.replace('("none", "batch")', "()"), "norms are (); expected one or more of none, batch, instance"),
    ],
    ids=["import", "class", "no-depth", "depth", "norm", "no-norm"],
)
def test_an_installed_network_that_cannot_be_used(
    install: Install, source: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install("theirs", "network_of_theirs", source, NETWORK_REGISTRY.group)
    message = refusal("theirs", networks.get)
    assert reason in message and "network_of_theirs:Mine" in message
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert reason in shown and re.search(r"^ +mlp +Two hidden layers", shown, re.M), "it hides the others"


def test_a_layer_whose_initial_values_are_unknown_is_refused(install: Install) -> None:
    source = NETWORK.replace("nn.Flatten(), ", "nn.Flatten(), nn.PReLU(), ")
    install("theirs", "network_of_prelu", source, NETWORK_REGISTRY.group)
    with pytest.raises(UserError, match=r"Mine has a PReLU, whose initial values are unknown: override initialise"):
        NetworkSpec("theirs", 1, (8, 8), 3, norm="none").build(generator_for("x"))


def test_the_network_of_the_page_is_one_of_the_command_line(install: Install, tmp_path: Path) -> None:
    (source,), (entry,) = blocks("python", "docs/networks.md"), blocks("toml", "docs/networks.md")
    assert entry == f'[project.entry-points."{NETWORK_REGISTRY.group}"]\ntiny = "tiny:Tiny"\n'
    install("tiny", "tiny", source, NETWORK_REGISTRY.group, "Tiny")
    asked = (
        "-m harness.run --methods dm --dataset digits --budget smoke --network tiny --width 32 --forecast --no-random"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    ran = subprocess.run(
        [sys.executable, *asked.split(), "--output", str(tmp_path / "out")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    parameters = NetworkSpec("tiny", 1, (8, 8), 10, width=32, norm="batch").parameters()
    assert "tiny 32" in ran.stdout and f" {parameters:,} " in ran.stdout
