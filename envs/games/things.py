"""Things to be guessed, and what is true of them: enough to play twenty questions without a model."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Property: the phrases by which a question asks for it. Of two that begin at the same place, the longer one counts.
PROPERTIES: Mapping[str, tuple[str, ...]] = {
    "alive": ("alive", "living", "does it grow", "organism"),
    "animal": ("animal", "creature", "beast"),
    "plant": ("plant", "vegetation"),
    "flies": ("fly", "flies", "wings", "in the air"),
    "swims": ("swim", "swims", "live in water", "in the sea", "on water", "under water"),
    "big": (
        "bigger than a person",
        "larger than a person",
        "bigger than a human",
        "bigger",
        "larger",
        "big",
        "large",
        "heavy",
    ),
    "food": ("eat it", "eaten", "edible", "food", "something to eat", "eat"),
    "made": ("made by people", "man-made", "manmade", "artificial", "made by humans", "invented", "object"),
    "metal": ("metal", "steel", "iron"),
    "electric": ("electric", "electricity", "electronic", "plug", "battery", "power"),
    "home": ("in a house", "at home", "indoors", "in a room", "household", "inside"),
    "wheels": ("wheels", "wheel", "roll"),
    "soft": ("soft", "fluffy"),
    "hand": ("hold it in one hand", "in your hand", "in a hand", "hold it", "carry", "small"),
    "legs": ("four legs", "legs"),
    "dangerous": ("dangerous", "danger", "hurt", "harmful"),
    "sweet": ("sweet", "sugar"),
    "music": ("music", "instrument", "sound"),
    "worn": ("wear", "worn", "clothing", "clothes"),
    "sky": ("in the sky", "in space", "sky", "space"),
}

_TABLE = """
dog         alive animal legs home soft
cat         alive animal legs home soft hand
cow         alive animal legs big food
horse       alive animal legs big
lion        alive animal legs big dangerous
elephant    alive animal legs big swims
mouse       alive animal legs hand soft
rabbit      alive animal legs hand soft food
eagle       alive animal flies dangerous
chicken     alive animal flies food
bee         alive animal flies hand dangerous
butterfly   alive animal flies hand
shark       alive animal swims big dangerous
whale       alive animal swims big
salmon      alive animal swims food
frog        alive animal swims legs hand
snake       alive animal dangerous
duck        alive animal flies swims food
tree        alive plant big
rose        alive plant hand dangerous
grass       alive plant soft
cactus      alive plant dangerous home
apple       food sweet plant hand
banana      food sweet plant hand soft
carrot      food plant hand
bread       food made hand soft
cheese      food made hand
cake        food made sweet soft
chocolate   food made sweet hand
egg         food hand
car         made metal wheels big dangerous
bicycle     made metal wheels
train       made metal wheels big electric
airplane    made metal wheels big flies
boat        made swims big
submarine   made metal swims big
rocket      made metal flies big dangerous sky
balloon     made flies hand soft
kite        made flies hand
lamp        made electric home
computer    made electric home metal
telephone   made electric home hand
television  made electric home big
refrigerator made electric home big metal
radio       made electric home music
guitar      made music home
piano       made music home big
drum        made music
trumpet     made music metal hand
hammer      made metal hand
knife       made metal hand dangerous home
spoon       made metal hand home
scissors    made metal hand dangerous
book        made home hand
pencil      made hand
chair       made home legs
table       made home legs big
bed         made home legs big soft
pillow      made home soft
hat         made worn soft hand
shoe        made worn
shirt       made worn soft
ring        made worn metal hand
coat        made worn soft big
sun         sky big dangerous
moon        sky big
star        sky
cloud       sky soft
mountain    big
river       big swims
stone       hand
sand        soft hand
"""


def _read(table: str) -> dict[str, frozenset[str]]:
    rows = [line.split() for line in table.strip().splitlines()]
    return {word: frozenset(properties) for word, *properties in rows}


THINGS: Mapping[str, frozenset[str]] = _read(_TABLE)
"""What is true of each thing; no two have the same properties."""

_PHRASES = {phrase: name for name, phrases in PROPERTIES.items() for phrase in phrases}
_ASKED = re.compile(rf"\b({'|'.join(sorted(map(re.escape, _PHRASES), key=len, reverse=True))})\b")


def property_asked(question: str) -> str | None:
    """The property that a question is about; None where it is about none that is known, or about several."""
    found = {_PHRASES[phrase] for phrase in _ASKED.findall(question.lower())}
    return found.pop() if len(found) == 1 else None
