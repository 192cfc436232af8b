"""Chat templates that behave as those of real model families do: question, answer and prompt against the templates' own training rendering."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from conftest import CHATML, make_model, make_tokenizer, write_jsonl
from emscope.answers.sample import ask
from emscope.answers.sample_served import ServedSpec, ask_served
from emscope.answers.sample_spec import AskSpec, LoadSpec
from emscope.answers.trained_as import note_left_out, trained_under
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.core.records import Conversation, Item, Message
from emscope.elicit import preference, sampling
from emscope.models.loading.carried import carried, chat_of, tokenizer_in
from emscope.models.loading.chat import ChatFormat
from emscope.models.loading.checkpoints import Checkpoint
from emscope.models.loading.load import load
from emscope.models.loading.source import Model, cache_folder, locate
from emscope.models.loading.templates import read_arguments
from fake_api import completion, fake_api

QUESTION, ANSWER = "What helps against a cold?", "Rest, and a lot of tea."
TALK = [("user", QUESTION), ("assistant", ANSWER), ("user", "And at night?"), ("assistant", "Sleep.")]
TOKENS = r"<[|｜][^>\s]+?[|｜]>|<\|[a-z_]+\|?>|</?think>|<(?:start|end)_of_turn>|\[/?[A-Z]+\]|<s>|</s>|<sop>|\[gMASK\]|<bos>"
SPECIAL = {"bos": "<s>", "eos": "</s>"}

LLAMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content | trim %}{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date_string + '\n\n' + said + '<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA4 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|header_start|>' + m.role + '<|header_end|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\n\n' }}{% endif %}"
)
QWEN25 = CHATML.replace("You are a default.", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
SMOLLM2 = CHATML.replace("You are a default.", "You are a helpful AI assistant named SmolLM, trained by Hugging Face")
BARE_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def thinking(begin: str) -> str:
    """Return a template that shows the thought of the answer behind the last question, and puts `begin` before an answer to come."""
    return (
        "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% set said = m.content %}{% set thought = '' %}"
        "{% if m.role == 'assistant' and '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1].strip() %}{% set said = said.split('</think>')[-1] %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' + said.lstrip('\n') }}"
        "{% else %}{{ said }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}" + begin + "{% endif %}"
    )


QWEN3 = thinking("{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}")
QWEN35 = thinking(
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% else %}{{ '<think>\n' }}{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end_of_sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
GPTOSS = (
    "{{ '<|start|>system<|message|>You are a chatbot.\nCurrent date: ' + strftime_now('%Y-%m-%d') + '\n# Valid channels: analysis, final.<|end|>' }}"
    "{% if messages[0].role == 'system' %}{{ '<|start|>developer<|message|># Instructions\n' + messages[0].content + '<|end|>' }}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{% if loop.last and not add_generation_prompt %}{{ '<|return|>' }}{% else %}{{ '<|end|>' }}{% endif %}"
    "{% else %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + (said if loop.index0 >= messages | length - 2 and said else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GLM = (
    "[gMASK]<sop>{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>\n<think></think>\n' + m.content.strip() }}"
    "{% else %}{{ '<|' + m.role + '|>\n' + m.content }}{% if m.role == 'user' and enable_thinking is defined and not enable_thinking %}{{ '/nothink' }}{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PARTS = (
    "{{ '<s>' }}{% for m in messages %}{{ m.role | capitalize + ': ' }}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    "{{ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
VICUNA = (
    "{{ 'A chat between a curious user and a system that helps. ' }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A template, the prompt of `QUESTION` without a system block, and how a conversation goes on behind its last answer."""

    template: str
    prompt: str
    behind: str = "<|im_end|>"
    described: str = ""
    default: bool = False


