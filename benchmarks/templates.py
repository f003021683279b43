"""Measure what a chat template costs: rendered by Jinja in a child process, and by our own code.

    python -m benchmarks.templates [--model NAME] [--turns 50]

It prints the time that the template adds to the first token of a reply: in the first turn, for
which its process is started, and in later ones. Both ways get the template text of the model.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from llama_chat.chat.conversation import Message
from llama_chat.chat.templates import ChatTemplate, choose_template
from llama_chat.chat.templates.jinja import JinjaTemplate
from llama_chat.checkpoints.template_source import DEFAULT, TemplateSource
from llama_chat.library import find_model
from llama_chat.library.starter import CHAT_TEMPLATE
from llama_chat.loading.formats import open_tokenizer

QUESTION = "Tell me one more surprising fact about the theatre, in a few sentences, please. "
REPLY = "The inn at the end of the lane is older than the town that has grown around it. " * 4


def measure(make: Callable[[], ChatTemplate], n_turns: int, ids: tuple[int, ...]) -> list[float]:
    """Return the seconds of each turn of a conversation, the first with ``make``."""
    messages: list[Message] = []
    seconds = []
    template = None
    for number in range(n_turns):
        began = time.perf_counter()
        template = template or make()
        question = [*messages, Message("user", f"{number}. {QUESTION}")]
        template.render(question)
        template.render([*question, Message("assistant", "", ())], open_reply=True)
        seconds.append(time.perf_counter() - began)
        messages = [*question, Message("assistant", REPLY.strip(), ids)]
        template.render(messages)
    return seconds


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--turns", type=int, default=50)
    args = parser.parse_args()
    tokenizer, source = open_tokenizer(find_model(args.model))
    text = source.texts.get(DEFAULT, CHAT_TEMPLATE)
    ids = tuple(tokenizer.encode(REPLY.strip()))
    tokens = dict(source.tokens)
    ways: dict[str, Callable[[], ChatTemplate]] = {
        "own": lambda: choose_template("auto", TemplateSource({DEFAULT: text}), tokenizer),
        "Jinja": lambda: JinjaTemplate(tokenizer, text, tokens),
    }
    for way, make in ways.items():
        first = [measure(make, 1, ids)[0] for _ in range(10)]
        later = measure(make, args.turns, ids)[1:]
        print(
            f"{way:>6}: first turn {1e3 * statistics.median(first):6.1f} ms"
            f", later ones {1e3 * statistics.median(later):5.2f} ms"
            f" (the last of {args.turns}: {1e3 * later[-1]:.2f} ms)"
        )


if __name__ == "__main__":
    main()
