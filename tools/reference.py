"""Writes docs/rest.md from the OpenAPI document, docs/configuration.md from the settings' classes, the tables of
docs/scale.md from the cost model and those of docs/numerics.md from the benchmark, the sections of causes and their
actions in docs/operating.md from the table of causes, and the metrics of docs/concepts.md from what is kept of them."""

import ast
import inspect
import json
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from omni_rl_services.coordinator import deps
from omni_rl_services.coordinator.app import create_app
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
from omni_rl.consistency.actions import CAUSES
from omni_rl.consistency.figures import Metrics
from omni_rl.consistency.guidance import OF_KIND
from omni_rl.consistency.limits import Severity
from omni_rl.plan.cases import cases
from omni_rl.plan.links import H100
from omni_rl.plan.measured import MeasuredConstants, published
from omni_rl.plan.model import PlanSettings, plan
from omni_rl.policies.settings import NodesSettings
from omni_rl.rollout.settings import EngineSettings
from omni_rl.runtime import ENVIRONMENT
from omni_rl.service.settings import ServeSettings, UpSettings
from omni_rl.train.settings import TrainSettings
from omni_rl.vllm_engine import SUPPORTED

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
DOCS = ROOT / "docs"
SCOPES = {deps.reader: "read", deps.syncer: "sync", deps.admin: "admin"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
GENERATED = "<!-- Written by tools/reference.py; do not edit. -->\n\n"
START, END = "<!-- tables: tools/reference.py -->\n", "<!-- end of tables -->"
SETTINGS = {
    "30B, 3B active, 8 GPUs": PlanSettings(total=30e9, active=3e9, gpus=8),
    "30B, 3B active, 64 GPUs": PlanSettings(total=30e9, active=3e9, gpus=64),
    "120B, 12B active, 64 GPUs, 4 an engine": PlanSettings(total=120e9, active=12e9, gpus=64, tensor_parallel=4),
    "1T, 32B active, 1,000 GPUs, 32 an engine": PlanSettings(total=1e12, active=32e9, gpus=1000, tensor_parallel=32),
}
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


def main() -> None:
    for name, text in documents().items():
        (DOCS / name).write_text(text)


def documents() -> dict[str, str]:
    """Return what `docs` must contain, by the file's name."""
    return {
        "rest.md": rest(),
        "configuration.md": configuration(),
        "scale.md": scale(),
        "numerics.md": numerics(),
        "operating.md": operating(),
        "concepts.md": concepts(),
    }


def operating() -> str:
    """Return the guide with a section for every cause, and for every kind of incident that has none."""
    sections = []
    for cause, guide in CAUSES.items():
        sections += _guidance(str(cause), guide.meaning, guide.remedy)
    sections += ["## Incidents without a cause", ""]
    for kind, guidance in OF_KIND.items():
        sections += _guidance(kind, guidance.meaning, guidance.remedy)
    severities = (Severity.WARN, Severity.MASK, Severity.PAUSE)
    actions = [_row("cause", *(severity.label for severity in severities)), "|---" * (1 + len(severities)) + "|"]
    actions += [_row(f"`{cause}`", *(guide.actions[one] for one in severities)) for cause, guide in CAUSES.items()]
    return _filled("operating.md", sections, actions)


def _guidance(name: str, meaning: str, remedy: str) -> list[str]:
    return [f"### {name}", "", *_wrapped(f"{meaning}\n\n**What to do:** {remedy}")]


def concepts() -> str:
    """Return the page with what each metric is."""
    meanings = _attribute_docstrings(Metrics).items()
    rows = [_row(f"`{name}`", meaning.removesuffix(".")) for name, meaning in meanings]
    return _filled("concepts.md", ["| name | what |", "|---|---|", *rows])


def scale() -> str:
    """Return the page with its tables as the committed results have them."""
    measured = MeasuredConstants.read(published())
    lines = ["## Measured here, and what the model says", "", "| | measured | model | |", "|---|---|---|---|"]
    for case in cases(measured):
        lines.append(_row(case.name, f"{case.measured:.3f} s", f"{case.predicted:.3f} s", f"{case.error:+.0%}"))
    lines += ["", "## Estimates, at best / as built, in seconds", ""]
    plans = [plan(settings, H100, measured) for settings in SETTINGS.values()]
    lines += [_row("", *SETTINGS), "|---" * (len(plans) + 1) + "|"]
    for costs in zip(*(found.costs for found in plans), strict=True):
        lines.append(_row(costs[0].part, *(f"{cost.limit:.1f} / {cost.as_built:.1f}" for cost in costs)))
    lines.append(_row("generation stands still", *("{:.1f} / {:.1f}".format(*found.stall) for found in plans)))
    for rooms in zip(*(found.rooms for found in plans), strict=True):
        lines.append(_row(f"{rooms[0].what}, GB", *(f"{room.needed / 1e9:.0f}" for room in rooms)))
    return _filled("scale.md", lines)


def numerics() -> str:
    """Return the page with its tables as `omni-rl bench agreement` measured them."""
    results = json.loads((ROOT / "bench/agreement.json").read_text())["results"]
    lines = ["Mean abs d in nats, over all kinds of prompt that a side can score; the probe's is the largest.", ""]
    lines += [
        _row("", "canonical probe, prefill", "sampled, prefill", "sampled, decode", "tokens/s, scoring / learning")
    ]
    lines += ["|---|---|---|---|---|"]
    dtypes = ("bfloat16", "float32")
    for of, measured in results.items():
        dtype = of if of in dtypes else f"bfloat16, engine {of}"
        for name, side in measured["sides"].items():
            probe = max(figures["logprob_abs_diff_max"] for figures in side["probe_against_prefill"].values())
            legs = [_mean(side[leg]) for leg in ("against_prefill", "against_decode")]
            speed = f"{side['speed']['forward']:,.0f} / {side['speed']['forward_and_backward']:,.0f}"
            lines.append(_row(f"{dtype}, {name}", f"{probe:.2g}", *(f"{mean:.2g}" for mean in legs), speed))
        engine = measured["engine"]
        itself = f"{_mean(engine['prefill_against_decode']):.2g}"
        lines.append(_row(f"{dtype}, the engine's own prefill", "0", "0", itself, ""))
    lines += ["", "Elements that are equal bit for bit, given the engine's own inputs; modules not named: all.", ""]
    lines += [_row("module", *(f"{dtype}, {mode}" for dtype in dtypes for mode in ("reference", "matched")))]
    lines += ["|---" * (1 + 2 * len(dtypes)) + "|"]
    modules = {dtype: results[dtype]["modules"] for dtype in dtypes}
    for name in dict.fromkeys(name for found in modules.values() for name in found["reference"]):
        shares = [found[mode][name]["equal"] for found in modules.values() for mode in ("reference", "matched")]
        if min(shares) < 1:
            lines.append(_row(f"`{name}`", *(f"{share:.5f}" for share in shares)))
    lines += ["", "Elements that are equal when a sequence is computed token by token instead of at once.", ""]
    lines += [_row("vLLM's operator", *dtypes), "|---" * (1 + len(dtypes)) + "|"]
    of_vllm = json.loads((ROOT / "bench/operators.json").read_text())["results"]
    operators = list(of_vllm["decode_equal_to_prefill"].values())
    lines += [_row(name, *(f"{found[name]:.5f}" for found in operators)) for name in operators[0]]
    lines += ["", "Prefill alone against decode in a batch, abs d, and what it costs (tokens a second, bfloat16).", ""]
    lines += [_row("engine", "mean", "max", "sampled", "rescored"), "|---|---|---|---|---|"]
    for name, engine in of_vllm["engines"].items():
        apart = [f"{engine[f'prefill_against_decode_{figure}']:.2g}" for figure in ("mean", "max")]
        speeds = [f"{engine[f'{work}_tokens_per_second']:,.0f}" for work in ("sampled", "scored")]
        lines.append(_row(f"`{name}`", *apart, *speeds))
    return _filled("numerics.md", lines)


def _filled(name: str, *blocks: list[str]) -> str:
    """Return a page with new lines in each of its marked places, in order."""
    page, *places = (DOCS / name).read_text().split(START)
    for lines, place in zip(blocks, places, strict=True):
        page += f"{START}\n" + "\n".join(lines).rstrip() + f"\n\n{END}{place.split(END)[1]}"
    return page


def _mean(kinds: dict[str, dict[str, float]]) -> float:
    """Return the mean over all tokens of all kinds."""
    tokens = sum(figures["tokens"] for figures in kinds.values())
    return sum(figures["tokens"] * figures["logprob_abs_diff_mean"] for figures in kinds.values()) / tokens


def configuration() -> str:
    lines = ["# Configuration", "", *_wrapped("Every setting, its type and its default.")]
    for title, (introduction, models) in SECTIONS.items():
        lines += [f"## {title}", "", *_wrapped(introduction)]
        for model in models:
            lines += [f"### {model.__name__}", "", *_wrapped(inspect.getdoc(model) or "")]
            lines += ["| name | type | default | |", "|---|---|---|---|"]
            notes = _attribute_docstrings(model)
            lines += [_setting(name, field, notes.get(name, "")) for name, field in model.model_fields.items()]
            lines.append("")
    return GENERATED + "\n".join([*lines, *_environment()])


def _environment() -> Iterator[str]:
    yield from ("## Environment variables", "", "| name | |", "|---|---|")
    yield from (_row(f"`{name}`", what) for name, what in VARIABLES.items())
    yield ""
    versions = " or ".join(f"vLLM {version}" for version in SUPPORTED)
    yield from _wrapped(PLUGIN.format(versions=versions).strip())
    yield from ("| name | value | |", "|---|---|---|")
    yield from (_row(f"`{name}`", f"`{given.value}`", given.reason) for name, given in ENVIRONMENT.items())
    yield ""


def _setting(name: str, field: FieldInfo, note: str) -> str:
    limits = ", ".join(
        f"{word} {getattr(rule, bound)}"
        for rule in field.metadata
        for bound, word in BOUNDS.items()
        if hasattr(rule, bound)
    )
    return _row(
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


def _attribute_docstrings(model: type) -> dict[str, str]:
    """Return the strings that follow fields in a class, its own or inherited, by the field."""
    bases = [base for base in model.__bases__ if issubclass(base, BaseModel) and base is not BaseModel]
    found = {name: note for base in bases for name, note in _attribute_docstrings(base).items()}
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


def rest() -> str:
    with tempfile.TemporaryDirectory() as directory:
        media = MediaSettings(directory=Path(directory) / "media")
        app = create_app(CoordinatorSettings(ledger=f"sqlite:///{directory}/ledger.db", media=media))
        document = app.openapi()
        scopes = dict(_scopes(app))
        app.state.coordinator.steps.close()
    lines = ["# REST API", "", *_wrapped(document["info"]["description"])]
    lines += _wrapped(
        "The same as OpenAPI: `GET /openapi.json`. A token goes into `Authorization: Bearer TOKEN`; its scope is read, "
        "sync or admin, and each includes the ones before it. Where no token is needed, the table says so."
    )
    lines += ["| | | scope |", "|---|---|---|"]
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    for path, method, operation in operations:
        first = " ".join(operation["description"].split()).split(". ")[0].removesuffix(".") + "."
        lines.append(_row(f"`{method.upper()} {path}`", first, scopes.get((path, method), "no token")))
    lines.append("")
    for path, method, operation in operations:
        lines += _operation(path, method, operation)
    lines += ["## Bodies", ""]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _schema(name, schema)
    return GENERATED + "\n".join(lines)


def _scopes(app: FastAPI) -> Iterator[tuple[tuple[str, str], str]]:
    for route in app.routes:
        if isinstance(route, APIRoute):
            needed = [SCOPES[part.call] for part in route.dependant.dependencies if part.call in SCOPES]
            for method in route.methods:
                if needed:
                    yield (route.path_format, method.lower()), needed[0]


def _operation(path: str, method: str, operation: dict[str, Any]) -> list[str]:
    lines = [f"### {method.upper()} {path}", "", *_wrapped(operation["description"])]
    parameters = operation.get("parameters", [])
    if parameters:
        lines += ["| parameter | in | type | |", "|---|---|---|---|"]
        for one in parameters:
            required = "required" if one.get("required") and one["in"] != "path" else ""
            note = "; ".join(filter(None, (one.get("description", "").removesuffix("."), required)))
            lines.append(_row(f"`{one['name']}`", one["in"], _kind(one["schema"]), note))
        lines.append("")
    for content, body in operation.get("requestBody", {}).get("content", {}).items():
        lines += [f"Takes {_kind(body.get('schema', {}))} as `{content}`.", ""]
    lines += ["| answer | |", "|---|---|"]
    for status, response in operation["responses"].items():
        kinds = {_kind(body["schema"]) for body in response.get("content", {}).values() if body.get("schema")}
        kinds -= {_link("Problem"), "any"}
        lines.append(_row(status, "; ".join([response["description"].removesuffix("."), *sorted(kinds)])))
    return [*lines, ""]


def _schema(name: str, schema: dict[str, Any]) -> list[str]:
    lines = [f"### {name}", "", *_wrapped(schema.get("description", ""))]
    if "enum" in schema:
        lines += [", ".join(f"`{value}`" for value in schema["enum"]), ""]
    if "properties" in schema:
        required = set(schema.get("required", ()))
        lines += ["| name | type | |", "|---|---|---|"]
        for field, kind in schema["properties"].items():
            note = [kind.get("description", "").removesuffix("."), "required" if field in required else ""]
            if kind.get("default") is not None:
                note.append(f"default `{json.dumps(kind['default'])}`")
            lines.append(_row(f"`{field}`", _kind(kind), "; ".join(filter(None, note))))
        lines.append("")
    for example in schema.get("examples", ()):
        lines += ["```json", json.dumps(example, indent=1), "```", ""]
    return lines


def _kind(schema: dict[str, Any]) -> str:
    """Describe a schema in a few words, with links to those that have a name."""
    if "$ref" in schema:
        return _link(schema["$ref"].rpartition("/")[2])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(_kind(one) for one in schema[choice]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    match schema.get("type"):
        case "array":
            return f"list of {_kind(schema.get('items', {}))}"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return f"object of {_kind(schema['additionalProperties'])}"
        case list() as kinds:
            return " or ".join(kinds)
        case str() as kind:
            return kind
    return "any"


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _wrapped(text: str) -> list[str]:
    """Return paragraphs of lines that fit the repository's width, each followed by an empty line."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    return [line for part in paragraphs for line in (*textwrap.wrap(part, 120, break_on_hyphens=False), "")]


if __name__ == "__main__":
    main()
