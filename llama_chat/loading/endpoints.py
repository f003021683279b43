"""Plan to use a model on a server: its address, the key, and what encodes messages here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llama_chat.endpoint.address import KEY_VARIABLE, Address, parse_address, read_key
from llama_chat.endpoint.client import Client, Timeouts
from llama_chat.endpoint.served_model import ServedModel
from llama_chat.errors import UsageError
from llama_chat.remote import Encoding, RemoteModel
from llama_chat.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class EndpointPlan:
    """Address of a server, and the model to ask there."""

    address: Address
    client: Client
    model: str
    """Name of the model there; empty for the only one."""
    context: int | None
    """Context length that was asked for."""
    template_path: Path | None
    """Model whose template and tokenizer encode messages here."""
    warnings: tuple[str, ...]
    """Warnings for the user, one line each."""

    def check_fit(self) -> None:
        """Do nothing: no memory is needed here."""

    def check_length(self, text: str) -> None:
        """Do nothing: the server knows what fits."""

    def load(self, report: Callable[[int, int], None] | None = None) -> RemoteModel:
        """Ask the server for its models, and read the tokenizer if it is wanted.

        Args:
            report: called often; it may raise to stop it.

        Raises:
            LlamaChatError: if the server cannot be reached, or refuses.
            UsageError: if the model must be named.
            ModelError: if the tokenizer cannot be read.
        """

        def poll() -> bool:
            if report is not None:
                report(0, 0)
            return False

        served = ServedModel(self.client, self.model)
        served.find(poll)
        if self.template_path is None:
            return RemoteModel(served, None, self.warnings)
        return RemoteModel(served, self._encoding(self.template_path), self.warnings)

    def _encoding(self, path: Path) -> Encoding:
        from llama_chat.loading.formats import load_tokenizer, open_checkpoint, open_tokenizer

        if path.suffix in (".model", ".json"):
            tokenizer, templates = open_tokenizer(path)
            return Encoding(tokenizer, templates, self.context)
        checkpoint = open_checkpoint(path)
        context = self.context or checkpoint.config.context_length
        return Encoding(load_tokenizer(checkpoint), checkpoint.templates, context)


def plan_endpoint(url: str, settings: Settings, template_path: Path | None) -> EndpointPlan:
    """Plan to ask the server at ``url``.

    Args:
        url: its address.
        settings: names of the model and of the file with the key, and longest waits.
        template_path: the model whose template encodes messages here; None if the server does.

    Raises:
        UsageError: if the address or the key cannot be used, or flags contradict each other.
    """
    if settings.is_given_by_flag("model") and settings.is_given_by_flag("endpoint"):
        why, advice = "--endpoint is given too", "--endpoint-model names a model there"
        raise UsageError("--model", why, advice)
    address, key = parse_address(url), read_key(settings)
    if settings.offline and not address.is_here:
        why, advice = "offline is set, and it is on another machine", "leave out offline"
        raise UsageError(address.what, why, advice)
    warnings: tuple[str, ...] = ()
    if key is not None and not address.is_encrypted and not address.is_here:
        why = f"the key and all that is said go to {address.host} without encryption"
        warnings = (f"{address.what}: {why}: use https, or unset {KEY_VARIABLE}",)
    timeouts = Timeouts(settings.endpoint_connect_timeout, settings.endpoint_timeout)
    return EndpointPlan(
        address,
        Client(address, key, timeouts),
        settings.endpoint_model or "",
        settings.context,
        template_path,
        warnings,
    )
