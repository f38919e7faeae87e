"""The documents say what the code does: generated ones are current, and the guide leaves nothing out."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from omni_rl import errors
from omni_rl.cli import app
from omni_rl.consistency import guidance
from omni_rl.consistency.actions import CAUSES, Action, Cause
from omni_rl.consistency.incidents import KINDS, IncidentKind
from omni_rl.consistency.limits import Severity
from omni_rl.errors import OmniRLError
from tests.services.live import live
from tools import reference
from tools.settings_reference import VARIABLES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDE = (DOCS / "operating.md").read_text()
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def section(title: str) -> str:
    return GUIDE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def table(title: str) -> dict[str, list[str]]:
    """Rows of a section's table by the code in their first cell."""
    rows = [line.strip("| ").split(" | ") for line in section(title).splitlines() if line.startswith("| `")]
    found = {cells[0].strip("`"): cells[1:] for cells in rows}
    assert len(found) == len(rows), "a row is there twice"
    return found


def test_the_references_are_current() -> None:
    for name, text in reference.documents().items():
        assert (DOCS / name).read_text() == text, f"docs/{name} is not up to date; run tools/reference.py"


def test_every_variable_of_ours_is_listed() -> None:
    sources = [*ROOT.glob("omni_rl/**/*.py"), *ROOT.glob("services/omni_rl_services/**/*.py")]
    named = {name for path in sources for name in re.findall(r"\bOMNI_RL_[A-Z_]*[A-Z]\b", path.read_text())}
    assert named == VARIABLES.keys()


def test_every_alert_has_its_section_with_its_severity() -> None:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    wanted = [(rule["alert"], rule["labels"]["severity"]) for rule in rules]
    found = re.findall(r"^### (.*)\n\*(\w+)\.\* ", section("Alerts"), re.MULTILINE)
    assert [(alert, severity.lower()) for alert, severity in found] == wanted
    assert section("Alerts").count("\n### ") == len(wanted)


def test_every_incidents_link_leads_to_a_section_with_its_remedy() -> None:
    every: list[tuple[IncidentKind, str | None]] = [(kind, None) for kind in KINDS]
    every += [("drift", str(cause)) for cause in Cause]
    for kind, cause in every:
        title = guidance.section(kind, cause)
        (text,) = re.findall(rf"^### {title}\n(.*?)^(?:#|<!--)", GUIDE, re.MULTILINE | re.DOTALL)
        assert guidance.remedy(kind, cause) in " ".join(text.split()), title


def test_the_table_of_actions_is_the_codes() -> None:
    severities = (Severity.WARN, Severity.MASK, Severity.PAUSE)
    wanted = {str(cause): [str(CAUSES[cause].actions[severity]) for severity in severities] for cause in Cause}
    assert table("Actions") == wanted
    assert all(f"`{action}`:" in section("Actions") for action in Action)


def test_every_problem_code_says_what_to_do() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, OmniRLError)]
    assert table("Problem codes").keys() == {kind.code for kind in kinds}


def links() -> Iterator[tuple[Path, str, str]]:
    for path in [*sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("*.md"))]:
        for match in LINK.finditer(path.read_text()):
            yield path, match[1], match[2] or ""


def test_links_lead_somewhere() -> None:
    for page, target, anchor in links():
        path = page.parent / (target or page.name)
        assert path.exists(), f"{page}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page}: {target}#{anchor}"


def test_the_quickstarts_code_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "quickstart.md").read_text(), re.DOTALL)
    rollout = -np.ones((2, 4))
    given = {"rollout": rollout, "train": rollout, "mask": rollout < 0}
    with live(tmp_path) as url:
        monkeypatch.setenv("OMNI_RL_URL", url)
        exec(code, given)
    assert capsys.readouterr().out.startswith("ok ")


def test_a_dump_is_written_and_judged_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "frameworks/anything.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "write_table" in block)
    rollout = -np.ones((4, 4))
    monkeypatch.chdir(tmp_path)
    exec(code, {"rollout": rollout, "train": rollout, "mask": rollout < 0})
    done = CliRunner().invoke(app, ["judge", "rank0-step12.parquet"])
    assert done.exit_code == 0
    assert done.stdout.startswith("step 12    ok")
