"""Texts that are generated under a grammar meet it, with every kind of vocabulary."""

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_chat import Grammar, Llama, Sampling, load
from llama_chat.errors import UsageError
from llama_chat.generation.events import Finish, Token
from llama_chat.generation.sampling import Sampler
from llama_chat.loading.formats import (
    load_tokenizer,
    make_tokenizer,
    open_checkpoint,
    open_tokenizer,
)
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.tokenizer_json import read_json
from tests.meta_folders import ranks, tekken
from tests.model_files import byte_tokenizer, piece_tokenizer, sentencepiece_model, write_llama2c
from tests.schemas import DIGIT, SCHEMAS, SHORT, Schema, closed, optional, several
from tests.test_llama2c import tokenizer_bin
from tests.vocabularies import byte_level_json, piece_json

LIMIT = 400


def valid(text: str, schema: Schema) -> bool:
    """True if a text is JSON and valid under a schema."""
    jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)
    return True


def wander(tokenizer: Tokenizer, grammar: Grammar, seed: int = 0) -> tuple[str, bool]:
    """Sample from random logits; return the text, and whether it is complete."""
    chosen, ends = random.Random(seed), {tokenizer.eos_id or 0}
    constraint = grammar.start(tokenizer, ends)
    sampler = Sampler(Sampling(temperature=1, top_p=1, seed=seed))
    logits = torch.randn(tokenizer.vocab_size + 3, generator=torch.Generator().manual_seed(seed))
    control = set(tokenizer.control_ids.values())
    ids: list[int] = []
    while len(ids) < LIMIT and not constraint.is_finished:
        if forced := constraint.forced():
            ids.append(forced[0])
        else:
            mask = constraint.mask()
            assert mask is not None
            assert all(bool(mask[i]) == constraint.is_complete for i in ends)
            token_id = sampler(logits.roll(chosen.randrange(len(logits))), ids, mask).id
            assert mask[token_id]
            if token_id in ends:
                break
            ids.append(token_id)
        assert ids[-1] not in control
        constraint.accept(ids[-1])
    data = b"".join(map(tokenizer.token_bytes, ids))
    return data.decode("utf-8", "replace"), constraint.is_complete


