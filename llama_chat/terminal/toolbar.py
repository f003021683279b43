"""The line below the input."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_chat.chat.session import ChatSession
    from llama_chat.generation.events import Finish


def toolbar(
    session: "ChatSession", model: str, last: "Finish | None", typed: str, width: int
) -> str:
    """Context used with the message being typed, sampling, and the speed of the last reply.

    Args:
        session: the conversation.
        model: the name of the model.
        last: the end of the last reply.
        typed: what stands in the input.
        width: columns of the terminal; what does not fit is left out, the model's name first.
    """
    sampling = session.sampler.sampling
    used, total = session.count(typed), session.engine.context
    context = f"context {used}/{total}"
    settings = f"temp {sampling.temperature:g} · top-p {sampling.top_p:g}"
    parts = [model, context, settings]
    if last is not None:
        speed = f"{last.decode_tok_s:.1f} tok/s · first in {last.timings.ttft_s:.2f} s"
        parts.append(speed)
    for spare in (model, settings):
        if len(" · ".join(parts)) >= width - 1:
            parts.remove(spare)
    return " " + " · ".join(parts)
