"""A few hundred files of the campaign ``make attack-text``."""

import random

import pytest

from harness.campaigns.text import Kind, attack, kinds
from llama_chat.settings import sources
from tests.fuzz.texts import mutate


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_mutated_files_are_read_or_refused_in_one_line(kind: Kind) -> None:
    report = attack(kind, range(100), seed=0, program_every=50)
    assert report.findings == []
    assert 0 < report.n_accepted < 100


def test_the_campaign_reports_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(sources, "read_toml", read)
    report = attack(kinds()[0], range(3), seed=0)
    assert report.findings == [f"settings {n}: KeyError: 'x'" for n in range(3)]


def test_a_number_is_the_same_file_again() -> None:
    good = kinds()[0].good
    one, other = (mutate(good[0], good, ["a"], random.Random("0 1")) for _ in range(2))
    assert one == other
    assert one != mutate(good[0], good, ["a"], random.Random("0 2"))