@pytest.fixture(scope="module")
def tokenizers(
    starter_model: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Tokenizer]:
    """One of every kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    documents = {
        "bytes": byte_level_json(),
        "pieces": piece_json(sentencepiece_model()),
        "metaspace": piece_json(sentencepiece_model(), metaspace=True),
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    write_llama2c(folder / "llama2c" / "stories.bin")
    (folder / "llama2c" / "tokenizer.model").unlink()
    (folder / "llama2c" / "tokenizer.bin").write_bytes(tokenizer_bin())
    (folder / "tokenizer.model").write_bytes(ranks())
    (folder / "tekken.json").write_text(json.dumps(tekken()))
    return [
        load_tokenizer(open_checkpoint(starter_model)),
        load_tokenizer(open_checkpoint(shared_data / "models" / "stories260K")),
        byte_tokenizer(),
        piece_tokenizer(sentencepiece_model()),
        *(make_tokenizer(read_json(folder / f"{name}.json")) for name in documents),
        load_tokenizer(open_checkpoint(folder / "llama2c" / "stories.bin")),
        open_tokenizer(folder / "tokenizer.model")[0],
        open_tokenizer(folder / "tekken.json")[0],
    ]


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Llama:
    return load(shared_data / "models" / "stories260K")


def test_every_kind_of_vocabulary_keeps_to_every_schema(tokenizers: list[Tokenizer]) -> None:
    for number, (name, schema) in enumerate(SCHEMAS.items()):
        grammar = Grammar.json_schema(schema)
        for tokenizer in (tokenizers[(number + step) % len(tokenizers)] for step in (0, 2, 3)):
            text, complete = wander(tokenizer, grammar, number)
            assert complete, (name, text)
            assert valid(text, schema)


@pytest.mark.parametrize("prompt", ["Once upon a time", "Answer with JSON: ", "日本 🦙"])
def test_what_a_model_writes_is_valid(prompt: str, stories: Llama) -> None:
    for seed, (name, schema) in enumerate(SCHEMAS.items(), 3):
        events = list(
            stories.generate(
                stories.prompt_ids(prompt),
                Sampling(temperature=1, seed=seed),
                max_tokens=LIMIT,
                grammar=Grammar.json_schema(schema),
            )
        )
        finish = events[-1]
        assert isinstance(finish, Finish)
        assert finish.meets_grammar, name
        assert finish.reason == "stop" or name == "number"  # it may have any number of digits
        assert valid("".join(event.text for event in events), schema)


def test_a_chat_answers_with_json_too(starter_model: Path) -> None:
    llama = load(starter_model)
    for name in ("person", "union of objects", "Unicode enum", "nullable", "date"):
        schema = SCHEMAS[name]
        session = llama.chat(
            sampling=Sampling(temperature=0), max_tokens=60, grammar=Grammar.json_schema(schema)
        )
        events = list(session.send("Make one up."))
        assert valid("".join(event.text for event in events), schema)
        assert session.conversation.head is not None
        assert valid(session.conversation.head.text, schema)


texts = st.text('ab é日🦙\n"\\\0', max_size=4)
whole = st.integers(-(2**53), 2**53)
leaves = st.sampled_from(
    [SHORT, DIGIT, {"type": "boolean"}, {"type": "null"}, {"type": "string", "pattern": "^a{1,3}$"}]
) | st.builds(
    lambda values: {"enum": values},
    st.lists(
        texts | whole | st.decimals(-1000, 1000, places=4).map(float) | st.none(),
        min_size=1,
        max_size=3,
    ),
)
schemas = st.recursive(
    leaves,
    lambda inner: (
        st.dictionaries(texts, inner, max_size=3).map(lambda parts: closed(**parts))
        | inner.map(lambda items: several(items, 0, 2))
        | st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
    ),
    max_leaves=6,
)


@settings(max_examples=40)
@given(schemas, st.integers(0, 2**32), st.integers(0, 9))
def test_random_schemas_on_random_logits(
    tokenizers: list[Tokenizer], schema: Schema, seed: int, kind: int
) -> None:
    text, complete = wander(tokenizers[kind], Grammar.json_schema(schema), seed)
    assert complete
    assert valid(text, schema)


def test_regular_expressions_and_grammars_hold_from_end_to_end(
    tokenizers: list[Tokenizer],
) -> None:
    lark = 'start: greeting " " NAME ("!" | "?")\ngreeting: "Hello" | "Grüß dich"\nNAME: /[A-Z]{3}/'
    for tokenizer in tokenizers:
        for seed in range(3):
            for pattern in ("", "a{0}", "(yes|no)", r" [0-9]{2,4}\n\t", "ab{0,30}", "(é|🦙){2}"):
                text, complete = wander(tokenizer, Grammar.regex(pattern), seed)
                assert complete
                assert re.fullmatch(pattern, text)
            text, complete = wander(tokenizer, Grammar.lark(lark), seed)
            assert re.fullmatch("(Hello|Grüß dich) [A-Z]{3}[!?]", text)


def tokens(llama: Llama, grammar: Grammar | None, **options: Any) -> list[Token]:
    events = llama.generate(
        llama.prompt_ids("Once"), Sampling(temperature=0), grammar=grammar, **options
    )
    return [event for event in events if isinstance(event, Token)]


def test_forced_tokens_are_evaluated_together(
    stories: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    forward = stories.backend.forward

    def counted(ids: list[int], *arguments: Any, **options: Any) -> torch.Tensor:
        passes.append(len(ids))
        return forward(ids, *arguments, **options)

    monkeypatch.setattr(stories.backend, "forward", counted)
    fixed = "a text of which every single character is known before"
    grammar = Grammar.regex(f"(yes|no), {fixed} (a|b)")
    written = tokens(stories, grammar, lookup=False)
    assert "".join(token.text for token in written)[:-1].endswith(fixed + " ")
    assert len(written) > 20
    assert len(passes) < 10
    assert max(passes) > 20
    assert sum(token.logprob == 0 for token in written) > 20


def test_drafts_change_no_token(stories: Llama) -> None:
    path = stories.checkpoint.path
    grammar = Grammar.json_schema(several(closed(name=SHORT, age=DIGIT), 3, 4))
    alone = [token.id for token in tokens(stories, grammar, lookup=False)]
    for llama in (stories, load(path, draft=path)):
        for lookup in (True, False):
            assert [token.id for token in tokens(llama, grammar, lookup=lookup)] == alone


def test_the_cache_follows_forced_tokens(stories: Llama) -> None:
    grammar = Grammar.regex("forced words before a choice: (yes|no) and words after it[.!]")
    prompt = stories.prompt_ids("Once")
    written = [token.id for token in tokens(stories, grammar)]
    cached = list(stories._engine.cache.ids)
    assert cached == [*prompt, *written][: len(cached)]
    assert len(cached) >= len(prompt) + len(written) - 1
    warm = stories._engine.prefill([*prompt, *written])
    assert torch.allclose(warm, stories.engine().prefill([*prompt, *written]), atol=1e-4)


def test_a_limit_or_a_stop_string_leaves_it_unmet(stories: Llama) -> None:
    def finish(**options: Any) -> tuple[str, bool | None]:
        *_, last = stories.generate(stories.prompt_ids("Once"), **options)
        assert isinstance(last, Finish)
        return last.reason, last.meets_grammar

    digits = Grammar.regex("[0-9]{8}")
    assert finish(grammar=digits, max_tokens=3) == ("length", False)
    assert finish(grammar=Grammar.regex("[0-9]{1,8}"), max_tokens=1) == ("length", True)
    assert finish(grammar=Grammar.regex("a{2}"), max_tokens=2) == ("stop", True)
    assert finish(grammar=Grammar.regex("known words"), stop=["wor"]) == ("stop", False)
    assert finish(max_tokens=1) == ("length", None)


BAD = {
    "{": "it is not JSON",
    "[]": "it is no object",
    '{"type": "strin"}': "Invalid type",
    '{"not": {"type": "string"}}': "Unimplemented keys",
    '{"enum": []}': "Unsatisfiable",
    '{"enum": [1, {"a": [9007199254740993]}]}': "9007199254740993 has too many digits",
    '{"const": 0.12345678901234567}': "0.12345678901234566 has too many digits",
    '{"maximum": 1e-300}': "1e-300 has too many digits",
    '{"maximum": NaN}': "not JSON",
    '{"type": "object", "minProperties": 2}': "minProperties 2 cannot be enforced",
    '{"patternProperties": {"^ab$": {}}, "additionalProperties": false, "minProperties": 3}': (
        "minProperties 3 cannot be enforced"
    ),
    '{"properties": {"enum": {"items": {"required": ["a"], "minProperties": 3}}}}': (
        "minProperties 3 cannot be enforced"
    ),
    '{"allOf": [{"minProperties": 3}, {"required": ["a"]}]}': "minProperties 3 cannot be enforced",
    '{"$ref": "#"}': "no text can meet it",
    '{"$ref": "http://example.com/x"}': "not present",
    '{"$ref": "file:///etc/passwd"}': "not present",
    '{"type": "array", "items": ' * 2000 + "{}" + "}" * 2000: "not JSON",
    '{"type": "array", "items": ' * 400 + "{}" + "}" * 400: "recursion limit",
}


def test_bad_grammars_are_one_short_line() -> None:
    for schema, why in BAD.items():
        with pytest.raises(UsageError, match=re.escape(why)) as caught:
            Grammar.json_schema(schema)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 260
    for make, text in (
        (Grammar.regex, "a("),
        (Grammar.regex, "(" * 100_000),
        (Grammar.regex, "a(?=b)"),
        (Grammar.lark, "start: foo"),
        (Grammar.lark, "start: " + "(" * 100_000),
        (Grammar.lark, ""),
        (Grammar.lark, "\x1b[2J\0"),
    ):
        with pytest.raises(UsageError) as caught:
            make(text)
        assert str(caught.value).isprintable()


def test_what_no_text_of_a_vocabulary_can_meet_says_so(starter_model: Path) -> None:
    llama = load(starter_model)
    grammar = Grammar.regex("a\U00040000b")  # it lacks tokens for these bytes
    with pytest.raises(UsageError, match="no text can meet it"):
        tokens(llama, grammar)


def test_a_grammar_that_becomes_too_complex_is_an_error_of_its_author(stories: Llama) -> None:
    grammar = Grammar.json_schema(optional(600))
    with pytest.raises(UsageError, match=r"JSON schema: Current row .*write a simpler one"):
        tokens(stories, grammar)
