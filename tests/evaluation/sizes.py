"""Sizes of data sets: one, and for W processes and batches of N, around two whole rounds of N*W."""

BATCH_SIZE = 2
SIZES = sorted({1} | {2 * BATCH_SIZE * world + off for world in (1, 2, 3) for off in (-1, 0, 1)})
