"""Kinds of prompt and of media are spelled in `omni_rl.kinds`, and whatever differs by kind knows each of them."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from omni_rl.consistency.limits import LIMITS
from omni_rl.kinds import KINDS, MIXED_STATE, MODALITIES, OVERALL, WITH_FLIPS, Kind
from omni_rl.ledger.queries import EVERY_KIND
from omni_rl.media.formats import FORMATS
from omni_rl.media.slots import _NEEDED
from omni_rl.media.types import Prompt
from omni_rl.replay.comparing import IF_OTHER
from omni_rl.tasks.samples import demo_prompts
from omni_rl_bench.gpu.answers import OF_KIND

ROOT = Path(__file__).parents[1]
HOME = ROOT / "omni_rl" / "kinds.py"
SOURCES = ("omni_rl", "services", "bench", "tools", "deploy", "examples", "tests")
A_LIST = set(MODALITIES)
"""A literal with all of these is the list anew; one with some of them is a choice."""
BRACKETED = re.compile(r"[\[{(][^\[\]{}()]*[\]})]")
QUOTED = re.compile(r"""["'`](\w+)["'`]""")


def test_the_list() -> None:
    assert KINDS == ("text", "image", "audio", "video", "mixed")
    assert MODALITIES == ("image", "audio", "video")
    assert ("overall", *KINDS, "mixed_state", "with_flips") == EVERY_KIND


def test_it_is_spelled_in_one_place() -> None:
    # What is pinned says what was written once, whatever the list becomes.
    python = [path for room in SOURCES for path in (ROOT / room).rglob("*.py") if "pinned" not in path.parts]
    scripts = [path for path in (ROOT / "services").rglob("*.js") if "vendor" not in path.parts]
    assert HOME in python
    assert scripts
    homes = {HOME, Path(__file__)}
    found = [f"{path}:{line}" for path in python if path not in homes for line in spelled(path.read_text())]
    assert found + [str(path) for path in scripts if spelled_in_script(path.read_text())] == []


@pytest.mark.parametrize(
    "source",
    [
        'KINDS = ["text", "image", "audio", "video"]',
        'for kind in ("image", "audio", "video"): pass',
        'Shown = Literal["overall", "text", "image", "audio", "video"]',
        'def f(modality: Literal["image", "audio", "video"]): pass',
        'assert kinds == {"text", "image", "audio", "video", "mixed"}',
        '"text image audio video mixed".split()',
    ],
)
def test_a_second_list_would_be_seen(source: str) -> None:
    assert list(spelled(source)) == [1]


@pytest.mark.parametrize(
    "script", ['const K = ["overall", "text", "image", "audio", "video"];', "new Set(['image', 'audio', 'video'])"]
)
def test_a_second_list_in_a_script_would_be_seen(script: str) -> None:
    assert spelled_in_script(script)


def test_what_differs_by_kind_knows_each() -> None:
    by_modality: list[Mapping[Any, Any]] = [_NEEDED, IF_OTHER]
    assert [tuple(sorted(known)) for known in by_modality] == [tuple(sorted(MODALITIES))] * len(by_modality)
    assert tuple(OF_KIND) == ("text", *MODALITIES, "mixed")
    assert tuple(FORMATS) == tuple(Prompt("p", "").media) == KINDS[1:-1]
    assert all(vars(Prompt("p", ""))[known.field] == () for known in FORMATS.values())
    assert {bucket for limits in LIMITS.values() for bucket in limits} <= {OVERALL, MIXED_STATE, WITH_FLIPS, *KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_of_the_kind_of_its_media(kind: Kind) -> None:
    (prompt,) = demo_prompts(kind, 1, 0)
    assert prompt.kind == kind
    held = tuple(kind for kind, items in prompt.media.items() if items)
    assert held == {"text": (), "mixed": MODALITIES}.get(kind, (kind,))


def spelled(source: str) -> Iterator[int]:
    """Lines of Python at which a list, tuple, set, `Literal` or split string names every modality."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            names = {element.value for element in node.elts if isinstance(element, ast.Constant)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "split":
            text = node.func.value
            names = set(text.value.split()) if isinstance(text, ast.Constant) and isinstance(text.value, str) else set()
        else:
            continue
        if names >= A_LIST:
            yield node.lineno


def spelled_in_script(source: str) -> bool:
    """Whether brackets of JavaScript name every modality."""
    return any(set(QUOTED.findall(literal)) >= A_LIST for literal in BRACKETED.findall(source))
