"""The thread that computes: a scheduler, and the jobs of clients."""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llama_chat.errors import LlamaChatError, PromptTooLongError, UsageError, unexpected
from llama_chat.generation.batch import BatchedSequence, Scheduler
from llama_chat.generation.continuation import Request
from llama_chat.generation.events import Event, Finish

Deliver = Callable[[int, Event | LlamaChatError], object]
"""Called on the worker thread with the number of a continuation and its next event."""


@dataclass(eq=False)
class Job:
    """The continuations that one client waits for."""

    encode: Callable[[], Sequence[Request]]
    deliver: Deliver
    sequences: dict[BatchedSequence, int] = field(default_factory=dict)
    """Those that go on, with their numbers."""
    is_cancelled: bool = False
    has_failed: bool = False


@dataclass
class Counts:
    """Totals since the start."""

    requests: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class ModelWorker:
    """A thread that owns the model: everything that computes or encodes happens there."""

    def __init__(self, scheduler: Scheduler, max_jobs: int) -> None:
        """Start it.

        Args:
            scheduler: computes the sequences; only this thread uses it from now on.
            max_jobs: limit on the jobs that are accepted at a time.
        """
        self.counts = Counts()
        self.max_jobs = max_jobs
        self._scheduler = scheduler
        self._jobs: set[Job] = set()
        self._keys: dict[BatchedSequence, Job] = {}
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    @property
    def n_jobs(self) -> int:
        """Number of jobs that are accepted and not complete."""
        return len(self._jobs)

    @property
    def is_full(self) -> bool:
        """True if no further job is accepted."""
        return self.n_jobs >= self.max_jobs

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of running and waiting sequences, of stored prefixes, and bytes of all caches."""
        scheduler = self._scheduler
        return {
            "running_sequences": scheduler.n_running,
            "waiting_sequences": scheduler.n_waiting,
            "stored_prefixes": len(scheduler.store),
            "cache_bytes": scheduler.n_bytes,
        }

    def submit(self, encode: Callable[[], Sequence[Request]], deliver: Deliver) -> Job:
        """Begin a job, whose prompts ``encode`` makes on the worker thread."""
        job = Job(encode, deliver)
        self._jobs.add(job)
        self._tasks.put(lambda: self._begin(job))
        return job

    def cancel(self, job: Job) -> None:
        """End a job at the next token; nothing more is delivered, unless it is complete."""
        job.is_cancelled = True
        self._tasks.put(lambda: self._end(job))

    def end_all(self, error: LlamaChatError) -> None:
        """End all jobs with an error, at once: the pass that runs is not waited for."""
        for job in list(self._jobs):
            job.deliver(0, error)
            self.cancel(job)
            self._jobs.discard(job)

    def call(self, task: Callable[[], object]) -> None:
        """Run something else on the worker thread."""
        self._tasks.put(task)

    def stop(self) -> None:
        """End the thread after the pass that it computes."""
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                while True:
                    task = self._tasks.get(block=not self._keys)
                    if task is None:
                        return
                    task()
            for sequence, event in self._step():
                self._deliver(sequence, event)

    def _step(self) -> Sequence[tuple[BatchedSequence, Event | LlamaChatError]]:
        """Run a pass; an error of the whole pass is that of every sequence."""
        try:
            return self._scheduler.step()
        except Exception as error:
            failed = _as_ours(error)
        updates = [(sequence, failed) for sequence in self._keys]
        for sequence in self._keys:
            self._scheduler.cancel(sequence)
        return updates

    def _begin(self, job: Job) -> None:
        if job.is_cancelled:
            return
        self.counts.requests += 1
        try:
            for number, request in enumerate(job.encode()):
                sequence = self._scheduler.add(request)
                job.sequences[sequence], self._keys[sequence] = number, job
        except Exception as error:
            failed = _as_ours(error)
            self._fail(job, failed)
            job.deliver(0, failed)
            self._end(job)

    def _deliver(self, sequence: BatchedSequence, event: Event | LlamaChatError) -> None:
        job = self._keys[sequence]
        number = job.sequences[sequence]
        if isinstance(event, Finish):
            self._count(event)
        if isinstance(event, Finish | LlamaChatError):
            del job.sequences[sequence], self._keys[sequence]
        if isinstance(event, LlamaChatError):
            self._fail(job, event)
        if not job.is_cancelled:
            job.deliver(number, event)
        if not job.sequences:
            self._jobs.discard(job)

    def _fail(self, job: Job, error: LlamaChatError) -> None:
        """Count a job as failed, once for all its sequences, unless its client is at fault."""
        self.counts.failed += not job.has_failed and not _is_of_client(error)
        job.has_failed = True

    def _count(self, finish: Finish) -> None:
        usage = finish.usage
        self.counts.prompt_tokens += usage.prompt_tokens
        self.counts.cached_tokens += usage.cached_tokens
        self.counts.completion_tokens += usage.completion_tokens

    def _end(self, job: Job) -> None:
        """Take the sequences of a job out, if there are any left."""
        self.counts.cancelled += job.is_cancelled and job in self._jobs
        for sequence in job.sequences:
            self._scheduler.cancel(sequence)
            del self._keys[sequence]
        job.sequences.clear()
        self._jobs.discard(job)


def _is_of_client(error: LlamaChatError) -> bool:
    """True for an error of a request, not of the server."""
    return isinstance(error, UsageError | PromptTooLongError)


def _as_ours(error: Exception) -> LlamaChatError:
    """Return an error itself, or the line about a bug as one of ours."""
    if isinstance(error, LlamaChatError):
        return error
    return LlamaChatError("server", unexpected(error), "see its log")
