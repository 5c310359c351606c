"""Sizes of data sets around whole numbers of batches: with W processes and batches of 2, N*W - 1, N*W, N*W + 1; and 1."""

BATCH_SIZE = 2
SIZES = sorted({1} | {2 * BATCH_SIZE * world + off for world in (1, 2, 3) for off in (-1, 0, 1)})
