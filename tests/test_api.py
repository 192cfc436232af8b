"""Models behind an API: what comes back, what fails, and what is never shown."""

from __future__ import annotations

import threading
import time

import pytest

from emscope.core.errors import InputError, MissingDependency, WorldError
from emscope.core.records import Message
from emscope.models.remote.api import KEY_VARIABLE, ApiModel, ask_all
from fake_api import completion, fake_api


def ask(model, count=5, **more):
    found = {}
    ask_all(model, [(n, [Message("user", f"q{n}")], None) for n in range(count)], found.__setitem__, **more)
    return found


def test_replies_come_with_text_tokens_and_probabilities():
    with fake_api(lambda r: (200, completion(r["messages"][-1]["content"], {"57": -0.1, "40": -3.0}))) as url:
        found = ask(ApiModel("m", url))
    assert {n: r.text for n, r in found.items()} == {n: f"q{n}" for n in range(5)}
    assert found[0].top == (("57", -0.1), ("40", -3.0)) and found[0].tokens == ("57",)
    assert (found[0].tokens_in, found[0].tokens_out, found[0].finish) == (100, 2, "stop")


def test_what_is_asked_is_sent():
    seen = []
    with fake_api(lambda r: seen.append(r) or (200, completion("x"))) as url:
        turns = [Message("system", "be"), Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
        ask_all(ApiModel("m", url, max_tokens=7, temperature=1.0, top=5), [(0, turns, 11)], lambda *_: None)
    (request,) = seen
    assert [(m["role"], m["content"]) for m in request["messages"]] == [(m.role, m.content) for m in turns]
    assert request["max_tokens"] == 7 and request["temperature"] == 1.0 and request["seed"] == 11 and request["model"] == "m"
    assert request["logprobs"] is True and request["top_logprobs"] == 5


def test_no_more_connections_than_allowed_are_open():
    lock, open_now, most, asked = threading.Lock(), [0], [0], [0]
    gate = threading.Event()

    def answer(_):
        with lock:
            asked[0] += 1
            alone = asked[0] == 1
            open_now[0] += 1
            most[0] = max(most[0], open_now[0])
            if open_now[0] == 3:
                gate.set()
        if not alone:  # the first is asked by itself
            gate.wait(30)  # until as many are open as may be
        time.sleep(0.02)
        with lock:
            open_now[0] -= 1
        return 200, completion("x")

    with fake_api(lambda _: (200, completion("x"))) as url:
        ask(ApiModel("m", url, connections=1), 1)  # a server's limit is not that of another one with a model of the same name
    with fake_api(answer) as url:
        assert len(ask(ApiModel("m", url, connections=3), 20)) == 20
    assert most[0] == 3


def test_a_reply_without_choices_is_empty_and_no_error():
    with fake_api(lambda r: (200, completion("x") | {"choices": []})) as url:
        found = ask(ApiModel("m", url), 1)
    assert (found[0].text, found[0].finish) == ("", "empty")


def test_asking_stops_where_told():
    seen = []
    with fake_api(lambda r: (200, completion("x"))) as url:
        model = ApiModel("m", url, connections=1)
        ask_all(
            model,
            [(n, [Message("user", "q")], None) for n in range(10)],
            lambda k, r: seen.append(k),
            go_on=lambda: len(seen) < 4,
        )
    assert seen == [0, 1, 2, 3]


def test_an_address_that_refuses_is_one_sentence():
    with pytest.raises(WorldError, match=r"the model 'm' at http://127.0.0.1:9/v1 does not answer \(APIConnectionError"):
        ask(ApiModel("m", "http://127.0.0.1:9/v1", retries=0))


def test_a_wrong_key_is_named_by_its_variable_and_never_shown(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-very-secret-9999")
    body = {"error": {"message": "Incorrect API key provided: sk-very-secret-9999", "type": "invalid_request_error"}}
    with fake_api(lambda r: (401, body)) as url, pytest.raises(WorldError) as raised:
        ask(ApiModel("m", url, retries=0))
    assert "secret" not in str(raised.value) and "check its name, address and key" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("openai/gpt-4o", InputError, "needs the environment variable OPENAI_API_KEY"),
        ("nosuch/x", InputError, "cannot be opened"),
        ("anthropic/claude", MissingDependency, "pip install anthropic"),
    ],
)
def test_a_model_that_cannot_be_opened_is_one_sentence(name, kind, message, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(kind, match=message):
        ask(ApiModel(name))


@pytest.mark.heavy
def test_an_address_that_stops_answering_is_noticed():
    count = [0]

    def answer(_):
        count[0] += 1
        return (200, completion("x")) if count[0] < 5 else (400, {"error": {"message": "gone"}})

    found = {}
    with fake_api(answer) as url, pytest.raises(WorldError, match="failed 50 times in a row"):
        ask_all(ApiModel("m", url, retries=0), [(n, [Message("user", "q")], None) for n in range(500)], found.__setitem__)
    assert sum(r.text is not None for r in found.values()) == 4


def test_one_job_that_the_model_refuses_stops_nothing_and_says_why():
    body = {"error": {"message": "context too long for this model"}}
    found = {}

    def answer(request):
        return (400, body) if request["messages"][-1]["content"] == "q0" else (200, completion("x"))

    with fake_api(answer) as url:
        found = ask(ApiModel("m", url, retries=0), 3)
    assert [found[n].text for n in range(3)] == [None, "x", "x"]
    assert "context too long" in found[0].error and "Request:" not in found[0].error
