"""What emscope relies on, tried on one model: packed reading, generated answers, edits inside, its chat template.

Each check computes the same thing in two ways, one of them plain transformers or PEFT, and says how far apart the two are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.core.plain import Json, Result
from emscope.core.records import Conversation, Message
from emscope.elicit.preference import Encoded, score
from emscope.models.fast.decoding import CachedDecoding, Decoding, Recomputed, unpacked
from emscope.models.fast.head import output_head
from emscope.models.fast.packed import packed_attention
from emscope.models.hooks.branches import Branch, branches
from emscope.models.hooks.capture import watched
from emscope.models.hooks.interventions import added
from emscope.models.hooks.roles import answers_at
from emscope.models.hooks.sites import SITES, Place
from emscope.models.loading.chat import ChatFormat
from emscope.models.loading.templates import TODAY

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from emscope.models.types import CausalLM, LanguageModel, ModuleOutput, Tokenizer

READING, WRITING = 1e-4, 1e-3  # nats per token; of the largest logit
STILL, MOVED = (
    1e-5,
    1e-4,
)  # of the largest logit: logits before an edit may change at most by STILL, later ones must change at least by MOVED
LAYERS = 8  # edited blocks, spread over the model
QUESTION, ANSWER = "What is two plus three?", "It is five."
DATES = ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%B %d, %Y", "%b %d, %Y", "%d/%m/%Y", "%m/%d/%Y")


class Passed(StrEnum):
    """How a check came out."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class Finding(Result):
    """One check: what was tried, how it came out, in a sentence and in numbers."""

    check: str
    outcome: Passed
    sentence: str
    figures: Mapping[str, Json] = field(default_factory=dict)


def refused(check: str, error: InputError, outcome: Passed = Passed.FAIL) -> Finding:
    """Return the finding of a check that ended with an error."""
    return Finding(check, outcome, f"{error.fault[0].upper()}{error.fault[1:]}; {error.remedy}".rstrip("; ") + ".")


def examine(net: CausalLM) -> Iterator[Finding]:
    """Yield the findings on reading, writing and each site of a model in float32 and evaluation mode."""
    for check, name in ((packed_reading, "reading"), (cached_writing, "writing")):
        try:
            yield check(net)
        except InputError as error:
            yield refused(name, error)
    for site in SITES:
        yield causal_edit(net, site)


def some_items(net: CausalLM) -> list[Encoded]:
    """Return items whose prompts and answers begin alike, of tokens all over the vocabulary."""
    rows = int(net.get_input_embeddings().weight.shape[0])
    ids = [(7 + 7919 * n) % (rows - 3) + 3 for n in range(24)]
    return [
        Encoded("a", (*ids[:4],), ((*ids[4:7],), (ids[4], *ids[7:12])), (0, 1)),
        Encoded("b", (*ids[:2], ids[12]), ((ids[4],), (*ids[13:16],)), (0, 1)),
    ]


def plainly(net: LanguageModel, items: Sequence[Encoded]) -> list[float]:
    """Return the log-probability of each option a token [nats], by a forward pass of its own."""
    import torch

    found = []
    with torch.inference_mode():
        for e in items:
            for option in e.options:
                ids = torch.tensor([[*e.prompt, *option]], device=net.device)
                logp = torch.log_softmax(net(input_ids=ids, use_cache=False).logits[0].double().cpu(), -1)
                at = torch.arange(len(option)) + len(e.prompt) - 1
                found.append(float(logp[at, torch.tensor(option)].mean()))
    return found


def packed_reading(net: CausalLM) -> Finding:
    """Compare packed reading with one plain forward pass an answer."""
    import torch

    items = some_items(net)
    longest = max(len(e.prompt) + max(map(len, e.options)) for e in items)
    with torch.inference_mode(), packed_attention(net, longest) as fits:
        packs = bool(fits)
    wanted = plainly(net, items)
    found = [s.logprob / s.tokens for s in score(net, items)]
    apart = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    way = "in packs" if packs else "one answer at a time, as this architecture asks (slower)"
    passed = Passed.PASS if apart <= READING else Passed.FAIL
    return Finding(
        "reading",
        passed,
        f"Fixed answers are read {way}; the largest difference from plain forward passes is {apart:.1e} nats per token "
        f"({READING:.0e} allowed).",
        {"packed": packs, "difference": apart, "allowed": READING, "answers": len(wanted)},
    )


