"""A generator of short English texts: stories, conversations, descriptions, sums, facts, lists, code and vocabulary.

Every text is coherent in itself: a name keeps its pronouns, a lost thing keeps its colour until it is found, a sum is
right. What a seed yields is fixed. A text belongs to the evaluation set or to the training set by a checksum of its
own words (``is_held_out``), so no text is ever in both, whatever the seeds and the amounts.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator

from words import (
    ANIMALS,
    COLOURS,
    COUNTRIES,
    DAYS,
    FEELINGS,
    FRUITS,
    HIDING_PLACES,
    MONTHS,
    NUMBERS,
    PEOPLE,
    PLACES,
    PROVERBS,
    SEASONS,
    SIZES,
    THINGS,
    TRADES,
    TRANSLATIONS,
    WARNINGS,
    WEATHER,
    Animal,
    Person,
)

HELD_OUT_SHARE = 16
"""One text in this many is kept for the evaluation."""


def article(noun: str) -> str:
    """The noun with ``a`` or ``an`` before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def upper_first(sentence: str) -> str:
    """The sentence with a capital at its start."""
    return sentence[0].upper() + sentence[1:]


def lost_and_found(rng: random.Random) -> str:
    """Somebody loses a thing, asks two others for it, and has it back."""
    hero, friend = rng.sample(PEOPLE, 2)
    animal, colour, thing = rng.choice(ANIMALS), rng.choice(COLOURS), rng.choice(THINGS)
    place, hidden = rng.choice(PLACES), rng.choice(HIDING_PLACES)
    people = ["girl", "woman"] if hero.they == "she" else ["boy", "man"]
    other = rng.choice([h for h in HIDING_PLACES if h != hidden])
    text = [
        rng.choice(
            [
                f"Once upon a time there was a {rng.choice(people)} called {hero.name} who lived {place}.",
                f"{hero.name} lived {place} with {article(animal.name)}.",
                f"One {rng.choice(DAYS)} in {rng.choice(MONTHS)}, {hero.name} was {place}.",
            ]
        ),
        f"{upper_first(hero.they)} had {article(colour)} {thing}, and {hero.they} loved it very much.",
        rng.choice(
            [
                f"One morning the {thing} was gone.",
                f"But when {hero.they} woke up, the {colour} {thing} was not there.",
                f"Then one day {hero.they} lost the {thing}.",
                f"On {rng.choice(DAYS)} somebody took the {thing} away.",
            ]
        ),
        rng.choice([*WEATHER, f"{hero.name} was very {rng.choice(['sad', 'angry', 'afraid'])}."]),
        f"{upper_first(hero.they)} looked {other}, but the {thing} was not there.",
        f'"Have you seen my {colour} {thing}?" {hero.they} asked {friend.name}.',
        rng.choice(
            [
                f'"No," said {friend.name}, "but I will help you."',
                f'"Not today," said {friend.name}. "Ask the {animal.name}."',
            ]
        ),
        f"So {hero.name} and {friend.name} went to the {animal.name}, which lives in the {animal.home}.",
        f'"Your {thing} is {hidden}," said the {animal.name}.',
        rng.choice(
            [
                f"They looked {hidden}, and there was the {colour} {thing}.",
                f"{friend.name} ran ahead and found the {thing} {hidden}.",
                f"It took them {rng.choice(NUMBERS[2:11])} hours, but the {thing} was {hidden} indeed.",
            ]
        ),
        rng.choice(
            [
                f"{hero.name} thanked the {animal.name} and gave it some {animal.food}.",
                f"{hero.name} laughed and gave the {animal.name} some {animal.food}.",
            ]
        ),
        rng.choice(
            [
                f"From that day on {hero.name} and {friend.name} were good friends.",
                f"That evening {hero.name} went home with {hero.their} {thing} and was happy.",
                f"{hero.name} never left the {colour} {thing} {other} again.",
            ]
        ),
    ]
    return " ".join(text)


def day_at_work(rng: random.Random) -> str:
    """A working day, from the tool to what is sold in the evening."""
    hero, customer = rng.sample(PEOPLE, 2)
    trade = rng.choice(TRADES)
    season = rng.choice(list(SEASONS))
    feeling = rng.choice(["happy", "tired", "proud", "calm"])
    text = [
        f"{hero.name} is {article(trade.name)} and works in the {trade.place}.",
        f"In {season}, when {rng.choice(SEASONS[season])}, {hero.they} gets up at {rng.choice(NUMBERS[4:9])} o'clock.",
        f"First {hero.they} cleans {hero.their} {trade.tool}.",
        rng.choice(
            [
                f"Without the {trade.tool} there {'are' if trade.product.endswith('s') else 'is'} no {trade.product}.",
                f"The {trade.tool} is {rng.choice(SIZES)} and {rng.choice(COLOURS)}.",
            ]
        ),
        f"Every {rng.choice(DAYS)} {customer.name} comes to the {trade.place} and asks for {trade.product}.",
        f'"Good morning, {hero.name}," says {customer.name}. "How are you?"',
        f'"I am {feeling}," says {hero.name}. "Here is what you asked for."',
        f"In the evening the {trade.name} closes the {trade.place} and goes home, {feeling}.",
    ]
    return " ".join(text)