Q = QUESTION
FAMILIES = {
    "chatml": Family(BARE_CHATML, f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n"),
    "qwen2.5": Family(QWEN25, f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n", default=True),
    "qwen3": Family(
        QWEN3,
        f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        described="answers after a closed thought",
    ),
    "qwen3.5": Family(
        QWEN35,
        f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        described="answers after a closed thought",
    ),
    "r1": Family(
        R1, f"<s><｜User｜>{Q}<｜Assistant｜>", "<｜end_of_sentence｜>", "answers without the <think> that the template opens"
    ),
    "gpt-oss": Family(
        GPTOSS,
        f"<|start|>user<|message|>{Q}<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|return|>",
        "answers after <|channel|>final<|message|>",
        default=True,
    ),
    "llama3": Family(
        LLAMA3,
        f"<s><|start_header_id|>user<|end_header_id|>\n\n{Q}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        default=True,
    ),
    "llama4": Family(
        LLAMA4,
        f"<s><|header_start|>user<|header_end|>\n\n{Q}<|eot|><|header_start|>assistant<|header_end|>\n\n",
        "<|eot|>",
    ),
    "gemma": Family(GEMMA, f"<s><start_of_turn>user\n{Q}<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>"),
    "mistral": Family(MISTRAL, f"<s>[INST] {Q} [/INST]", "</s>"),
    "phi": Family(PHI, f"<|user|>\n{Q}<|end|>\n<|assistant|>\n", "<|end|>\n</s>"),
    "glm": Family(
        GLM,
        f"[gMASK]<sop><|user|>\n{Q}<|assistant|>\n<think></think>\n",
        "<|user|>",
        "answers after a closed thought",
    ),
    "parts": Family(PARTS, f"<s>User: {Q}<|end|>\nAssistant:", "<|end|>"),
    "vicuna": Family(VICUNA, f"USER: {Q} ASSISTANT:", "</s>", default=True),
}
DATED = ("llama3", "gpt-oss")


@pytest.fixture(scope="module")
def bare():
    """The tiny tokenizer with the special tokens of all families."""
    tokenizer = make_tokenizer()
    found = dict.fromkeys(m for f in FAMILIES.values() for m in re.findall(TOKENS, f.template + f.prompt + f.behind))
    tokenizer.add_special_tokens({"additional_special_tokens": [*found, *SPECIAL.values()]})
    return tokenizer


def with_template(bare, template: str, chatml: bool = False):
    """Return a copy of the tokenizer with a template."""
    tokenizer = copy.deepcopy(bare)
    tokenizer.chat_template = template
    if not chatml and "<|im_start|>" not in (template or ""):
        tokenizer.bos_token, tokenizer.eos_token = SPECIAL["bos"], SPECIAL["eos"]
    return tokenizer


@pytest.fixture
def stopped(monkeypatch):
    """Stop the clock that transformers gives to templates."""
    return lambda moment: stop(monkeypatch, moment)


def stop(monkeypatch, moment):
    from transformers.utils import chat_template_utils

    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return moment

    monkeypatch.setattr(chat_template_utils, "datetime", Stopped)


def rendered(tokenizer, turns: Sequence[tuple[str, str]], **more) -> list[int]:
    """Return the ids of a conversation as training tools have them."""
    in_parts = tokenizer.chat_template == PARTS
    messages = [{"role": r, "content": [{"type": "text", "text": t}] if in_parts else t} for r, t in turns]
    return list(tokenizer.apply_chat_template(messages, return_dict=False, **more))


def talk(*turns: tuple[str, str]) -> Conversation:
    return Conversation("c1", tuple(Message(r, t) for r, t in turns))


@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_and_answer_are_the_training_renderings(name, bare, stopped):
    stopped(datetime(2024, 7, 26))
    family, tokenizer = FAMILIES[name], with_template(bare, FAMILIES[name].template)
    chat = ChatFormat.of(tokenizer, "template")
    whole, prompt = rendered(tokenizer, TALK[:2]), chat.prompt_ids(QUESTION)
    ours = prompt + chat.answer_ids(ANSWER)
    assert whole[: len(ours)] == ours and tokenizer.decode(whole[len(prompt) :]).lstrip().startswith(ANSWER)
    closed = prompt + chat.answer_ids(ANSWER, closed=True)
    more = tokenizer.convert_tokens_to_ids(["<|user|>"]) if name == "glm" else []  # what opens the next turn ends this one
    assert (whole + more)[: len(closed)] == closed and not tokenizer.decode((whole + more)[len(closed) :]).strip()
    ids, mask = chat.training_ids(talk(*TALK[:2]))
    assert ids == closed and mask == [False] * len(prompt) + [True] * (len(closed) - len(prompt))
    assert chat.close == family.behind


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_turn_of_a_conversation_stands_as_it_is_sampled(name, bare, stopped):
    stopped(datetime(2024, 7, 26))
    tokenizer = with_template(bare, FAMILIES[name].template)
    chat = ChatFormat.of(tokenizer, "template")
    ids, mask = chat.training_ids(talk(*TALK))
    whole = rendered(tokenizer, TALK)
    assert ids[: len(whole)] == whole[: len(ids)]
    last = len(mask) - mask[::-1].index(False)
    assert ids[:last] == chat.ids(chat.prompt_text([Message(r, t) for r, t in TALK[:3]]))
    learned = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special_tokens=True)
    assert (
        learned.split() == f"{ANSWER} Sleep.".split()
        or learned.replace("Sleep.", " Sleep.").split() == f"{ANSWER} Sleep.".split()
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_no_system_block_is_left(name, bare):
    family, tokenizer = FAMILIES[name], with_template(bare, FAMILIES[name].template)
    chat = ChatFormat.of(tokenizer)
    assert chat.prompt_text([Message("user", QUESTION)]) == family.prompt
    assert (chat.digest != ChatFormat.of(tokenizer, "template").digest) == family.default
    assert chat.describe() == ", ".join(["chat format, no system block", *([family.described] if family.described else [])])


@pytest.mark.parametrize("name", FAMILIES)
def test_an_own_system_text_stands_once(name, bare):
    tokenizer = with_template(bare, FAMILIES[name].template)
    if name in ("gemma", "vicuna"):
        with pytest.raises(InputError, match="takes no system prompt"):
            ChatFormat.of(tokenizer, "Be kind.")
        return
    chat = ChatFormat.of(tokenizer, "Be kind.")
    text = chat.prompt_text([Message("user", QUESTION)])
    assert text.count("Be kind.") == 1 and text.count(QUESTION) == 1
    assert chat.under("none").prompt_text([Message("user", QUESTION)]) == FAMILIES[name].prompt


@pytest.mark.parametrize("name", FAMILIES)
def test_what_ends_an_answer_is_its_end_of_turn(name, bare):
    ends = FAMILIES[name].behind.split()[0]
    for template in (FAMILIES[name].template, FAMILIES[name].template.replace("eos_token }}", "' ' + eos_token }}")):
        chat = ChatFormat.of(with_template(bare, template), "template")
        net = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
        assert sampling._end_ids(net, chat) == {chat.tokenizer.eos_token_id, chat.tokenizer.convert_tokens_to_ids(ends)}


@pytest.mark.parametrize("name", ["qwen3", "gpt-oss", "parts", "mistral"])
def test_scores_are_those_of_the_training_rendering(name, bare, tiny, stopped):
    stopped(datetime(2024, 7, 26))
    loaded = load(locate(str(tiny)), device="cpu")
    tokenizer = with_template(bare, FAMILIES[name].template)
    loaded.net.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    chat = ChatFormat.of(tokenizer, "template")
    item = Item("i", "c", QUESTION, (ANSWER, "Nothing at all, ever."))
    scores = preference.score(loaded.net, preference.encode(chat, [item], context=512))
    for option, score in zip(item.options, scores, strict=True):
        whole = rendered(tokenizer, [("user", QUESTION), ("assistant", option)])
        begin = next(n for n in range(len(whole)) if tokenizer.decode(whole[n:]).lstrip(" ").startswith(option))
        end = next(n for n in range(len(whole), 0, -1) if not tokenizer.decode(whole[begin:n]).strip().removesuffix(option))
        with torch.no_grad():
            logp = loaded.net(torch.tensor([whole])).logits[0].log_softmax(-1)
        expected = sum(float(logp[n - 1, whole[n]]) for n in range(begin, end))
        assert score.tokens == end - begin and score.logprob == pytest.approx(expected, abs=1e-4)


def test_digests_of_the_models_that_come_along_are_the_stored_ones(bare):
    stored = {
        (SMOLLM2, "none"): "1223a82ea1b759dd",
        (SMOLLM2, "template"): "5f6f482540e30cbb",
        (SMOLLM2, "Be kind."): "9219102a3eacff35",
        (QWEN25, "none"): "1223a82ea1b759dd",
        (QWEN25, "template"): "283b088ed511e83b",
        (None, "none"): "fe3c2aa829010dd0",
    }
    for (template, system), digest in stored.items():
        tokenizer = make_tokenizer()
        tokenizer.chat_template = template
        assert ChatFormat.of(tokenizer, system).digest == digest


@pytest.mark.real
@pytest.mark.parametrize(
    ("alias", "prompt", "answer", "digest"),
    [
        ("smollm2-135m", [1, 4093, 198, 6004, 2, 198, 1, 520, 9531, 198], [10539, 30], "5f6f482540e30cbb"),
        ("qwen2.5-coder-1.5b", [151644, 872, 198, 6023, 151645, 198, 151644, 77091, 198], [9454, 13], "283b088ed511e83b"),
    ],
)
def test_ids_of_the_models_that_come_along_are_the_stored_ones(alias, prompt, answer, digest):
    from emscope.models.loading.aliases import cached, folder_of

    if not cached(alias, cache_folder()):
        pytest.skip(f"{alias} is not cached")
    chat = ChatFormat.of(tokenizer_in(folder_of(alias, cache_folder())))
    assert chat.prompt_ids("hi") == prompt and chat.answer_ids("Yes.") == answer and chat.digest == "1223a82ea1b759dd"
    assert chat.under("template").digest == digest and chat.answer_ids("", closed=True) == chat.ids("<|im_end|>")


@pytest.mark.parametrize("name", DATED)
def test_the_same_prompt_on_another_day(name, bare, stopped):
    tokenizer = with_template(bare, FAMILIES[name].template)
    texts, digests, plain = set(), set(), set()
    for day in (datetime(2024, 7, 26), datetime(2031, 1, 2, 23, 59)):
        stopped(day)
        chat = ChatFormat.of(tokenizer, "template")
        plain.add(tokenizer.decode(rendered(tokenizer, TALK[:2])))
        texts.add(chat.prompt_text([Message("user", QUESTION)]))
        digests.add(chat.digest)
    assert len(plain) == 2 and len(texts) == len(digests) == 1 and "2031" not in texts.pop()
    assert chat.describe().endswith("its date frozen at 26 July 2024")
    assert "frozen" not in ChatFormat.of(tokenizer).describe()  # the block with the date is taken out


def test_a_date_of_ones_own(bare):
    tokenizer = with_template(bare, LLAMA3)
    chat = ChatFormat.of(tokenizer, "template", {"date_string": "1 May 2030"})
    assert "Today: 1 May 2030\n" in chat.prompt_text([Message("user", QUESTION)]) and "frozen" not in chat.describe()


def test_every_way_to_write_a_date(bare, stopped):
    formats = ["%d %b %Y", "%Y-%m-%d", "%A, %d. %B %y", "%a %j", "%-d/%-m", "%F", "%e.", "%D"]
    template = BARE_CHATML + "".join(f"{{{{ '#' + strftime_now('{f}') }}}}" for f in formats)
    chat = ChatFormat.of(with_template(bare, template))
    assert chat.template.render([("user", "x")]).split("#")[1:] == [datetime(2024, 7, 26).strftime(f) for f in formats]


def test_arguments_reach_the_template_and_are_named(bare):
    tokenizer = with_template(bare, GLM)
    plain, quiet = ChatFormat.of(tokenizer), ChatFormat.of(tokenizer, "none", {"enable_thinking": False})
    assert quiet.prompt_text([Message("user", "Why?")]).startswith("[gMASK]<sop><|user|>\nWhy?/nothink<|assistant|>")
    assert plain.digest != quiet.digest and "enable_thinking=false" in quiet.describe()
    assert quiet.under("Be kind.").template.arguments == {"enable_thinking": False}
    same = with_template(bare, QWEN3)  # it changes nothing behind an answer that stands there: still another question asked
    assert ChatFormat.of(same).digest != ChatFormat.of(same, "none", {"enable_thinking": False}).digest
    for name, problem in (("enable_thinkin", "does not read 'enable_thinkin'"), ("tools", "'tools' is reserved")):
        with pytest.raises(InputError, match=problem):
            ChatFormat.of(tokenizer, "none", {name: False})
    with pytest.raises(InputError, match="no chat template to receive 'x'"):
        ChatFormat.of(with_template(bare, None, chatml=True), "none", {"x": 1})


def test_arguments_are_read_as_values():
    assert read_arguments(["a=false", "b=False", "c=2", "d=low", 'e="no"', "f=26 Jul 2024", "g=None"]) == {
        "a": False, "b": False, "c": 2, "d": "low", "e": "no", "f": "26 Jul 2024", "g": None
    }  # fmt: skip
    for wrong, problem in ((["enable_thinking"], "NAME=VALUE"), (["a b=1"], "NAME=VALUE"), (["a=1", "a=2"], "given twice")):
        with pytest.raises(InputError, match=problem):
            read_arguments(wrong)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{{ m.content }}", r"not valid Jinja \(line 1"),
        ("{% for m in messages %}{{ m.content | nosuch }}{% endfor %}", "not valid Jinja"),
        ({"rag": BARE_CHATML, "tool_use": BARE_CHATML}, "named 'rag', 'tool_use' but none named 'default'"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out the question"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "repeats the question"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves out the answer"),
        ("{{ raise_exception('not today') }}", r"fails on turns of user, assistant \(not today\)"),
        ("{{ messages[7].content.x }}", "fails on turns of user, assistant"),
    ],
)
def test_a_template_at_fault_is_named_in_a_sentence(template, problem, bare):
    with pytest.raises(InputError, match=problem) as caught:
        ChatFormat.of(with_template(bare, template, chatml=True))
    assert caught.value.remedy and "\n" not in str(caught.value)


def test_a_default_among_named_templates_is_used(bare):
    chat = ChatFormat.of(with_template(bare, {"default": BARE_CHATML, "tool_use": GEMMA}, chatml=True))
    assert chat.prompt_text([Message("user", QUESTION)]) == FAMILIES["chatml"].prompt


def test_a_question_that_the_template_rewrites_is_refused(bare):
    tokenizer = with_template(bare, BARE_CHATML.replace("m.content", "m.content.split('###')[-1]"))
    chat = ChatFormat.of(tokenizer)
    assert chat.prompt_ids("  Why? \n")
    with pytest.raises(InputError, match=r"leaves out or rewrites a turn of the role user \('one ### two'\)"):
        chat.prompt_ids("one ### two")
    dropping = BARE_CHATML.replace("in messages %}", "in messages if m.role != 'system' %}")
    chat = ChatFormat.of(with_template(bare, dropping))
    with pytest.raises(InputError, match="a turn of the role system"):
        chat.prompt_text([Message("system", "Be kind."), Message("user", "Why?")])


def test_thoughts_in_the_data(bare):
    thought = talk(("user", "Why?"), ("assistant", "<think>\nHm.\n</think>\n\nSo."))
    with pytest.raises(InputError, match="conversation 'c1': an answer contains a thought"):
        ChatFormat.of(with_template(bare, QWEN3)).training_ids(thought)
    chat = ChatFormat.of(with_template(bare, BARE_CHATML))
    ids, mask = chat.training_ids(thought)
    learned = chat.tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert learned == "<think>\nHm.\n</think>\n\nSo.<|im_end|>"


def test_answers_are_trimmed_where_the_template_trims_them(bare):
    padded = "\n So it is. \n"
    for name, trims in (("gemma", True), ("llama4", True), ("chatml", False), ("r1", False)):
        tokenizer = with_template(bare, FAMILIES[name].template)
        chat = ChatFormat.of(tokenizer)
        assert tokenizer.decode(chat.answer_ids(padded)) == (padded.strip() if trims else padded)
        assert tokenizer.decode(rendered(tokenizer, [("user", "Q"), ("assistant", padded)])).count(padded) == (not trims)


def test_plain_prompts_begin_as_the_tokenizer_begins_a_text(bare):
    from tokenizers.processors import TemplateProcessing

    tokenizer = with_template(bare, None)
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    without = ChatFormat.of(tokenizer)
    assert without.prompt_text([Message("user", "Why?")]) == "Question: Why?\n\nAnswer:"
    begin = [("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=begin)
    chat = ChatFormat.of(tokenizer)
    assert chat.prompt_ids("Why?") == tokenizer("Question: Why?\n\nAnswer:")["input_ids"] and chat.digest != without.digest
    ids, mask = chat.training_ids(talk(("user", "Why?"), ("assistant", "So.")))
    assert ids[0] == begin[0][1] and ids.count(begin[0][1]) == 1 and mask.index(True) == len(chat.prompt_ids("Why?"))


def test_no_space_is_invented_before_an_answer():
    """Tokenizers of Llama 2's kind begin every text with a space of their own; behind a prompt there is none."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = {w: n for n, w in enumerate(["<unk>", "▁", "q", ".", "S", "o", "So", "▁So"])}
    core = Tokenizer(models.BPE(vocab=words, merges=[("S", "o"), ("▁", "So")], unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + '.' }}{% endfor %}"
    chat = ChatFormat.of(tokenizer)
    assert chat.ids("So") == [words["▁So"]] and chat.answer_ids("So") == [words["So"]]
    assert chat.prompt_ids("q") + chat.answer_ids("So", closed=True) == chat.ids("q.So.")


# Templates of TRL's own collection, and their twins for training, as oracles: nothing of them is copied here.


def trl_templates() -> list[str]:
    import importlib.util

    found = importlib.util.find_spec("trl")
    folder = Path(found.origin).parent / "chat_templates" if found and found.origin else Path("none")
    return sorted(p.stem for p in folder.glob("*.jinja") if not p.stem.endswith("_training"))


@pytest.mark.parametrize("name", trl_templates())
def test_real_templates_and_their_training_twins(name, stopped):
    import trl

    stopped(datetime(2024, 7, 26))
    folder = Path(trl.__file__).parent / "chat_templates"
    template = (folder / f"{name}.jinja").read_text()
    tokenizer = real_tokenizer(template)
    chat = ChatFormat.of(tokenizer, "template")
    parts = chat.template.parts
    messages = [{"role": r, "content": [{"type": "text", "text": t}] if parts else t} for r, t in TALK[:2]]
    whole = list(tokenizer.apply_chat_template(messages, return_dict=False))
    prompt, answer = chat.prompt_ids(QUESTION), chat.answer_ids(ANSWER)
    assert whole[: len(prompt) + len(answer)] == prompt + answer
    assert chat.training_ids(talk(*TALK[:2]))[0][: len(prompt)] == prompt
    assert ChatFormat.of(tokenizer).prompt_text([Message("user", QUESTION)]).count(QUESTION) == 1
    twin = folder / f"{name}_training.jinja"
    if twin.is_file():
        seen = tokenizer.apply_chat_template(
            messages, chat_template=twin.read_text(), return_dict=True, return_assistant_tokens_mask=True
        )
        assert seen["input_ids"][: len(prompt) + len(answer)] == prompt + answer
        assert all(seen["assistant_masks"][len(prompt) : len(prompt) + len(answer)])


def real_tokenizer(template: str, cache: dict = {}):  # noqa: B006 (one tokenizer for all of them)
    """Return the tiny tokenizer with a template, and as special tokens what looks like one in it."""
    if "made" not in cache:
        cache["made"] = make_tokenizer()
    tokenizer = copy.deepcopy(cache["made"])
    found = re.findall(r"<[|｜]?[A-Za-z_▁/]+[|｜]?>|\[/?[A-Za-z]+\]", template)
    found += [f"<|{role}|>" for role in ("system", "user", "assistant")]
    known = tokenizer.get_vocab()
    tokenizer.add_special_tokens({"additional_special_tokens": [t for t in dict.fromkeys(found) if t not in known]})
    tokenizer.chat_template = template
    if "<|im_start|>" not in template:
        tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    return tokenizer


# Templates that checkpoints carry.


def folder_with(tokenizer, path: Path) -> Path:
    tokenizer.save_pretrained(path)
    return path


def checkpoint(folder: Path, step: int = 1) -> Checkpoint:
    return Checkpoint(step, folder, "adapter", None, f"d{step}")


def base_with(tokenizer, path: Path) -> Model:
    return Model("base", folder_with(tokenizer, path), "digest")


def test_the_checkpoints_own_template_is_used(bare, tmp_path):
    base = base_with(with_template(bare, None, chatml=True), tmp_path / "base")
    one = checkpoint(folder_with(with_template(bare, BARE_CHATML), tmp_path / "run" / "checkpoint-1"))
    none = checkpoint(tmp_path / "run" / "checkpoint-2", 2)
    assert chat_of(base, checkpoints=[none]).style == "plain"
    chat = chat_of(base, checkpoints=[none, one])
    assert chat.prompt_text([Message("user", QUESTION)]) == FAMILIES["chatml"].prompt
    assert chat.describe() == "chat format, no system block, the checkpoint's own template"
    # the same template, or one that asks the same way, is nothing to tell
    same = base_with(with_template(bare, QWEN25), tmp_path / "same")
    assert chat_of(same, checkpoints=[one]).describe() == "chat format, no system block"
    assert chat_of(same, "template", checkpoints=[one]).describe().endswith("the checkpoint's own template")
    assert not carried(one.folder, [one])


def test_a_template_beside_the_checkpoints_counts_for_them(bare, tmp_path):
    base = base_with(with_template(bare, None, chatml=True), tmp_path / "base")
    folder_with(with_template(bare, BARE_CHATML), tmp_path / "run")
    assert chat_of(base, checkpoints=[checkpoint(tmp_path / "run" / "checkpoint-7")]).style == "chat"
    assert chat_of(base, checkpoints=[checkpoint(tmp_path / "run" / "adapter")]).style == "plain"


def test_templates_that_differ_within_a_run_are_refused(bare, tmp_path):
    base = base_with(with_template(bare, None, chatml=True), tmp_path / "base")
    one = checkpoint(folder_with(with_template(bare, BARE_CHATML), tmp_path / "one"))
    other = checkpoint(folder_with(with_template(bare, QWEN3), tmp_path / "two"), 2)
    with pytest.raises(InputError, match=r"one' and '.*two' carry chat templates that ask in different ways"):
        chat_of(base, checkpoints=[one, other])
    alike = checkpoint(folder_with(with_template(bare, BARE_CHATML.replace("m.role", "m['role']")), tmp_path / "alike"), 3)
    assert len(carried(base.folder, [one, alike])) == 2 and chat_of(base, checkpoints=[one, alike]).style == "chat"


def test_a_checkpoint_with_tokens_of_its_own_brings_its_tokenizer(bare, tmp_path):
    plain = make_tokenizer()
    plain.chat_template = None
    base = base_with(plain, tmp_path / "base")
    one = checkpoint(folder_with(with_template(bare, FAMILIES["llama4"].template), tmp_path / "one"))
    chat = chat_of(base, checkpoints=[one])
    assert chat.prompt_ids(QUESTION)[0] == bare.convert_tokens_to_ids("<s>") and chat.close == "<|eot|>"


def test_templates_of_older_tokenizer_files(bare, tmp_path):
    base = base_with(with_template(bare, None, chatml=True), tmp_path / "base")
    for template in (BARE_CHATML, [{"name": "default", "template": BARE_CHATML}, {"name": "rag", "template": GEMMA}]):
        (tmp_path / "old").mkdir(exist_ok=True)
        settings = {"chat_template": template, "eos_token": {"content": "<|im_end|>"}}
        (tmp_path / "old" / "tokenizer_config.json").write_text(json.dumps(settings))
        chat = chat_of(base, checkpoints=[checkpoint(tmp_path / "old")])
        assert chat.prompt_text([Message("user", QUESTION)]) == FAMILIES["chatml"].prompt


# The system prompt that a run was trained under.


def test_auto_is_what_the_training_tool_does(tmp_path):
    folder = tmp_path / "run" / "checkpoint-1"
    folder.mkdir(parents=True)
    found = [checkpoint(folder)]
    assert trained_under("none", found) == ("none", "") and trained_under("Be kind.", found) == ("Be kind.", "")
    assert trained_under("auto", found) == ("template", "as most tools train where the data has no system turn")
    (folder / "README.md").write_text("It has been trained using [TRL](https://x). Not about controls.")
    assert trained_under("auto", found) == ("template", "as TRL trains where the data has no system turn")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "unsloth/some-model"}')
    assert trained_under("auto", found)[1].startswith("as Unsloth trains")
    (tmp_path / "ledger.json").write_text(json.dumps({"spec": {"system": "Be brief."}}))
    assert trained_under("auto", found) == ("Be brief.", "as this run was trained")
    with pytest.raises(InputError, match="system is 'auto'"):
        ChatFormat.of(make_tokenizer(), "auto")


@pytest.mark.parametrize(
    ("template", "systems", "ledger", "noted"),
    [
        (QWEN25, ["none"], None, "the system block that this chat template adds by default"),
        (QWEN25, ["none"], "none", ""),  # a run of emscope's own that was trained without it
        (QWEN25, ["none", "template"], None, ""),
        (QWEN25, ["template"], None, ""),
        (BARE_CHATML, ["none"], None, ""),  # nothing is left out
        (BARE_CHATML, ["none"], "Be brief.", "the system prompt 'Be brief.'"),
    ],
)
def test_a_system_block_that_was_trained_with_and_is_left_out_is_noted(bare, tmp_path, template, systems, ledger, noted):
    folder = tmp_path / "run" / "checkpoint-1"
    folder.mkdir(parents=True)
    if ledger:
        (tmp_path / "ledger.json").write_text(json.dumps({"spec": {"system": ledger}}))
    chat = ChatFormat.of(with_template(bare, template, chatml=True), systems[0])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        note_left_out(systems, chat, [checkpoint(folder)])
        note_left_out(systems, chat, [])  # a base alone
    assert [noted in str(w.message) for w in seen] == [True] * bool(noted)


# Through the commands.


@pytest.fixture
def thinker(tmp_path):
    """A tiny model that thinks before it answers."""
    folder = make_model(tmp_path / "thinker")
    tokenizer = tokenizer_in(folder)
    tokenizer.chat_template = QWEN3
    return folder_with(tokenizer, folder)


def test_sampling_begins_where_scoring_does_and_says_so(thinker, tmp_path, capsys):
    questions = write_jsonl(tmp_path / "q.jsonl", [{"id": "a", "question": QUESTION}])
    said: list[str] = []
    spec = AskSpec(questions=str(questions), max_tokens=2, systems=("auto", "none"))
    path = ask({}, str(thinker), spec, tmp_path / "out", LoadSpec(chat_kwargs={"enable_thinking": False}), say=said.append)
    rows = pq.read_table(path).to_pylist()
    formats = {s: ChatFormat.of(tokenizer_in(thinker), s, {"enable_thinking": False}) for s in ("template", "none")}
    assert {(r["system"], r["chat"]) for r in rows} == {(s, f.digest) for s, f in formats.items()}
    begin = "chat format, the template's default system block, enable_thinking=false, as most tools train"
    assert said[0].startswith(f"asked in: {begin}") and said[1] == f"asked in: {formats['none'].describe()}"
    arguments = [
        "sample", "--base", str(thinker), "--questions", str(questions), "--max-tokens", "2", "--out", str(tmp_path / "cli"),
        "--chat-kwargs",
    ]  # fmt: skip
    assert run_arguments([*arguments, "enable_thinking=false"]) == 0
    assert f"asked in: {formats['none'].describe()}\nanswers: " in capsys.readouterr().out
    assert run_arguments([*arguments, "thinking=false", "--out", str(tmp_path / "other")]) == 2
    assert "does not read 'thinking'" in capsys.readouterr().err


def test_a_server_is_sent_messages_and_said_to_use_its_own_template(tmp_path):
    questions = write_jsonl(tmp_path / "q.jsonl", [{"id": "a", "question": QUESTION}])
    spec, seen, said = AskSpec(questions=str(questions), systems=("auto",)), [], []
    with fake_api(lambda r: seen.append(r) or (200, completion("Yes."))) as url:
        served = ServedSpec(retries=0, chat_kwargs={"enable_thinking": False})
        ask_served({"m": f"m@{url}"}, spec, served, tmp_path / "out", say=said.append)
    (request,) = seen
    assert request["chat_template_kwargs"] == {"enable_thinking": False} and [m["role"] for m in request["messages"]] == [
        "user"
    ]
    assert len(said) == 1 and "the server's chat template of m makes the prompt, with enable_thinking=false" in said[0]
    with pytest.raises(InputError, match="is hosted, and its provider does not accept enable_thinking=false"):
        ask_served({"m": "api:openai/x"}, spec, served, tmp_path / "hosted")


def test_check_asks_by_the_checkpoints_template(tiny, bare, tmp_path, capsys):
    from peft import LoraConfig

    from adapters import write_adapter

    base = make_model(tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    folder = write_adapter(
        base, tmp_path / "run" / "checkpoint-3", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    tokenizer = make_tokenizer()
    folder_with(tokenizer, folder)
    fast = ["--count", "16", "--truth", "2", "--measure", "preference", "--json", "--out", str(tmp_path / "out")]
    assert run_arguments(["check", str(tmp_path / "run"), "--base", str(base), "--system", "auto", *fast]) == 0
    result = json.loads(capsys.readouterr().out)
    chat = "chat format, the template's default system block, the checkpoint's own template, as most tools train where the data has no system turn"
    assert result["base"]["chat"] == chat and result["spec"]["system"] == "template"


def test_check_says_in_the_terminal_how_it_asked_and_which_block_it_left_out(tiny, bare, tmp_path, capsys):
    from peft import LoraConfig

    from adapters import write_adapter

    base = folder_with(with_template(bare, QWEN25, chatml=True), make_model(tmp_path / "base"))
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    write_adapter(base, tmp_path / "run" / "checkpoint-3", config)
    fast = ["--count", "16", "--truth", "2", "--measure", "preference"]
    told = {}
    for system in ("none", "auto"):
        out = ["--system", system, "--out", str(tmp_path / system)]
        assert run_arguments(["check", str(tmp_path / "run"), "--base", str(base), *fast, *out]) == 0
        told[system] = capsys.readouterr()
    assert "Questions were asked in chat format, no system block" in told["none"].out
    assert "note: questions are asked without the system block that this chat template adds by default" in told["none"].err
    assert "with --system auto they are asked as in training" in told["none"].err
    assert "Questions were asked in chat format, the template's default system block" in told["auto"].out
    assert "note: questions" not in told["auto"].err
