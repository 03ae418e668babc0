"""Runs a program in a test."""
import subprocess


def run(*command, **keywords):
    """Returns what the program writes to stdout. It must end with status 0."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, **keywords)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
