#!/usr/bin/env python3
"""Validate a checkpoint: python3 validate.py --checkpoint FILE --data-path DIR. See --help."""

import signal
import sys

from cspnet.runtime.signals import leaving_at_signals

if __name__ == "__main__":
    with leaving_at_signals({signal.SIGINT: 130}, "validate.py"):
        from cspnet.cli.validate import main
    sys.exit(main())
