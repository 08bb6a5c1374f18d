"""Whole files or none, and the progress bar."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from ood_utils import files
from ood_utils.errors import UserError


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_refusing_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, monkeypatch, code):
    path = files.atomic_write(tmp_path / "run.json", "old")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(UserError, match=r"cannot write .*run\.json: .*OOD_OUTPUTS"):
        files.atomic_write(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_fault_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "a.txt") as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_progress_is_plain_text_off_a_terminal(capsys):
    assert list(files.progress(range(3), desc="encode")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")  # too short to be worth a bar
    bar = files.progress(total=3, desc="encode")
    bar.start_t, bar.last_print_t = bar.start_t - 10, bar.last_print_t - 10  # as if ten seconds had gone by
    bar.update(3)
    said = capsys.readouterr()
    assert "encode" in said.out and "3/3" in said.out and not said.err
    bar.close()


def test_arrays_are_kept_by_a_key_and_damage_is_noticed(tmp_path):
    path, arrays = tmp_path / "a.safetensors", {"one": np.array(3.5), "two": np.arange(6.0).reshape(2, 3).T}
    files.write_arrays(path, "key", arrays, {"seconds": 1.5})
    found, facts = files.read_arrays(path, "key")
    assert facts["seconds"] == 1.5 and {name: of.shape for name, of in found.items()} == {
        "one": (),
        "two": (3, 2),
    }
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    nothing = None, {}
    assert files.read_arrays(path, "another") == files.read_arrays(tmp_path / "none", "key") == nothing
    raw = bytearray(path.read_bytes())
    for place in (-3, 3):  # in the numbers, in the header
        path.write_bytes(bytes(raw[:place]) + bytes([raw[place] ^ 1]) + bytes(raw[place:])[1:])
        assert files.read_arrays(path, "key") == nothing
    path.write_bytes(raw[:50])
    assert files.read_arrays(path, "key") == nothing
