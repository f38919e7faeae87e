"""Describes every setting as docs/configuration.md has it, from the settings' classes."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omni_rl_services.coordinator.settings import (
    Bounds,
    CoordinatorSettings,
    MediaSettings,
    TensorboardSettings,
    TlsSettings,
    TokenEntry,
    WandbSettings,
)
from omni_rl_services.coordinator.webhooks import PagerSettings, WebhookSettings
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from omni_rl.bridge.settings import ClusterSettings
from omni_rl.config import DemoSettings
from omni_rl.policies.settings import NodesSettings
from omni_rl.rollout.settings import EngineSettings
from omni_rl.runtime import ENVIRONMENT
from omni_rl.service.settings import ServeSettings, UpSettings
from omni_rl.train.settings import TrainSettings
from omni_rl.vllm_engine import SUPPORTED
from tools.markdown import GENERATED, row, wrapped

ROOT = Path(__file__).resolve().parent.parent
VARIABLES = {
    "OMNI_RL_SECTION__NAME": "A setting of `omni-rl demo`, `omni-rl up` or `omni-rl serve`, as above",
    "OMNI_RL_URL": "The coordinator's address, for clients, jobs and commands",
    "OMNI_RL_TOKEN": "A client's token",
    "OMNI_RL_TOKEN_FILE": "A file with the token, for where environments are shown",
    "OMNI_RL_CA_FILE": "Certificates (PEM) that vouch for an https address that no public authority vouches for",
    "OMNI_RL_RUN": "The run whose policies a job attaches to; the name under which a watched run posts",
    "OMNI_RL_ATTEMPT": "The attempt's number of a watched run of several processes without a process group",
    "OMNI_RL_PICTURES": "0: the pictures of prompts are not uploaded",
    "OMNI_RL_STRICT": "1: a watched run waits for each step's verdict, and stops where it is `pause`",
    "OMNI_RL_CORRECT": "The method by which a watched verl run weighs its tokens, such as tis; none without it",
    "OMNI_RL_TIS_FUNCTION": "The custom TIS function that a watched Miles or slime run would name itself",
    "OMNI_RL_JOBS": "Where jobs save their steps; the default is `runs/jobs`",
    "OMNI_RL_TASKS": "Where task files are; the default is the checkout's `deploy/jobs`",
    "OMNI_RL_CACHE": "Where layout maps are kept; the default is `~/.cache/omni-rl`",
    "OMNI_RL_AGENT": "A coordinator's address, or 1 for `OMNI_RL_URL`'s: any vLLM tells it what weight updates do",
    "OMNI_RL_AGENT_ENGINE": "The engine's name to the agent; the default is made of its host and start",
    "OMNI_RL_AGENT_EVERY": "Model executions after which the agent looks at the weights unasked: 1000; 0: never",
    "OMNI_RL_ENGINE": "1: vLLM is taught the model families; our engine sets it for the processes that vLLM starts",
    "OMNI_RL_SERVICE": "Set by `omni-rl up`, which knows its processes by it",
}
"""The environment variables that the package reads or sets; tests/test_docs.py compares them with the code."""
PLUGIN = """
vLLM finds our plug-in through the entry point `vllm.general_plugins`, in every process of every vLLM that this package
is installed beside. It imports the standard library alone, sets nothing, and returns at once unless `OMNI_RL_ENGINE=1`
or `OMNI_RL_AGENT` ([the agent](agent.md)) asks for more. For the engine it then needs {versions}: another one gets a
warning and is left as it is, and our engine does not start.

No import of the package sets a variable. The processes of an engine, of a trainer's ranks and of the commands of
`omni-rl` have these; a value that is set already wins, and goes from a driver to the actors it starts. A process of
your own that hosts an engine or a renderer calls `omni_rl.runtime.prepare()` before torch is imported; without it they
raise `ConfigError`. The training model and `publish` do without.
"""
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
SECTIONS: dict[str, tuple[str, tuple[type[BaseModel], ...]]] = {
    "omni-rl demo, omni-rl up and omni-rl serve": (
        "A TOML file (`--config`), then variables `OMNI_RL_SECTION__NAME` (`OMNI_RL_UP__PORT=8500`), then flags; the "
        "later one wins. An unknown name is an error that lists it.",
        (DemoSettings, NodesSettings, UpSettings, ServeSettings),
    ),
    "The coordinator": (
        "One JSON object: `python -m omni_rl_services.coordinator SETTINGS.json`. `omni-rl up` writes one itself.",
        (
            CoordinatorSettings,
            TokenEntry,
            TlsSettings,
            MediaSettings,
            Bounds,
            PagerSettings,
            WebhookSettings,
            WandbSettings,
            TensorboardSettings,
            ClusterSettings,
        ),
    ),
    "Engines and trainers": (
        "What the bridge, the demo and the benchmarks start actors with, in Python.",
        (EngineSettings, TrainSettings),
    ),
}


def configuration() -> str:
    lines = ["# Configuration", "", *wrapped("Every setting, its type and its default.")]
    for title, (introduction, models) in SECTIONS.items():
        lines += [f"## {title}", "", *wrapped(introduction)]
        for model in models:
            lines += [f"### {model.__name__}", "", *wrapped(inspect.getdoc(model) or "")]
            lines += ["| name | type | default | |", "|---|---|---|---|"]
            notes = attribute_docstrings(model)
            lines += [_setting(name, field, notes.get(name, "")) for name, field in model.model_fields.items()]
            lines.append("")
    return GENERATED + "\n".join([*lines, *_environment()])


def _environment() -> Iterator[str]:
    yield from ("## Environment variables", "", "| name | |", "|---|---|")
    yield from (row(f"`{name}`", what) for name, what in VARIABLES.items())
    yield ""
    versions = " or ".join(f"vLLM {version}" for version in SUPPORTED)
    yield from wrapped(PLUGIN.format(versions=versions).strip())
    yield from ("| name | value | |", "|---|---|---|")
    yield from (row(f"`{name}`", f"`{given.value}`", given.reason) for name, given in ENVIRONMENT.items())
    yield ""


def _setting(name: str, field: FieldInfo, note: str) -> str:
    limits = ", ".join(
        f"{word} {getattr(rule, bound)}"
        for rule in field.metadata
        for bound, word in BOUNDS.items()
        if hasattr(rule, bound)
    )
    return row(
        f"`{name}`",
        f"`{_type(field.annotation)}`",
        _default(field),
        "; ".join(filter(None, (note.removesuffix("."), limits))),
    )


def _type(annotation: Any) -> str:
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return annotation.__name__
    text = str(annotation).replace("typing.", "").replace("pathlib._local.", "").replace("pathlib.", "")
    for model in {model for _, models in SECTIONS.values() for model in models}:
        text = text.replace(f"{model.__module__}.{model.__name__}", model.__name__)
    return f"{text.removeprefix('Optional[').removesuffix(']')} | None" if text.startswith("Optional[") else text


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its own"
    if isinstance(value, Path):
        # The package's own files are in another place on every machine.
        return f"`{value.relative_to(ROOT) if value.is_relative_to(ROOT) else value}`"
    return f"`{value!r}`"


def attribute_docstrings(model: type) -> dict[str, str]:
    """Return the strings that follow fields in a class, its own or inherited, by the field."""
    bases = [base for base in model.__bases__ if issubclass(base, BaseModel) and base is not BaseModel]
    found = {name: note for base in bases for name, note in attribute_docstrings(base).items()}
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[field.target.id] = str(after.value.value)
    return found
