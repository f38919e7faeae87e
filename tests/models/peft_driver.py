"""What PEFT and transformers' Trainer do with the model; runs where those are, and writes what it found as JSON.

PYTHON -m tests.models.peft_driver OUT
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from omni_rl.errors import CheckpointError
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.packed import PackedSequences
from tests.models.conftest import CONFIG, randomise

Model = NemotronOmniForConditionalGeneration
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "out_proj", "up_proj", "down_proj", "lm_head")


def _model() -> Model:
    torch.manual_seed(0)
    model = Model(NemotronOmniConfig(**json.loads(json.dumps(CONFIG))))
    randomise(model)
    return model


def _adapters(out: Path, task: str | None, checkpointing: bool) -> dict[str, Any]:
    from peft import LoraConfig, PeftModel, get_peft_model

    pattern = rf"language_model\..*({'|'.join(TARGETS)})"
    ids = torch.randint(40, 300, (2, 20))
    peft = get_peft_model(_model(), LoraConfig(r=4, target_modules=pattern, task_type=task, lora_dropout=0.1))
    adapted = [name for name, p in peft.named_parameters() if p.requires_grad]
    if checkpointing:
        peft.base_model.model.gradient_checkpointing_enable()
    trained = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    losses, still = [], set(adapted)
    for _ in range(5):
        loss = peft(input_ids=ids, labels=ids).loss
        loss.backward()
        still -= {name for name, p in peft.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    peft.eval()
    peft.save_pretrained(out / "adapter")
    again = PeftModel.from_pretrained(_model(), out / "adapter").eval()
    try:
        again.base_model.model.save_pretrained(out / "wrapped")
        refused = ""
    except CheckpointError as error:
        refused = str(error)
    mask = torch.ones(20, dtype=torch.bool)
    mask[0] = False
    packed = PackedSequences(ids[0], torch.tensor([0, 20]), mask)
    with torch.no_grad():
        unmerged, loaded = peft(input_ids=ids).logits, again(input_ids=ids).logits
        logits = unmerged[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).squeeze(1)
        scored = peft.base_model.model.score_packed(packed).logprobs
        merged = peft.merge_and_unload()
        alone = merged(input_ids=ids).logits
        merged.save_pretrained(out / "merged")
        whole = Model.from_pretrained(out / "merged")(input_ids=ids).logits
    return {
        "losses": losses,
        "adapters": len(adapted),
        "without gradient": sorted(still),
        "merged": _apart(alone, unmerged),
        "loaded": _apart(loaded, unmerged),
        "saved": _apart(whole, unmerged),
        "scored": _apart(scored, logits),
        "refused": refused,
    }


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float]:
    """The mean and the greatest difference."""
    difference = (ours - theirs).abs()
    return difference.mean().item(), difference.max().item()


def _trainer(out: Path, accumulation: int, **arguments: Any) -> list[float]:
    from transformers import Trainer, TrainingArguments

    ids = torch.randint(40, 300, (16, 20), generator=torch.Generator().manual_seed(1))
    settings = TrainingArguments(
        str(out / "trainer"),
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=6,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        **arguments,
    )
    trainer = Trainer(model=_model(), args=settings, train_dataset=[{"input_ids": row, "labels": row} for row in ids])
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    out = Path(sys.argv[1])
    found = {
        "plain": _adapters(out / "plain", None, False),
        "causal": _adapters(out / "causal", "CAUSAL_LM", True),
        "trainer": _trainer(out, 1),
        "trainer accumulating": _trainer(out, 4),
        "trainer bfloat16": _trainer(out, 4, bf16=True, gradient_checkpointing=True),
    }
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
