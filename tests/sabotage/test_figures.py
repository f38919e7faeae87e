"""What trials amount to, on trials made by hand; the bound against an independent one."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from scipy import stats

from omni_rl.errors import ConfigError
from omni_rl_bench.sabotage.faults import FAULTS, chosen
from omni_rl_bench.sabotage.figures import figures, upper_bound
from omni_rl_bench.sabotage.picture import confusion_svg
from omni_rl_bench.sabotage.suite import Record


def trial(fault: str, moment: str, **values: Any) -> dict[str, Any]:
    found = {
        "kind": "trial",
        "fault": fault,
        "moment": moment,
        "seed": 1,
        "pair": "float32",
        "by": "seal",
        "steps": 1,
        "severity": "pause",
        "abs_diff_mean": 0.3,
        "sealed_cause": "unknown",
        "cause": "corrupt_weights",
        "right": True,
        "action": "resync",
        "action_right": True,
        "healed": True,
        "sentence": "",
        "seconds": {"judge": 0.04, "response": 0.5, "trial": 3.0},
        "trouble": "",
    }
    return found | values


def block(**values: Any) -> dict[str, Any]:
    found = {
        "kind": "clean",
        "pair": "float32",
        "shape": "short answers",
        "steps": 50,
        "tokens": 8000,
        "alarms": 0,
        "paused": 0,
        "unjudged": 0,
        "worst_abs_diff_mean": 1e-6,
        "reasons": [],
        "seconds_by_part": {"sample": 6.0, "score": 4.0, "judge": 0.05},
    }
    return found | values


@pytest.mark.parametrize(("events", "of"), [(0, 10), (0, 2000), (1, 100), (7, 350)])
def test_the_bound_is_that_of_clopper_and_pearson(events: int, of: int) -> None:
    assert upper_bound(events, of) == pytest.approx(stats.beta.ppf(0.95, events + 1, of - events), rel=1e-6)


def test_without_an_alarm_the_bound_is_the_rule_of_three() -> None:
    assert upper_bound(0, 2000) == pytest.approx(3 / 2000, rel=0.01)


UNSEEN: dict[str, Any] = {"by": "", "steps": None, "cause": None, "right": None, "action_right": None, "healed": None}
ROLLED_BACK: dict[str, Any] = {"by": "verify", "steps": 0, "cause": None, "right": None, "sealed_cause": None}


def test_shares_are_of_the_trials_that_can_have_them() -> None:
    trials = [
        trial("tensor zeroed", "after VERIFY"),
        trial("tensor zeroed", "before VERIFY", **ROLLED_BACK),
        trial("router bias rounded", "after VERIFY", by="check", sealed_cause=None),
        trial("normalised twice", "from then on", cause="kernel", right=False, action="mask", action_right=False),
        trial("top-p, untold", "from then on", abs_diff_mean=1e-3, **UNSEEN),
    ]
    found = figures(trials, [])
    assert found["noticed"] == {"of": 5, "yes": 4, "share": 0.8}
    assert found["noticed_by"] == {"check": 1, "nobody": 1, "seal": 2, "verify": 1}
    assert found["right_cause"] == {"of": 3, "yes": 2, "share": pytest.approx(2 / 3)}
    assert found["right_action"] == {"of": 4, "yes": 3, "share": 0.75}
    assert found["healed"] == {"of": 4, "yes": 4, "share": 1.0}
    assert found["not_noticed"] == [{"fault": "top-p, untold (from then on), seed 1", "abs_diff_mean": 1e-3}]
    assert found["wrong_cause"][0]["called"] == "kernel"
    assert found["wrong_action"] == [{"fault": "normalised twice (from then on), seed 1", "action": "mask"}]
    assert found["confusion"]["corrupt_weights"] == {"corrupt_weights": 2, "rolled back": 1}
    assert found["confusion"]["sampling_support"] == {"not noticed": 1}


def test_a_fault_with_several_right_names_is_counted_where_it_was_called() -> None:
    found = figures([trial("router in bfloat16", "from then on", cause=cause) for cause in ("router", "kernel")], [])
    assert found["confusion"] == {"kernel": {"kernel": 1}, "router": {"router": 1}}


def test_false_alarms_come_with_their_bound_and_the_shapes_of_their_steps() -> None:
    found = figures([], [block(alarms=1, reasons=["text: too far"]), block(alarms=1, shape="asynchronous")])["clean"]
    assert (found["steps"], found["alarms"], found["tokens"]) == (100, 2, 16000)
    assert found["steps_by_shape"] == {"short answers": 50, "asynchronous": 50}
    assert 0.05 < found["rate_upper_bound"] < 0.07
    assert found["seconds_by_part"]["judge"] == 0.1


def test_the_picture_shows_every_count() -> None:
    svg = confusion_svg({"token_shift": {"token_shift": 3, "unknown": 12}}, "a <title>")
    texts = [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"3", "12", "token shift", "unknown", "a <title>"} <= set(texts)


def test_a_record_keeps_its_kinds_apart_and_what_was_done(tmp_path: Path) -> None:
    record = Record(tmp_path / "deep" / "trials.jsonl")
    assert record.lines("trial") == []
    record.add(trial("tensor zeroed", "after VERIFY"))
    record.add(block())
    assert [line["fault"] for line in Record(record.path).lines("trial")] == ["tensor zeroed"]


def test_a_fault_is_chosen_by_name_and_an_unknown_one_is_answered_with_all() -> None:
    assert [fault.moment for fault in chosen("tensor zeroed")] == ["before VERIFY", "after VERIFY"]
    assert chosen(None) == FAULTS
    with pytest.raises(ConfigError, match=r"there are: one replica stale, .*batch norm by its batch, engine"):
        chosen("gremlins")


def test_every_fault_that_is_named_has_one_moment_each() -> None:
    keys = [fault.key for fault in FAULTS]
    assert len(keys) == len(set(keys))
    assert len({fault.name for fault in FAULTS}) >= 55
