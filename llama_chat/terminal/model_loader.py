"""Loading and prefilling in the background, while the input is open.

The worker thread only computes: a model from a plan, rows of the KV cache from token ids.
Conversation, settings and session belong to the main thread, which takes a loaded model when it is
ready for it.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from llama_chat.errors import LlamaChatError
from llama_chat.generation.events import Hooks
from llama_chat.settings.settings import Settings
from llama_chat.terminal.worker import BackgroundWorker, Stopped

if TYPE_CHECKING:
    from llama_chat.chat.session import ChatModel, ChatSession


class Plan(Protocol):
    """Plan of a load."""

    def check_fit(self) -> None:
        """Check that it can be carried out.

        Raises:
            ModelError: if it cannot.
        """

    def load(self, report: Callable[[int, int], None] | None = None) -> "ChatModel":
        """Carry it out; ``report`` is called often, and may raise to stop it."""


class PlanLoad(Protocol):
    """Function that plans a load."""

    def __call__(self, settings: Settings, *, reclaimable: int = 0) -> Plan:
        """Plan to load the model that ``settings`` name; see ``llama_chat.loading.plan.plan``."""


class ModelLoader:
    """Runner of one background job at a time: a load or a prefill."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        """Begin idle.

        Args:
            on_change: called, in any thread, when the state of the job has changed.
        """
        self._worker = BackgroundWorker(on_change)
        self._loaded: ChatModel | None = None
        self._prefix: Sequence[int] = ()
        """Token ids of the last prefill."""
        self.is_loading = False
        """True from the start of a load until its model is taken, or it failed."""

    @property
    def busy(self) -> bool:
        """True while a job runs."""
        return self._worker.busy

    @property
    def progress(self) -> tuple[int, int]:
        """Progress of the job, done and total; total is 0 while unknown."""
        return self._worker.done, self._worker.total

    @property
    def rate(self) -> float:
        """Progress of the job a second; 0 while unknown."""
        return self._worker.rate

    @property
    def error(self) -> BaseException | None:
        """Error that ended the last job, if one did."""
        return self._worker.error

    def load(self, plan: Callable[[], Plan]) -> None:
        """Start loading a model, after stopping the running job.

        Args:
            plan: makes the plan, in the background.
        """

        def job(hooks: Hooks) -> None:
            def report(done: int, total: int) -> None:
                if hooks.should_stop is not None and hooks.should_stop():
                    raise Stopped
                if hooks.on_progress is not None:
                    hooks.on_progress(done, total)

            self._loaded = plan().load(report)

        self.stop()
        self.is_loading = True
        self._worker.start(job)

    def take_loaded(self) -> "ChatModel | None":
        """Return the loaded model, once; None if there is none."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None or not self.busy:
            self.is_loading = False
        return loaded

    def prefill(self, session: "ChatSession", prefix: Sequence[int]) -> None:
        """Start to prefill ``prefix``, unless that runs already; any other job is stopped."""
        if self.busy and prefix == self._prefix:
            return

        def job(hooks: Hooks) -> None:
            # If memory runs out, the message that needs the rows reports it.
            with suppress(LlamaChatError):
                session.prefill_next(prefix, hooks)

        self.stop()
        self._prefix = prefix
        self._worker.start(job)

    def stop(self, *, wait: bool = True) -> None:
        """Stop the running job, wait until it has ended, and discard a loaded model."""
        self._worker.stop(wait=wait)
        self._loaded, self.is_loading = None, False

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the job, at most ``seconds``; returns False if it still runs."""
        return self._worker.wait(seconds)
