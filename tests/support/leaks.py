"""Runners with one fault each: some bit of a row's logits depends on what it must not depend on."""

import numpy as np
from fake_runner import FakeRunner

EPSILON = np.float32(2e-7)


class Leak(FakeRunner):
    """Adds a little to one logit of row r wherever ``leaks(batch, r)``."""

    def forward(self, batch):
        logits = super().forward(batch)
        for i, flat in enumerate(batch.logit_rows):
            row = int(np.searchsorted(batch.query_start, flat, side="right")) - 1
            if self.leaks(batch, row):
                logits[i, 7] += EPSILON
        return logits

    def leaks(self, batch, row):
        raise NotImplementedError


class BatchSize(Leak):
    def leaks(self, batch, row):
        return len(batch.query_start) - 1 >= 16


class Slot(Leak):
    def leaks(self, batch, row):
        return row == 3


class Neighbours(Leak):
    """The longest sequence in the batch decides, as with dynamic RoPE."""

    def leaks(self, batch, row):
        return batch.positions.max() > 127


class StepTokens(Leak):
    def leaks(self, batch, row):
        return len(batch.input_ids) >= 256


class Chunk(Leak):
    """A prompt of which not all is new in this step."""

    def leaks(self, batch, row):
        count = batch.query_start[row + 1] - batch.query_start[row]
        return 1 < count <= batch.positions[batch.query_start[row]]


class Warm(FakeRunner):
    """Remembers what was once computed wrong: the second time, tokens of a page's end are lost."""

    def forward(self, batch):
        starts = batch.positions[batch.query_start[:-1]]
        if ((starts > 0) & (starts % 64 == 0) & (np.diff(batch.query_start) > 1)).any():
            self.pages[:, 63] = -1
        return super().forward(batch)


class Pages(Leak):
    def leaks(self, batch, row):
        return batch.block_tables[row, 0] < 4


class Far(Leak):
    """Beyond 512 keys the number of rows shows."""

    def leaks(self, batch, row):
        last = batch.positions[batch.query_start[row + 1] - 1]
        return last >= 512 and len(batch.query_start) > 2


class OneMode(Leak):
    """Only fast steps depend on the number of rows."""

    def leaks(self, batch, row):
        return not batch.deterministic and len(batch.query_start) > 2


class Token(FakeRunner):
    """From the sixth token of the sequence on, the choice itself depends on the number of rows."""

    def logits_of(self, history, batch):
        logits = super().logits_of(history, batch)
        if len(history) >= 6 and len(batch.query_start) > 2:
            logits[11] += np.float32(100)
        return logits
