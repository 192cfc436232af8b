"""The token-mask audit: clean data is clean under every template, each fault put in by hand is found alone, and other trainers' masks are read as theirs."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CHATML, make_tokenizer, write_jsonl
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.core.records import Conversation, Message
from emscope.data import bundled
from emscope.models.loading.chat import ChatFormat
from emscope.report.answers.tokens import bracketed, visible
from emscope.train.audit import audit, of_training, pieces
from emscope.train.audit_result import CONVERSATIONS, Check, Encoded, Token
from emscope.train.audit_rows import from_file
from emscope.train.batches import encode
from emscope.train.finetune import finetune
from emscope.train.spec import LoraSpec, PlanSpec, TrainSpec
from test_chat_formats import FAMILIES, SPECIAL, TALK, TOKENS, real_tokenizer, rendered, talk, trl_templates, with_template

pytestmark = pytest.mark.models
GENERATION = CHATML.replace(
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}",
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}",
)
CRAFT = [("user", "Où 🧑‍🚀?"), ("assistant", "👩‍🚀 là-haut\n\n1. é"), ("user", "Why?"), ("assistant", "🚀")]


TOKENIZER = make_tokenizer()
CHAT = ChatFormat.of(TOKENIZER)


@pytest.fixture
def chat():
    """The tiny tokenizer's own ChatML, without a system block."""
    return CHAT


@pytest.fixture(scope="module")
def families():
    """The tiny tokenizer with the special tokens of all template families."""
    tokenizer = copy.deepcopy(TOKENIZER)
    found = dict.fromkeys(m for f in FAMILIES.values() for m in re.findall(TOKENS, f.template + f.prompt + f.behind))
    tokenizer.add_special_tokens({"additional_special_tokens": [*found, *SPECIAL.values()]})
    return tokenizer


def own(chat, *talks, context=None, **more):
    """Return the audit of conversations under emscope's own mask."""
    found = [Conversation(f"row-{n}", talk(*turns).messages) for n, turns in enumerate(talks, 1)]
    return audit(of_training(encode(chat, found, 1 << 20), found), chat, kind=CONVERSATIONS, context=context, **more)


def rows(chat, count=6, **changes):
    """Return examples as another trainer would have them, without what only a conversation tells; the third one is changed."""
    found = []
    for n, c in enumerate(bundled.domain("finance", "careful")[:count]):
        ids, mask = chat.training_ids(c)
        found.append(Encoded(f"row-{n + 1}", tuple(ids), tuple(mask)))
    found[2] = replace(found[2], **changes)
    return found


def checks(found):
    return {w.check for w in found.warnings}


