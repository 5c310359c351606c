#!/usr/bin/env python3
"""Train a network: python3 train.py --batch-size 64 --epochs 120 --data-path DIR. See --help."""

import sys

from cspnet.errors import EXIT_STOPPED
from cspnet.runtime.signals import leaving_at_signals, list_heeded

if __name__ == "__main__":
    with leaving_at_signals(dict.fromkeys(list_heeded(), EXIT_STOPPED), "train.py"):
        from cspnet.cli.train import main
    sys.exit(main())
