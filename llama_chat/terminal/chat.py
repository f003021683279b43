"""A conversation on a terminal: its model, its settings and its file."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llama_chat.chat.conversation import Attachment, Conversation, Message
from llama_chat.chat.conversation_file import ConversationFile
from llama_chat.chat.prompt_files import PromptFile
from llama_chat.chat.prompted_settings import PromptedSettings
from llama_chat.chat.records import ModelTag, keep_valid_ids
from llama_chat.errors import LlamaChatError, SaveError, UsageError
from llama_chat.generation.events import Finish
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.setting import Value
from llama_chat.settings.settings import DEFAULT_SOURCE, Settings
from llama_chat.terminal.advice import in_chat, line_in_chat
from llama_chat.terminal.interrupts import Interrupted, Interrupts
from llama_chat.terminal.model_loader import ModelLoader, PlanLoad
from llama_chat.terminal.progress import PREFILL_DELAY_S, progress
from llama_chat.terminal.renderer import Renderer
from llama_chat.terminal.replying import show_reply
from llama_chat.terminal.theme import Background

if TYPE_CHECKING:
    from llama_chat.chat.context_use import ContextUse
    from llama_chat.chat.session import ChatModel, ChatSession

_POLL_S = 0.05


class Chat:
    """State of the chat, and the operations of the commands on it."""

    def __init__(
        self,
        settings: Settings,
        plan_load: PlanLoad,
        prompt: PromptFile | None,
        interrupts: Interrupts,
    ) -> None:
        """Begin a conversation; the model is loaded by ``load``.

        Args:
            settings: the settings in force without the prompt file.
            plan_load: plans to load the model that the settings name.
            prompt: a prompt file to begin with.
            interrupts: tells of Ctrl-C, and of signals that end the chat.
        """
        self._settings = PromptedSettings(settings)
        self.background = Background()
        self.renderer = Renderer(settings, self.background)
        self.conversation = Conversation(settings.system)
        self.file = ConversationFile()
        self.tag = ModelTag()
        """Model that the token ids in the conversation come from."""
        self.model: ChatModel | None = None
        self.session: ChatSession | None = None
        self.interrupts = interrupts
        self.loader = ModelLoader(lambda: self.on_change())
        self.on_change: Callable[[], None] = lambda: None
        """Called, in any thread, when a background job made progress or has ended."""
        self.attachments: list[Attachment] = []
        """Texts to put in front of the next message."""
        self.variables: Mapping[str, str] = {}
        """Texts for the slots of prompt files."""
        self.reply_prefix = ""
        """Text with which the next reply begins."""
        self.editing: Message | None = None
        """Message that the next input replaces; the conversation stays as it is until then."""
        self.previous: Message | None = None
        """Head of the conversation before the last change of branches."""
        self.notes: list[str] = []
        """Notes of background jobs that are not written yet."""
        self.last: Finish | None = None
        """Last event of the last reply."""
        self.leaving = False
        self.unsaved: SaveError | None = None
        """Error of the last save, if it failed."""
        self._plan_load = plan_load
        if prompt is not None:
            self.use_prompt(prompt, above_flags=False)

    @property
    def model_name(self) -> str:
        """Name of the model in use or being loaded."""
        if self.model is not None:
            return self.model.name
        named = self.settings.server_url or Path(self.settings.model or "").stem
        return named or "model"

    def load(self) -> None:
        """Start loading the model that the settings name, in the background."""
        settings = self.settings
        self.loader.load(lambda: self._plan_load(settings))

    def adopt_loaded(self) -> None:
        """Make a session of a model loaded in the background, and prefill its next message.

        Does nothing if no load has ended. The session takes conversation, template and settings as
        they are now, not as they were when the load began.

        Raises:
            UsageError: if the model has no known chat template.
        """
        model = self.loader.take_loaded()
        if model is None:
            return
        session = self._new_session(model)
        self._adopt(model)
        self.model, self.session = model, session
        self.configure()
        self.notes += model.warnings
        self._note_template()
        self.notes.append(f"{model.name} · {model.summary} · template {session.template_name}")
        self.prefill_next()
        self.renderer.prepare()  # while that runs

    def _note_template(self) -> None:
        """Note how the template was chosen, if that needs a note."""
        if self.session is not None and self.session.template is not None:
            self.notes += filter(None, [in_chat(self.session.template.take_note())])

    def _new_session(self, model: "ChatModel") -> "ChatSession":
        """Make a session; a template chosen in the chat that does not fit becomes ``auto``."""
        try:
            return model.chat(
                conversation=self.conversation,
                template=self.settings.template,
                template_name=self.settings.template_name,
                notify=lambda line: self.renderer.note(in_chat(line)),
            )
        except UsageError as error:
            if not self.settings.source("template").startswith("/"):
                raise
            self.notes.append(line_in_chat(error))
            self._settings.change("template", "auto", DEFAULT_SOURCE)
            return self._new_session(model)

    def wait_for_session(self) -> "ChatSession":
        """Return the session, once the model is loaded; a background prefill continues.

        Raises:
            LlamaChatError: if the model cannot be loaded.
            Interrupted: on Ctrl-C while waiting; the load continues.
        """
        loader = self.loader
        if self.session is None and not loader.is_loading and loader.error is None:
            self.load()
        while self.session is None:
            self._wait("Loading", 0)
            self.adopt_loaded()
            if loader.error is not None:
                raise loader.error
            if self.session is None and (self.interrupts.take() or not loader.busy):
                raise Interrupted
        self.tell_notes()
        return self.session

    def finish_prefill(self) -> None:
        """Wait for the end of the background prefill; Ctrl-C stops it."""
        self._wait("Reading", PREFILL_DELAY_S)
        self.stop_prefill()

    def stop_prefill(self) -> None:
        """Stop the background prefill, and wait until it has stopped."""
        self.loader.stop()

    def _wait(self, doing: str, delay_s: float) -> None:
        """Wait for the background job, with a progress bar, until it ends or Ctrl-C is pressed."""
        plain, in_bytes = self.renderer.plain, self.loader.is_loading
        with progress(doing, delay_s, in_bytes=in_bytes, hidden=plain) as report:
            while not (self.interrupts.pending or self.loader.wait(_POLL_S)):
                done, total = self.loader.progress
                if total or not delay_s:
                    report(done, total)

    def tell_notes(self) -> None:
        """Write and clear the notes of background jobs; with ``quiet`` only clear them."""
        notes, self.notes = self.notes, []
        if not self.settings.quiet:
            for line in notes:
                self.renderer.note(line)

    def prefill_next(self) -> None:
        """Prefill the prefix of the next message in the background."""
        if self.session is not None:
            with self._before_edited():
                prefix = self.session.next_prefix(self.attachments)
            self.loader.prefill(self.session, prefix)

    def context_use(self, session: "ChatSession", typed: str) -> "ContextUse":
        """Return the context usage with ``typed`` as the next message."""
        with self._before_edited():
            return session.context_use(typed, self.attachments)

    @contextmanager
    def _before_edited(self) -> Iterator[None]:
        """Go back to where the next input is put: before the message that it replaces, if any."""
        head = self.conversation.head
        if self.editing is not None:
            self.conversation.head = self.editing.parent
        try:
            yield
        finally:
            self.conversation.head = head

    def reload(self, settings: Settings) -> None:
        """Load another model, or the same one with other settings.

        Raises:
            LlamaChatError: if it cannot be loaded; the old one is loaded again if it was dropped.
            Interrupted: on Ctrl-C; likewise.
        """
        plan = self._plan_load(settings, reclaimable=self._loaded_bytes())
        plan.check_fit()
        self.loader.stop()
        self.model = self.session = None  # there may not be memory for two
        self.loader.load(lambda: plan)
        try:
            self.wait_for_session()
        except (LlamaChatError, Interrupted):
            self.load()
            raise

    def _loaded_bytes(self) -> int:
        """Bytes of the loaded model and its KV cache."""
        if self.model is None or self.session is None:
            return 0
        return self.model.n_bytes + self.session.n_bytes

    def _adopt(self, model: "ChatModel") -> None:
        """Continue the conversation with this model; token ids of another model are dropped."""
        same = keep_valid_ids(self.conversation, self.tag, model.tokenizer)
        if self.conversation.all and not same and model.tokenizer is not None:
            before = self.tag.name or "another model"
            self.notes.append(f"it was held with {before}: all of it is read again as text")
        vocabulary = model.tokenizer.fingerprint if model.tokenizer else ""
        self.tag = ModelTag(model.name, vocabulary)

    @property
    def settings(self) -> Settings:
        """All settings in force."""
        return self._settings.now

    def change(self, name: str, value: Value, source: str) -> None:
        """Change a setting.

        Raises:
            LlamaChatError: if the model cannot be used with the value; nothing is changed then.
        """
        changes: dict[str, Value] = {name: value}
        if name == "model" and self.settings.endpoint is not None:
            changes["endpoint"] = None  # a model takes the place of a server
        scope, wanted = SETTINGS[name].scope, self.settings
        for each, new in changes.items():
            wanted = wanted.change(each, new, source)
        urls = {self.settings.server_url, wanted.server_url}
        if scope == "load" and (SETTINGS[name].group != "Endpoint" or urls != {None}):
            self.reload(wanted)
        elif name in ("template", "template_name") and self.model and self.session:
            self.session.template = self.model.template(wanted.template, wanted.template_name)
            self._note_template()
        for each, new in changes.items():
            self._settings.change(each, new, source)
        if scope == "display":
            self.renderer = Renderer(self.settings, self.background)
        self.configure()

    def configure(self) -> None:
        """Apply the settings to the conversation and the session."""
        self.conversation.system = self.settings.system
        if self.model is not None and self.session is not None:
            self._settings.use_model(self.model.defaults)
            self.session.configure(self.settings)

    def use_prompt(self, prompt: PromptFile, *, above_flags: bool = True) -> None:
        """Apply a prompt file to the conversation; see ``PromptedSettings.use_prompt``."""
        self._settings.use_prompt(prompt, above_flags=above_flags)
        self.conversation.examples = prompt.examples
        self.configure()

    def end_prompt(self) -> None:
        """Undo the changes of the prompt file in use; the user's changes since then stay."""
        self._settings.end_prompt()
        self.conversation.examples = ()
        self.configure()

    def send(self, text: str) -> None:
        """Send a message, with the attachments in front, and show the reply."""
        session, attachments = self.wait_for_session(), tuple(self.attachments)
        self.finish_prefill()
        show_reply(
            self,
            lambda hooks: session.send(
                text, hooks, attachments=attachments, reply_prefix=self.reply_prefix
            ),
            shown=self.reply_prefix,
        )

    def retry(self) -> None:
        """Answer the last message once more, and show the reply."""
        self.stop_editing()
        session = self.wait_for_session()
        self.stop_prefill()
        show_reply(
            self,
            lambda hooks: session.retry(hooks, reply_prefix=self.reply_prefix),
            shown=self.reply_prefix,
        )

    def continue_reply(self) -> None:
        """Continue the last reply, and show the continuation."""
        self.stop_editing()
        session = self.wait_for_session()
        self.stop_prefill()
        begun = session.conversation.head
        show_reply(
            self,
            session.continue_reply,
            begun=begun.text if begun and begun.role != "user" else "",
        )

    def start_editing(self, message: Message) -> None:
        """Let the next input replace ``message``, on a new branch."""
        self.editing = message

    def stop_editing(self) -> None:
        """Cancel the edit, so that the next input is a new message."""
        self.editing = None

    def finish_editing(self, message: Message, text: str) -> None:
        """Replace ``message`` by ``text``, on a new branch.

        A message of the user is answered; a reply of the model is stored unchanged.
        """
        attachments = self.attachments
        before, self.conversation.head = self.conversation.head, message.parent
        if message.role == "user":
            self.attachments = [*message.attachments, *attachments]
            try:
                self.send(text)
            except (LlamaChatError, Interrupted):
                self.attachments, self.conversation.head = attachments, before
                raise
        else:
            self.conversation.add(Message("assistant", text, n_dropped=message.n_dropped))
            self.save()
        self.editing, self.previous = None, before

    def go_to(self, message: Message | None) -> None:
        """Continue after another message of the conversation."""
        self.stop_editing()
        self.previous, self.conversation.head = self.conversation.head, message

    def begin_anew(self) -> None:
        """Begin a new conversation, saved in a new file; system message and examples stay."""
        self.file.close()
        self.conversation.clear()
        self.last = self.previous = self.editing = None

    def open(self, path: Path) -> None:
        """Continue a saved conversation.

        Raises:
            UsageError: if it cannot be read.
        """
        loaded = self.file.open(path)
        if self.file.path is None:
            self.renderer.note("another program has it open: what you say here is saved in a copy")
        elif loaded.problem:
            self.renderer.note(f"{loaded.problem}; a copy of the damaged file is kept")
        self.take(loaded.conversation, loaded.tag)

    def take(self, conversation: Conversation, tag: ModelTag) -> None:
        """Continue ``conversation``, whose token ids come from the model ``tag``."""
        self.end_prompt()
        self.conversation, self.tag = conversation, tag
        self.previous = self.editing = None
        if not self.settings.is_given("system"):
            self._settings.change("system", conversation.system, "the conversation")
        if self.session is not None and self.model is not None:
            self.session.conversation = conversation
            self._adopt(self.model)
        self.configure()

    def save(self, *, durable: bool = True) -> None:
        """Save what has changed; a failure is reported once, and the next save tries again."""
        if self.settings.no_save:
            return
        try:
            self.file.save(self.conversation, self.tag, durable=durable)
            self.unsaved = None
        except SaveError as error:
            if self.unsaved is None:
                self.renderer.error(f"not saved: {error}")
            self.unsaved = error
