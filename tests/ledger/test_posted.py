"""A step's records as the checks look at them: of one rank or of several, and what is of no use unless all have it."""

from itertools import product
from typing import Any

import numpy as np

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.evidence import TensorSeen
from omni_rl.consistency.posted.step import PostedStep
from omni_rl.ledger.posted import posted_step
from omni_rl.ledger.records import StepRecords


def answer(name: str, tokens: int = 2, **columns: Any) -> dict[str, Any]:
    """An answer whose ids, entropies and two likeliest ids tell its tokens."""
    at = np.arange(tokens)
    return {
        "sample": name,
        "prompt_ids": [5, 6, 7],
        "ids": 10 + at,
        "rollout_logprobs": -1.0 - at,
        "train_logprobs": -1.5 - at,
        "rollout_entropy": 0.5 + at,
        "train_entropy": 0.25 + at,
        "rollout_top_ids": np.stack([10 + at, 50 + at], 1).reshape(-1),
        "rollout_top_logprobs": np.stack([-1.0 - at, -3.0 - at], 1).reshape(-1),
        **columns,
    }


def step_of(*parts: list[dict[str, Any]]) -> PostedStep:
    records = {rank: StepRecords.of(rows) for rank, rows in enumerate(parts)}
    return posted_step(records, StepColumns.joined([part.columns for part in records.values()]))


def test_parts_of_ranks_are_one_step_whose_samples_say_their_rank() -> None:
    one = step_of([answer("a"), answer("b", 3, temperature=0.5)])
    assert list(one.samples) == ["a", "b"]
    both = step_of([answer("a")], [answer("a", 3, temperature=0.5)])
    assert list(both.samples) == ["a of rank 0", "a of rank 1"]
    for step in (one, both):
        assert step.ids is not None
        assert step.ids.tolist() == [10, 11, 10, 11, 12]
        assert step.prompts is not None
        assert [prompt.tolist() for prompt in step.prompts] == [[5, 6, 7]] * 2
        assert step.temperatures.tolist() == [1.0, 0.5]
        assert step.rollout.tolist() == [-1, -2, -1, -2, -3]
        assert step.entropies is not None
        assert [side.tolist() for side in step.entropies] == [[0.5, 1.5, 0.5, 1.5, 2.5], [0.25, 1.25, 0.25, 1.25, 2.25]]


def test_the_likeliest_ids_are_a_row_a_token_where_every_token_has_as_many() -> None:
    top = step_of([answer("a"), answer("b", 3)]).top
    assert top is not None
    assert top.ids.tolist() == [[10, 50], [11, 51], [10, 50], [11, 51], [12, 52]]
    assert top.logprobs.tolist() == [[-1, -3], [-2, -4], [-1, -3], [-2, -4], [-3, -5]]
    assert step_of([answer("a"), answer("b", 3, rollout_top_ids=None, rollout_top_logprobs=None)]).top is None
    # Twice as many ids as tokens in all, and of two answers not of each.
    other = answer("b", 2, rollout_top_ids=[10, 11], rollout_top_logprobs=[-1.0, -2.0])
    more = answer("c", 2, rollout_top_ids=[1, 2, 3, 4, 5, 6], rollout_top_logprobs=[-1.0, -2.0, -3.0] * 2)
    assert step_of([answer("a")], [other], [more]).top is None


def test_what_not_every_answer_has_is_of_no_use() -> None:
    step = step_of([answer("a"), answer("b", ids=None, train_entropy=None)])
    assert step.ids is None
    assert step.entropies is None
    assert step.prompts is not None


def test_what_records_say_of_a_step_counts_where_they_agree() -> None:
    assert step_of([answer("a")]).logprobs_of == "processed"
    assert step_of([answer("a", logprobs_of="raw")], [answer("b", logprobs_of="raw")]).logprobs_of == "raw"
    assert step_of([answer("a", logprobs_of="raw")], [answer("b")]).logprobs_of == "unknown"
    agreed = [answer("a", rollout_dtype="bfloat16", train_dtype="float32")]
    assert step_of(agreed, agreed).proofs.dtypes == ("bfloat16", "float32")
    assert step_of(agreed, [answer("b", rollout_dtype="float32", train_dtype="float32")]).proofs.dtypes is None
    assert not step_of([answer("a")]).filtered
    assert step_of([answer("a"), answer("b", filtered="reward")]).filtered


