"""What a folder of safetensors files holds."""
import pathlib

from safetensors.torch import load_file


def load_folder(folder):
    """The tensors of all the folder's files, by name."""
    tensors = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors.update(load_file(file))
    assert tensors, f"{folder} has no tensors"
    return tensors
