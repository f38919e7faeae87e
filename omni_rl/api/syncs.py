"""Defines weight syncs and checks."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from omni_rl.api.base import MAX_INT, NO_NUL, Answer, Body, Figures, Name, SeverityName, example

SourceKind = Literal["trainer", "published", "directory", "served"]
"""Where a sync's weights come from. served: no new weights; replicas that died get successors, which serve what the
others serve."""
InFlight = Literal["recompute", "drain", "keep"]
Outcome = Literal["committed", "rolled_back", "failed"]


class SyncBody(Body):
    """Where the weights come from, and what becomes of requests in flight."""

    source: SourceKind = "trainer"
    version: Annotated[str, StringConstraints(pattern=NO_NUL, max_length=256)] | None = Field(
        default=None, description="For `published`: the version that `omni_rl.client.publish` returned."
    )
    path: Annotated[str, StringConstraints(pattern=NO_NUL, max_length=4096)] | None = Field(
        default=None,
        description="For `directory`: where the safetensors are, below one of the operator's weight_roots.",
    )
    mode: InFlight = "recompute"
    probe: bool = Field(default=True, description="Score the canonical probe, for the agreement by kind.")
    allow_nonfinite: bool = Field(
        default=False, description="Serve weights that hold NaN or infinity, which are refused otherwise."
    )

    model_config = example(source="trainer", mode="recompute", probe=True)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.source == "published") != (self.version is not None):
            raise ValueError("version belongs to source published, and is needed there")
        if (self.source == "directory") != (self.path is not None):
            raise ValueError("path belongs to source directory, and is needed there")
        return self


class SyncPhase(Answer):
    """One thing that happened in a sync."""

    at: float = Field(description="Unix seconds.")
    phase: str
    what: str
    replica: str | None = None
    detail: str = ""


class SyncAnswer(Answer):
    """A sync, under way or over."""

    sync: str
    state: Literal["running", "finished"]
    phase: str = Field(description="The phase that the sync is in, or was in last.")
    outcome: Outcome | None = None
    key: str | None = None
    source: SourceKind = "trainer"
    started: float
    finished: float | None = None
    version: str = Field(default="", description="The version that the sync brings.")
    serving: str = Field(default="", description="The version that replicas sample with now.")
    tensors: int = 0
    bytes: int = 0
    elements_proven: int = 0
    elements: int = 0
    seconds: dict[str, float] = Field(default_factory=dict, description="The seconds of each phase.")
    stall: float = Field(default=0.0, description="The longest time without an engine step, in seconds.")
    copy_rate: float = Field(default=0.0, description="Bytes a second of a plain copy on this host, to compare with.")
    agreement: Figures | None = None
    reason: str = ""
    mismatches: list[str] = Field(default_factory=list)
    allow_nonfinite: bool = False
    nonfinite: list[str] = Field(
        default_factory=list, description="A sentence for each tensor that holds NaN or infinity."
    )
    replaced: dict[str, str] = Field(default_factory=dict)
    out: dict[str, str] = Field(default_factory=dict)
    phases: list[SyncPhase] = Field(default_factory=list)

    model_config = example(
        sync="3f1c9a20be77",
        state="finished",
        phase="idle",
        outcome="committed",
        key="step-12",
        source="trainer",
        started=1795500000.0,
        finished=1795500000.42,
        version="digits-grpo/1/12/9f2c3c1d0a44b7e1",
        serving="digits-grpo/1/12/9f2c3c1d0a44b7e1",
        tensors=168,
        bytes=2961408,
        elements_proven=1480704,
        elements=1480704,
        seconds={"prepare": 0.21, "pause": 0.002, "apply": 0.011, "verify": 0.08, "commit": 0.004},
        stall=0.12,
        copy_rate=8.1e9,
        agreement={"text": {"tokens": 32, "logprob_abs_diff_mean": 7.5e-7}},
        phases=[{"at": 1795500000.0, "phase": "prepare", "what": "entered"}],
    )


class CheckBody(Body):
    """Asks for a check on the canonical probe, or on a step's worst samples; each further part costs time."""

    run: Name | None = None
    attempt: int | None = Field(default=None, ge=0, le=MAX_INT)
    step: int | None = Field(default=None, ge=0, le=MAX_INT)
    legs: bool = True
    reference: bool = Field(default=False, description="Compare both sides with a float32 reference of the trainer.")
    localise: bool = Field(
        default=False,
        description="Measure how far apart the outputs of each module lie, and find the first that diverges.",
    )
    seconds: float = Field(
        default=60.0, gt=0, le=600, description="The seconds after which the search for a cause gives up."
    )

    model_config = example(run="digits-grpo", attempt=1, step=12, legs=True)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len({value is None for value in (self.run, self.attempt, self.step)}) > 1:
            raise ValueError("run, attempt and step name a step together; leave all out for the probe")
        return self


class AnswerLegs(Answer):
    """An answer, token by token from its first: for each leg the logprob of its second side less that of its first,
    null where that is not a number. A leg may have the first tokens only."""

    sample: str
    kind: str
    legs: dict[str, list[float | None]]


class CheckAnswer(Answer):
    """Both policies, compared once. `run`, `attempt` and `step` name the step it was about; null: the probe."""

    check: int = Field(description="The check's number in the ledger; numbers rise.")
    at: float = Field(description="Unix seconds.")
    run: str | None = None
    attempt: int | None = None
    step: int | None = None
    version: str
    severity: SeverityName
    reason: str
    figures: Figures
    legs: dict[str, Figures] = Field(
        description="The legs of the probe's answers; where a step was asked about, of its own, and of the probe's of "
        "kinds that none of these is of."
    )
    answers: list[AnswerLegs] = Field(description="The legs token by token.")
    compared: bool = Field(
        default=True,
        description="False: the engines' weights did not come from the trainer. Their bytes were proven, and figures "
        "are those of the step that was asked about, if one was.",
    )
    cause: str | None
    sentence: str
    evidence: list[dict[str, Any]] = Field(
        description="One entry a check. `modules` of a localisation: relative difference and noise band by module."
    )
    seconds: float

    model_config = example(
        check=7,
        at=1795500000.0,
        run=None,
        attempt=None,
        step=None,
        version="digits-grpo/1/12/9f2c3c1d0a44b7e1",
        severity="ok",
        reason="every figure is within its limits",
        figures={"text": {"tokens": 32, "logprob_abs_diff_mean": 7.5e-7}},
        legs={"train_vs_prefill": {"overall": {"tokens": 160, "logprob_abs_diff_mean": 7.3e-7}}},
        answers=[{"sample": "text", "kind": "text", "legs": {"train_vs_prefill": [1.1e-7, -3.0e-7]}}],
        cause=None,
        sentence="",
        evidence=[
            {
                "check": "localisation",
                "result": "clear",
                "sentence": "all 2 modules agree on sample text",
                "samples": ["text"],
                "modules": {"embeddings": [0.0, 1e-5], "layers.0.mixer": [2.1e-7, 1e-5]},
            }
        ],
        seconds=1.9,
    )
