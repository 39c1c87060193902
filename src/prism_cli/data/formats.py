"""The five formats of a row, told apart by their columns, and their parsers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prism_cli.data.lines import json_value
from prism_cli.errors import DataError

FORMATS = ("conversational", "sharegpt", "verl", "pairs", "plain")
IMAGE_MARK = "<image>"
IMAGE_ITEMS = ("image", "image_url", "input_image")
TEXT_ITEMS = ("text", "input_text")
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
QUESTION_CURE = "give `messages`, `conversations`, `prompt` or `question`"

Turn = dict[str, str]


class ParsedRow(NamedTuple):
    """A parsed row; its pictures are still names.

    Attributes:
        id: Its own id, or None.
        prompt: Turns of `role` and `content`, a user's last, without `<image>` marks.
        images: References as `ImageReader` takes them.
        marks: `<image>` marks and image items in its user turns; 0 for none.
        answers: Accepted final answers.
        teacher_response: A teacher's text, or None.
        student_response: A policy's text, or None.
        caption: What the picture shows, in words, or None.
        demonstration: The text to learn, or None.
    """

    id: str | None
    prompt: list[Turn]
    images: list[Any]
    marks: int
    answers: list[str]
    teacher_response: str | None
    student_response: str | None
    caption: str | None
    demonstration: str | None


def detect(fields: Mapping[str, Any]) -> str:
    """The format of a row, one of FORMATS, by its columns.

    Raises:
        DataError: none fits.
    """
    there = {name for name, value in fields.items() if value is not None}
    if "conversations" in there or ("messages" in there and _says_from(fields["messages"])):
        return "sharegpt"
    if "messages" in there:
        return "conversational"
    if there & {"student_response", "student_caption", "student_cot"}:
        return "pairs"
    if "reward_model" in there or ("data_source" in there and isinstance(fields.get("prompt"), Sequence)):
        return "verl"
    if "question" in there:
        return "plain"
    if "prompt" in there:
        return "conversational"
    raise DataError(f"columns: no question in {printable(', '.join(sorted(there))) or 'any'}", QUESTION_CURE)


def parse(format: str, fields: Mapping[str, Any]) -> ParsedRow:
    """A row in one of FORMATS, parsed.

    Raises:
        DataError: `field: what was found`, with the cure in its hint.
    """
    for name in ("videos", "audios"):
        if fields.get(name):
            raise DataError(f"{name}: there are some, and only pictures are read", "drop the row")
    turns, marks = _unmarked(_turns(format, fields))
    answered = bool(turns) and turns[-1]["role"] == "assistant"
    prompt, demonstration = (turns[:-1], turns[-1]["content"]) if answered else (turns, None)
    _check_order(prompt)
    return ParsedRow(
        id=None if fields.get("id") in (None, "") else str(fields["id"]),
        prompt=prompt,
        images=_images(fields),
        marks=marks,
        answers=_answers(format, fields),
        teacher_response=_response(fields, "teacher"),
        student_response=_response(fields, "student"),
        caption=_text(fields, "caption"),
        demonstration=demonstration,
    )


# Turns ---------------------------------------------------------------------------------------------------------------


def _turns(format: str, fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The conversation as it is written, the demonstration last if there is one."""
    if format == "plain":
        turns = [*_as_turns("question", fields.get("question"), "user")]
        turns += _as_turns("response", fields.get("response"), "assistant") if fields.get("response") else []
    elif format == "sharegpt":
        name = "conversations" if fields.get("conversations") is not None else "messages"
        turns = _as_turns(name, fields.get(name))
    elif format == "conversational" and fields.get("messages") is not None:
        turns = _as_turns("messages", fields["messages"])
    else:
        name = "prompt" if fields.get("prompt") is not None else "question"
        turns = _as_turns(name, fields.get(name), "user")
        if fields.get("completion"):
            turns += _as_turns("completion", fields["completion"], "assistant")
    system = _text(fields, "system")
    own = turns[0].get("role", turns[0].get("from")) == "system"
    return [{"role": "system", "content": system}, *turns] if system and not own else turns


