"""The prompt as a chat template: who chats with an exported model asks it as it was trained.

The base model's own template would ask in another format, and a model without any is asked in one that
the engine chooses.
"""

from reftune.config import Prompt
from reftune.model.wording import PROGRAM_HEAD

_ONE_QUESTION = "this model was trained on single questions: send one message, from the user, of text"
_HEAD = f"""
{{%- if messages | length != 1 or messages[0].role != 'user' or messages[0].content is not string -%}}
{{{{- raise_exception('{_ONE_QUESTION}') -}}}}
{{%- endif -%}}
{{%- set question = messages[0].content | trim -%}}
"""
# As `Wording.opening` writes the question into a docstring.
_DOCSTRING = r"""
{%- set text = question | replace('\\', '\\\\') | replace('\"\"\"', "'''") -%}
{%- if text[-1:] == '"' -%}
{%- set text = text[:-1] + '\\"' -%}
{%- endif -%}
"""


def chat_template(settings: Prompt, begin: str = "") -> str:
    """Return the prompt, a program's opening included, as a Jinja template of one user's message.

    It starts with the text `begin`; the settings leave nothing open.
    """
    pieces = [_quoted(begin)] if begin else []
    first, *others = map(_quoted, str(settings.template).split("{question}"))
    pieces += [first, *(piece for text in others for piece in ("question", text))]
    head = _HEAD
    if settings.answer_style == "function":
        pieces.append(_quoted(PROGRAM_HEAD))
        if settings.repeat_question:
            head += _DOCSTRING.lstrip()
            pieces += [_quoted('    """'), "text", _quoted('"""\n')]
    return head.strip() + "".join(f"\n{{{{- {piece} -}}}}" for piece in pieces)


def _quoted(text: str) -> str:
    for character, written in ("\\", r"\\"), ("'", r"\'"), ("\n", r"\n"), ("\r", r"\r"), ("\t", r"\t"):
        text = text.replace(character, written)
    return f"'{text}'"
