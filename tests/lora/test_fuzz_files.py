"""A few hundred damaged files of every kind, as ``python -m benchmarks.fuzz`` makes them by the thousand."""

from __future__ import annotations

from benchmarks.fuzz import run


def test_damaged_files_end_in_a_lora_or_in_our_own_words(tmp_path):
    ends, problems = run(tmp_path, 300, 0)
    assert not problems, "\n".join(problems)
    assert ends["read"] > 10 and ends["LoraFileError"] > 100
