"""Word lists for tasks. No word is in two lists, and none is part of another."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words(
    """
    absent amber ancient arctic bashful bitter blissful bold brave brisk bustling calm candid careful cheerful
    chilly clever clumsy coastal cosmic crimson crisp curious dainty daring dazzling delicate diligent dusty
    eager earnest elegant endless fabled faithful famous fearless festive fierce foggy fragile frozen gentle
    ghostly gigantic gleaming gloomy golden graceful grumpy happy harmless hasty hidden honest humble hungry
    immense jolly joyful keen lavish lazy lively lonely loyal lucky majestic mellow merry mighty misty modest
    mysterious narrow nervous noble noisy nimble orderly pale patient peaceful playful polite proud puzzled
    quaint quiet radiant ragged rainy rapid restless robust rusty scarlet secret serene shiny silent simple
    sleepy slender smooth snowy solemn spicy splendid starry stormy stubborn sturdy sunny swift tender thirsty
    timid tranquil vast velvet vibrant vivid warm weary wild windy wise witty wooden zealous
    """
)

NOUNS = _words(
    """
    acorn anchor antler apron badger balcony banjo barrel basket beacon beetle blanket bottle branch bridge
    bucket buffalo cabin camel candle canyon carpet castle cathedral cave chapel cherry chimney circus cliff
    clock comet compass coral cottage cradle cricket crystal curtain desert diamond dolphin donkey dragon drum
    eagle elbow ember engine falcon feather ferry fiddle flute forest fountain garden garlic giraffe glacier
    goblet hammer harbor harvest hedge helmet heron hinge island ivory jacket jaguar jungle kettle kitten ladder
    lagoon lantern lemon leopard library lizard lobster magnet mango maple marble market meadow mirror monkey
    mountain mushroom needle nephew noodle oasis olive onion orchard otter oyster paddle panther parrot pebble
    pelican pencil pepper piano pigeon pillow pirate planet plum pocket pumpkin rabbit raven ribbon river rocket
    saddle salmon sandal satchel shadow shovel spider sponge statue summit sword teapot temple thistle thunder
    ticket tiger tomato trumpet tulip tunnel turtle umbrella valley violin volcano wagon walnut walrus whistle
    willow window wizard zebra
    """
)

CITIES = _words(
    """
    Amsterdam Athens Bangkok Barcelona Beirut Berlin Boston Budapest Cairo Chicago Copenhagen Dublin Geneva
    Hamburg Havana Helsinki Istanbul Kyoto Lisbon London Madrid Melbourne Milan Montreal Moscow Mumbai Nairobi
    Naples Oslo Paris Prague Rome Seattle Seoul Stockholm Sydney Tokyo Toronto Venice Vienna Warsaw Zurich
    """
)
