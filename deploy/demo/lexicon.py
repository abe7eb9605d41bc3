"""The closed vocabulary of the demo's posts: six key facts and one side detail, each a single word.

The word lists are disjoint from each other and from every other word of the templates, so that a text can be parsed
unambiguously: the ground truth (truth.py) depends on it, and a test checks it.
"""

KEY_FACTS: dict[str, tuple[str, ...]] = {
    "who": ("roommate", "sister", "boss", "neighbor", "cousin", "boyfriend", "landlord", "teacher"),
    "deed": ("sold", "lost", "burned", "painted", "ruined", "scratched", "borrowed", "pawned"),
    "thing": ("laptop", "bike", "car", "phone", "guitar", "couch", "jacket", "diary"),
    "excuse": ("joke", "mistake", "prank", "favor", "dare", "bet", "test", "lesson"),
    "feel": ("angry", "hurt", "scared", "guilty", "confused", "jealous", "lonely", "sad"),
    "ask": ("leave", "forgive", "apologize", "sue", "complain", "wait", "argue", "quit"),
}

DETAILS: dict[str, tuple[str, ...]] = {
    "city": ("boston", "denver", "austin", "dallas", "seattle", "memphis"),
}

FACTS: dict[str, tuple[str, ...]] = {**KEY_FACTS, **DETAILS}

SLOT_OF_WORD: dict[str, str] = {word: slot for slot, words in FACTS.items() for word in words}
