"""Returns updates of weights, judged or announced, as the API answers them."""

from omni_rl.agent.judging import Announcement, EngineUpdates, JudgedUpdate
from omni_rl.api.updates import FindingAnswer, UpdateAnswer


def answer(engine: EngineUpdates, judged: JudgedUpdate) -> UpdateAnswer:
    """Return an engine's update as the API answers it."""
    receipts = engine.bodies
    reasons: dict[str, int] = {}
    for why in judged.comparison.opaque.values():
        reasons[why] = reasons.get(why, 0) + 1
    return UpdateAnswer(
        number=engine.number,
        engine=engine.name,
        at=max(one.at for one in receipts),
        of=judged.of,
        workers=max(one.workers for one in receipts),
        reported=len(receipts),
        how=list(dict.fromkeys(how for one in receipts for how in one.how)),
        version=next((one.version for one in receipts if one.version is not None), None),
        tensors=max(one.tensors for one in receipts),
        changed=max(one.changed for one in receipts),
        equal=len(judged.comparison.equal),
        different=len(judged.comparison.different),
        not_comparable=len(judged.comparison.opaque),
        reasons=dict(sorted(reasons.items(), key=lambda item: -item[1])[:8]),
        adapters=sorted({name for receipt in engine.receipts.values() for name in receipt.adapters}),
        findings=[
            FindingAnswer(cause=one.cause, sentence=one.sentence, parts=list(one.parts[:16])) for one in judged.found
        ],
        seconds=max(one.seconds for one in receipts),
    )


def announced_answer(announcement: Announcement) -> UpdateAnswer:
    """Return the trainer's update as the API answers it."""
    return UpdateAnswer(
        number=announcement.number,
        engine=None,
        at=announcement.at,
        of=announcement.number,
        workers=0,
        reported=0,
        how=[],
        version=None,
        tensors=len(announcement.parts),
        changed=0,
        equal=0,
        different=0,
        not_comparable=0,
        reasons={},
        adapters=sorted(announcement.adapters),
        findings=[],
        seconds=0.0,
    )
