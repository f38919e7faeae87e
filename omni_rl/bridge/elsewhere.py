"""Checks engines whose weights are not our trainer's: proves what can be proven without their trainer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omni_rl.bridge.posted import Posted
from omni_rl.bridge.seam import CheckRequest, CheckResult
from omni_rl.consistency.attribution import proofs
from omni_rl.consistency.attribution.search import Experiments, attribute
from omni_rl.consistency.bands import Bands
from omni_rl.consistency.evidence import Audit
from omni_rl.sync.manifest import Manifest
from omni_rl.sync.nonfinite import told
from omni_rl.sync.version import same_weights

FROM = {"published": "was published", "directory": "came from a directory"}
"""What is said of weights by where they came from; for origins that are missing here, our trainer has the weights."""


@dataclass(frozen=True)
class Elsewhere:
    """Served weights that came from another trainer, or a directory: which, from where, what our trainer has, and a
    sentence for each tensor that holds NaN or infinity."""

    version: str
    came: str
    trainer: str
    nonfinite: tuple[str, ...] = ()

    @classmethod
    def of(cls, served: Manifest | None, trainer: str) -> "Elsewhere | None":
        """Return where the weights came from; None if they are our trainer's, or were: an engine that lags behind our
        trainer is stale, and must be synced."""
        if served is None or served.origin not in FROM or same_weights(str(served.version), trainer):
            return None
        return cls(str(served.version), FROM[served.origin], trainer, told(served.nonfinite or ()))

    def __str__(self) -> str:
        lost = f"they hold what is no finite number ({'; '.join(self.nonfinite)}); " if self.nonfinite else ""
        return (
            f"the engines serve {self.version}, which {self.came}; {lost}our trainer has {self.trainer} and was not "
            "compared with them: agreement is measured where their own trainer posts its scores"
        )


def check_elsewhere(
    served: Elsewhere,
    request: CheckRequest,
    audit: Callable[[], Sequence[Audit]],
    posted: Posted | None,
    bands: Bands,
) -> CheckResult:
    """Compare every byte of the engines with what was brought to them, and explain a posted step as far as its own
    figures and records allow: our trainer can score nothing of it."""
    began = time.perf_counter()
    if posted is None:
        finding = proofs.weights(audit())
        cause, findings = finding.cause, [finding]
        sentence = str(served) if cause is None else finding.sentence
    else:
        found = attribute(posted.case, Experiments(audit), bands, seconds=request.seconds)
        cause, findings = found.cause, list(found.findings)
        sentence = f"{found.sentence}. Note that {served}"
    return CheckResult(
        served.version,
        {} if posted is None else posted.figures,
        cause=cause,
        sentence=sentence,
        evidence=tuple(finding.as_dict() for finding in findings),
        seconds=time.perf_counter() - began,
        compared=False,
    )
