"""Types of transformers and PEFT objects: exactly what emscope relies on in a model, its configuration, its tokenizer and its cache.

Both libraries are annotated, and their annotations say little (what a call of a model gives is anything, and so is every setting); following them
doubles the time of a check. A model is a class below PyTorch's `Module`, not a Protocol: hooks, `modules()` and `to()` are `Module`'s, and a
Protocol would have to write them all down again. What is no `Module` is a Protocol. Nothing here is made at run time, so that this module,
which imports torch, is imported under `TYPE_CHECKING` alone.

Settings that only some models have are read with `getattr(config, name, default)`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, TypedDict

import tokenizers
import torch
from torch import Tensor
from torch.nn import Embedding, Linear, Module, Parameter

from emscope.core.plain import Json, JsonObject

# Tensors by their last axes: B batch, T token, D width of the residual stream, V vocabulary, L layer.
Vector: TypeAlias = Tensor  # [D]
Vectors: TypeAlias = Mapping[int, Vector]  # by block
Stream: TypeAlias = Tensor  # [..., D]
Logits: TypeAlias = Tensor  # [..., V]

Device: TypeAlias = "torch.device | str"
Head: TypeAlias = Callable[[Stream], Logits]
ModuleOutput: TypeAlias = "Tensor | tuple[Tensor, ...]"  # of a block or a part of one: the stream alone, or first of several
Adapted: TypeAlias = "CausalLM | Wrapped"  # what can be trained


class Config(Protocol):
    """A model's configuration."""

    model_type: str
    num_hidden_layers: int
    hidden_size: int
    max_position_embeddings: int
    eos_token_id: int | list[int] | None
    _attn_implementation: str

    def get_text_config(self) -> Config:
        """Return the part about text, itself where there is no other."""
        ...

    def to_dict(self) -> JsonObject:
        """Return the settings as config.json has them."""
        ...

    @classmethod
    def from_dict(cls, config_dict: JsonObject) -> Config:
        """Return the configuration of these settings."""
        ...


class GenerationConfig(Protocol):
    """The default generation settings."""

    eos_token_id: int | list[int] | None


class Cache(Protocol):
    """Keys, values and states of what a model has read, in transformers' form."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows [R], in this order."""
        ...


class Attends(Protocol):
    """Attention in the place of the model's own (`models.fast`)."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that it has to reach over."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """Return [T, H, e] of q [T, H, d] over k [T, K, d] and v [T, K, e]."""
        ...


class BodyOutput(Protocol):
    """The output of a model's body."""

    last_hidden_state: Stream  # [B, T, D], after the last norm


class CausalLMOutput(Protocol):
    """The output of a causal LM."""

    logits: Logits  # [B, T, V], or [B, K, V] of the last K columns


class Placed(Protocol):
    """Tells how much to compute at once: a model, or a stand-in for one."""

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    @property
    def config(self) -> Config:
        """Its configuration."""
        ...


class Matrix(Module):
    """A linear layer: `Linear` with its weight as [out, in], or GPT-2's `Conv1D` with [in, out]."""

    weight: Parameter
    bias: Parameter | None


class Body(Module):
    """A causal LM without its head."""

    @abstractmethod
    def __call__(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        emscope_pack: Attends | None = None,
    ) -> BodyOutput:
        """Read tokens [B, T]."""


class LanguageModel(Module):
    """What reads tokens and gives logits: a causal LM, or one that PEFT has wrapped."""

    config: Config
    device: torch.device
    dtype: torch.dtype
    gradient_checkpointing_enable: Callable[[dict[str, bool]], None]

    @abstractmethod
    def __call__(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> CausalLMOutput:
        """Read tokens [B, T].

        Args:
            logits_to_keep: logits of how many last columns, 0 for all; or of which.
        """


class CausalLM(LanguageModel):
    """A causal LM of transformers, a `PreTrainedModel`.

    Attributes:
        base_model: its body; itself where it is its own. base_model_prefix: the body's name.
    """

    base_model: Body
    base_model_prefix: str
    generation_config: GenerationConfig
    get_decoder: Callable[[], Module]
    get_input_embeddings: Callable[[], Embedding]
    get_output_embeddings: Callable[[], Linear]
    set_attn_implementation: Callable[[str], None]
    tie_weights: Callable[[], None]
    save_pretrained: Callable[..., None]


class LoadingInfo(TypedDict):
    """What did not come from the files of a loaded model."""

    mismatched_keys: set[tuple[str, tuple[int, ...], tuple[int, ...]]]  # name, shape in the file, shape wanted
    missing_keys: set[str]


class Loader(Protocol):
    """A class of transformers that makes models of many architectures, such as `AutoModelForCausalLM`."""

    def from_pretrained(self, folder: str, **settings: object) -> tuple[CausalLM, LoadingInfo]:
        """Load a model, with `output_loading_info`."""
        ...

    def from_config(self, config: Config, **settings: object) -> CausalLM:
        """Make a model of random weights."""
        ...


class LoadResult(Protocol):
    """Names of tensors without a module, and of modules without a tensor."""

    unexpected_keys: list[str]
    missing_keys: list[str]


class PeftSettings(Protocol):
    """A `PeftConfig`."""

    is_prompt_learning: bool
    is_adaption_prompt: bool
    inference_mode: bool
    base_model_name_or_path: str | None


class AdapterLayer(Module):
    """A module of the base with an adapter beside it."""

    get_base_layer: Callable[[], Module]


class Wrapped(LanguageModel):
    """A causal LM that PEFT has put an adapter beside, a `PeftModel`."""

    peft_config: dict[str, PeftSettings]
    load_adapter: Callable[..., LoadResult]
    merge_and_unload: Callable[[], CausalLM]
    unload: Callable[[], CausalLM]
    save_pretrained: Callable[..., None]


class AddedToken(Protocol):
    """A token that was added to a vocabulary by itself."""

    content: str
    special: bool


class Tokenizer(Protocol):
    """A `PreTrainedTokenizerBase`."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    all_special_ids: list[int]
    chat_template: str | dict[str, str] | None

    @property
    def added_tokens_encoder(self) -> Mapping[str, int]:
        """Ids of the added tokens."""
        ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """The added tokens by id."""
        ...

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, list[int]]:
        """Return the ids of a text, as `input_ids`."""
        ...

    def __len__(self) -> int:
        """Return how many tokens there are, added ones included."""
        ...

    def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """Return the text of ids."""
        ...

    def get_vocab(self) -> Mapping[str, int]:
        """Return all tokens' ids."""
        ...

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Json]],
        *,
        chat_template: str | None = None,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **arguments: Json,
    ) -> str:
        """Return turns as text, where `tokenize` is False."""
        ...

    def save_pretrained(self, save_directory: str | Path) -> tuple[str, ...]:
        """Write its files."""
        ...


class FastTokenizer(Tokenizer, Protocol):
    """One that runs in the library `tokenizers`."""

    backend_tokenizer: tokenizers.Tokenizer