def fable(rng: random.Random) -> str:
    """A fable: one animal in need, another that helps or does not, and what is learnt from it."""
    first, second = rng.sample(ANIMALS, 2)
    place = rng.choice(PLACES)
    kind = rng.random() < 0.5
    text = [
        rng.choice(
            [
                f"{upper_first(article(first.name))} and {article(second.name)} met {place}.",
                f"{upper_first(article(first.name))} left its {first.home} and met {article(second.name)} {place}.",
            ]
        ),
        rng.choice(WEATHER),
        f'"I am hungry," said the {first.name}. "I have had no {first.food} since {rng.choice(DAYS)}."',
    ]
    if kind:
        text += [
            f'"Come with me to the {second.home}," said the {second.name}. "We will find {first.food} for two."',
            f"So the {first.name} went with the {second.name} and ate until it was full.",
            f"When winter came, the {second.name} was in need, and the {first.name} remembered it.",
            rng.choice(PROVERBS),
        ]
    else:
        text += [
            f'"That is not my trouble," said the {second.name}, and it went back to its {second.home}.',
            f"The {first.name} walked on alone and found some {first.food} at last.",
            f"When winter came, the {second.name} was in need, but nobody was there to help it.",
            rng.choice(WARNINGS),
        ]
    return " ".join(text)


def conversation(rng: random.Random) -> str:
    """A few lines of talk between two people about what one of them bought."""
    one, two = rng.sample(PEOPLE, 2)
    day, fruit, count = rng.choice(DAYS), rng.choice(FRUITS), rng.randint(2, 20)
    given = rng.randint(1, count - 1)
    place, feeling = rng.choice(PLACES), rng.choice(FEELINGS)
    lines = [
        f"{one.name}: Where were you on {day}?",
        f"{two.name}: I was {place}. I bought {NUMBERS[count]} {fruit}.",
        f"{one.name}: Do you still have all {NUMBERS[count]} of them?",
        f"{two.name}: No, I gave {NUMBERS[given]} to {rng.choice(['my mother', 'my brother', 'a friend'])}.",
        f"{one.name}: Then you have {NUMBERS[count - given]} left.",
        f"{two.name}: Yes. You look {feeling} today, {one.name}.",
        f"{one.name}: I am {feeling} because I was {rng.choice([p for p in PLACES if p != place])} all day.",
    ]
    return "\n".join(lines[: rng.randint(5, 7)])


def description(rng: random.Random) -> str:
    """A room or a place, thing by thing."""
    hero = rng.choice(PEOPLE)
    things = rng.sample(THINGS, 3)
    colours = rng.sample(COLOURS, 3)
    season = rng.choice(list(SEASONS))
    first, second = SEASONS[season]
    text = [
        f"It is {season}. {upper_first(first)} and {second}.",
        f"In the house of {hero.name} there is a table, and on the table there are three things:",
        f"{article(colours[0])} {things[0]}, {article(colours[1])} {things[1]} and {article(colours[2])} {things[2]}.",
        f"The {things[0]} is {rng.choice(SIZES)}, the {things[1]} is {rng.choice(SIZES)},"
        f" and the {things[2]} is {rng.choice(SIZES)}.",
    ]
    asked = rng.randrange(3)
    text.append(f"{hero.name} likes the {colours[asked]} {things[asked]} best.")
    text.append(f"If you ask {hero.them} for the {things[asked]}, {hero.they} says: it is {colours[asked]}.")
    return " ".join(text)


def portrait(rng: random.Random) -> str:
    """One animal, from its home to its young."""
    animal = rng.choice(ANIMALS)
    hero = rng.choice(PEOPLE)
    sentences = [animal_fact(animal, number) for number in range(5)]
    rng.shuffle(sentences)
    owner = f"{hero.name} has {article(rng.choice(COLOURS))} {animal.name}. {upper_first(hero.they)} gives it"
    return " ".join([*sentences, f"{owner} {animal.food} every {rng.choice(DAYS)}."])


def animal_fact(animal: Animal, number: int) -> str:
    """One of the five things that are known about every animal."""
    facts = (
        f"The {animal.name} lives in the {animal.home}.",
        f"The {animal.name} eats {animal.food}.",
        f"The {animal.name} {animal.sound}.",
        f"The {animal.name} has {NUMBERS[animal.legs]} legs.",
        f"A young {animal.name} is called {article(animal.young)}.",
    )
    return facts[number]


def riddle(rng: random.Random) -> str:
    """A description of an animal, and then its name."""
    animal = rng.choice(ANIMALS)
    clues = [
        f"it lives in the {animal.home}",
        f"it eats {animal.food}",
        f"it {animal.sound}",
        f"it has {NUMBERS[animal.legs]} legs",
        f"its young one is called {article(animal.young)}",
    ]
    rng.shuffle(clues)
    asker, guesser = rng.sample(PEOPLE, 2)
    return (
        f'"What is it?" asked {asker.name}. "{upper_first(clues[0])}, {clues[1]}, {clues[2]}, and {clues[3]}."'
        f' "That is the {animal.name}," said {guesser.name}. "{upper_first(clues[4])}."'
    )


