"""The drawing is a document that a browser takes, and shows what the steps say."""

from xml.etree import ElementTree

import pytest

from omni_rl.api.steps import StepLine
from omni_rl.jobs.plot import plot

SVG = "{http://www.w3.org/2000/svg}"


def line(step: int, reward: float, severity: str = "ok", **more: float) -> StepLine:
    return StepLine.model_validate(
        {
            "run": "a<b",
            "attempt": 1,
            "step": step,
            "sealed": 0.0,
            "severity": severity,
            "samples": 1,
            "tokens": 2,
            "weight_version": "v",
            "training": {"reward": reward, **more},
            "figures": {"logprob_abs_diff_mean": 1e-6 * (step + 1)},
        }
    )


def test_a_rising_reward_rises() -> None:
    document = ElementTree.fromstring(plot("a<b", [line(0, 0.2, held_out_reward=0.3), line(1, 0.5), line(2, 0.9)]))
    sampled, held_out, apart = document.findall(f"{SVG}polyline")
    heights = [float(place.split(",")[1]) for place in sampled.attrib["points"].split()]
    assert heights == sorted(heights, reverse=True)
    assert len(held_out.attrib["points"].split()) == len(document.findall(f"{SVG}circle")) == 1
    assert len(apart.attrib["points"].split()) == 3
    texts = [text.text for text in document.findall(f"{SVG}text")]
    assert "a<b: 3 steps, every step ok" in texts


def test_rewards_beyond_0_and_1_have_heights_of_their_own() -> None:
    document = ElementTree.fromstring(plot("run", [line(0, -1.0), line(1, 1.0), line(2, 3.0)]))
    sampled = document.findall(f"{SVG}polyline")[0].attrib["points"].split()
    first, second, third = (float(place.split(",")[1]) for place in sampled)
    assert first - second == pytest.approx(second - third)
    assert first > second
    assert {"-1.0", "3.0"} <= {text.text for text in document.findall(f"{SVG}text")}


def test_a_difference_that_is_not_a_number_is_marked_and_named() -> None:
    lost = line(1, 0.5, "pause").model_copy(update={"figures": {"logprob_abs_diff_mean": None}})
    document = ElementTree.fromstring(plot("run", [line(0, 0.2), lost, line(2, 0.9)]))
    assert len(document.findall(f"{SVG}circle")) == 1
    assert "not a number" in [text.text for text in document.findall(f"{SVG}text")]
    assert "not a number" not in plot("run", [line(0, 0.2)])


def test_one_step_and_bad_steps() -> None:
    assert "1 of 1 step not ok" in plot("run", [line(7, 0.1, "mask")])
