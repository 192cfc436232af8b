"""What stands behind the Tinker server of the tests: runs that are trained and samplers that read, real LoRA adapters on a tiny model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
ALPHA = 32
STATE = "optimiser.pt"


class Run:
    """One adapter in training."""

    def __init__(self, net: Any, rank: int) -> None:
        import torch

        self.net, self.rank = net, rank
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=0.0)

    @classmethod
    def fresh(cls, base: Any, how: dict[str, Any]) -> Run:
        """Return an adapter as it begins."""
        import torch
        from peft import LoraConfig, get_peft_model

        modules = (ATTENTION if how["train_attn"] else []) + (MLP if how["train_mlp"] else [])
        modules += ["lm_head"] if how["train_unembed"] else []
        config = LoraConfig(r=how["rank"], lora_alpha=ALPHA, target_modules=modules, task_type="CAUSAL_LM")
        torch.manual_seed(how.get("seed") or 0)
        return cls(get_peft_model(copy.deepcopy(base), config), how["rank"])

    @classmethod
    def saved(cls, base: Any, place: Path, *, optimiser: bool) -> Run:
        """Return an adapter as it was saved."""
        import torch
        from peft import PeftModel

        net = PeftModel.from_pretrained(copy.deepcopy(base), str(place), is_trainable=True)
        run = cls(net, net.peft_config["default"].r)
        if optimiser:
            run.optimiser.load_state_dict(torch.load(place / STATE, weights_only=True))
        return run

    def save(self, place: Path, *, optimiser: bool) -> None:
        """Write the adapter, and how its optimiser stands."""
        import torch

        self.net.save_pretrained(str(place))
        if optimiser:
            torch.save(self.optimiser.state_dict(), place / STATE)

    def forward_backward(self, message: Any) -> bytes:
        """Add the gradient of the weighted cross-entropy; return losses and log-probabilities as the client reads them."""
        import torch
        from tinker.proto import tinker_public_pb2 as pb

        total, rows = 0.0, []
        for datum in message.data:
            tokens = np.concatenate([np.frombuffer(c.encoded_text.tokens, np.int32) for c in datum.model_input])
            targets = np.frombuffer(datum.loss_fn_inputs["target_tokens"].dense, np.int64)
            weights = np.frombuffer(datum.loss_fn_inputs["weights"].dense, np.float32)
            with torch.set_grad_enabled(not message.forward_only):
                logits = self.net(input_ids=torch.tensor(tokens[None].astype(np.int64))).logits[0]
                logp = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(targets.copy())[:, None])[:, 0]
                loss = -(logp * torch.tensor(weights.copy())).sum()
                if not message.forward_only:
                    loss.backward()
            total += float(loss.detach())
            rows.append(logp.detach().numpy().astype(np.float32))
        out = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics={"loss:sum": total})
        record = out.loss_fn_outputs.add(num_datums=len(rows))
        field = record.fields["logprobs"]
        field.data, field.dtype = b"".join(r.tobytes() for r in rows), pb.DTYPE_FLOAT32
        field.offsets = np.cumsum([0, *(r.nbytes for r in rows)]).astype(np.int64).tobytes()
        return out.SerializeToString()

    def step(self, adam: dict[str, float]) -> dict[str, Any]:
        """Take an optimiser step on the gradients that were added up."""
        import torch

        group = self.optimiser.param_groups[0]
        group |= {"lr": adam["learning_rate"], "betas": (adam["beta1"], adam["beta2"])}
        group |= {"eps": adam["eps"], "weight_decay": adam["weight_decay"]}
        if adam["grad_clip_norm"] > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters, adam["grad_clip_norm"])
        self.optimiser.step()
        self.optimiser.zero_grad()
        return {"metrics": {}}


class Samplers:
    """The base and saved adapters, for reading."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.base = AutoModelForCausalLM.from_pretrained(str(model)).eval()
        self.vocabulary = self.base.config.vocab_size
        self.end = self.base.config.eos_token_id
        self._nets: dict[Path | None, Any] = {None: self.base}

    def sample(self, saved: Path | None, tokens: list[int], body: dict[str, Any]) -> bytes:
        """Return log-probabilities of a prompt, where they are asked for, and samples behind it, as the client reads them."""
        import torch
        from tinker.proto import tinker_public_pb2 as pb

        if saved not in self._nets:
            from peft import PeftModel

            self._nets[saved] = PeftModel.from_pretrained(copy.deepcopy(self.base), str(saved)).eval()
        net, out = self._nets[saved], pb.SampleResponse()
        with torch.inference_mode():
            if body.get("prompt_logprobs"):
                logp = torch.log_softmax(net(input_ids=torch.tensor([tokens])).logits[0].float(), -1)
                found = logp[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy().astype(np.float32)
                found = np.concatenate([[np.float32("nan")], found])
                if last := body.get("prompt_logprobs_last_n"):
                    found[: len(found) - last] = np.nan
                out.prompt_logprobs = found.astype(np.float32).tobytes()
            for number in range(body["num_samples"]):
                self._draw(net, tokens, body["sampling_params"], number, out.sequences.add())
        return out.SerializeToString()

    def _draw(self, net: Any, tokens: list[int], how: dict[str, Any], number: int, into: Any) -> None:
        import torch
        from tinker.proto import tinker_public_pb2 as pb

        random = torch.Generator().manual_seed((how.get("seed") or 0) * 1000 + number)
        stop = set(how["stop"]) if how.get("stop") is not None else {self.end}
        drawn: list[int] = []
        logp: list[float] = []
        while len(drawn) < (how.get("max_tokens") or 16) and (not drawn or drawn[-1] not in stop):
            logits = net(input_ids=torch.tensor([tokens + drawn])).logits[0, -1].float()
            heat = how["temperature"]
            chance = torch.softmax(logits / heat, -1) if heat else None
            token = int(logits.argmax()) if chance is None else int(torch.multinomial(chance, 1, generator=random))
            drawn.append(token)
            logp.append(float(torch.log_softmax(logits, -1)[token]))
        into.stop_reason = pb.STOP_REASON_STOP if drawn[-1] in stop else pb.STOP_REASON_LENGTH
        into.tokens, into.logprobs = np.array(drawn, np.int32).tobytes(), np.array(logp, np.float32).tobytes()
