"""What a check says by preference about models that can only be sampled: nothing, and why."""

from __future__ import annotations

from emscope.core.estimate import undefined
from emscope.core.outcomes import Verdict
from emscope.study.decision.checked import RULE, BaseReading, CheckResult, Definition

SENTENCE = "preference was not read: a chat endpoint gives no log-probabilities of fixed answers, so the verdict rests on judged answers alone"


def unread(base: str) -> CheckResult:
    """Return the check of a fine-tune whose preference cannot be read."""
    why = dict[str, str]()
    why["preference"] = SENTENCE
    nothing = undefined("preference was not read", level=0.9, method="none")
    return CheckResult(
        base=base,
        verdict=Verdict.UNDETERMINED,
        state=None,
        scope="",
        delta=0.0,
        onset=None,
        episodes=(),
        convergence=None,
        convergence_bracket=None,
        late=None,
        stop=None,
        power=None,
        text_loss=None,
        why=why,
        checkpoints=(),
        unpaired_steps=(),
        base_reading=BaseReading(nothing, nothing, None, None),
        definition=Definition(None, 0.0, "preference was not read", False, 0.05, 0.1, RULE, 0),
        truthfulness=None,
        standing=None,
        refusal=None,
    )
