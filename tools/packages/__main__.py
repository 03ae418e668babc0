"""Starts the programs of this package. aqhost uses the LibTorch of the package torch.

    python -m aqhost --cmake-dir      prints the folder with the CMake package aqsdk, for authors of plugins
    python -m aqhost ...              is the command aqhost
"""
import importlib.metadata
import importlib.util
import os
import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parent


def libtorch():
    """Returns the folder with the libraries of torch, or ends with a sentence that says what is missing."""
    needed, = (r for r in importlib.metadata.requires("aqhost") if r.startswith("torch"))
    series = needed.partition("~=")[2].rpartition(".")[0]  # "2.11" of "torch ~=2.11.0"
    package = importlib.util.find_spec("torch")
    found = importlib.metadata.version("torch") if package and package.origin else "is not installed"
    if not found.startswith(series + "."):
        sys.exit(f"aqhost: torch {found}; pip install '{needed}' installs the one that aqhost was built with")
    return pathlib.Path(package.origin).parent / "lib"


def start(program, environment):
    os.execve(FOLDER / "bin" / program, [program, *sys.argv[1:]], environment)


def aqhost():
    folders = [str(libtorch()), os.environ.get("LD_LIBRARY_PATH")]
    start("aqhost", {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, folders))})


def aq_check():
    start("aq-check", os.environ)


def aq_new_plugin():
    start("aq-new-plugin", os.environ)


if __name__ == "__main__":
    if sys.argv[1:] == ["--cmake-dir"]:
        print(FOLDER / "lib/cmake/aqsdk")
    else:
        aqhost()
