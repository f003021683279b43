"""Prompts of clients, encoded for the scheduler; text of theirs never becomes a control token."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from llama_chat.chat.choices import check_choices, reply_ids
from llama_chat.chat.context_use import no_space
from llama_chat.chat.conversation import Message
from llama_chat.chat.receipts import Describe, GenerationInputs, describe, fingerprint_of
from llama_chat.chat.templates import ChatTemplate
from llama_chat.errors import UsageError
from llama_chat.generation.continuation import Request
from llama_chat.generation.engine import check_least, prompt_too_long
from llama_chat.generation.events import Finish, Token
from llama_chat.generation.sampling import Sampler
from llama_chat.llama import Llama
from llama_chat.server.schema import ChatMessage, ChatRequest, CompletionRequest, TokenizeRequest
from llama_chat.settings.sampling import Sampling
from llama_chat.settings.settings import Settings
from llama_chat.tokenizers.base import AtLeast, Tokenizer


class Prompts:
    """Encoder of requests for one model, with the settings of the server where they give none."""

    def __init__(self, llama: Llama, settings: Settings) -> None:
        """Encode for ``llama``."""
        self._llama = llama
        self._settings = settings
        self._template: ChatTemplate = llama.template(settings.template, settings.template_name)
        fingerprint_of(llama)  # kept: by the first receipt the files may be those of another model

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._llama.name

    def has(self, model: str) -> bool:
        """True if a client may mean the model by this name: its own, or that it was started by."""
        return model in (self.name, self._settings.model)

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model."""
        return self._llama.tokenizer

    def chat(self, body: ChatRequest) -> list[Request]:
        """Encode a dialog; a last message of the assistant is continued.

        Raises:
            UsageError: if its roles do not alternate.
            PromptTooLongError: if it leaves no space for a reply.
        """
        messages = _messages(body.messages)
        question = messages[-1].text.strip()  # checked as commands do
        check_least(self.tokenizer.min_tokens(question), self._llama.context)
        least = AtLeast(self._template.min_tokens(messages))
        if least > self._llama.context:
            raise no_space(least, self._llama.context)
        ids = self._template.render(messages, open_reply=True)
        if len(ids) >= self._llama.context:
            raise no_space(len(ids), self._llama.context)
        continues = messages[-1].role == "assistant"
        grammar = body.grammar()
        choices = self._choices(messages, len(ids), body.own.choices)
        return [
            Request(
                ids,
                sampler,
                body.limit or self._settings.max_tokens,
                self._settings.stop if body.stop is None else body.stop,
                self._template.end_ids,
                leading="keep" if continues else "strip",
                grammar=grammar,
                choices=choices,
            )
            for sampler in self._samplers(body)
        ]

    def _choices(
        self, messages: Sequence[Message], n_prompt: int, texts: Sequence[str]
    ) -> list[list[int]]:
        """Encode replies to score.

        Raises:
            UsageError: if one is empty, or two are the same.
        """
        if texts:
            check_choices(texts)
        ends = self._llama.end_ids | self._template.end_ids
        return [reply_ids(self._template, messages, text, n_prompt, ends) for text in texts]

    def completions(self, body: CompletionRequest) -> list[Request]:
        """Encode raw texts, or take the ids of such.

        Raises:
            PromptTooLongError: if one exceeds the context.
            UsageError: if an id is not in the vocabulary, or there are none.
        """
        limit = body.limit or self._settings.max_tokens
        stop = self._settings.stop if body.stop is None else body.stop
        grammar = body.grammar()
        own = body.own
        return [
            Request(
                ids,
                sampler,
                limit,
                stop,
                own.end_ids,
                min(own.n_begun, len(ids)),
                own.leading or self._llama.leading(ids),
                grammar,
            )
            for ids in map(self._ids, body.prompts)
            for sampler in self._samplers(body)
        ]

    def text(self, prompt: str | list[int]) -> str:
        """Return the text of a raw prompt."""
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._llama.prompt_ids(prompt)
        if not prompt:
            raise UsageError("prompt", "it has no token", "give one or more")
        if max(prompt) >= self.tokenizer.vocab_size:
            raise UsageError("prompt", "an id is not in the vocabulary", "tokenize a text")
        if len(prompt) > self._llama.context:
            raise prompt_too_long(len(prompt), self._llama.context)
        return prompt

    def describe(self, body: ChatRequest | CompletionRequest, request: Request) -> Describe:
        """Return the function that describes the answer to a request; see ``receipts``.

        Of choices it names the tokens.
        """
        if request.choices:
            return self._name_tokens
        template = self._template if isinstance(body, ChatRequest) else None
        asked = GenerationInputs.of_request(request, template)
        return describe(self._llama, self._settings, lambda: asked, body.n_logprobs or 0)

    def _name_tokens(self, tokens: Sequence[Token], finish: Finish) -> dict[str, Any]:
        ids = {token_id for each in finish.scored for token_id in each.ids}
        return {"pieces": {str(token_id): self.tokenizer.piece(token_id) for token_id in ids}}

    def tokenize(self, body: TokenizeRequest) -> dict[str, Any]:
        """Encode a text, for ``/v1/tokenize``.

        Raises:
            PromptTooLongError: if it exceeds the context.
        """
        tokenizer = self.tokenizer
        check_least(tokenizer.min_tokens(body.text), self._llama.context)
        ids = self._llama.prompt_ids(body.text) if body.add_special else tokenizer.encode(body.text)
        return {"tokens": ids, "count": len(ids), "max_model_len": self._llama.context}

    def _samplers(self, body: ChatRequest | CompletionRequest) -> list[Sampler]:
        """Make a sampler for each choice; each has another seed, and that of null is drawn."""
        wanted = {each.name: getattr(body, each.name) for each in fields(Sampling)}
        given = {name: value for name, value in wanted.items() if value is not None}
        if "seed" in body.model_fields_set:
            given["seed"] = None if body.seed is None else body.seed % 2**63
        sampling: Sampling = replace(self._settings.sampling, **given)
        with_logprobs = body.own.tokens or body.n_logprobs is not None
        seeds = [
            None if sampling.seed is None else (sampling.seed + i) % 2**63 for i in range(body.n)
        ]
        return [
            Sampler(replace(sampling, seed=seed), with_logprobs=with_logprobs) for seed in seeds
        ]


def _messages(given: Sequence[ChatMessage]) -> list[Message]:
    """Return a dialog as templates take it: neighbours of one role are joined.

    Raises:
        UsageError: if a system message follows others, or the first is not the user's.
    """
    texts: list[tuple[str, str]] = []
    for message in given:
        role = "system" if message.role == "developer" else message.role
        if texts and texts[-1][0] == role:
            texts[-1] = role, f"{texts[-1][1]}\n\n{message.text}"
        else:
            texts.append((role, message.text))
    turns = texts[1:] if texts[0][0] == "system" else texts
    if any(role == "system" for role, _ in turns):
        raise UsageError("messages", "a system message follows others", "put it first")
    if not turns or turns[0][0] != "user":
        raise UsageError("messages", "the first is not the user's", "begin with the user")
    return [Message(role, text) for role, text in texts]  # type: ignore[arg-type] # a checked role
