"""What the losses that watch return: what they wrap, whoever is watched."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from omni_rl.client import Client
from omni_rl.watch import miles, prime_rl
from omni_rl.watch.micro_batches import MicroBatches
from omni_rl.watch.miles_place import MegatronPlace
from omni_rl.watch.place import PostingRank
from tests.services.live import live

STAND_INS = Path(__file__).parent / "stand_ins"
TOKENS = 6


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """prime-rl's module of losses: the real one where it is installed, else the stand-in."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(STAND_INS)])
    import prime_rl.trainer.rl.loss as found

    yield found
    for name in [name for name in sys.modules if name.split(".")[0] == "prime_rl"]:
        del sys.modules[name]


def inputs(release: ModuleType) -> Any:
    torch.manual_seed(0)
    train, rollout = torch.rand(2, TOKENS).log()
    return release.LossInputs(train, rollout, None, torch.ones(TOKENS), torch.arange(TOKENS) > 1)


def custom(inputs: Any, *, scale: float) -> Any:
    """A user's own loss."""
    from prime_rl.trainer.rl.loss import LossOutputs

    return LossOutputs(scale * inputs.trainer_logprobs[inputs.loss_mask].sum(), {})


def test_prime_rls_own_loss_is_wrapped_with_its_settings(release: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from prime_rl.configs.trainer import DefaultLossConfig

    monkeypatch.delenv("OMNI_RL_URL", raising=False)
    given = inputs(release)
    expected = release.setup_rl_loss_fn(DefaultLossConfig(kl_tau=0.5))(given)
    found = prime_rl.loss(given, kl_tau=0.5)
    assert found.loss == expected.loss
    assert found.metrics.keys() == expected.metrics.keys()
    assert found.loss != prime_rl.loss(given).loss
    with pytest.raises(ValueError, match="kl_tao"):
        prime_rl.loss(given, kl_tao=0.5)


def test_a_users_own_loss_is_wrapped(release: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMNI_RL_URL", raising=False)
    given = inputs(release)
    found = prime_rl.loss(given, wraps=f"{__name__}.custom", scale=2.0)
    assert found.loss == 2.0 * given.trainer_logprobs[given.loss_mask].sum()


CRASHES = """
import sys
import torch
from omni_rl.watch.prime_rl import loss
from prime_rl.trainer.rl.loss import LossInputs
parameter = torch.nn.Parameter(torch.zeros(()))
optimizer = torch.optim.SGD([parameter], lr=0.0)
for _ in range(2):
    rollout = -torch.rand(64)
    loss(LossInputs(rollout + parameter, rollout, None, torch.ones(64), torch.ones(64).bool())).loss.backward()
    optimizer.step()
try:
    raise ValueError("out of memory")
except ValueError:
    sys.exit(1)
"""
"""A trainer of two steps that turns its exception into an exit code, as prime-rl's `clean_exit` does."""


@pytest.mark.slow
def test_a_prime_rl_run_that_crashed_is_not_over(release: ModuleType, tmp_path: Path) -> None:
    with live(tmp_path) as url, Client(url) as client:
        environment = {"OMNI_RL_URL": url, "OMNI_RL_RUN": "crashed", "PYTHONPATH": os.pathsep.join(sys.path)}
        ended = subprocess.run([sys.executable, "-c", CRASHES], env={**os.environ, **environment}, timeout=120)
        assert ended.returncode == 1
        assert (client.run("crashed").step, client.run("crashed").activity) == (1, "live")


LATE = """
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from omni_rl.watch.prime_rl import loss
from prime_rl.trainer.rl.loss import LossInputs
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
get_optimizer_state_dict(model, optimizer)
for step in range(3):
    if step:
        rollout = -torch.rand(64)
        train = rollout + 0.0 * model.weight.sum()
        loss(LossInputs(train, rollout, None, torch.ones(64), torch.ones(64).bool())).loss.backward()
    optimizer.step()
"""
"""A trainer that loads a checkpoint, and that has no sequence for the loss in its first step."""


@pytest.mark.slow
def test_a_prime_rl_rank_without_a_first_sequence_posts_an_empty_part_of_it_once_it_has_one(
    release: ModuleType, tmp_path: Path
) -> None:
    with live(tmp_path) as url, Client(url) as client:
        environment = {"OMNI_RL_URL": url, "OMNI_RL_RUN": "late", "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", LATE], env={**os.environ, **environment}, timeout=120, check=True)
        assert [(line.step, line.samples) for line in client.steps("late")] == [(0, 0), (1, 1), (2, 1)]


def clipped(args: Any, *, pg_loss: torch.Tensor, loss_masks: Any, **others: Any) -> Any:
    """A function that a Miles run names by itself."""
    return pg_loss * 0.5, loss_masks, {"clipped": pg_loss}


def call_tis(**settings: Any) -> Any:
    rows = [torch.zeros(TOKENS)]
    args = SimpleNamespace(use_tis=False, **settings)
    return miles.tis(
        args, pg_loss=torch.ones(TOKENS), train_log_probs=rows, rollout_log_probs=rows, loss_masks=[torch.ones(TOKENS)]
    )


def test_the_function_that_a_miles_run_names_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMNI_RL_URL", raising=False)
    loss, _, metrics = call_tis()
    assert (loss.tolist(), list(metrics)) == ([1.0] * TOKENS, [*miles.FIGURES])
    monkeypatch.setenv("OMNI_RL_TIS_FUNCTION", f"{__name__}.clipped")
    loss, _, metrics = call_tis()
    assert (loss.tolist(), list(metrics)) == ([0.5] * TOKENS, ["clipped", *miles.FIGURES])


def test_a_run_without_both_logprobs_is_told_what_to_add(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OMNI_RL_URL", "http://127.0.0.1:9")
    args, loss, masks = SimpleNamespace(use_tis=False), torch.ones(TOKENS), [torch.ones(TOKENS)]
    found = miles.tis(args, pg_loss=loss, train_log_probs=None, rollout_log_probs=None, loss_masks=masks)
    assert found[:2] == (loss, masks)
    assert "add --get-mismatch-metrics" in caplog.text


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9"])
@pytest.mark.parametrize("rollout", [None, [torch.zeros(TOKENS + 1)], [torch.zeros(TOKENS)]])
def test_every_rank_and_micro_batch_of_miles_has_the_same_metrics(
    monkeypatch: pytest.MonkeyPatch, url: str, rollout: Any
) -> None:
    """Miles adds them up by their position: a rank without some would shift the others."""
    monkeypatch.setenv("OMNI_RL_URL", url)
    args, loss, train = SimpleNamespace(use_tis=False), torch.ones(TOKENS, requires_grad=True), [torch.zeros(TOKENS)]
    _, _, metrics = miles.tis(args, pg_loss=loss, train_log_probs=train, rollout_log_probs=rollout, loss_masks=train)
    assert list(metrics) == ["omni_rl/token_mult_prob_error", "omni_rl/gen_kl_error"]
    known = rollout is not None and len(rollout[0]) == TOKENS
    for values in metrics.values():
        assert (values.shape, values.requires_grad, bool(values.isnan().all())) == ((TOKENS,), False, not known)


def group(rank: int = 0, size: int = 1) -> SimpleNamespace:
    return SimpleNamespace(rank=rank, size=size)


def state(**groups: SimpleNamespace) -> SimpleNamespace:
    """Miles's `ParallelState`."""
    return SimpleNamespace(**{"intra_dp_cp": group(), "indep_dp": group(), "tp": group(), "cp": group(), **groups})


def test_parts_and_copies_of_megatrons_ranks() -> None:
    found = MegatronPlace.of(state(intra_dp_cp=group(1, 4), indep_dp=group(2, 3), tp=group(1, 2)))
    assert (found.part, found.copy, found.pieces) == (PostingRank(9, 12), True, False)


def test_a_step_of_miles_that_is_left_out_is_posted_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second step's gradients are not finite: Miles zeroes them, and the optimizer has no step."""
    posted: list[tuple[int, list[int]]] = []
    gathers = MicroBatches()
    gathers.begin(lambda step, rollout, train, masks: posted.append((step, [len(row) for row in rollout])))
    monkeypatch.setattr(miles, "_gathers", gathers)
    monkeypatch.setenv("OMNI_RL_URL", "http://127.0.0.1:9")
    args = SimpleNamespace(use_tis=False)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for step, finite in enumerate((True, False, True)):
        miles.before_step(args, 0, step, [], optimizer, None)
        rows = [torch.zeros(step + 1)]
        miles.tis(
            args,
            pg_loss=rows[0],
            train_log_probs=rows,
            rollout_log_probs=rows,
            loss_masks=rows,
            parallel_state=state(),
        )
        if finite:
            optimizer.step()
    gathers.close()
    assert posted == [(0, [1]), (1, [2]), (2, [3])]


@pytest.mark.parametrize("framework", ["miles", "slime"])
def test_pieces_of_an_answer_have_the_masks_of_their_own_tokens(
    monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    """A prompt of 4 and an answer of 6 on the second of two context-parallel ranks, which has tokens 3 to 8."""
    known: dict[str, Any] = {
        "get_logits_and_tokens_offset_with_cp": lambda total, response: (3, None, None, ((4, 6), (6, 9)))
    }
    if framework == "miles":
        known = {"get_local_response_loss_masks": lambda totals, lengths, masks, form, longest: [masks[0][:5]]}
    monkeypatch.setitem(sys.modules, "pieces", SimpleNamespace(**known))
    place = MegatronPlace(PostingRank(1, 2), False, True, "pieces")
    others = {"total_lengths": [10], "response_lengths": [TOKENS], "max_seq_lens": None}
    (mask,) = place.local_masks(SimpleNamespace(qkv_format="thd"), [torch.arange(TOKENS)], others)
    assert mask.tolist() == [0, 1, 2, 3, 4]
