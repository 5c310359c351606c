#!/usr/bin/env python3
"""Train a network: python3 train.py --batch-size 64 --epochs 120 --data-path DIR. See --help."""

import sys

from cspnet.cli.start import train

if __name__ == "__main__":
    sys.exit(train())
