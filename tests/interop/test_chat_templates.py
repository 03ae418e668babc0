"""Compares chats that aqhost renders with those of transformers, for the templates of published models.

ctest runs this file with AQ_BUILD set to the build folder, in the virtual environment that tools/test creates.
"""
import datetime
import json
import os
import pathlib
import subprocess
import unittest

from transformers.utils.chat_template_utils import _compile_jinja_template

BUILD = pathlib.Path(os.environ["AQ_BUILD"])
TEMPLATES = sorted((pathlib.Path(__file__).resolve().parent.parent / "chat/templates").glob("*.jinja"))


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def chat(*contents, system=None):
    turns = [turn(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    return ([turn("system", system)] if system is not None else []) + turns


CHATS = [
    chat("Hello"), chat("Hello", "Hi there."), chat("Hi", "Yes?", system="Be brief."),
    chat(" What is  2+2? \n", " 4 \n", "And 3+3?\n\n", "6", system="  Be brief.  "),
    chat("Grüße, 世界 👋 \u00a0", "İstanbul, naïve\u2028line"), chat("", ""),
    chat("a", "<think>\nhm\n</think>\n\nb", "c", "<think>x</think>d"), chat("1", "2", "3", "4", "5", "6"),
    chat("\"quotes\" 'and' \\ {{ x }} {% y %}", "\t"),
    [turn("user", "a"), turn("assistant", "b", reasoning_content="because\n"), turn("user", "c"),
     turn("assistant", "d", reasoning_content="so")],
    [turn("assistant", "I begin"), turn("user", "ok")], [turn("user", "x"), turn("user", "y")],
]


def expected(template, variables):
    """Returns the text, or None if the template refuses the chat."""
    try:
        return template.render(**variables, strftime_now=lambda form: datetime.date(2025, 1, 1).strftime(form))
    except Exception:  # of Jinja, or of what the template does
        return None


class ChatTemplates(unittest.TestCase):
    def test_chats_are_rendered_as_by_transformers(self):
        lines, texts = [], []
        for path in TEMPLATES:
            template = _compile_jinja_template(path.read_text(encoding="utf-8"))
            for messages in CHATS:
                for prompt in (False, True):
                    variables = {"messages": messages, "tools": None, "documents": None,
                                 "add_generation_prompt": prompt, "bos_token": "<s>", "eos_token": "</s>"}
                    lines.append(json.dumps({"template": str(path), **variables}))
                    texts.append(expected(template, variables))
        done = subprocess.run([BUILD / "bin/interop_render_chats"], input="\n".join(lines) + "\n", text=True,
                              capture_output=True, check=True)
        results = [json.loads(line) for line in done.stdout.split("\n")[:-1]]
        self.assertEqual(len(results), len(texts))
        self.assertGreater(sum(text is not None for text in texts), 0.9 * len(texts))
        for line, text, result in zip(lines, texts, results):
            with self.subTest(line):
                self.assertEqual(result.get("text"), text, result)


if __name__ == "__main__":
    unittest.main()
