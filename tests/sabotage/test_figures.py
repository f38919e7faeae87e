"""What trials amount to, on trials made by hand; the bound against an independent one."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from scipy import stats

from omni_rl.errors import ConfigError
from omni_rl.sabotage.faults import FAULTS
from omni_rl.sabotage.figures import figures, upper_bound
from omni_rl.sabotage.picture import confusion_svg
from omni_rl.sabotage.suite import Record, chosen


def trial(fault: str, moment: str, **values: Any) -> dict[str, Any]:
    found = {
        "kind": "trial",
        "fault": fault,
        "moment": moment,
        "seed": 1,
        "dtype": "float32",
        "by": ["weights", "logprobs"],
        "steps": 1,
        "abs_diff_mean": 0.3,
        "cause": "corrupt_weights",
        "right": True,
        "action_right": True,
        "healed": True,
        "search_seconds": 0.5,
        "sentence": "",
    }
    return found | values


@pytest.mark.parametrize(("events", "of"), [(0, 10), (0, 2000), (1, 100), (7, 350)])
def test_the_bound_is_that_of_clopper_and_pearson(events: int, of: int) -> None:
    assert upper_bound(events, of) == pytest.approx(stats.beta.ppf(0.95, events + 1, of - events), rel=1e-6)


def test_without_an_alarm_the_bound_is_the_rule_of_three() -> None:
    assert upper_bound(0, 2000) == pytest.approx(3 / 2000, rel=0.01)


def test_recall_is_split_by_what_can_see_a_fault() -> None:
    trials = [
        trial("tensor zeroed", "after VERIFY"),
        trial("tensor zeroed", "before VERIFY", by=["verify"], steps=0, abs_diff_mean=0.0, cause=None, right=None),
        trial("router bias rounded", "after VERIFY", by=["weights"], abs_diff_mean=1e-6),  # within noise
        trial("normalised twice", "from then on", by=["logprobs"], cause="kernel", right=False),
        trial("top-p, untold", "from then on", by=[], steps=None, cause=None, right=None, healed=False),
    ]
    found = figures(trials, [])
    assert found["recall"] == {"of": 5, "yes": 4, "share": 0.8}
    assert found["recall_of_proof_checks"] == {"of": 3, "yes": 3, "share": 1.0}
    assert found["recall_of_logprob_checks_beyond_noise"] == {"of": 3, "yes": 2, "share": pytest.approx(2 / 3)}
    assert found["right_cause"] == {"of": 3, "yes": 2, "share": pytest.approx(2 / 3)}
    (unseen,) = found["not_noticed"]
    assert found["not_healed"] == [unseen["fault"]] == ["top-p, untold (from then on), seed 1"]
    assert unseen["abs_diff_mean"] > unseen["noise"]
    assert found["wrong_cause"][0]["called"] == "kernel"
    assert found["confusion"]["corrupt_weights"] == {"corrupt_weights": 2, "rolled back": 1}
    assert found["confusion"]["sampling_support"] == {"not noticed": 1}


def test_what_moves_no_sample_further_than_a_clean_step_does_is_noise() -> None:
    unseen = trial("top-p, untold", "from then on", by=[], steps=None, cause=None, right=None, abs_diff_mean=0.3)
    assert figures([unseen], [])["recall_beyond_noise"]["share"] == 0
    block = {"steps": 50, "tokens": 1, "logprob_alarms": 0, "proof_alarms": 0, "worst_abs_diff_mean": 0.02}
    block |= {"worst_sample_abs_diff_mean": 0.31}
    clean = block | {"reasons": [], "seconds_by_part": {"sample": 1.0, "score": 1.0, "checks": 0.01, "audit": 0.1}}
    found = figures([unseen], [clean])
    assert found["recall_beyond_noise"]["of"] == 0
    assert found["not_noticed"][0]["noise"] == 0.31


def test_false_alarms_come_with_their_bound_and_the_cost_of_the_checks() -> None:
    block = {
        "kind": "clean",
        "dtype": "float32",
        "steps": 50,
        "tokens": 8000,
        "logprob_alarms": 1,
        "proof_alarms": 0,
        "worst_abs_diff_mean": 1e-6,
        "worst_sample_abs_diff_mean": 2e-6,
        "reasons": ["text: too far"],
        "seconds_by_part": {"sample": 6.0, "score": 4.0, "checks": 0.05, "audit": 0.5},
    }
    found = figures([], [block, block])["clean"]
    assert (found["steps"], found["alarms"], found["tokens"]) == (100, 2, 16000)
    assert 0.05 < found["rate_upper_bound"] < 0.07
    assert found["cheap_checks_of_a_step"] == 0.005


def test_the_picture_shows_every_count() -> None:
    svg = confusion_svg({"token_shift": {"token_shift": 3, "unknown": 12}}, "a <title>")
    texts = [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"3", "12", "token shift", "unknown", "a <title>"} <= set(texts)


def test_a_record_keeps_its_kinds_apart_and_what_was_done(tmp_path: Path) -> None:
    record = Record(tmp_path / "deep" / "trials.jsonl")
    assert record.lines("trial") == []
    record.add(trial("tensor zeroed", "after VERIFY"))
    record.add({"kind": "clean", "dtype": "float32"})
    assert [line["fault"] for line in Record(record.path).lines("trial")] == ["tensor zeroed"]


def test_a_fault_is_chosen_by_name_and_an_unknown_one_is_answered_with_all() -> None:
    assert [fault.moment for fault in chosen("tensor zeroed")] == ["before VERIFY", "after VERIFY"]
    assert chosen(None) == FAULTS
    with pytest.raises(ConfigError, match=r"there are: one replica stale, .*decode state in bfloat16"):
        chosen("gremlins")


def test_every_fault_that_is_named_has_one_moment_each() -> None:
    keys = [fault.key for fault in FAULTS]
    assert len(keys) == len(set(keys))
    assert len({fault.name for fault in FAULTS}) >= 25
