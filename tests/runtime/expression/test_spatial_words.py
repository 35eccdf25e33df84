"""Words of place and size, as people write them to tell one object from others."""

from rism.runtime.expression.spatial_words import Cues, read_cues

NOTHING = Cues()
LEFT, RIGHT, TOP, BOTTOM = Cues(across=-1), Cues(across=1), Cues(down=-1), Cues(down=1)
SMALL, LARGE = Cues(size=-1), Cues(size=1)

SAID = [
    (LEFT, [
        "left guy", "on the left of the image", "far left", "left side", "left side of the pic",
        "left hand side", "leftmost zebra", "the left one of the two",
        "man on the left with two dogs", "first from left", "the dog that is on the left",
        "guy on left not right", "woman with umbrella on the left", "guy holding a bat, left",
        "LEFT GUY!",
    ]),
    (RIGHT, [
        "man on the right", "right-hand corner", "the right most", "the one that's on the right",
        "guy on right next to the fence", "man in white shirt on right", "(right) zebra",
        "right\N{NO-BREAK SPACE}one\N{HORIZONTAL ELLIPSIS}",
    ]),
    (TOP, ["upper bunk", "the one on top", "the sandwich at the top of the picture"]),
    (BOTTOM, ["lower", "lowest shelf"]),
    (SMALL, ["the smaller of the two dogs", "the little girl", "small", "the dog which is small"]),
    (LARGE, ["biggest", "the largest elephant"]),
    (Cues(across=-1, several=True), ["the two cups on the left"]),
    (Cues(size=-1, several=True), ["both small dogs"]),
    (Cues(across=-1, down=-1), ["top left pizza", "upper left", "top-left"]),
    (Cues(across=1, down=1), ["bottom right corner"]),
    (Cues(middle=True), ["middle one", "donut in the centre of the photo"]),
    (Cues(across=-1, size=-1), ["small dog on the left"]),
    (Cues(across=1, size=1), ["big guy in blue on the right"]),
]  # fmt: skip
NOT_SAID = {
    "another object's place": [
        "the person to the left of the tv", "the dog left of the big car", "left of the tv",
        "person on left side of table", "the top right of the cake", "in the middle of the table",
        "the cat on top of the small box", "man behind the left car",
        "the bird that eats left over food",
    ],
    "another object's size": [
        "girl with a big umbrella", "man in the large hat", "dog on a huge sofa",
    ],
    "neither first nor last": [
        "second from left", "2nd guy from the right", "the third zebra on the left",
        "two from right", "second biggest",
    ],
    "denied": ["not the left one", "the dog that isn't small", "anyone except the right guy"],
    "a side of its own": ["right hand", "his left arm", "the right eye of the cat"],
    "where it looks": ["zebra facing left", "man looking to the right", "cow facing to right"],
    "of distance": ["guy right behind the girl", "the cup right next to the plate", "right there"],
    "worn": ["girl in pink top", "woman in the light blue top", "man wearing a top", "tank top"],
    "contradictory": ["the left one on the right", "top bottom", "the big small dog"],
    "of depth": ["girl in front", "front", "back"],
    "no words of place": [
        "", "!?", "laptop", "cleft rock", "\u00e9left", "brightest", "le chien \u00e0 gauche",
    ],
}  # fmt: skip


def test_cues() -> None:
    for cues, expressions in SAID:
        for expression in expressions:
            assert read_cues(expression) == cues, expression
    for what, expressions in NOT_SAID.items():
        for expression in expressions:
            assert read_cues(expression) == NOTHING, (what, expression)


def test_a_size_is_no_place() -> None:
    assert all(cues.place for cues in (LEFT, RIGHT, TOP, BOTTOM, Cues(middle=True)))
    assert not SMALL.place and not NOTHING.place


def test_long_expressions_take_no_time() -> None:
    """Regular expressions that backtrack would take minutes for these."""
    for word in ("left ", "right ", "in a ", "with the ", "to the far ", "1 from ", "that is "):
        read_cues(word * 4000)
