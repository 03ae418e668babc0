#!/usr/bin/env python3
"""grow.py FOLDER: writes the headers of sdk/include to FOLDER as a later minor version may have them:
every struct that may grow has one more field at its end."""
import pathlib
import re
import sys

import layout

FIELD = "  int64_t later;\n"


def grown(text):
    """Returns a header with the field added to each struct that begins with struct_size."""
    def add(match):
        growable = re.match(r"(\s|/\*.*?\*/)*uint32_t struct_size;", match.group(1), flags=re.S)
        return match.group(0) + FIELD if growable else match.group(0)
    text = re.sub(r"\bstruct aq_\w+ \{(.*?)\n(?=\})", add, text, flags=re.S)
    return re.sub(r"(?<=#define AQ_ABI_MINOR )\d+", lambda minor: str(int(minor[0]) + 1), text)


def grow(folder):
    for header in layout.HEADERS:
        path, text = pathlib.Path(folder) / header, grown((layout.INCLUDE / header).read_text())
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:  # an unchanged file causes no rebuild
            path.write_text(text)


if __name__ == "__main__":
    grow(sys.argv[1])
