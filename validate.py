#!/usr/bin/env python3
"""Validate a checkpoint: python3 validate.py --checkpoint FILE --data-path DIR. See --help."""

import sys

from cspnet.cli.start import validate

if __name__ == "__main__":
    sys.exit(validate())