def letter(rng: random.Random) -> str:
    """A letter from a place, with a gift in it."""
    sender, receiver = rng.sample(PEOPLE, 2)
    country, colour, thing = rng.choice(COUNTRIES), rng.choice(COLOURS), rng.choice(THINGS)
    animal, feeling = rng.choice(ANIMALS), rng.choice(FEELINGS)
    lines = [
        f"Dear {receiver.name},",
        f"I am in {country.capital} now, and I am {feeling}. {rng.choice(WEATHER)}"
        f" Everybody here speaks {country.language}, but I do not understand much.",
        f"With this letter comes {article(colour)} {thing} for you."
        f" I saw the {thing} {rng.choice(PLACES)} and thought of you.",
        f"Please give my {animal.name} some {animal.food}. I will be back from {country.name} in {rng.choice(MONTHS)}.",
        f"Your {sender.name}",
    ]
    return "\n".join(lines)


def sums(rng: random.Random) -> str:
    """Additions, subtractions and small products, in figures and in words."""
    lines = []
    for _ in range(rng.randint(3, 6)):
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        form = rng.randrange(4)
        if form == 0:
            lines.append(f"{a} + {b} = {a + b}")
        elif form == 1:
            lines.append(f"{a + b} - {b} = {a}")
        elif form == 2:
            lines.append(f"{a} * {b} = {a * b}")
        else:
            lines.append(f"{upper_first(NUMBERS[a])} and {NUMBERS[b]} make {NUMBERS[a + b]}.")
    return "\n".join(lines)


def shopping_list(rng: random.Random) -> str:
    """A list to buy from, and its total."""
    hero = rng.choice(PEOPLE)
    items = rng.sample(FRUITS, rng.randint(2, 4))
    counts = [rng.randint(2, 6) for _ in items]
    lines = [f"{hero.name} goes to the market on {rng.choice(DAYS)} and buys:"]
    lines += [f"- {count} {item}" for count, item in zip(counts, items, strict=True)]
    lines.append(f"That is {sum(counts)} in all. {upper_first(hero.they)} pays {sum(counts) * 2} coins, 2 for each.")
    return "\n".join(lines)


def travel(rng: random.Random) -> str:
    """A journey through two countries."""
    hero: Person = rng.choice(PEOPLE)
    first, second = rng.sample(COUNTRIES, 2)
    text = [
        f"In {rng.choice(MONTHS)} {hero.name} went to {first.name}.",
        f"The capital of {first.name} is {first.capital}, and people there speak {first.language}.",
        f"{upper_first(hero.they)} stayed in {first.capital} for {rng.choice(NUMBERS[2:11])} days"
        f" and bought {article(rng.choice(COLOURS))} {rng.choice(THINGS)}.",
        f"Then {hero.they} took the train to {second.capital}, the capital of {second.name},"
        f" where people speak {second.language}.",
        f"{hero.name} liked {rng.choice([first, second]).capital} best.",
    ]
    return " ".join(text)


def vocabulary(rng: random.Random) -> str:
    """A few words of one other language."""
    language = rng.choice(list(TRANSLATIONS))
    pairs = rng.sample(list(TRANSLATIONS[language].items()), rng.randint(3, 5))
    lines = [f"Some words of {language}:"]
    return "\n".join(lines + [f"{english} = {other}" for english, other in pairs])


def code(rng: random.Random) -> str:
    """A Python function of a few lines, and what a call of it gives."""
    name, (symbol, word) = rng.choice("abcxyz"), rng.choice([("+", "add"), ("-", "take"), ("*", "times")])
    amount, argument = rng.randint(1, 9), rng.randint(1, 10)
    result = {"+": argument + amount, "-": argument - amount, "*": argument * amount}[symbol]
    return "\n".join(
        [
            f"def {word}_{NUMBERS[amount]}({name}):",
            f"    return {name} {symbol} {amount}",
            f"{word}_{NUMBERS[amount]}({argument})  # {result}",
        ]
    )


KINDS: list[tuple[Callable[[random.Random], str], int]] = [
    (lost_and_found, 6),
    (day_at_work, 4),
    (fable, 4),
    (conversation, 4),
    (description, 3),
    (portrait, 3),
    (travel, 3),
    (letter, 3),
    (riddle, 2),
    (shopping_list, 2),
    (sums, 2),
    (vocabulary, 2),
    (code, 1),
]


def is_held_out(text: str) -> bool:
    """Whether this text is reserved for the evaluation."""
    return zlib.crc32(text.encode("utf-8")) % HELD_OUT_SHARE == 0


def texts(seed: int, held_out: bool) -> Iterator[str]:
    """Endless texts, of the training set or (``held_out``) of the evaluation set."""
    rng = random.Random(seed)
    kinds, weights = zip(*KINDS, strict=True)
    while True:
        text = rng.choices(kinds, weights)[0](rng)
        if is_held_out(text) == held_out:
            yield text
