"""Rows of metrics.jsonl against the checksums that are kept with every checkpoint."""

import json

import pytest

from opo.errors import UserError
from opo.run.metrics import read_rows, seal_rows


def test_a_flipped_bit_in_the_metrics_is_named_and_rows_after_the_checkpoint_are_free(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"train/step": step, "train/reward_mean": step / 7}) + "\n" for step in range(1, 5)]
    file.write_text("".join(lines[:3]))
    seal_rows(file)
    file.write_text("".join(lines))
    assert len(list(read_rows(file))) == 4
    file.write_text("".join(lines).replace("0.285", "0.284"))  # step 2
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: damaged, its checksum in metrics.crc32 is another"):
        list(read_rows(file))
    file.write_text("".join(lines))
    seal_rows(file, 1)
    file.write_text(lines[0] + lines[2])  # cut back to the first step, and another second one
    assert len(list(read_rows(file))) == 2
