"""Ways to damage bytes and JSON, by a seeded generator."""

import json
import random

NUMBERS = (0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**70), 10**400, 1.5, 1e308, -1e308, float("nan"))
TEXTS = ("", "a", "\ud800", "\u202e", "\x1b[2J", "../../x", "[", '"', "\\", "x" * 3000, "float32", "9" * 5000)
SMALL = (None, True, False, *NUMBERS, *TEXTS)


def deep(rng):
    value = rng.choice(SMALL)
    for _ in range(rng.choice((3, 20, 200, 3000))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def some_value(rng):
    kind = rng.random()
    if kind < 0.7:
        return rng.choice(SMALL)
    if kind < 0.8:
        return [rng.choice(SMALL)] * rng.choice((0, 1, 3, 2000))
    if kind < 0.9:
        return {str(rng.choice(SMALL))[:40]: rng.choice(SMALL) for _ in range(rng.choice((0, 1, 5)))}
    return deep(rng)


def damage_bytes(data, rng, others=()):
    """Flip, cut, repeat, insert, remove or splice; several times over."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        until = min(len(data), at + rng.choice((1, 2, 8, 64)))
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at:until]
        elif kind == 4:
            data[at:at] = data[at:until] * rng.choice((1, 2, 50))
        elif kind == 5:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 16)))
        elif kind == 6:
            number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1, rng.randrange(2**16)))
            data[at : at + 8] = number.to_bytes(8, "little")
        elif others:
            other = rng.choice(others)
            data[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data)


def damage_tree(tree, rng):
    """Change one place in a JSON tree: put something else there, take it away, or add to it."""
    if rng.random() < 0.03:
        return some_value(rng)
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        if not len(keys):
            return tree
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.75:
            node = node[key]
            continue
        kind = rng.random()
        if kind < 0.7:
            node[key] = some_value(rng)
        elif kind < 0.85:
            del node[key]
        elif isinstance(node, dict):
            node[str(rng.choice(TEXTS))] = some_value(rng)
        else:
            node.insert(rng.randrange(len(node) + 1), some_value(rng))
        return tree


def damage_json(text, rng):
    """Damage JSON in its structure, mostly; else in its bytes."""
    if rng.random() < 0.25:
        return damage_bytes(text, rng, (text,))
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        tree = damage_tree(tree, rng)
    try:
        return json.dumps(tree, sort_keys=rng.random() < 0.5).encode()
    except RecursionError:
        return b"[" * 5000 + b"]" * 5000


def generator(seed, target):
    """One stream of random numbers for each seed and target."""
    return random.Random(f"{seed}/{target}")
