"""Questions and their answers, from the tables of ``words.py``: what the chat format is learnt from."""

from __future__ import annotations

import random
from collections.abc import Iterator

from stories import animal_fact, article, fable, is_held_out, portrait
from words import ANIMALS, COUNTRIES, DAYS, MONTHS, OPPOSITES, TRANSLATIONS


def questions(seed: int) -> Iterator[tuple[str, str]]:
    """Endless questions with their answers."""
    rng = random.Random(seed)
    while True:
        yield rng.choice([_ask_animal, _ask_country, _ask_word, _ask_sum, _ask_opposite, _ask_day, _ask_story])(rng)


def _ask_animal(rng: random.Random) -> tuple[str, str]:
    animal, number = rng.choice(ANIMALS), rng.randrange(5)
    asked = (
        f"Where does the {animal.name} live?",
        f"What does the {animal.name} eat?",
        f"What sound does the {animal.name} make?",
        f"How many legs does the {animal.name} have?",
        f"What is a young {animal.name} called?",
    )
    return asked[number], animal_fact(animal, number)


def _ask_country(rng: random.Random) -> tuple[str, str]:
    country = rng.choice(COUNTRIES)
    if rng.random() < 0.6:
        return f"What is the capital of {country.name}?", f"The capital of {country.name} is {country.capital}."
    return f"What do people speak in {country.name}?", f"People in {country.name} speak {country.language}."


def _ask_word(rng: random.Random) -> tuple[str, str]:
    language = rng.choice(list(TRANSLATIONS))
    english, other = rng.choice(list(TRANSLATIONS[language].items()))
    return f'How do you say "{english}" in {language}?', f'In {language}, "{english}" is "{other}".'


def _ask_sum(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    return f"What is {a} + {b}?", f"{a} + {b} = {a + b}"


def _ask_opposite(rng: random.Random) -> tuple[str, str]:
    word, other = rng.sample(rng.choice(OPPOSITES), 2)
    return f"What is the opposite of {word}?", f"The opposite of {word} is {other}."


def _ask_day(rng: random.Random) -> tuple[str, str]:
    table, unit = rng.choice([(DAYS, "day"), (MONTHS, "month")])
    place = rng.randrange(len(table))
    return f"Which {unit} comes after {table[place]}?", f"After {table[place]} comes {table[(place + 1) % len(table)]}."


def _ask_story(rng: random.Random) -> tuple[str, str]:
    while True:
        story = rng.choice([fable, portrait])(rng)
        if not is_held_out(story):
            break
    animal = next(a for a in ANIMALS if f" {a.name} " in story)
    return f"Tell me something about {article(animal.name)}.", story
