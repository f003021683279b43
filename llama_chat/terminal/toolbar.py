"""The line below the input."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_chat.chat.session import ChatSession
    from llama_chat.generation.events import Finish


def toolbar(session: "ChatSession", model: str, last: "Finish | None", typed: str) -> str:
    """Model, context used with the message being typed, sampling, and the speed of the last reply.

    Args:
        session: the conversation.
        model: the name of the model.
        last: the end of the last reply.
        typed: what stands in the input.
    """
    used, total = session.count(typed), session.engine.context
    sampling = session.sampler.sampling
    parts = [
        model,
        f"context {used}/{total} ({used / total:.0%})",
        f"temperature {sampling.temperature:g}",
        f"top-p {sampling.top_p:g}",
    ]
    if last is not None:
        parts.append(f"{last.decode_tok_s:.1f} tokens/s")
        parts.append(f"first after {last.timings.ttft_s:.2f} s")
    return " " + " · ".join(parts)
