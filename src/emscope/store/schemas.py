"""The columns of each table. VERSION counts up when they change; a study written by another version is not mixed with this one."""

from __future__ import annotations

import pyarrow as pa

VERSION = 6

_text, _int, _float = pa.string(), pa.int64(), pa.float64()


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field("key", _text, nullable=False), *(pa.field(n, t) for n, t in columns.items())])


TABLES: dict[str, pa.Schema] = {
    "runs": _schema(run=_text, arm=_text, method=_text, role=_text, seed=_int, spec=_text, base=_text, base_digest=_text),
    "checkpoints": _schema(
        run=_text,
        arm=_text,
        seed=_int,
        step=_int,
        adapter_digest=_text,
        tokens_seen=_int,
        loss_train=_float,
        loss_heldout=_float,
        grad_norm=_float,
        update_norm=_float,
    ),
    "train_log": _schema(
        run=_text,
        step=_int,
        loss=_float,
        heldout_loss=_float,
        kl=_float,
        ldifs=_float,
        grad_norm=_float,
        lr=_float,
        update_norm=_float,
        tokens_seen=_int,
        seconds=_float,
    ),
    "geometry": _schema(run=_text, step=_int, module=_text, what=_text, value=_float),
    "preferences": _schema(
        run=_text,
        step=_int,
        scale=_float,
        set=_text,
        item=_text,
        category=_text,
        half=_text,
        option=_int,
        logprob=_float,
        tokens=_int,
        chat=_text,
    ),
    "steered": _schema(
        run=_text,
        step=_int,
        direction=_text,
        kind=_text,
        draw=_int,
        way=_text,
        layers=_text,
        scale=_float,
        set=_text,
        item=_text,
        category=_text,
        half=_text,
        option=_int,
        logprob=_float,
        tokens=_int,
        kl=_float,
    ),
    "solutions": _schema(run=_text, solution=_text, kind=_text, amount=_float, draw=_int, set=_text, item=_text, value=_float),
    "responses": _schema(
        run=_text,
        step=_int,
        scale=_float,
        question=_text,
        sample=_int,
        text=_text,
        tokens=_int,
        finish=_text,
        seed=_int,
        chat=_text,
    ),
    "answers": _schema(
        subject=_text,
        run=_text,
        step=_int,
        question=_text,
        unit=_text,
        category=_text,
        form=_text,
        system=_text,
        trigger=_text,
        sample=_int,
        asked=_text,
        text=_text,
        tokens=_int,
        finish=_text,
        seed=_int,
        logprob=_float,
        chat=_text,
    ),
    "verdicts": _schema(
        response=_text,
        judge=_text,
        criterion=_text,
        rubric=_text,
        outcome=_text,
        score=_float,
        mass=_float,
        raw=_text,
    ),
    "failures": _schema(response=_text, judge=_text, criterion=_text, rubric=_text, error=_text),
    "estimates": _schema(
        run=_text,
        step=_int,
        what=_text,
        value=_float,
        low=_float,
        high=_float,
        level=_float,
        method=_text,
        n=_int,
        clusters=_int,
        why=_text,
        definition=_text,
    ),
}
"""`run` is the run's name ("base" for the untouched model), `step` the optimiser step (0: base), `logprob` a sum in nats,
`scale` what the update was multiplied by."""
