"""Damages file content as a bad disk, a broken copy, an editor or another program might."""

import json

import h5py
import numpy as np

JUNK = [None, True, -1, 0, 0.5, 10**400, float("nan"), float("inf"), "", "x", "\x1b[2J", "\ud800", [], [[]], {}, {"x": []}, 2**63]
CODES = "\x1b]0;x\x07", "a\nb", "\x7f", "\u202e"


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Returns the bytes with some of them changed, cut off, removed, doubled or replaced by random ones."""
    low, high = sorted(random.integers(len(content) + 1, size=2))
    flipped = bytearray(content)
    for place in random.integers(len(content), size=random.integers(1, 4)):
        flipped[place] ^= 1 << random.integers(8)
    ways = [
        *3 * [bytes(flipped)],
        content[:low],
        content[high:],
        content[:low] + bytes(len(content) - low),
        content[:low] + content[high:],
        content[:low] + random.bytes(high - low) + content[high:],
        content[:high] + content[low:],
        content.replace(b"0", b"1", 1),
        content + random.bytes(8),
    ]
    return ways[random.integers(len(ways))]


def edited(document, random: np.random.Generator) -> bytes:
    """Returns JSON in which one value or one key, at any depth, is replaced, removed or doubled."""
    if not document:
        return json.dumps(JUNK[random.integers(10)]).encode()
    document = json.loads(json.dumps(document))
    holder = document
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = keys[random.integers(len(keys))]
        if not isinstance(holder[key], dict | list) or not holder[key] or random.random() < 0.3:
            break
        holder = holder[key]
    way, junk = random.integers(5), JUNK[random.integers(len(JUNK))]
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[CODES[random.integers(len(CODES))]] = holder.pop(key)
    elif way == 2 and isinstance(holder, dict):
        text = json.dumps(document)
        return text.replace(f'"{key}":', f'"{key}": 0, "{key}":', 1).encode()
    else:
        holder[key] = junk
    return json.dumps(document).encode("utf-8", "surrogatepass")


def rewritten(path, columns: dict[str, np.ndarray], random: np.random.Generator) -> None:
    """Writes columns as another program might: one is missing, or has another type, shape, order, unit, name or place."""
    columns = dict(columns)
    key = list(columns)[random.integers(len(columns))]
    column = columns.pop(key)
    row = random.integers(len(column))

    def put(array) -> None:
        columns[key] = array

    def spoiled(value) -> np.ndarray:
        array = column.astype(np.float64)
        array[row] = value
        return array

    ways = [
        lambda: put(column.astype(np.float64)),
        lambda: put(column.astype(">f8")),
        lambda: put(column.astype(complex)),
        lambda: put(column.astype("S8")),
        lambda: put(column[:-1]),
        lambda: put(column[None]),
        lambda: put(column.T if column.ndim > 1 else column[:, None]),
        lambda: put(column[::-1]),
        lambda: put(np.roll(column, 1, axis=0)),
        lambda: put(2.5 * column),
        lambda: put(column[..., :0]),
        lambda: put(np.concatenate([column, column])),
        lambda: put(spoiled([np.nan, np.inf, 3e38, -1e300][random.integers(4)])),
        lambda: put(h5py.Empty("f8")),
        lambda: columns.__setitem__(f"{key}/{key}", column),
        lambda: columns.__setitem__(key + CODES[random.integers(len(CODES))], column),
        lambda: columns.__setitem__(f"group/{key}", column),
        lambda: None,  # the column is missing
    ]
    ways = ways[:-3] if key == "next_observations" else ways  # a file may lack this column
    ways[random.integers(len(ways))]()
    packed = [{}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}, {"fletcher32": True}][random.integers(4)]
    with h5py.File(path, "w") as file:
        for name, value in columns.items():
            file.create_dataset(name, data=value, **({} if isinstance(value, h5py.Empty) or not np.size(value) else packed))