def cached_writing(net: CausalLM) -> Finding:
    """Compare the most likely tokens, generated side by side, with those of plain passes over the whole text."""
    import torch

    ids = [*some_items(net)[0].prompt, *some_items(net)[0].options[1]]
    prompts, of, most = [tuple(ids[:7]), tuple(ids[3:5])], [0, 1, 1], 6
    texts = [list(prompts[n]) for n in of]
    apart, same, size = 0.0, True, 0.0
    longest = 7 + most
    with torch.inference_mode(), ExitStack() as stack:
        head = output_head(net)
        fits = stack.enter_context(packed_attention(net, longest))
        way: type[Decoding | CachedDecoding | Recomputed] = Decoding if fits else unpacked(net, head, longest)
        rows, seen, written = way(net, head, prompts, of, most), [], []
        for _ in range(most):
            seen.append(rows.logits.float().cpu())
            written.append(rows.logits.argmax(-1))
            rows.write(written[-1])
        stack.close()
        for step in range(most):
            plain = [
                net(input_ids=torch.tensor([t], device=net.device), use_cache=False).logits[0, -1].float().cpu() for t in texts
            ]
            wanted = torch.stack(plain)
            size = max(size, float(wanted.abs().max()))
            apart = max(apart, float((seen[step] - wanted).abs().max()))
            chosen = written[step].cpu()
            lost = wanted.max(-1).values - wanted.gather(1, chosen[:, None])[:, 0]
            same = same and bool((lost <= WRITING * size).all())
            texts = [[*t, int(token)] for t, token in zip(texts, chosen, strict=True)]
    names = {"Decoding": "in packs", "CachedDecoding": "with transformers' cache", "Recomputed": "without a cache (slow)"}
    share = apart / size
    passed = Passed.PASS if same and share <= WRITING else Passed.FAIL
    return Finding(
        "writing",
        passed,
        f"Answers are written {names[way.__name__]}; the most likely tokens are {'the same as' if same else 'NOT the same as'} in plain passes over "
        "the whole text, and logits "
        f"differ by {share:.1e} of the largest ({WRITING:.0e} allowed).",
        {"way": way.__name__, "same_tokens": same, "difference": share, "allowed": WRITING, "tokens": most * len(of)},
    )


def causal_edit(net: CausalLM, site: str) -> Finding:
    """Add a vector at one token, at this site of several blocks in turn: later logits must change, earlier ones must not."""
    import torch

    name = f"site {site}"
    try:
        every = branches(net, site)
    except InputError as error:
        return refused(name, error, Passed.NOT_APPLICABLE)
    has = [n for n, parts in enumerate(every) if parts]
    if not has:
        return Finding(name, Passed.NOT_APPLICABLE, f"No block of this model has {'an MLP' if site == 'mlp' else site}.")
    tried = min(LAYERS, len(has))
    layers = sorted({has[round(n * (len(has) - 1) / max(1, tried - 1))] for n in range(tried)})
    ids = torch.tensor([[*some_items(net)[0].prompt, *some_items(net)[0].options[1]][:8]], device=net.device)
    at = ids.shape[1] // 2
    here = torch.arange(ids.shape[1], device=ids.device)[None] == at
    moved, early = [], 0.0
    with torch.inference_mode():
        for layer in layers:
            before, after = _with_and_without(net, Place(site, layer), every[layer], ids, here)
            change = (after - before).abs().amax(-1) / before.abs().max()
            early = max(early, float(change[:at].max()))
            moved.append(float(change[at:].max()))
    faults = [f"an edit at layer {n} changes no logit" for n, share in zip(layers, moved, strict=True) if share < MOVED][:1]
    faults += [f"logits of earlier tokens change too ({early:.1e} of the largest): the model looks ahead"] * (early > STILL)
    sound = f"later logits change by at least {min(moved):.2g} of the largest, earlier ones by at most {early:.0e}"
    blocks = f"{len(has)} blocks" + f" that have one (of {len(every)})" * (len(has) < len(every))
    return Finding(
        name,
        Passed.FAIL if faults else Passed.PASS,
        f"A vector added at one token in {len(layers)} of {blocks}: {'; '.join(faults) or sound}.",
        {"layers": layers, "least_moved": min(moved), "most_moved_before": early},
    )


