"""Decides what a request may ask for: the fields of OpenAI's API that a model for text can answer, each with its range."""

import difflib
import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator
from pydantic_core import from_json

from packtrain.serve.refusal import Refusal

MAX_STOPS, MAX_STOP_CHARS = 4, 1000
MAX_TEXTS, MAX_ALTERNATIVES, MAX_MESSAGES = 128, 20, 1000
_PENALTY = Field(ge=-2.0, le=2.0)
_Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
_Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]
_IdLists = Annotated[list[_Ids], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]

# Fields that say nothing about the text: they are accepted and have no effect.
IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "verbosity", "reasoning_effort"),
)
# Fields of OpenAI's API that this model cannot answer, with the value that asks for nothing.
_UNANSWERED: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
    "prompt_cache_options": (),
}


class StreamOptions(BaseModel):
    """What a stream has besides its pieces."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool = False
    """Accepted, and without effect."""


class Wanted(BaseModel):
    """The fields that both kinds of request have. The default of each is OpenAI's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    temperature: FiniteFloat = Field(1.0, ge=0.0, le=100.0)
    top_p: FiniteFloat = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0)
    min_p: FiniteFloat = Field(0.0, ge=0.0, le=1.0)
    repetition_penalty: FiniteFloat = Field(1.0, gt=0.0, le=100.0)
    presence_penalty: Annotated[FiniteFloat, _PENALTY] = 0.0
    frequency_penalty: Annotated[FiniteFloat, _PENALTY] = 0.0
    logit_bias: dict[str, Annotated[FiniteFloat, Field(ge=-100.0, le=100.0)]] = Field({}, max_length=1024)
    n: int = Field(1, ge=1, le=MAX_TEXTS)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: list[_Stop] = Field([], max_length=MAX_STOPS)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionWanted(Wanted):
    """A request to /v1/completions."""

    prompt: str | _Ids | _Texts | _IdLists = Field(union_mode="left_to_right")
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)
    best_of: int | None = Field(None, ge=1, le=MAX_TEXTS)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt: a text, or ids."""
        given: Any = self.prompt
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given


class TextPart(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatWanted(Wanted):
    """A request to /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)


Kind = TypeVar("Kind", bound=Wanted)


def read_wanted(body: bytes, kind: type[Kind]) -> Kind:
    """The request in a body of JSON. Raises Refusal, which names the field that is at fault."""
    try:
        given = from_json(body)
    except ValueError as error:
        # Its message may quote the text.
        what = str(error).partition(" at line ")
        place = f" at line {what[2]}" if what[1] else ""
        raise Refusal(400, f"the body is not JSON{place}; send one JSON object in UTF-8", code="invalid_json") from None
    if not isinstance(given, dict):
        raise Refusal(400, "the body is not a JSON object; send {...} with the fields of the request")
    if "stop" in given and isinstance(given["stop"], list) and len(given["stop"]) > MAX_STOPS:
        raise Refusal(400, f"there are {len(given['stop'])} stop strings; give at most {MAX_STOPS}", param="stop")
    asked = _leave_out_what_says_nothing(given, kind)
    try:
        return kind.model_validate(asked)
    except ValidationError as failure:
        raise _explain(failure, kind) from None


def _leave_out_what_says_nothing(given: dict[str, Any], kind: type[Wanted]) -> dict[str, Any]:
    kept = {}
    for name, value in given.items():
        if value is None or (name in IGNORED and name not in kind.model_fields):
            continue
        if name in _UNANSWERED:
            if value not in _UNANSWERED[name]:
                raise Refusal(400, f"this model does not support {name}; leave it out", param=name, code="unsupported")
            continue
        kept[name] = value
    return kept


def _explain(failure: ValidationError, kind: type[Wanted]) -> Refusal:
    # Of a union, the branch that got furthest says what is wrong.
    errors = failure.errors(include_input=False, include_url=False)
    error = max(errors, key=lambda each: len(each["loc"]))
    field = str(error["loc"][0])
    param = ".".join(str(part) for part in error["loc"] if not _is_branch(part))[:100]
    if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
        near = difflib.get_close_matches(field[:60], kind.model_fields, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; leave it out"
        return Refusal(
            400, f"there is no field {json.dumps(field[:60])}{hint}", param=field[:60], code="unknown_parameter"
        )
    if error["type"] == "missing":
        return Refusal(400, f"{param} is missing; the request needs it", param=param, code="missing_required_parameter")
    if field == "prompt":
        need = f"a string, a list of token ids, or a list of up to {MAX_TEXTS} of either, none of them empty"
        return Refusal(400, f"prompt does not fit; give {need}", param="prompt", code="invalid_value")
    message = error["msg"][:1].lower() + error["msg"][1:]
    return Refusal(400, f"{param} does not fit: {message}", param=param, code="invalid_value")


def _is_branch(part: str | int) -> bool:
    """Whether a part of a location names a branch of a union and not a field."""
    return isinstance(part, str) and (part in ("str", "int") or "[" in part)
