"""A pseudo-terminal in which tests run aqhost."""
import os
import pty


def open_terminal(test):
    """Returns our end and the program's end. Our end is closed when `test` is over. Skips the test if the
    system has no pseudo-terminals."""
    try:
        ours, theirs = pty.openpty()
    except OSError as error:
        test.skipTest(f"no pseudo-terminal: {error}")
    test.addCleanup(os.close, ours)
    return ours, theirs