def _as_turns(name: str, value: Any, role: str | None = None) -> list[Mapping[str, Any]]:
    """A list of turns; a text alone is one turn of `role`."""
    if isinstance(value, str) and value and role:
        return [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(f"{name}: {_shown(value)}", QUESTION_CURE)
    if not all(isinstance(turn, Mapping) for turn in value):
        raise DataError(f"{name}: its messages are no turns", "write each as `role` and `content`")
    return list(value)


def _says_from(turns: Any) -> bool:
    first = turns[0] if isinstance(turns, Sequence) and turns else None
    return isinstance(first, Mapping) and first.get("from") is not None


def _unmarked(turns: Sequence[Mapping[str, Any]]) -> tuple[list[Turn], int]:
    """Turns as role and plain text, and how many pictures the users' turns mark."""
    found, marks = [], 0
    for number, turn in enumerate(turns, 1):
        named, content = (turn.get(a) if turn.get(a) is not None else turn.get(b) for a, b in _TURN_KEYS)
        role = ROLES.get(named) if isinstance(named, str) else None
        if role is None:
            raise DataError(f"turn {number}: role {_shown(named)}", f"write one of {', '.join(ROLES)}")
        text, items = _plain(content, number)
        if role == "user":
            marks += items + text.count(IMAGE_MARK)
            text = text.replace(IMAGE_MARK, "").strip()
        if not text.strip() and role != "system":
            raise DataError(f"turn {number}: the {role}'s text is empty", "give it, or drop the row")
        if text.strip():
            found.append({"role": role, "content": text})
    return found, marks


_TURN_KEYS = (("role", "from"), ("content", "value"))


def _plain(content: Any, number: int) -> tuple[str, int]:
    """A turn's text, and how many image items stand in it."""
    if isinstance(content, str):
        return content, 0
    if not isinstance(content, Sequence) or not all(isinstance(item, Mapping) for item in content):
        raise DataError(f"turn {number}: its content: {_shown(content)}", "give a text, or a list of items")
    for item in content:
        if item.get("type") not in (*TEXT_ITEMS, *IMAGE_ITEMS):
            raise DataError(f"turn {number}: an item's type {_shown(item.get('type'))}", "give texts and images alone")
    texts = [item["text"] for item in content if isinstance(item.get("text"), str) and item["type"] in TEXT_ITEMS]
    return " ".join(filter(None, texts)), sum(item["type"] in IMAGE_ITEMS for item in content)


def _check_order(prompt: Sequence[Turn]) -> None:
    """A prompt is user and assistant in turn, a system message before them, the question last."""
    roles = [turn["role"] for turn in prompt]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    expected = ["user", "assistant"] * (len(spoken) // 2) + ["user"]
    if spoken != expected:
        raise DataError(
            f"turns: a prompt with the roles {', '.join(roles) or 'of nobody'}",
            "user and assistant take turns after at most one system message; the last but the answer is the user",
        )


# The other columns ---------------------------------------------------------------------------------------------------


def _images(fields: Mapping[str, Any]) -> list[Any]:
    # `file_name` is how metadata.jsonl of an image folder names the picture.
    for name in ("images", "image", "file_name"):
        if fields.get(name):
            found = _listed(fields[name])
            if None in found:
                raise DataError(f"{name}: one of its {len(found)} pictures is null", "give it, or drop the row")
            return found
    return []


def _answers(format: str, fields: Mapping[str, Any]) -> list[str]:
    found = fields.get("answers") if fields.get("answers") is not None else fields.get("answer")
    if format == "verl" and (model := _reward_model(fields)) is not None:
        found = model.get("ground_truth")
    found = _listed(found)
    if not all(isinstance(answer, str | int | float) for answer in found):
        raise DataError(f"answers: {_shown(found)}", "give texts or numbers")
    return [str(answer) for answer in found]


def _reward_model(fields: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The column of that name; some files hold it as JSON in a text."""
    found = fields.get("reward_model")
    if isinstance(found, str):
        try:
            found = json_value(found)
        except ValueError as error:
            raise DataError(f"reward_model: {error}", "give an object with `ground_truth`") from None
    if found is not None and not isinstance(found, Mapping):
        raise DataError(f"reward_model: {_shown(found)}", "give an object with `ground_truth`")
    return found


def _listed(value: Any) -> list[Any]:
    """A list as it is, or a value alone."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _response(fields: Mapping[str, Any], who: str) -> str | None:
    """Someone's whole text, or its caption and reasoning joined; these are published with their tags."""
    pieces = [_text(fields, f"{who}_caption"), _text(fields, f"{who}_cot")]
    return _text(fields, f"{who}_response") or "\n".join(filter(None, pieces)) or None


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{name}: {_shown(value)}", "give a text")
    return value or None


def _shown(value: Any) -> str:
    if value is None:
        return "is missing"
    return f"found {json.dumps(value, default=str, ensure_ascii=False)[:60]}"


def printable(text: str) -> str:
    """A text on one line that can't steer the terminal, whatever a row holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
