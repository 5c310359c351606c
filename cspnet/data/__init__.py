"""From files to batches: index, order, decoding, transforms, workers, mixing."""
