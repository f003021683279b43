"""Peak memory of a statement, measured in a separate process."""

from pathlib import Path

from harness.program import Program
from tests.execute import EXECUTE

MEASURE = """
from llama_chat.errors import LlamaChatError
from llama_chat.generation.measuring import peak_rss
before = peak_rss()
try:
    {statement}
except LlamaChatError as error:
    print(peak_rss() - before, error)
"""


def peak_and_error(imports: str, statement: str, home: Path) -> tuple[int, str]:
    """Measure the peak memory of a statement in bytes, and the error that it ends with.

    ``tracemalloc`` measures the same, but makes code that allocates much ten times slower.
    """
    code = imports + MEASURE.format(statement=statement)
    with Program(code, home=home, command=EXECUTE) as process:
        out, err = process.communicate()
    assert err == b""
    peak, _, error = out.decode().partition(" ")
    return int(peak), error.removesuffix("\n")
