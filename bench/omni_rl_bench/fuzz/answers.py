"""Tells whether an answer is what a client is promised: no fault of ours, and every error a problem+json."""

import json
from dataclasses import dataclass

from omni_rl_bench.fuzz.grammar import Case

PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Answer:
    """One answer, as it came over the socket; `body` is None where its method has none."""

    status: int
    content_type: str
    body: bytes | None


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with an answer. `kind` is "500", "503", "no problem" or "no answer"."""

    kind: str
    number: int
    what: str
    detail: str

    def again(self, seed: int) -> str:
        """Describe the finding in words, with the command that sends the request again."""
        command = f"omni-rl bench fuzz --out /tmp --seed {seed} --first {self.number} --requests 1"
        return f"{self.kind}: {self.what}: {self.detail}\n    {command}"


def code_of(answer: Answer) -> str | None:
    """Return an error's code; None for anything that is not a problem as the API has them."""
    if answer.body is None:
        return ""
    try:
        problem = json.loads(answer.body)
    except ValueError:
        return None
    if not isinstance(problem, dict) or problem.get("status") != answer.status:
        return None
    code, detail = problem.get("code"), problem.get("detail")
    return code if isinstance(code, str) and isinstance(detail, str) and code and detail else None


def findings(case: Case, answers: list[Answer], outages: frozenset[str]) -> list[Finding]:
    """Return what is wrong with a case's answers. `outages` are codes of what is out here, for which 503 is right."""
    found = [
        (kind, f"{one.status} {one.content_type} {(one.body or b'')[:300]!r}")
        for one in answers
        for kind in _wrong(one, outages)
    ]
    if case.request.answering == "always" and len(answers) < len(case.request.sent):
        found.append(("no answer", f"{len(answers)} of {len(case.request.sent)} answers"))
    return [Finding(kind, case.number, case.what, detail) for kind, detail in found]


def _wrong(answer: Answer, outages: frozenset[str]) -> list[str]:
    if answer.status < 400:
        return []
    code = code_of(answer)
    found = []
    if answer.status == 503 and not (code == "" or code in outages):
        found.append("503")
    elif answer.status >= 500 and answer.status != 503:
        found.append("500")
    if answer.content_type != PROBLEM or code is None:
        found.append("no problem")
    return found
