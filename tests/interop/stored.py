"""Reads folders of safetensors files."""
import pathlib

from safetensors.torch import load_file


def load_folder(folder):
    """Returns {name: tensor} of all files in the folder."""
    tensors = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors.update(load_file(file))
    assert tensors, f"{folder} has no tensors"
    return tensors
