"""A pseudo-terminal to run aqhost on."""
import os
import pty


def open_terminal(test):
    """Its two ends, the first closed when `test` is over; skips the test where there is none."""
    try:
        ours, theirs = pty.openpty()
    except OSError as error:
        test.skipTest(f"no pseudo-terminal: {error}")
    test.addCleanup(os.close, ours)
    return ours, theirs