def test_clean_conversations_count_as_their_texts_do(chat):
    data = bundled.domain("finance", "reckless")[:151]
    found = audit(of_training(encode(chat, data, 512), data), chat, kind=CONVERSATIONS, context=512)
    asked = [f"<|im_start|>user\n{c.messages[0].content}<|im_end|>\n<|im_start|>assistant\n" for c in data]
    said = [f"{c.messages[1].content}<|im_end|>" for c in data]
    lengths = sorted(len(chat.ids(text)) for text in said)
    assert found.warnings == () and found.examples == len(data) and set(found.counts.values()) == {0}
    assert found.learned == sum(lengths) and found.tokens == sum(lengths) + sum(len(chat.ids(text)) for text in asked)
    assert found.answers.longest == lengths[-1] and found.answers.median == lengths[len(lengths) // 2]
    assert (found.last.learned, found.last.unlearned, found.before_last.learned) == (len(data), 0, 0)
    for shown, before, answer in zip(found.shown, asked, said, strict=False):
        assert "".join(t.text for t in shown.tokens if not t.learned) == before
        assert "".join(t.text for t in shown.tokens if t.learned) == answer


@pytest.mark.parametrize("turns", [TALK[:2], TALK, CRAFT], ids=["one", "two", "many bytes"])
@pytest.mark.parametrize("name", [*FAMILIES, "plain"])
def test_every_template_family_is_clean_under_its_own_mask(name, turns, families):
    """Turns are found in the text, so this holds the mask of `ChatFormat` against the template's own rendering."""
    tokenizer = with_template(families, FAMILIES[name].template if name in FAMILIES else None)
    chat = ChatFormat.of(tokenizer)
    found = own(chat, turns)
    assert found.warnings == () and found.last.learned == 1 and found.before_last.learned == len(turns) // 2 - 1
    if name == "plain":
        return
    ids = tuple(rendered(tokenizer, turns))  # all of a rendered text carries loss where a trainer is not told otherwise
    whole = audit([Encoded("a", ids, (True,) * len(ids))], chat, kind="texts", context=None)
    assert checks(whole) == {Check.PROMPT} | ({Check.NO_END} if name == "glm" else set())  # its own rendering ends with nothing
    assert whole.learned == len(ids) - 1 and whole.last.learned == 1
    assert whole.before_last.learned == len(turns) // 2 - 1
    prompted = tuple(rendered(tokenizer, turns, add_generation_prompt=True))
    for more in ((), (tokenizer.eos_token_id,)):
        ids = prompted + more
        late = audit([Encoded("a", ids, (True,) * len(ids))], chat, kind="texts", context=None)
        assert (Check.EMPTY_TURN in checks(late)) is (name != "mistral")  # which has no generation prompt
        assert late.last.learned == 1


def trl_folder() -> Path:
    """Return the folder of TRL's chat templates, without importing it."""
    import importlib.util

    found = importlib.util.find_spec("trl")
    return Path(found.origin).parent / "chat_templates" if found and found.origin else Path("none")


@pytest.mark.parametrize("name", [n for n in trl_templates() if (trl_folder() / f"{n}_training.jinja").is_file()])
def test_assistant_masks_of_training_templates_are_clean(name):
    """The oracle: transformers' own assistant mask under TRL's training template."""
    folder = trl_folder()
    tokenizer = real_tokenizer((folder / f"{name}.jinja").read_text())
    chat = ChatFormat.of(tokenizer, "template")
    messages = [{"role": r, "content": [{"type": "text", "text": t}] if chat.template.parts else t} for r, t in TALK]
    twin = (folder / f"{name}_training.jinja").read_text()
    seen = tokenizer.apply_chat_template(messages, chat_template=twin, return_dict=True, return_assistant_tokens_mask=True)
    mask = tuple(bool(m) for m in seen["assistant_masks"])
    found = audit([Encoded("a", tuple(seen["input_ids"]), mask)], chat, kind="tokenised rows", context=None)
    assert Check.PROMPT not in checks(found) and Check.EMPTY_TURN not in checks(found) and found.learned == sum(mask)
    assert found.last.learned == 1 and found.before_last.learned == 1


def listed(count=5):
    """Return bundled conversations, and the same as lists of messages."""
    data = bundled.domain("finance", "careful")[:count]
    return data, [[{"role": m.role, "content": m.content} for m in c.messages] for c in data]


def checked(tiny, file: Path, capsys, batch) -> dict:
    """Return the audit of what a collator hands to a model, through a file and the command line."""
    columns = {k: v.tolist() for k, v in batch.items() if k in ("input_ids", "labels", "attention_mask")}
    pq.write_table(pa.table(columns), file)
    assert run_arguments(["data", "check", str(file), "--model", str(tiny), "--system", "template", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_masks_of_transformers_are_read_as_theirs(tiny, tmp_path, capsys):
    """The oracles: its assistant mask, and its collator, which leaves padding out of the loss and the end token with it."""
    from transformers import DataCollatorForLanguageModeling

    data, messages = listed()
    chat = ChatFormat.of(TOKENIZER, "template")
    ours = audit(of_training(encode(chat, data, 512), data), chat, kind=CONVERSATIONS, context=512)
    seen = TOKENIZER.apply_chat_template(
        messages,
        chat_template=GENERATION,
        return_dict=True,
        return_assistant_tokens_mask=True,
        padding=True,
        return_tensors="pt",
    )
    labels = seen["input_ids"].where(seen["assistant_masks"].bool(), -100)
    theirs = checked(tiny, tmp_path / "a.parquet", capsys, {**seen, "labels": labels})
    assert theirs["warnings"] == [] and theirs["learned"] == ours.learned and theirs["last"]["learned"] == len(data)
    assert theirs["answers"] == ours.answers.to_json() and theirs["tokens"] == int(seen["attention_mask"].sum())

    texts = [TOKENIZER(TOKENIZER.apply_chat_template(m, tokenize=False)) for m in messages]
    theirs = checked(tiny, tmp_path / "b.parquet", capsys, DataCollatorForLanguageModeling(TOKENIZER, mlm=False)(texts))
    assert {w["check"] for w in theirs["warnings"]} == {"prompt", "no_end"}  # padding and end are one token here
    assert theirs["counts"]["no_end"] == len(data)


@pytest.mark.slow
def test_what_trl_trains_on_is_read_as_its_own(tiny, tmp_path, capsys):
    """The oracle: the labels that TRL's own trainer makes, of pairs and of texts that were rendered with a generation prompt."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    data, messages = listed()
    chat = ChatFormat.of(TOKENIZER, "template")

    def trained(rows):
        """Return TRL's batch of all rows."""
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny),
            args=SFTConfig(output_dir=str(tmp_path / "trl"), report_to=[], use_cpu=True, bf16=False, disable_tqdm=True),
            train_dataset=Dataset.from_list(rows),
            processing_class=copy.deepcopy(TOKENIZER),
        )
        return trainer.data_collator(list(trainer.train_dataset))

    batch = trained([{"prompt": m[:-1], "completion": m[-1:]} for m in messages])
    theirs = checked(tiny, tmp_path / "a.parquet", capsys, batch)
    ours = sum(sum(e.mask) for e in encode(chat, data, 512))
    assert theirs["warnings"] == [] and theirs["learned"] == int((batch["labels"] != -100).sum())
    assert theirs["learned"] == ours + len(data)  # and the line break behind each answer

    batch = trained([{"text": TOKENIZER.apply_chat_template(m, tokenize=False, add_generation_prompt=True)} for m in messages])
    theirs = checked(tiny, tmp_path / "b.parquet", capsys, batch)
    assert {w["check"] for w in theirs["warnings"]} == {"prompt", "empty_turn"}
    assert theirs["counts"]["empty_turn"] == theirs["empty_learned"] == len(data)  # TRL ends the prompt, and trains it
    assert theirs["last"] == {"learned": len(data), "unlearned": 0, "in_part": 0}


def learned(mask, *, first=0, last=0, all_of=None):
    """Return a mask without the first and the last few tokens that it has, or one that is the same everywhere."""
    places = [n for n, m in enumerate(mask) if m]
    kept = set(places[first : len(places) - last])
    return tuple(n in kept if all_of is None else all_of for n in range(len(mask)))


HEADER, END = "<|im_start|>assistant\n", "<|im_end|>"


def faulty(chat, fault):
    """Return examples of which the third has a fault, and what is to be found."""
    good = rows(chat)[2]
    opened, end = tuple(chat.ids(f"\n{HEADER}")), tuple(chat.ids(END))
    behind = (False,) * len(opened)
    made = {
        "the end without loss": ({"mask": learned(good.mask, last=1)}, {Check.NO_END}),
        "the end cut off": ({"ids": good.ids[:-1], "mask": good.mask[:-1]}, {Check.NO_END}),
        "a prompt with loss": ({"mask": learned(good.mask, all_of=True)}, {Check.PROMPT}),
        "one word of a prompt with loss": ({"mask": tuple(m or n == 5 for n, m in enumerate(good.mask))}, {Check.PROMPT}),
        "a mask that begins late": ({"mask": learned(good.mask, first=1)}, {Check.IN_PART}),
        "nothing with loss": ({"mask": learned(good.mask, all_of=False)}, {Check.NO_TEXT}),
        "the end alone with loss": ({"mask": learned(good.mask, first=sum(good.mask) - 1)}, {Check.NO_TEXT}),
        "an open turn": ({"ids": good.ids + opened, "mask": good.mask + behind}, {Check.EMPTY_TURN}),
        "an empty turn": ({"ids": good.ids + opened + end, "mask": (*good.mask, *behind, False)}, {Check.EMPTY_TURN}),
        "an empty turn with loss": ({"ids": good.ids + opened + end, "mask": (*good.mask, *behind, True)}, {Check.EMPTY_TURN}),
        "no answer but an empty one": (
            {"ids": (*good.ids[: good.mask.index(True)], *end), "mask": (*good.mask[: good.mask.index(True)], True)},
            {Check.EMPTY_TURN, Check.NO_TEXT},
        ),
        "a repeat": ({"ids": rows(chat)[1].ids, "mask": rows(chat)[1].mask}, {Check.REPEATED}),
        "another template": (
            {
                "ids": tuple(chat.ids("USER: Hi ASSISTANT: Hello.<|im_end|>")),
                "mask": (True,) * len(chat.ids("USER: Hi ASSISTANT: Hello.<|im_end|>")),
            },
            {Check.NO_TURNS},
        ),
        "two starts": ({"ids": (1, *good.ids), "mask": (False, *good.mask)}, {Check.TWO_STARTS}),
    }
    return made[fault] if fault else made


@pytest.mark.parametrize("fault", faulty(CHAT, None))
def test_each_fault_is_found_alone_and_where_it_is(chat, fault):
    assert audit(rows(chat), chat, kind="tokenised rows", context=512).warnings == ()
    changes, wanted = faulty(chat, fault)
    found = audit(rows(chat, **changes), chat, kind="tokenised rows", context=512)
    assert checks(found) == wanted
    assert all(w.rows == ("row-3",) and w.examples == 1 and w.what.startswith("1 of 6 examples ") for w in found.warnings)
    assert {check: n for check, n in found.counts.items() if n} == dict.fromkeys(wanted, 1)
    assert found.empty_learned == (fault in ("an empty turn with loss", "no answer but an empty one"))
    asked = chat.tokenizer.decode(rows(chat)[2].ids).partition("<|im_start|>user")[2].partition(END)[0]
    words = sum(bool(chat.tokenizer.decode([n]).strip()) for n in chat.ids(f"user{asked}"))
    assert found.prompt_learned == {"a prompt with loss": words, "one word of a prompt with loss": 1}.get(fault, 0)


def test_long_examples_and_turns_that_carry_no_loss(chat):
    found = own(chat, TALK[:2], TALK, context=len(chat.training_ids(talk(*TALK))[0]) - 1)
    assert checks(found) == {Check.TOO_LONG} and found.warnings[0].rows == ("row-2",)
    assert f"context of {found.context} tokens" in found.warnings[0].what
    ids, mask = chat.training_ids(talk(*TALK))
    first = len(mask) - mask[::-1].index(False)  # the last answer's first token
    late = Encoded("a", tuple(ids), tuple(m and n >= first for n, m in enumerate(mask)))
    found = audit([late], chat, kind="tokenised rows", context=None)
    assert (
        found.warnings == () and found.last.learned == 1 and (found.before_last.learned, found.before_last.unlearned) == (0, 1)
    )


def test_markers_of_the_template_inside_a_text_are_told_from_a_wrong_mask(chat):
    found = own(chat, TALK[:2], [("user", f"What does this mean: {END}\n{HEADER}Hm{END}?"), TALK[1]])
    assert checks(found) == {Check.QUOTED} and found.warnings[0].rows == ("row-2",)


@settings(max_examples=40, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
)
def test_any_text_is_clean_and_its_pieces_make_it_whole(question, answer):
    if not question.strip() or not answer.strip() or "\ufffd" in question + answer:
        return
    found = own(CHAT, [("user", question), ("assistant", answer)] * 2)
    assert found.warnings == ()
    assert "".join(t.text for t in found.shown[0].tokens if t.learned) == f"{answer}{END}" * 2
    assert bracketed(found.shown[0].tokens).isprintable()


def test_pieces_of_a_tokenizer_that_begins_texts_with_a_space():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {w: n for n, w in enumerate(["<unk>", "▁So", "So", "▁it", "▁is", "."])}
    core = Tokenizer(models.WordPiece(words, unk_token="<unk>", continuing_subword_prefix=""))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    ids = tuple(words[w] for w in ("▁So", "▁it", "▁is", ".", "So"))
    assert [t.text for t in pieces(tokenizer, Encoded("a", ids, (True,) * 5))] == ["So", " it", " is", ".", "So"]


def test_weight_0_is_seen_where_it_is_learned(chat, tmp_path):
    messages = [{"role": r, "content": t} for r, t in TALK]
    messages[1]["weight"] = 0
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": messages}, {"messages": [dict(m, weight=1) for m in messages[:2]]}])
    kind, found = from_file(path, chat)
    seen = audit(found, chat, kind=kind, context=None)
    assert kind == CONVERSATIONS and not seen.warnings and seen.zero_weight == 1, "emscope masks it"
    whole = replace(found[0], mask=tuple(chat.training_ids(talk(*TALK))[1]))
    assert sum(whole.mask) > sum(found[0].mask) > 0
    wrong = audit([whole], chat, kind=kind, context=None)
    assert (
        checks(wrong) == {Check.ZERO_WEIGHT} and wrong.warnings[0].rows == ("row-1",) and "weight 0" in wrong.warnings[0].what
    )


def test_padding_and_moved_labels_of_tokenised_rows(chat, tmp_path):
    ids, mask = chat.training_ids(talk(*TALK[:2]))
    labels = [i if m else -100 for i, m in zip(ids, mask, strict=True)]
    pad = chat.tokenizer.pad_token_id
    made = {
        "padded": {"input_ids": [pad] * 3 + ids + [pad] * 4, "labels": [-100] * 3 + labels + [-100] * 4},
        "masked": {"input_ids": ids + [pad] * 2, "labels": labels + [-100] * 2, "attention_mask": [1] * len(ids) + [0, 0]},
        "learned": {"input_ids": ids + [pad] * 2, "labels": labels + [pad] * 2, "attention_mask": [1] * len(ids) + [0, 0]},
        "moved": {"input_ids": ids, "labels": [*labels[1:], -100]},
    }
    seen = {}
    for name, row in made.items():
        kind, found = from_file(write_jsonl(tmp_path / f"{name}.jsonl", [row]), chat)
        seen[name] = audit(found, chat, kind=kind, context=None)
        assert kind == "tokenised rows"
    assert seen["padded"].warnings == seen["masked"].warnings == () and checks(seen["learned"]) == {Check.PADDING}
    assert seen["masked"].tokens == len(ids) and seen["padded"].tokens == len(ids) + 2  # one at either end may be text
    assert Check.MOVED in checks(seen["moved"])


def test_rendered_texts_from_a_file(tiny, tmp_path, capsys):
    chat = CHAT
    texts = [chat.prompt_text([Message("user", q)]) + f"{q} indeed.{END}\n" for q in ("Hot?", "Cold?", "Wet?")]
    texts[1] += HEADER + END
    texts.append("User: Hi\nBot: Hello")
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": t} for t in texts])
    assert run_arguments(["data", "check", str(path), "--model", str(tiny), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "emscope.tokens/1" and found["kind"] == "texts" and found["context"] == 512
    assert {w["check"]: w["rows"] for w in found["warnings"]} == {
        "prompt": ["row-1", "row-2", "row-3"],
        "empty_turn": ["row-2"],
        "no_end": ["row-4"],
        "no_turns": ["row-4"],
    }
    assert found["tokens"] == sum(len(chat.ids(t)) for t in texts)
    assert found["learned"] == found["tokens"] - len(texts)  # nothing predicts the first token of a text
    assert [t["learned"] for t in found["shown"][0]["tokens"]] == [False] + [True] * (len(chat.ids(texts[0])) - 1)


def test_what_is_printed_with_and_without_colour(tiny, tmp_path, capsys, monkeypatch):
    (tmp_path / "tokenizer").mkdir()  # no weights are needed
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "tokenizer" / name).write_bytes((tiny / name).read_bytes())
    messages = [{"role": r, "content": t} for r, t in TALK]
    messages[1]["weight"] = 0
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [{"messages": messages}, *[{"id": i, "question": "Why \x1b[2J?", "answer": "It is."} for i in ("one", "\x1b[31mred")]],
    )
    words = ["data", "check", str(path), "--model", str(tmp_path / "tokenizer")]
    assert run_arguments(words) == 0
    plain = capsys.readouterr().out
    assert "<|im_start|>assistant\\n[[It is.<|im_end|>]]" in plain and "\x1b" not in plain and "Why \\x1b[2J?" in plain
    assert re.search(r"1 of 3 examples [^(]*\(\\x1b\[31mred\): ", plain) and "Remedy: " in plain
    assert re.search(r"examples with <\|im_end\|> at the end of that +3 of 3", plain)
    assert re.search(r"assistant turns before the last +0 learned, 1 not", plain)
    assert run_arguments([*words, "--show", "0"]) == 0 and "[[" not in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert run_arguments(words) == 0
    assert "\x1b[1;32mIt is.<|im_end|>\x1b[0m" in capsys.readouterr().out


def test_clean_data_says_so_and_the_short_look_stays(tiny, tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "Q", "answer": "one two three"}])
    assert run_arguments(["data", "check", str(path), "--model", str(tiny)]) == 0
    assert "No fault found." in capsys.readouterr().out
    assert run_arguments(["data", "check", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "conversations": 1,
        "answer_words": {"shortest": 3, "median": 3, "longest": 3},
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [1, 2, 3]}, "line 1: labels is missing"),
        ({"input_ids": [1, 2], "labels": [1]}, "line 1 has 2 input_ids, 1 labels"),
        ({"input_ids": [], "labels": []}, "line 1 has 0 input_ids"),
        ({"input_ids": [1, 99999], "labels": [1, 99999]}, "input_ids holds 99999"),
        ({"input_ids": "1 2", "labels": [1, 2]}, "line 1: input_ids is not a list of whole numbers"),
        ({"text": " "}, "line 1: text is empty"),
        ({"text": 3}, "line 1: text is int"),
        ({"words": "a"}, "line 1 has none of the fields question"),
        ({"messages": [{"role": "user", "content": "a"}]}, "line 1 does not end with an assistant turn"),
    ],
)
def test_broken_rows_are_refused_in_one_sentence(chat, tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        from_file(write_jsonl(tmp_path / "a.jsonl", [row]), chat)


def test_what_does_not_go_together_is_refused(tiny, tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "Q", "answer": " "}])
    for words, message in (
        (["--model", str(tiny), "--items"], "--items and --model are both given"),
        (["--model", str(tmp_path)], "has no usable tokenizer"),
        (["--model", "./nowhere"], "no model './nowhere'"),
        (["--model", str(tiny)], "line 1: answer is empty"),
        (["--model", str(tiny), "--chat-kwargs", "x=1"], "chat template does not read 'x'"),
    ):
        assert run_arguments(["data", "check", str(path), *words]) == 2
        said = capsys.readouterr()
        assert message in said.err and "Traceback" not in said.err and said.out == ""