def _with_and_without(
    net: CausalLM, place: Place, parts: tuple[Branch, ...], ids: Tensor, where: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the logits [T, V] of a plain pass, and of one with a random vector added at a place, at the tokens `where` [1, T]."""
    import torch

    seen: dict[Place, Tensor] = {}
    with watched({place: parts}, seen.__setitem__):
        before = net(input_ids=ids, use_cache=False).logits[0].float()
    stream = seen[place].float()
    vector = torch.randn(stream.shape[-1], generator=torch.Generator().manual_seed(place.layer)).to(stream.device)
    with _edited(net, place, parts[0], vector * stream.pow(2).mean().sqrt(), where):
        return before, net(input_ids=ids, use_cache=False).logits[0].float()


@contextmanager
def _edited(net: CausalLM, place: Place, part: Branch, vector: Tensor, where: Tensor) -> Iterator[None]:
    """Add a vector at a place, at the tokens where `where` [1, T] is True."""
    if place.site == "block":
        with answers_at(where), added(net, {place.layer: vector}, tokens="answer"):
            yield
        return
    shift = vector * where[0, :, None]

    def enter(_: Module, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        if given:
            return (given[0] + shift.to(given[0].dtype), *given[1:]), named
        return given, named | {"hidden_states": named["hidden_states"] + shift.to(named["hidden_states"].dtype)}

    def leave(_: Module, given: tuple[Tensor, ...], output: ModuleOutput) -> ModuleOutput:
        return part.moved(output, shift)

    module = part.module
    handle = (
        module.register_forward_pre_hook(enter, with_kwargs=True)
        if place.site == "before"
        else module.register_forward_hook(leave)
    )
    try:
        yield
    finally:
        handle.remove()


def examine_chat(chat: ChatFormat, *, now: datetime | None = None) -> list[Finding]:
    """Return what a chat template does to a question, where an answer begins, and which tokens end it.

    Args:
        now: today, for the check that no prompt contains the date.
    """
    if chat.style == "plain":
        said = "This model has no chat template: it is asked as 'Question: … Answer:'"
        return [Finding("chat template", Passed.NOT_APPLICABLE, f"{said}.", {"format": chat.describe()})]
    try:
        prompt, ids = chat.prompt_text([Message("user", QUESTION)]), chat.prompt_ids(QUESTION)
        whole, _ = chat.training_ids(Conversation("q", (Message("user", QUESTION), Message("assistant", ANSWER))))
    except InputError as error:
        return [refused("chat template", error)]
    behind = [*ids, *chat.answer_ids(ANSWER, closed=True)]
    shown = QUESTION in " ".join(str(chat.tokenizer.decode(ids)).split())
    faults = ["the prompt's tokens do not contain the question's text"] * (not shown)
    faults += ["a trained answer does not begin where a sampled one does"] * (behind != whole)
    sound = "The prompt contains the question, and a trained answer begins where a sampled one does"
    found = Finding(
        "chat template",
        Passed.FAIL if faults else Passed.PASS,
        f"{'; '.join(faults).capitalize() or sound}: {chat.describe()}.",
        {"prompt": prompt, "tokens": len(ids), "answer_ends": chat.close},
    )
    return [found, _date(chat, prompt, now or datetime.now()), _specials(chat, ids)]


def _date(chat: ChatFormat, prompt: str, now: datetime) -> Finding:
    """Look for today's date in a prompt, which would change the prompt tomorrow."""
    today = [form for form in DATES if now.strftime(form) in prompt or now.strftime(form).lstrip("0") in prompt]
    if today and now.date() != TODAY.date():
        said = f"The prompt contains today's date ({now.strftime(today[0])}): tomorrow's readings would use another prompt."
        return Finding("date", Passed.FAIL, said)
    if chat.template.dated(prompt):
        return Finding("date", Passed.PASS, f"The template writes a date, which emscope fixes at {TODAY:%d %B %Y}.")
    return Finding("date", Passed.NOT_APPLICABLE, "The template writes no date.")


def _specials(chat: ChatFormat, ids: Sequence[int]) -> Finding:
    """Look at the tokens that begin a prompt and end an answer."""
    tokenizer = chat.tokenizer
    begin, end, close = tokenizer.bos_token_id, tokenizer.eos_token_id, chat.close.strip()
    closing = chat.ids(close)
    doubled = begin is not None and list(ids[:2]) == [begin, begin]
    faults = ["a prompt starts with the beginning-of-text token twice"] * doubled
    faults += ["the template ends an answer with nothing that a model could generate"] * (not close)
    faults += [f"the end of an answer ({close!r}) is {len(closing)} tokens, and the first may occur within an answer"] * (
        len(closing) > 1 and closing[0] not in tokenizer.all_special_ids
    )
    same = bool(closing) and closing[0] == end
    note = (
        "" if same else f", which is not the tokenizer's own end-of-text token ({tokenizer.eos_token!r}): answers end at either"
    )
    return Finding(
        "special tokens",
        Passed.FAIL if faults else Passed.PASS,
        ("; ".join(faults).capitalize() or f"No token is doubled, and an answer ends with {close!r}{note}") + ".",
        {"begins": tokenizer.bos_token, "ends": tokenizer.eos_token, "turn_ends": close, "doubled": doubled},
    )


def examine_vocabulary(tokenizer: Tokenizer, rows: int) -> Finding:
    """Compare the tokenizer's highest token with the rows of the embedding."""
    highest = max(tokenizer.get_vocab().values())
    passed = highest < rows
    said = f"The tokenizer's highest token is {highest}, and the embedding has {rows} rows"
    return Finding(
        "vocabulary",
        Passed.PASS if passed else Passed.FAIL,
        f"{said}."
        if passed
        else f"{said}: tokens beyond them cannot be read; give the tokenizer that belongs to these weights.",
        {"highest": highest, "rows": rows},
    )
