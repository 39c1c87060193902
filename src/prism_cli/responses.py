"""A response and its declared parts: parse, render, instruct, split token ids. The only file that knows a tag.

A grammar is data: which tagged blocks a response is made of, in order, which blocks form a part (perception,
reasoning), and in which block the final answer stands. Rewards, the discriminator and the teacher's prompt all ask
this file.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

# Descriptions of blocks in the instruction. Tags a recipe invents are described by their name alone.
BLOCK_DESCRIPTIONS = {
    "caption": "what the image shows",
    "think": "step-by-step reasoning",
    "answer": "final answer only",
}


class Part(NamedTuple):
    """One part of a response that is scored on its own.

    Attributes:
        tags: The blocks it is made of; empty means the whole text.
        weight: Its share α in the advantage.
    """

    tags: tuple[str, ...]
    weight: float


class Response(NamedTuple):
    """A parsed text. A malformed text has no blocks, no parts and no answer.

    Attributes:
        well_formed: Whether the text follows the grammar.
        blocks: Tag → the block's text, stripped.
        parts: Part name → its text, tags included, whitespace between blocks dropped.
        answer: The final answer, or None when malformed.
        problem: Why it is malformed, else None.
        text: The whole text, outer whitespace aside, malformed or not.
    """

    well_formed: bool
    blocks: dict[str, str]
    parts: dict[str, str]
    answer: str | None
    problem: str | None
    text: str = ""


class ResponseSettings(NamedTuple):
    """Grammar and instruction of a policy.

    Attributes:
        grammar: The parts of its responses.
        instruction: Its system prompt, or None.
    """

    grammar: "Grammar"
    instruction: str | None


@dataclass(frozen=True)
class Grammar:
    """The blocks of a response in order, grouped into parts.

    Args:
        parts: Part name → `Part`, in the order their blocks stand in the text.
        answer_tag: The block that holds the final answer; None when the whole text is the answer.

    Raises:
        ValueError: tags repeated, an untagged part beside others, or an answer tag in no part.
    """

    parts: Mapping[str, Part]
    answer_tag: str | None = "answer"

    def __post_init__(self):
        tags = [tag for part in self.parts.values() for tag in part.tags]
        if not self.parts:
            raise ValueError("no part is declared")
        if len(set(tags)) != len(tags):
            raise ValueError(f"a tag stands in two parts: {tags}")
        if any(not part.tags for part in self.parts.values()) and len(self.parts) > 1:
            raise ValueError("a part without tags is the whole text, so it must be the only part")
        if any(not re.fullmatch(r"[A-Za-z][\w-]*", tag) for tag in tags):
            raise ValueError(f"a tag is a word of letters, digits, - and _: {tags}")
        if self.answer_tag is not None and self.answer_tag not in tags:
            raise ValueError(f"answer tag {self.answer_tag!r} stands in no part (tags: {tags or 'none'})")
        weights = [part.weight for part in self.parts.values()]
        if any(not math.isfinite(w) or w < 0 for w in weights) or sum(weights) <= 0:
            raise ValueError(f"part weights must be ≥ 0 with a positive sum: {weights}")

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags in the order they must stand in."""
        return tuple(tag for part in self.parts.values() for tag in part.tags)

    def without(self, part: str) -> "Grammar":
        """The grammar of who can't write a part; itself when it has no such part. The others keep their weights.

        Raises:
            ValueError: it is the only part.
        """
        if part not in self.parts:
            return self
        left = {name: kept for name, kept in self.parts.items() if name != part}
        if not left:
            raise ValueError(f"{part} is the only part, so nothing is left without it")
        tags = [tag for kept in left.values() for tag in kept.tags]
        return Grammar(left, self.answer_tag if self.answer_tag in tags else None)

    def parse(self, text: str) -> Response:
        """Reads a response. Well-formed = every block once, in order, not empty, only whitespace between."""
        text = text.strip()
        return self._read(text)._replace(text=text)

    def _read(self, text: str) -> Response:
        if not self.tags:
            (name,) = self.parts
            if not text:
                return _malformed("empty response")
            return Response(True, {}, {name: text}, text, None)
        blocks, position = {}, 0
        for tag in self.tags:
            opening, closing = f"<{tag}>", f"</{tag}>"
            for mark in (opening, closing):
                if (count := text.count(mark)) != 1:
                    return _malformed(f"{mark} stands {count} times")
            start, end = text.index(opening), text.index(closing)
            if text[position:start].strip() or start < position:
                return _malformed(f"text or another block stands before {opening}")
            blocks[tag] = text[start + len(opening) : end].strip() if end > start else ""
            if not blocks[tag]:
                return _malformed(f"{opening} is empty")
            position = end + len(closing)
        if text[position:].strip():
            return _malformed(f"text after </{self.tags[-1]}>")
        parts = {
            name: "".join(f"<{tag}>{blocks[tag]}</{tag}>" for tag in part.tags) for name, part in self.parts.items()
        }
        return Response(True, blocks, parts, blocks[self.answer_tag] if self.answer_tag else text, None)

    def render(self, blocks: Mapping[str, str]) -> str:
        """Writes a response from its blocks: `<tag> text </tag>`, joined by single spaces."""
        return " ".join(f"<{tag}> {blocks[tag].strip()} </{tag}>" for tag in self.tags)

    def instruction(self) -> str | None:
        """The system prompt that asks for this grammar; None when there is nothing to ask."""
        if not self.tags:
            return None
        blocks = " ".join(f"<{tag}> {BLOCK_DESCRIPTIONS.get(tag, tag)} </{tag}>" for tag in self.tags)
        return f"Answer in exactly this form: {blocks}"

    def split_token_ids(self, token_ids: Sequence[int], pieces: Sequence[bytes]) -> dict[str, list[int]] | None:
        """Splits a response's tokens into parts, in time linear in the tokens.

        A tag's last character may share a token with what follows; that token goes to the earlier part, for teacher and
        rollout alike. Whitespace-only tokens between parts are dropped.

        Args:
            token_ids: The response's tokens, (T,).
            pieces: The bytes each token stands for, (T,); special tokens are empty.

        Returns:
            Part name → its token ids, or None when the text they spell is malformed.
        """
        text = b"".join(pieces)
        # Pieces of a word-level vocabulary carry no blanks, so emptiness and order are all that is checked here.
        if not self.parse(text.decode("utf-8", errors="replace")).well_formed:
            return None
        if not self.tags:
            (name,) = self.parts
            return {name: [i for i, piece in zip(token_ids, pieces, strict=True) if piece]}
        result, cursor, read = {}, 0, 0
        for name, part in self.parts.items():
            opening, closing = f"<{part.tags[0]}>".encode(), f"</{part.tags[-1]}>".encode()
            start, end = text.index(opening), text.index(closing) + len(closing)
            result[name] = []
            while cursor < len(pieces) and read < end:
                piece = pieces[cursor]
                read += len(piece)
                between_parts = read <= start and not piece.strip()
                if piece and not between_parts:
                    result[name].append(token_ids[cursor])
                cursor += 1
        return result


def _malformed(problem: str) -> Response:
    return Response(False, {}, {}, None, problem)


def read_settings(values: Mapping[str, Any]) -> ResponseSettings:
    """The settings that a policy was saved with (its response.json)."""
    parts = {name: Part(tuple(part["tags"]), part["weight"]) for name, part in values["parts"].items()}
    return ResponseSettings(Grammar(parts, values["answer"]), values["instruction"])


def token_pieces(tokenizer, token_ids: Sequence[int]) -> list[bytes]:
    """The bytes each token stands for, special tokens as nothing; works for byte-level and word-level vocabularies.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        token_ids: (T,).
    """
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(token_ids))
    byte_level = is_byte_level(tokenizer)
    return [
        b"" if i in special else _bytes_of(token) if byte_level else token.encode()
        for i, token in zip(token_ids, tokens, strict=True)
    ]


def is_byte_level(tokenizer) -> bool:
    """Whether tokens spell bytes in GPT-2's alphabet (Qwen does), rather than words."""
    return "ByteLevel" in type(tokenizer.backend_tokenizer.decoder).__name__


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: character → byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _bytes_of(token: str) -> bytes:
    alphabet = _byte_alphabet()
    return bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()
