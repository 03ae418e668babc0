"""Runs a program in a test, and looks at programs."""
import os
import subprocess


def run(*command, **keywords):
    """Returns what the program writes to stdout. It must end with status 0."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, **keywords)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def programs_that_name(folders, below):
    """Returns the programs and libraries below a folder that have the path of one of `folders` in them."""
    found = []
    for file in sorted(p for p in below.rglob("*") if p.is_file() and not p.is_symlink()):
        content = file.read_bytes()
        if content.startswith(b"\x7fELF") and any(os.fsencode(f) + b"/" in content for f in folders):
            found.append(file)
    return found
