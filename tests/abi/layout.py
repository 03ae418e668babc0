#!/usr/bin/env python3
"""Prints the ABI as text: every constant, and every field with its declaration, offset and size.

    layout.py            prints the ABI of the headers in sdk/include
    layout.py --write    copies the headers to the baseline (tests/abi/baseline)

This script parses the headers; the numbers come from the compiler. A declaration that the script
cannot parse is an error, and the fields of each struct must follow one another as C lays them out, so
that no field is overlooked.
"""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
INCLUDE = ROOT / "sdk/include"
HEADERS = ["aq/abi.h", "aq/model.h", "aq/quantizer.h", "aq/ext/block_forward.h", "aq/ext/gguf.h"]
BASELINE = pathlib.Path(__file__).with_name("baseline")  # the headers of the last release
NOT_ABI = {"AQ_EXPORT", "AQ_CALL", "AQ_HAS"}  # macros that are not constants


def minor():
    """Returns AQ_ABI_MINOR of sdk/include."""
    return int(re.search(r"#define AQ_ABI_MINOR (\d+)", (INCLUDE / "aq/abi.h").read_text())[1])


def declarations(text):
    """Returns ([constant], [(struct, [(field, declaration)])]) of a header."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    constants = []
    for name, rest in re.findall(r"^#define (\w+)(.*)$", text, flags=re.M):
        if name not in NOT_ABI and rest.strip():
            constants.append(name)
    text = re.sub(r"^#.*?(?<!\\)$", "", text, flags=re.M | re.S)
    for body in re.findall(r"\benum \{(.*?)\}", text, flags=re.S):
        constants += [re.match(r"\s*(AQ_\w+)\s*=", item).group(1)
                      for item in body.split(",") if item.strip()]
    structs = []
    for name, body in re.findall(r"\bstruct (aq_\w+) \{(.*?)\n\}", text, flags=re.S):
        fields = []
        for statement in body.split(";")[:-1]:
            # normalizes the spaces: "void* a", "void* (AQ_CALL* f)(int* a)"
            fields += split_statement(re.sub(r"\s*\*\s*", "* ", " ".join(statement.split())))
        structs.append((name, fields))
    return constants, structs


def split_statement(statement):
    """Returns [(field, declaration)] of "int32_t a, b[2]" or "void(AQ_CALL* f)(...)"."""
    function = re.fullmatch(r"[\w* ]+\(AQ_CALL\* (\w+)\)\(.*\)", statement)
    if function:
        return [(function.group(1), statement)]
    simple = re.fullmatch(r"((?:const )?\w+(?:\* const\*|\*)?) (.*)", statement)
    names = [re.fullmatch(r"(\w+)(?:\[\d+\])?", part.strip())
             for part in simple.group(2).split(",")] if simple else [None]
    if len(names) > 1 and "*" in simple.group(1):
        names = [None]  # in "T* a, b", b is not a pointer
    if None in names:
        raise SystemExit(f"layout.py cannot read the field: {statement}")
    return [(n.group(1), f"{simple.group(1)} {n.group(0)}") for n in names]


def layout(include=INCLUDE, compiler="gcc"):
    """Returns the lines of the table."""
    headers = [h for h in HEADERS if (include / h).exists()]  # the baseline lacks those that are new
    source = ["#include <stdio.h>"] + [f"#include <{h}>" for h in headers] + [
        '#define CONSTANT(c) printf(_Generic((c), char *: "const " #c " %s\\n", '
        'default: "const " #c " %d\\n"), c);',
        "int main(void) { size_t end; (void)end;"]
    for header in headers:
        constants, structs = declarations((include / header).read_text())
        source += [f"CONSTANT({c})" for c in constants]
        for struct, fields in structs:
            source.append(f'printf("struct {struct} %zu\\n", sizeof({struct})); end = 0;')
            for field, declaration in fields:
                member = f"(({struct} *)0)->{field}"
                source.append(
                    f"end = (end + _Alignof(__typeof__({member})) - 1) / "
                    f"_Alignof(__typeof__({member})) * _Alignof(__typeof__({member}));"
                    f"if (end != offsetof({struct}, {field})) return 2;"
                    f'printf("field {struct}.{field} %zu %zu {declaration}\\n", '
                    f"offsetof({struct}, {field}), sizeof({member}));"
                    f"end += sizeof({member});")
            source.append(f"if ((end + _Alignof({struct}) - 1) / _Alignof({struct}) * "
                          f"_Alignof({struct}) != sizeof({struct})) return 3;")
    source.append("return 0; }")
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / "layout"
        program.with_suffix(".c").write_text("\n".join(source))
        subprocess.run([compiler, "-std=c11", "-w", "-I", include,
                        program.with_suffix(".c"), "-o", program], check=True)
        done = subprocess.run([program], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"layout.py overlooked a field after: {done.stdout.splitlines()[-1]}")
    return done.stdout.splitlines()


def broken_promises(baseline, now):
    """Returns a sentence for each promise of sdk/ABI.md that `now` breaks compared with `baseline`."""
    def parse(lines):
        constants, sizes, fields = {}, {}, {}
        for line in lines:
            kind, name, rest = line.split(" ", 2)
            if kind == "const":
                constants[name] = rest
            elif kind == "struct":
                sizes[name], fields[name] = int(rest), []
            else:
                struct, field = name.split(".")
                fields[struct].append((field, rest))
        return constants, sizes, fields

    old_constants, old_sizes, old_fields = parse(baseline)
    constants, sizes, fields = parse(now)
    broken = []
    for name, value in old_constants.items():
        if name != "AQ_ABI_MINOR" and constants.get(name) != value:
            broken.append(f"{name} was {value} and is {constants.get(name, 'gone')}")
    for struct, before in old_fields.items():
        after = fields.get(struct)
        if after is None:
            broken.append(f"{struct} is gone")
            continue
        frozen = before[0][0] != "struct_size"
        if frozen and (after != before or sizes[struct] != old_sizes[struct]):
            broken.append(f"{struct} is frozen (it has no struct_size), but changed")
            continue
        for i, field in enumerate(before):
            if i >= len(after) or after[i] != field:
                found = " ".join(after[i]) if i < len(after) else "nothing"
                broken.append(f"{struct}.{field[0]} was \"{field[1]}\", and there is {found}")
                break
        else:
            if len(after) > len(before) and int(after[len(before)][1].split()[0]) < old_sizes[struct]:
                broken.append(f"{struct}.{after[len(before)][0]} lies in what was padding: a host "
                              "cannot tell from struct_size whether it is there")
    grew = (set(constants) - set(old_constants) or set(fields) - set(old_fields) or
            any(len(fields.get(s, [])) > len(f) for s, f in old_fields.items()))
    if grew and constants["AQ_ABI_MINOR"] == old_constants["AQ_ABI_MINOR"]:
        broken.append("something was added, and AQ_ABI_MINOR is as before")
    return broken


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        for header in HEADERS:
            shutil.copy(INCLUDE / header, BASELINE / header)
    else:
        print("\n".join(layout()))
