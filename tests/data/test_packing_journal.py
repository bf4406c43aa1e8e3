"""Exact: whoever comes too late or to work in hand neither replaces nor removes what others have made."""

from contextlib import ExitStack

import pytest

from ivt2.data.manifest import MANIFEST_NAME
from ivt2.data.packing_journal import Journal
from ivt2.errors import InputError

PLAN = {"num_parts": 1, "max_samples": 10}


def test_a_set_that_another_process_finished_meanwhile_is_not_begun_anew(tmp_path):
    journal = Journal(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text("{}")
    (tmp_path / "shard-000000.tar").write_bytes(b"whole")
    refused = pytest.raises(InputError, match="was finished by another process meanwhile; run the same command again")
    with refused, journal.begun(PLAN, part=0, overwrite=False):
        pass
    assert not journal.exists
    with journal.begun(PLAN, part=0, overwrite=True):
        assert not (tmp_path / MANIFEST_NAME).exists()
        assert not (tmp_path / "shard-000000.tar").exists()


def test_work_of_which_another_process_holds_a_part_is_not_replaced(tmp_path):
    shard = tmp_path / "shard-000000.tar"
    with Journal(tmp_path).begun(PLAN, part=0, overwrite=False):
        shard.write_bytes(b"in hand")
        refused = pytest.raises(InputError, match="another process packs into it")
        with refused, Journal(tmp_path).begun({**PLAN, "num_parts": 2}, part=1, overwrite=True):
            pass
        assert shard.exists()
    with Journal(tmp_path).begun({**PLAN, "num_parts": 2}, part=1, overwrite=True):
        assert not shard.exists()


def test_parts_of_one_work_are_held_at_once(tmp_path):
    plan = {**PLAN, "num_parts": 3}
    with ExitStack() as stack:
        for part in (1, 0, 2):
            stack.enter_context(Journal(tmp_path).begun(plan, part=part, overwrite=part < 2))
        assert Journal(tmp_path).exists