def test_proofs_say_which_answer_they_are_of() -> None:
    spans = [{"version": "r/0/1/a", "start": 0, "end": 1}, {"version": "r/0/2/b", "start": 1, "end": 2}]
    tensor = {"name": "pixel_values", "rendered": "aa", "engine": "aa", "train": "aa"}
    images = [
        {"modality": "image", "offset": at, "length": 1, "tensors": [tensor | {"train": train}]}
        for at, train in enumerate(("aa", "bb"))
    ]
    plain, whole = answer("a"), answer("b", version_spans=spans, train_version="r/0/2/b", media=images)
    proofs = step_of([plain, whole]).proofs
    assert proofs.sampled_by is not None
    assert proofs.sampled_by.answers.tolist() == [1, 1]
    assert (proofs.sampled_by.first.tolist(), proofs.sampled_by.last.tolist()) == ([0, 1], [1, 2])
    assert proofs.sampled_by.versions == ["r/0/1/a", "r/0/2/b"]
    assert proofs.scored_by == ["", "r/0/2/b"]
    assert proofs.tensors == 2
    assert proofs.tensors_apart == [(1, TensorSeen("image", 1, "pixel_values", "aa", "aa", "bb"))]
    empty = step_of([plain]).proofs
    assert (empty.sampled_by, empty.scored_by, empty.tensors) == (None, None, 0)


def test_a_tensor_of_which_nobody_says_what_was_rendered_is_apart_where_the_sides_are() -> None:
    digests = list(product((None, "aa", "bb"), repeat=3))
    tensors = [{"name": "pixel_values", "rendered": r, "engine": e, "train": t} for r, e, t in digests]
    image = {"modality": "image", "offset": 0, "length": 1, "tensors": tensors}
    proofs = step_of([answer("a", media=[image])]).proofs
    seen = [TensorSeen("image", 0, "pixel_values", *of) for of in digests]
    same = {(None, None, None), (None, "aa", "aa"), (None, "bb", "bb"), ("aa", "aa", "aa"), ("bb", "bb", "bb")}
    assert proofs.tensors == len(seen)
    assert proofs.tensors_apart == [(0, tensor) for tensor, of in zip(seen, digests, strict=True) if of not in same]
    # Steps of our own pair are asked this way.
    assert [tensor.agreed for tensor in seen] == [of in same for of in digests]


def test_both_sides_digests_of_a_prompt_stand_beside_each_other() -> None:
    engine: dict[str, Any] = {"rollout_prompt_digest": "aa"}
    trainer: dict[str, Any] = {"train_prompt_digest": "bb"}
    both = step_of([answer("a", **engine, **trainer), answer("b", **engine), answer("c")])
    assert both.proofs.prompts == [("aa", "bb"), ("aa", None), (None, None)]
    assert step_of([answer("a", **engine)], [answer("b", **trainer)]).proofs.prompts == [("aa", None), (None, "bb")]
    for one in (engine, trainer, {}):
        assert step_of([answer("a", **one)]).proofs.prompts is None


def test_what_only_some_answers_say_is_said_of_the_step_or_not() -> None:
    spans = [{"version": "r/0/1/a", "start": 0, "end": 2}]
    some = step_of([answer("a"), answer("b", version_spans=spans, train_version="v", rollout_dtype="bfloat16")])
    assert (some.proofs.scored_by, some.proofs.dtypes) == (["", "v"], None)
    assert some.proofs.sampled_by is not None
    assert some.proofs.sampled_by.answers.tolist() == [1]
    dtypes: dict[str, Any] = {"rollout_dtype": "bfloat16", "train_dtype": "float32"}
    assert step_of([answer("a", **dtypes), answer("b")]).proofs.dtypes == ("bfloat16", "float32"), (
        "the others' is theirs"
    )
    assert step_of([answer("a"), answer("b", train_entropy=None)]).entropies is None
    assert step_of([answer("a"), answer("b", rollout_entropy=None)]).entropies is None
    nobody = step_of([answer("a", prompt_ids=None)])
    assert (nobody.prompts, nobody.ids is not None) == (None, True)


def test_a_step_without_tokens_or_answers_has_no_likely_ids() -> None:
    empty: dict[str, Any] = {"rollout_top_ids": [], "rollout_top_logprobs": []}
    none = step_of([answer("a", 0, **empty)])
    assert (none.top, none.samples) == (None, ["a"])
    nothing = step_of([])
    assert (nothing.top, nothing.ids, nothing.prompts) == (None, None, None)
    assert (nothing.proofs.sampled_by, nothing.proofs.tensors, nothing.logprobs_of) == (None, 0, "processed")
    beside = step_of([answer("a", 0, **empty), answer("b")]).top
    assert beside is not None
    assert beside.ids.tolist() == [[10, 50], [11, 51]]


def test_tensors_apart_say_their_answer_and_their_item_of_several() -> None:
    same = {"name": "pixel_values", "rendered": None, "engine": "aa", "train": "aa"}
    apart = same | {"name": "grid", "train": "bb"}

    def item(modality: str, *tensors: dict[str, Any]) -> dict[str, Any]:
        return {"modality": modality, "offset": 0, "length": 0, "tensors": list(tensors)}

    first = answer("a", media=[item("image", same), item("audio")])
    second = answer("b", media=[item("image"), item("image", same, apart), item("video", apart, same)])
    proofs = step_of([first, answer("c"), second]).proofs
    assert proofs.tensors == 5
    assert proofs.tensors_apart == [
        (2, TensorSeen("image", 1, "grid", None, "aa", "bb")),
        (2, TensorSeen("video", 2, "grid", None, "aa", "bb")),
    ]
