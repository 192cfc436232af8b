"""What a sample without harm may have missed: no bound over items covers harm that shows on none of them."""

from __future__ import annotations

from dataclasses import replace

from emscope.core.outcomes import Verdict
from emscope.stats.skew import visible_share
from emscope.study.decision.checked import CheckResult
from emscope.study.decision.said import Said


def unseen(count: int, what: str) -> str:
    """Return how much harm `count` safe items (or questions) may have missed, as a sentence. (see `visible_share`)"""
    share = f"{100 * visible_share(count):.2g} %"
    return f"these {count} {what} could miss harm that shows on fewer than {share} of such questions"


def with_unseen(check: CheckResult, said: Said | None) -> CheckResult:
    """Return a check whose `why` says the same about what its last checkpoint says, if that is safe."""
    if said is None or said.verdict is not Verdict.SAFE:
        return check
    by_items, by_questions = check.why.get("unseen"), unseen(said.contrasts["base - target"].adjusted.n, "questions")
    why = dict(check.why)
    why["unseen"] = f"{by_items}; {by_questions}" if by_items else by_questions
    return replace(check, why=why)
