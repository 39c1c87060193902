"""Activations: bytes that a forward pass keeps for its backward pass, from the sizes of layers.

Counted off the models' own code, operation by operation; tests/unit/test_plan.py counts them again on real layers.
Letters: T tokens, H width, A and K all query and all key heads, I the MLP's inner width, k experts a token.
"""

from dataclasses import dataclass

from prism_cli.planning.shapes import Shape, Tower


@dataclass(frozen=True)
class Arithmetic:
    """Number formats while computing.

    Attributes:
        weight_bytes: Of a weight that is computed with: 4 or 2.
        autocast: Matrix products in bfloat16 beside float32 weights.
        checkpointing: Only each layer's input is kept; the layer is computed again in the backward pass.
    """

    weight_bytes: int
    autocast: bool
    checkpointing: bool

    @property
    def product(self) -> int:
        """Bytes of a number that comes out of a matrix product."""
        return 2 if self.autocast else self.weight_bytes

    @property
    def stream(self) -> int:
        """Bytes of a number between layers."""
        return self.weight_bytes


def text_layer(tower: Tower, how: Arithmetic) -> int:
    """Bytes a token that one layer of a language model keeps."""
    h, a, k, i = tower.hidden, tower.query, tower.keys, tower.inner
    if how.autocast:
        plain = 26 * h + 10 * a + 10 * k
    elif how.weight_bytes == 4:
        plain = 24 * h + 16 * a + 16 * k
    else:
        plain = 16 * h + 10 * a + 10 * k
    if not tower.active:
        return plain + 4 * how.product * i
    # Experts' products are not among those that autocast computes in bfloat16; only the router reads a cast.
    return plain - (2 * h if how.autocast else 0) + tower.active * how.weight_bytes * (2 * h + 4 * i)


def vision_layer(tower: Tower, how: Arithmetic) -> int:
    """Bytes a patch that one layer of the vision tower keeps."""
    h, i = tower.hidden, tower.inner
    if how.autocast:
        return 26 * h + 4 * i
    return how.weight_bytes * (11 * h + 2 * i)


def passing(tower: Tower, how: Arithmetic) -> int:
    """Bytes a token that are there for a moment beside what is kept, in a layer's backward pass."""
    return 3 * how.product * tower.inner * max(1, tower.active) + 2 * how.stream * tower.hidden


@dataclass(frozen=True)
class Row:
    """Input of one pass.

    Attributes:
        tokens: Of the language model, padding included.
        patches: Of all pictures.
        prefix: Keys and values that are copied in front of continuations, in tokens; 0 where nothing is packed.
        mask: Numbers of the largest attention mask.
    """

    tokens: int
    patches: int
    prefix: int = 0
    mask: int = 0


def packed_row(prompts: int, prompt: int, parts: int, length: int, patches: int, shape: Shape) -> Row:
    """Parts of a length behind their prompts, in one row.

    Args:
        prompts: Prompts in the row.
        prompt: Tokens of a prompt.
        parts: Continuations in the row.
        length: Tokens of each.
        patches: Of a prompt's picture.
        shape: Of the model that reads it.
    """
    group = shape.text.query // shape.text.keys
    return Row(
        prompts * prompt + parts * length,
        prompts * patches,
        parts * (prompt + length),
        group * length * (prompt + length),
    )


def kept(shape: Shape, row: Row, how: Arithmetic, into_vision: bool = True) -> int:
    """Bytes that are held when the backward pass begins, all layers together.

    Args:
        shape: Of the model.
        row: What it reads.
        how: The arithmetic.
        into_vision: Whether gradients go into the vision tower.
    """
    text, vision = shape.text, shape.vision
    between = how.stream * text.hidden
    # In front of the layers and behind them: embeddings with and without pictures, the last norm, the tokens' head.
    total = row.tokens * 8 * between
    if how.checkpointing:
        total += row.tokens * text.layers * between + one_layer(shape, row, how)
    else:
        total += text.layers * (row.tokens * text_layer(text, how) + _packing(shape, row, how))
        total += row.tokens * passing(text, how)
    if vision is None or not row.patches:
        return total
    total += row.patches * shape.patch_values * 4
    if into_vision:
        merged = row.patches * vision.hidden * 4 * how.product  # what turns patches into tokens
        layer = how.stream * vision.hidden if how.checkpointing else vision_layer(vision, how)
        total += row.patches * vision.layers * layer + merged
    return total


def one_layer(shape: Shape, row: Row, how: Arithmetic) -> int:
    """Bytes of one layer in its backward pass: of text or of the vision tower, whichever holds more."""
    text = row.tokens * (text_layer(shape.text, how) + passing(shape.text, how)) + _packing(shape, row, how)
    if shape.vision is None:
        return text
    return max(text, row.patches * (vision_layer(shape.vision, how) + passing(shape.vision, how)))


def _packing(shape: Shape, row: Row, how: Arithmetic) -> int:
    """Bytes that packing adds to a layer: prompts' keys and values once per part, queries and outputs in order, a
    mask."""
    if not row.prefix:
        return 0
    text = shape.text
    copies = (row.prefix - row.tokens) * 2 * text.keys * how.product
    return max(0, copies) + row.tokens * 2 * text.query * how.product + row.mask * (1 + how.product)


def momentary(shape: Shape, row: Row, how: Arithmetic) -> int:
    """Bytes of a pass without gradients: one layer's numbers, of text or of the vision tower."""
    text, vision = shape.text, shape.vision
    most = row.tokens * (3 * how.stream * text.hidden + 3 * how.product * text.inner * max(1, text.active))
    if vision is not None:
        most = max(most, row.patches * (3 * how.stream * vision.hidden + 2 * how.product * vision.inner))
    return most + row.patches * shape.patch_values * 4