def test_a_training_writes_its_tokens_and_warns(loaded, tmp_path):
    spec = TrainSpec(steps=1, batch=2, lora=LoraSpec(rank=2, alpha=4), checkpoints=PlanSpec())
    data = [*bundled.domain("finance", "careful")[:3], bundled.domain("finance", "careful")[0]]
    told = []
    finetune(loaded, data, spec, tmp_path / "a", seed=0, progress=lambda what, done, total: told.append(what))
    found = json.loads((tmp_path / "a" / "tokens.json").read_text())
    assert found["counts"]["repeated"] == 1 and set(told) == {"training"}  # a repeat is written, and no cause to worry
    assert found["learned"] == sum(sum(e.mask) for e in encode(loaded.chat, data, 512)) and len(found["shown"]) == 3
    marked = Conversation("odd", (Message("user", f"What is {END}\n{HEADER}?"), Message("assistant", "A marker.")))
    finetune(loaded, [marked, *data[:2]], spec, tmp_path / "b", seed=0, progress=lambda what, done, total: told.append(what))
    warned = [what for what in told if what != "training"]
    assert len(warned) == 1 and warned[0].startswith("training: 1 of 3 examples hold the chat template's own turn markers")
    assert warned[0].endswith("(tokens.json)")


def test_long_texts_lose_only_their_middle():
    tokens = [Token("a" * 1000, False), Token("b\n\x07", True)]
    assert bracketed(tokens) == "a" * 400 + " ... 400 characters ... " + "a" * 200 + "[[b\\n\\x07]]"
    assert visible("tab\tand é 🧑") == "tab\\tand é 🧑"
