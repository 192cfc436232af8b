"""`emscope rates`: rates from a file of judged answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from emscope.answers.rates_spec import RatesSpec
from emscope.cli.options import Files, Json


def rates(
    files: Annotated[Files, Field(description="Judged answers; with several files, the column `file` says which one.")],
    spec: RatesSpec,
    as_json: Json = False,
) -> None:
    """How often are the answers in a file misaligned? Takes judged answers (.csv, .jsonl, .parquet) and prints the rate of each group with
    its definition, an interval clustered by question, and what has no score.
    """
    from emscope.answers.rates import rates as counted
    from emscope.cli.console import print_json
    from emscope.report.answers.rates import print_rates

    result = counted(files, spec)
    if as_json:
        print_json(result.to_json())
    else:
        print_rates(result)
